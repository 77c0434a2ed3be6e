"""Latency: paired figures on planted times, real files side by side, and the runtime's channel block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from compressor.errors import SourceError, UsageError
from compressor.export import block as blocks
from compressor.export.block import COARSEST, PAIRS, WIDTHS, Block, block_from, macs
from compressor.export.files import to_json
from compressor.export.latency import compare_latency, measured_block, summarize


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[int, Path]:
    """The same little network at two widths, nine times the work apart."""
    folder = tmp_path_factory.mktemp("latency")
    found = {}
    for width in (32, 96):
        found[width] = folder / f"w{width}.onnx"
        found[width].write_bytes(blocks.network(width))
    return found


def drifting(rng: np.random.Generator, ratio: float, rounds: int = 200) -> np.ndarray:
    """Times of two files on a machine whose speed changes by a factor of two, with outliers."""
    drift = np.exp(np.cumsum(rng.normal(0, 0.1, rounds)).clip(-0.7, 0.7))
    noise = np.exp(rng.normal(0, 0.05, (2, rounds)))
    outliers = np.where(rng.random((2, rounds)) < 0.05, 10.0, 1.0)
    return 1e-3 * drift * np.array([[1.0], [ratio]]) * noise * outliers


def test_paired_ratios_survive_drift_and_outliers():
    for seed in range(5):
        times = drifting(np.random.default_rng(seed), 0.8)
        base, small = summarize([Path("a"), Path("b")], times)
        assert (base.ratio, base.interval, base.p10_ratio) == (1.0, (1.0, 1.0), 1.0)
        assert small.ratio == pytest.approx(0.8, rel=0.03)
        assert small.interval[0] < small.ratio < small.interval[1]
        assert small.faster
        assert not base.faster


def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says():
    covered = 0
    for seed in range(100):
        found = summarize([Path("a"), Path("b")], drifting(np.random.default_rng(seed), 0.9, rounds=60))[1]
        covered += found.interval[0] <= 0.9 <= found.interval[1]
    assert 0.88 <= covered / 100 <= 1.0


def test_no_gain_is_claimed_where_there_is_none():
    claims = [
        summarize([Path("a"), Path("b")], drifting(np.random.default_rng(seed), 1.0))[1].faster for seed in range(50)
    ]
    assert sum(claims) <= 6


def test_bursts_of_other_work_widen_the_interval():
    """Rounds that come in disturbed runs say less than as many independent ones."""
    rng = np.random.default_rng(0)
    mixed = np.stack([np.ones(400), np.exp(rng.normal(0, 0.3, 400))])
    bursts = np.stack([np.ones(400), np.exp(np.repeat(rng.normal(0, 0.3, 40), 10))])
    spans = [np.ptp(summarize([Path("a"), Path("b")], times)[1].interval) for times in (mixed, bursts)]
    assert spans[1] > 1.5 * spans[0]


def test_real_files_are_told_apart(files):
    found = compare_latency([files[96], files[32], files[96]], seconds=1.0, threads=1)
    base, small, same = found.files
    assert small.faster
    assert small.ratio < 0.6
    assert same.p10_ratio == pytest.approx(1.0, abs=0.4)  # the machine that runs this may be busy
    assert base.min_ms <= base.p10_ms <= base.median_ms
    assert (found.threads, found.batch) == (1, 1)
    assert 10 <= found.rounds <= 500
    assert small.path == files[32]
    assert "w32.onnx" in to_json(found.as_dict())


def test_inputs_may_be_given_and_bad_ones_are_refused(files):
    x = torch.zeros(1, blocks.EDGE, blocks.SIDE, blocks.SIDE)
    assert compare_latency([files[32], files[32]], inputs=x, rounds=2).rounds == 2
    with pytest.raises(SourceError, match=r"w32\.onnx"):
        compare_latency([files[32], files[32]], inputs=x[:, :3], rounds=2)


def test_the_time_budget_sets_the_rounds(files):
    found = compare_latency([files[32], files[32]], seconds=0.0)
    assert found.rounds == 10
    assert found.calls >= 1


def test_usage_errors(files, tmp_path):
    with pytest.raises(UsageError, match="two files"):
        compare_latency([files[32]])
    with pytest.raises(UsageError, match="a batch of 0"):
        compare_latency([files[32], files[96]], batch=0)
    with pytest.raises(SourceError, match="no such file"):
        compare_latency([files[32], tmp_path / "none.onnx"])


def test_files_with_other_inputs_are_refused(files, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "SIDE", 8)
    (tmp_path / "other.onnx").write_bytes(blocks.network(32))
    with pytest.raises(UsageError, match="same inputs"):
        compare_latency([files[32], tmp_path / "other.onnx"])


def test_files_may_name_their_batch_as_they_like_or_fix_it(files, tmp_path):
    model = onnx.load_from_string(blocks.network(32))
    for name in ("n", "batch"):
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = name
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = name
        onnx.save(model, tmp_path / f"{name}.onnx")
    named = [tmp_path / "n.onnx", tmp_path / "batch.onnx"]
    assert compare_latency(named, batch=3, rounds=2).batch == 3
    assert compare_latency([*named, files[32]], batch=3, rounds=2).batch == 1  # the last one takes no other


@pytest.mark.parametrize("step", [1, 4, 8, 16])
def test_the_block_is_read_from_times_in_steps(step):
    """Times that follow the rounded-up width, with a fixed cost, an extra for odd widths, and 5 % noise."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        times = {
            width: (macs(-(-width // step) * step) + 300 + 200 * (step > 1 and width % 4 > 0))
            * np.exp(rng.normal(0, 0.02))
            for width in WIDTHS
        }
        assert block_from(times)[0] == step


def test_times_read_by_hand_from_a_machine_with_blocks_of_eight():
    """onnxruntime 1.31 on an AVX2 processor, milliseconds."""
    times = {
        33: 0.319,
        36: 0.261,
        40: 0.258,
        41: 0.330,
        44: 0.312,
        48: 0.298,
        52: 0.384,
        56: 0.375,
        64: 0.443,
    }
    assert block_from(times)[0] == 8


def test_the_steps_are_told_apart_by_widths_that_only_they_allow():
    for step, pairs in PAIRS.items():
        coarser = min(other for other in (4, 8, 16) if other > step)
        for width, up in pairs:
            assert width % step == 0
            assert width % coarser
            assert up == -(-width // coarser) * coarser
    assert max(PAIRS) < COARSEST


def test_the_block_of_this_machine_is_measured_quickly():
    found = measured_block(threads=1, seconds=1.0)
    assert isinstance(found, Block)
    assert found.block in (1, 4, 8, 16)
    assert found.seconds < 10
    assert found.rounds >= 10
    assert sorted(found.milliseconds) == list(WIDTHS)
    assert found.milliseconds[64] > found.milliseconds[36] > 0
    assert block_from(found.milliseconds) == (found.block, found.gains)
    to_json(found.as_dict())


def test_the_little_networks_run_and_have_the_width_they_say():
    session = onnxruntime.InferenceSession(blocks.network(33), providers=["CPUExecutionProvider"])
    x = np.ones((1, blocks.EDGE, blocks.SIDE, blocks.SIDE), dtype=np.float32)
    assert session.run(None, {"input": x})[0].shape == (1, 33, 1, 1)

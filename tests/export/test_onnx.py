"""ONNX export: one file with dynamic batch that is the network, compared with signal; no side effects."""

from __future__ import annotations

import logging
import os
import warnings

import onnx
import pytest
import torch
from torch import Tensor, nn

from compressor.errors import ModelError, SourceError, UsageError
from compressor.export import onnx as exporting
from compressor.export import parity as comparing
from compressor.export.onnx import OnnxModel, export_onnx, parity


class Residual(nn.Module):
    """A conv net with a residual block, a concatenation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = torch.relu(x + self.branch(x))
        return self.head(self.drop(torch.cat([x, y], 1).mean((2, 3))))


class Record(nn.Module):
    """Keyword inputs; a dict output with `logits` in the second place and something that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, object]:
        x = (self.embed(ids) * mask.unsqueeze(-1)).sum(1)
        return {"features": x, "loss": None, "logits": self.head(x)}


class Pair(nn.Module):
    """Two inputs by position, nested tuples out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.a(x) + self.b(y), (x * 2,)


class Scripted(nn.Module):
    """What torch.export cannot follow (a number taken out of a tensor) and tracing can."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if float(self.head.bias.sum()) > 1e9 or float(x.abs().sum()) < 0:
            return x
        return self.head(x)


class FixedBatch(nn.Module):
    """A batch size written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.reshape(2, 4))


def randomized(net: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for value in [*net.parameters(), *net.buffers()]:
        if value.is_floating_point():
            value.data = torch.rand(value.shape, generator=generator) * 0.6 - 0.2 + (value.ndim == 1) * 0.5
    return net


IMAGES = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The residual network, left in training mode by its owner, with a hook; and its report."""
    folder = tmp_path_factory.mktemp("onnx")
    net = randomized(Residual()).train()
    seen: list[object] = []
    net.stem.register_forward_hook(lambda *_: seen.append(1))  # a listener: it changes nothing
    before = {name: value.clone() for name, value in net.state_dict().items()}
    rng = torch.get_rng_state()
    report = export_onnx(net, IMAGES, folder / "model.onnx")
    return net, report, seen, before, rng


def test_one_file_that_is_the_network(exported):
    _, report, *_ = exported
    assert [entry.name for entry in report.path.parent.iterdir()] == ["model.onnx"]
    assert report.bytes == report.path.stat().st_size
    assert (report.exporter, report.inputs, report.outputs) == ("dynamo", ("input",), ("output",))
    assert report.parity.holds
    assert report.parity.reference == "float64"
    assert report.parity.samples == 20
    assert not report.parity.perturbed
    assert 0 < report.max_abs_error < 1e-5
    assert report.relative_error < 1e-4
    assert report.agreement == 100
    graph = onnx.load(report.path)
    assert report.nodes == len(graph.graph.node)
    assert report.opset == graph.opset_import[0].version >= 18
    assert "Dropout" not in {node.op_type for node in graph.graph.node}


def test_nothing_the_caller_gave_is_changed(exported):
    net, report, _, before, rng = exported
    assert net.training
    assert net.stem.training
    assert len(net.stem._forward_hooks) == 1
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert any("hook" in note for note in report.notes)


def test_hooks_that_change_answers_are_part_of_the_file(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 4))
    net[1].register_forward_hook(lambda _module, _inputs, out: torch.tanh(4 * out))
    report = export_onnx(net, IMAGES, tmp_path / "model.onnx")
    with torch.no_grad():
        assert torch.allclose(OnnxModel(report.path)(IMAGES), net(IMAGES), atol=1e-5)
    assert report.notes == ("1 hook(s) of the network change its answers: they are part of the file",)


class Turned(nn.Module):
    """A complex weight of which the length counts."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 12), nn.Linear(12, 4)
        self.turn = nn.Parameter(torch.randn(12, dtype=torch.cfloat))

    def forward(self, x):
        return self.b(self.a(x.flatten(1)).relu() * self.turn.abs())


def test_a_file_of_complex_weights_is_the_network_or_none(tmp_path):
    torch.manual_seed(0)
    net = Turned()
    try:
        report = export_onnx(net, IMAGES, tmp_path / "model.onnx")
    except ModelError:
        assert not list(tmp_path.iterdir())
        return
    with torch.no_grad():
        assert torch.allclose(OnnxModel(report.path)(IMAGES), net(IMAGES), atol=1e-5)


def test_the_file_answers_like_the_network_at_every_batch_size(exported):
    net, report, *_ = exported
    model = OnnxModel(report.path, threads=1)
    clean = comparing.bare_copy(net, torch.float32)
    for size in (1, 2, 3, 5, 17):
        got = model(IMAGES[:size])
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, clean(IMAGES[:size]).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(IMAGES.double()), model(IMAGES))
    assert torch.equal(model((IMAGES,)), model({"input": IMAGES}))


def test_the_report_is_plain_json(exported):
    from compressor.export.files import to_json

    _, report, *_ = exported
    assert '"agreement": 100.0' in to_json(report.as_dict())


def test_silence_and_the_callers_filters_and_loggers_stay(tmp_path, capfd):
    logger = logging.getLogger("torch.onnx")
    before = (list(warnings.filters), logger.level, logging.root.manager.disable, warnings.showwarning)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export_onnx(randomized(Pair()), (torch.randn(8, 4), torch.randn(8, 2)), tmp_path / "m.onnx")
    assert [str(w.message) for w in caught] == []
    assert (
        list(warnings.filters),
        logger.level,
        logging.root.manager.disable,
        warnings.showwarning,
    ) == before
    assert capfd.readouterr() == ("", "")


def test_tuples_in_and_out(tmp_path):
    net = randomized(Pair())
    inputs = (torch.randn(8, 4), torch.randn(8, 2))
    report = export_onnx(net, inputs, tmp_path / "m.onnx")
    assert report.parity.holds
    assert (len(report.inputs), len(report.outputs)) == (2, 2)
    torch.testing.assert_close(OnnxModel(report.path)(inputs), net(*inputs)[0].detach())
    with pytest.raises(UsageError, match="input, input_1"):
        OnnxModel(report.path)(inputs[0])


def test_dicts_in_and_out_compare_the_logits_and_export_all(tmp_path):
    net = randomized(Record())
    ids = torch.randint(0, 20, (9, 6), generator=torch.Generator().manual_seed(0))
    inputs = {"mask": torch.ones(9, 6), "ids": ids}
    report = export_onnx(net, inputs, tmp_path / "m.onnx")
    assert set(report.inputs) == {"ids", "mask"}
    assert report.outputs == ("features", "logits")
    assert report.parity.holds
    torch.testing.assert_close(OnnxModel(report.path)(inputs), net(**inputs)["logits"].detach())


def test_one_sample_is_enough_and_half_precision_is_exported_in_single(tmp_path):
    net = randomized(Pair()).half()
    report = export_onnx(net, (torch.randn(1, 4).half(), torch.randn(1, 2).half()), tmp_path / "m.onnx")
    assert report.parity.holds
    assert report.parity.samples == 8
    assert onnx.load(report.path).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_the_older_exporter_is_the_fallback_and_the_report_says_so(tmp_path):
    net = randomized(Scripted())
    report = export_onnx(net, torch.randn(8, 4), tmp_path / "m.onnx")
    assert report.exporter == "torchscript"
    assert report.parity.holds
    assert [note.partition(":")[0] for note in report.notes] == ["dynamo"]


def test_a_network_that_does_not_run_without_its_hooks_is_exported_with_them(tmp_path):
    net = randomized(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    net.register_forward_pre_hook(lambda _, given: (given[0].flatten(1),))
    report = export_onnx(net, torch.randn(8, 2, 2), tmp_path / "m.onnx")
    assert report.parity.holds
    assert any("part of the file" in note for note in report.notes)


def test_a_network_that_does_not_run_in_single_precision_is_refused(tmp_path):
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.eye(4, dtype=torch.float64)

    with pytest.raises(ModelError, match=r"export to ONNX.*same dtype"):
        export_onnx(Twice(), torch.randn(8, 4), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_fixed_batch_size_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(ModelError, match=r"dynamo: .*torchscript: "):
        export_onnx(randomized(FixedBatch()), torch.randn(2, 4), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch, exported):
    net, *_ = exported
    (tmp_path / "m.onnx").write_bytes(b"old")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    monkeypatch.setattr(exporting, "_export", lambda *args: args[5].write_bytes(exported[1].path.read_bytes()))
    with pytest.raises(KeyboardInterrupt):
        export_onnx(net, IMAGES, tmp_path / "m.onnx")
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == b"old"


def test_above_the_limit_the_numbers_go_into_a_second_file(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "ONE_FILE_LIMIT", 0)
    net = randomized(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)))
    report = export_onnx(net, torch.randn(8, 64), tmp_path / "m.onnx")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert report.bytes == sum(entry.stat().st_size for entry in tmp_path.iterdir())
    assert parity(report.path, net, torch.randn(8, 64)).holds


def test_a_wrong_file_has_no_parity(exported):
    net, report, *_ = exported
    other = randomized(Residual(), seed=5)
    found = parity(report.path, other, IMAGES)
    assert found.signal
    assert not found.holds
    assert found.relative_error > 0.1
    net = comparing.bare_copy(net, torch.float32)
    net.head.bias.data += 0.05 * found.spread  # a small fault is one too
    assert not parity(report.path, net, IMAGES).holds


def test_without_signal_nothing_is_claimed(tmp_path, exported):
    """A zero head agrees with any file whose outputs are zero as well."""
    net = randomized(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    net[2].weight.data.zero_()
    report = export_onnx(net, torch.randn(20, 4), tmp_path / "m.onnx")
    assert not report.parity.signal
    assert not report.parity.holds
    assert (report.max_abs_error, report.relative_error, report.agreement) == (None, None, None)
    assert any("no signal" in note for note in report.notes)


def test_constant_inputs_are_perturbed_until_there_is_signal(exported):
    net, report, *_ = exported
    found = parity(report.path, comparing.bare_copy(net, torch.float32), torch.zeros(12, 1, 8, 8))
    assert found.perturbed
    assert found.holds


def test_parity_is_deterministic(exported):
    net, report, *_ = exported
    clean = comparing.bare_copy(net, torch.float32)
    assert parity(report.path, clean, IMAGES[:3], seed=4) == parity(report.path, clean, IMAGES[:3], seed=4)
    assert parity(report.path, clean, IMAGES[:3], seed=4) != parity(report.path, clean, IMAGES[:3], seed=5)


def test_a_network_with_a_precision_in_its_code_is_compared_in_float32(tmp_path):
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.float())

    report = export_onnx(randomized(Cast()), torch.randn(8, 4), tmp_path / "m.onnx")
    assert report.parity.reference == "float32"
    assert report.parity.holds


@pytest.mark.parametrize(
    "inputs", [[1, 2], "text", (), {"x": None}, torch.tensor(1.0), torch.zeros(0, 4), (torch.zeros(1), 3)]
)
def test_inputs_that_are_none_are_usage_errors(tmp_path, inputs):
    with pytest.raises(UsageError):
        export_onnx(nn.Linear(4, 2), inputs, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_onnx_are_source_errors(tmp_path):
    for content in (None, b"", b"not onnx", b"\x08\x09" * 50):
        if content is not None:
            (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(SourceError, match=r"m\.onnx"):
            OnnxModel(tmp_path / "m.onnx")


def test_threads_are_checked(exported):
    with pytest.raises(UsageError, match="threads"):
        OnnxModel(exported[1].path, threads=0)

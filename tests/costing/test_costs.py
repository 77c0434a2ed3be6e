"""What a run will cost: the work is counted right, the rates are fitted right, and the sum is of the right size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from runs import Terminal
from torch import nn

import compressor
from compressor.costing.network import timed_passes, work_of
from compressor.costing.predict import STAGES, predicted
from compressor.costing.rates import Rates, _fitted, measured_rates
from compressor.costing.work import LLAMA_7B, LLM, TapWork, Work, llm_mlps
from compressor.observe import observe
from compressor.sources.samples import as_samples
from compressor.stages import shard
from compressor.units.trace import trace

ONES = Rates((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (2.0, 0.0, 0.0), (1.0, 1.0), 2.0, 1, 0.0)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3, stride=2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(32 * 25, 200), nn.ReLU(), nn.Linear(200, 10)).eval()


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def rates() -> Rates:
    return measured_rates()


@pytest.mark.parametrize("samples", [40, 3000])
def test_rows_are_those_that_an_observation_reads(samples: int) -> None:
    """With many samples some positions of each stay out."""
    model, inputs = network(), images(samples)
    work = work_of("net", model, inputs[:2], samples, 0)
    graph = trace(model, inputs[:2])
    seen = observe(model, graph, lambda: shard(model, as_samples(inputs), 250), samples)
    assert {tap.name for tap in work.taps} == set(seen.taps)
    for tap in work.taps:
        one = seen.taps[tap.name]
        assert one.moments.count == samples * tap.rows
        assert len(one.moments.total) == tap.regressors
        assert len(one.curvature) == tap.outputs
    assert {tap.name: tap.block for tap in work.taps} == {"2": 9, "5": 25, "7": 1}
    assert {tap.name: tap.positions for tap in work.taps} == {"2": 25, "5": 1, "7": 1}
    assert work.macs == 144 * 9 * 24 + 25 * 9 * 24 * 32 + 800 * 200 + 2000
    assert work.forward > 0 < work.backward
    assert all(not parameter.grad for parameter in model.parameters())


def test_the_sum_of_the_formulas() -> None:
    tap = TapWork("a", 4, 2, 3.0, 5.0, 1)
    frozen = TapWork("b", 2, 2, 1.0, 1.0, 0)
    work = Work("net", (tap, frozen), 100, 1.0, 10, 20, 8, 16.0, 0.5, 0.25)
    cost = predicted(work, ONES, 1e9, keep=0.25)
    grams = (2 * 16 + 60 * 4 + 60 * 16) + (2 * 4 + 100 * 2 + 100 * 4) + 2 * (2 * 4 + 20 * 2 + 20 * 4)
    assert cost.seconds["observe"] == 20 * 0.75 + grams
    assert cost.seconds["findings"] == (24 + 4 + math.log2(1 + 4)) * 20 * 0.5
    assert cost.seconds["paths"] == 4 + 16 + 64
    rows, size = 20 * 3.0, 2.0
    summed = 2 * size**2 + rows * size + rows * size**2
    summed += rows * (size + 1.0) + rows * size * 1.0  # gathered, and multiplied with what the layer should give
    assert cost.seconds["surgery"] == (20 + 2 * 10) * 0.5 * 1.25 + summed + 2 * (size**2 + size**3)
    assert cost.seconds["verdict"] == 8 * 0.5 * 1.25
    assert cost.bytes["networks"] == 1200
    assert cost.bytes["sums"] == 8 * (16 + 4 + 4 + 4)
    assert cost.peak == 1200 + max(224, 160 + 3 * 8 * 16, 20 * 16)
    assert cost.hours == sum(cost.seconds.values()) / 3600


def test_little_memory_means_more_readings_of_the_data() -> None:
    taps = tuple(TapWork(str(place), 100, 100, 1.0, 1.0, 1) for place in range(10))
    work = Work("net", taps, 100, 1.0, 10, 100, 0, 0.0, 1.0, 0.0)
    plenty, little = predicted(work, ONES, 1e9), predicted(work, ONES, 4 * 8 * 20_000 * 2.5)
    assert (plenty.passes, little.passes) == (1, 4)
    assert little.seconds["observe"] - plenty.seconds["observe"] == 3 * 100


def test_coefficients_come_back_from_the_times_that_they_make() -> None:
    points = [(2e-9 * d**3 + 5e-6 * d, (d, d**2, d**3)) for d in (64, 128, 256, 512)]
    assert _fitted(points) == pytest.approx((5e-6, 0.0, 2e-9), rel=1e-6, abs=1e-12)


def test_rates_grow_with_the_work(rates: Rates) -> None:
    assert rates.flops > 1e8
    assert rates.products(1, 1e4, 1024) > 3 * rates.products(1, 1e4, 256) > 0
    for block in (1, 9):
        assert 10 < rates.elimination(4096, block) / rates.elimination(1024, block) <= 64
    assert rates.regression(2048) > 3.9 * rates.regression(1024)


def test_passes_of_a_model_that_is_not_changed() -> None:
    model = network().train()
    before, random = [p.detach().clone() for p in model.parameters()], torch.random.get_rng_state()
    forward, backward = timed_passes(model, images(2), 4, ["2", "5"])
    assert 0 < forward < 1 > backward > 0
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert torch.equal(random, torch.random.get_rng_state())


def test_a_run_takes_about_as_long_as_predicted(rates: Rates) -> None:
    """Machines that tests run on are busy: a wrong power or a stage that is left out would show all the same."""
    model, inputs = network(), images(1400)
    work = work_of("net", model, inputs[:2], 1000, 200)
    cost = predicted(work, rates, 8e9)
    taken = compressor.compress(
        model, inputs[:1000], inputs[1000:1200], inputs[1200:], keep="params=0.5", align=1, max_drop=99
    ).record["seconds"]
    ratio = sum(cost.seconds.values()) / sum(taken[stage] for stage in STAGES)
    assert 1 / 12 < ratio < 12, (cost.seconds, taken)


def test_a_language_model_by_its_shapes(home: Path, terminal: Terminal) -> None:
    work = llm_mlps(100, 10, 1e12)
    assert len(work.taps) == LLAMA_7B["layers"]
    assert work.forward == 2 * LLAMA_7B["params"] * 2048 / 1e12
    assert work.taps[0].rows == math.ceil(12 * 11008 / 100 * 1000) / 1000
    assert terminal("plan-cost", LLM, "net.py:net", "--input", "6", "--samples", "50", "--json") == 0
    found = json.loads(terminal.out)
    assert [one["unit"] for one in found["models"]] == ["text", "image"]
    for one in found["models"]:
        assert set(one["seconds"]) == set(STAGES)
        assert one["hours"] == pytest.approx(sum(one["seconds"].values()) / 3600)
        assert one["bytes"]["peak"] > one["bytes"]["networks"]
    assert found["models"][0]["hours"] > 1 > found["models"][1]["hours"]
    assert terminal("plan-cost", LLM, "--keep", "0") == 2

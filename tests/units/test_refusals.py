"""Refusals in exact words, and proofs that the dry run catches wrong graphs rather than trusting them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from unit_planted import PATTERNS

from compressor.errors import ModelError
from compressor.units.check import certify, checked, random_halves, sift
from compressor.units.cut import cut
from compressor.units.graph import UnitGraph
from compressor.units.trace import trace

REFUSED = [name for name, pattern in PATTERNS.items() if pattern.says is not None]


@pytest.mark.parametrize("name", REFUSED)
def test_refused_patterns_say_why(name: str) -> None:
    torch.manual_seed(3)
    pattern = PATTERNS[name]
    model, inputs, says = pattern.build().eval(), pattern.inputs(), pattern.says or "?"
    graph = checked(model, trace(model, inputs), inputs)
    reason = {group.name: group.frozen for group in graph.groups}[pattern.of]
    assert reason is not None
    assert reason.startswith(says) if says.startswith("dry run") else reason == says
    assert len(reason) < 220


WRONG_SIZE = {"0": "`2.weight` has another size"}


def chain() -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)
    return nn.Sequential(*layers), torch.randn(2, 3, 9, 9)


def with_axis(graph: UnitGraph, tensor: str, axis: int, units: np.ndarray) -> UnitGraph:
    axes = tuple(replace(a, units=units) if (a.tensor, a.axis) == (tensor, axis) else a for a in graph.axes)
    return replace(graph, axes=axes)


def test_a_wrong_index_map_is_caught_by_the_numbers() -> None:
    model, inputs = chain()
    graph = trace(model, inputs)
    units = next(a.units for a in graph.axes if (a.tensor, a.axis) == ("2.weight", 1))
    wrong = with_axis(graph, "2.weight", 1, np.roll(units, 1))
    groups = {g.name: g.frozen for g in checked(model, wrong, inputs).groups}
    assert (groups["0"] or "").startswith("dry run: outputs changed by")
    assert groups["2"] is None


def test_a_forgotten_carrier_is_caught_by_the_forward_pass() -> None:
    model, inputs = chain()
    model.insert(1, nn.BatchNorm2d(8))
    graph = trace(model, inputs)
    wrong = replace(graph, axes=tuple(a for a in graph.axes if a.tensor != "1.running_mean"))
    groups = {g.name: g.frozen for g in checked(model, wrong, inputs).groups}
    assert (groups["0"] or "").startswith("dry run: forward fails after the cut: RuntimeError")
    assert groups["3"] is None


def test_frozen_layers_leave_the_coverage() -> None:
    model, inputs = chain()
    graph = trace(model, inputs)
    units = next(a.units for a in graph.axes if (a.tensor, a.axis) == ("2.weight", 1))
    after = checked(model, with_axis(graph, "2.weight", 1, np.roll(units, 1)), inputs)
    assert graph.uncovered == {}
    assert list(after.uncovered) == ["0"]


def test_the_certificate_names_a_group_whose_units_moved() -> None:
    model, inputs = chain()
    graph = trace(model, inputs)
    kept = {"0": (0, 2, 5), "2": (1, 2, 4)}
    small = cut(model, graph, kept)
    assert certify(model, small, graph, kept, inputs) == {}
    assert certify(model, small, graph, {**kept, "0": (0, 2)}, inputs) == WRONG_SIZE
    units = next(a.units for a in graph.axes if (a.tensor, a.axis) == ("2.weight", 1))
    moved = with_axis(graph, "2.weight", 1, units[::-1].copy())
    symmetric = {"0": (0, 1, 6, 7)}
    assert certify(model, cut(model, graph, symmetric), moved, symmetric, inputs) == {
        "0": "units are laid out differently after a cut"
    }


def test_random_halves_differ_and_always_drop_and_keep() -> None:
    model, inputs = chain()
    graph = trace(model, inputs)
    first, second = (random_halves(graph, ["0", "2"], 0, draw) for draw in (0, 1))
    assert first != second
    assert first == random_halves(graph, ["0", "2"], 0, 0)
    assert all(0 < len(kept) < 8 for kept in (*first.values(), *second.values()))


def test_sift_finds_all_culprits_with_few_trials() -> None:
    trials: list[int] = []

    def outcome(names: list[str]) -> str | None:
        trials.append(len(names))
        return "bad" if {"7", "40"} & set(names) else None

    reasons: dict[str, str] = {}
    accepted = sift([str(i) for i in range(64)], outcome, reasons)
    assert reasons == {"7": "bad", "40": "bad"}
    assert len(accepted) == 62
    assert len(trials) < 30


def test_a_model_that_does_not_run_is_named() -> None:
    model, _ = chain()
    with pytest.raises(ModelError, match=r"model forward pass: got RuntimeError: .*input\[2, 4, 9, 9\]"):
        trace(model, torch.randn(2, 4, 9, 9))


def test_a_model_without_tensor_output_is_named() -> None:
    class Silent(nn.Module):
        def forward(self, x: torch.Tensor) -> str:
            return "done"

    with pytest.raises(ModelError, match="no tensor that depends on the input"):
        trace(Silent(), torch.randn(2, 3))


def test_a_model_that_cannot_be_copied_is_named() -> None:
    layer = nn.Linear(3, 3)
    del layer.weight
    layer.weight = torch.zeros(3, 3, requires_grad=True) * 2  # type: ignore[assignment]
    with pytest.raises(ModelError, match="every tensor a parameter or a buffer"):
        trace(layer, torch.randn(2, 3))

"""Activations as rows, and what the last linear layer reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import small
from torch import Tensor, nn

from compressor.capacity.collect import Layer, Place, collect, head_of, last_linear, layers_at, layers_of, unit_rows
from compressor.capacity.measures import chunk_errors
from compressor.errors import ModelError, UsageError
from compressor.sources.samples import as_samples
from compressor.stages import find_units


def test_positions_of_a_map_are_rows_and_few_enough_are_all_kept() -> None:
    model, inputs = small("convs")
    found = collect(model, layers_at(["a"]), as_samples(inputs))["a"]
    rows = model.a(inputs).detach().movedim(1, -1).flatten(0, -2).float()  # type: ignore[operator]
    assert found.rows.dtype == torch.float32
    assert found.images == 64
    assert torch.equal(found.rows, rows)


def test_a_seed_chooses_rows_of_every_batch_without_replacement() -> None:
    model, inputs = small("convs")
    samples = as_samples(inputs)
    whole = {tuple(row) for row in collect(model, layers_at(["a"]), samples)["a"].rows.tolist()}
    one, same, other = (
        collect(model, layers_at(["a"]), samples, max_rows=100, seed=s, batch=16)["a"].rows for s in (0, 0, 1)
    )
    assert one.shape == (100, 12)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    rows = [tuple(row) for row in one.tolist()]
    assert len(set(rows)) == 100
    assert set(rows) <= whole


def test_entries_of_a_flattened_unit_are_rows() -> None:
    value = torch.arange(12.0).reshape(2, 6)  # two samples; units 0 1 0 1 0 and an entry of no unit
    rows = unit_rows(value, 1, np.array([0, 1, 1, 0, -1, -1]))
    assert rows.tolist() == [[0, 1], [3, 2], [6, 7], [9, 8]]


def test_layers_of_a_graph_have_a_column_per_unit() -> None:
    model, inputs = small("convs")
    samples = as_samples(inputs)
    graph = find_units(model, samples, 0)
    found = collect(model, layers_of(graph), samples)
    assert {rows.rows.shape[1] for rows in found.values()} == {12}


def test_the_head_is_the_linear_layer_that_runs_last() -> None:
    model, inputs = small("depthwise")
    labels = torch.randint(5, (64,), generator=torch.Generator().manual_seed(0))
    samples = as_samples((inputs, labels))
    head = head_of(model, samples)
    assert head.name == last_linear(model, samples) == "head"
    logits = head.features @ head.weight.T + head.bias
    torch.testing.assert_close(logits, model(inputs).detach())
    wrong = float((model(inputs).argmax(1) != labels).double().mean())
    assert head.labels is not None
    found = chunk_errors(head.features, head.weight, head.bias, head.labels, [6], 1, 0)
    assert found[0].errors.item() == pytest.approx(wrong, abs=1e-12)


class Tokens(nn.Module):
    """A linear layer on every token."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x).mean(1)


def test_layers_that_are_not_there_or_do_not_fit_are_refused() -> None:
    samples = as_samples(torch.randn(8, 5, 4))
    assert collect(Tokens(), layers_at(["head"]), samples)["head"].rows.shape == (40, 3)
    with pytest.raises(ModelError, match="one vector per sample"):
        head_of(Tokens(), samples)
    with pytest.raises(UsageError, match="'tail'"):
        collect(Tokens(), layers_at(["tail"]), samples)
    with pytest.raises(ModelError, match="no linear layer"):
        last_linear(nn.Conv1d(5, 2, 1), samples)
    with pytest.raises(UsageError, match="layer to measure"):
        collect(Tokens(), [Layer("all", (Place(""),))], samples)

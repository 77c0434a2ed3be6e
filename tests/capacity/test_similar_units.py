"""Similar units: known answers, an oracle, dead units apart, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compressor.capacity.measures import live_units, similar_units
from compressor.errors import DataError, UsageError


def mixed(samples: int = 400, units: int = 24, seed: int = 0) -> np.ndarray:
    """Features with a spread of correlations."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((samples, 5)) @ rng.standard_normal((5, units)) + rng.standard_normal((samples, units))


def test_copies_and_their_opposites_are_similar_and_independent_units_are_not() -> None:
    x = np.random.default_rng(0).standard_normal((500, 4))
    found = similar_units(np.column_stack([x[:, 0], -3 * x[:, 0] + 7, x[:, 1], x[:, 2]]))
    assert found.per_unit.tolist() == [1, 1, 0, 0]
    assert (found.mean, found.dead) == (0.5, 0)
    assert found.share == pytest.approx(0.5 / 3, abs=1e-15)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_an_oracle_agrees(threshold: float) -> None:
    x = mixed()
    r = np.abs(np.corrcoef(x, rowvar=False))
    counts = (r >= threshold).sum(1) - 1
    found = similar_units(x, threshold)
    assert found.per_unit.tolist() == counts.tolist()
    assert found.mean == pytest.approx(counts.mean(), abs=1e-12)
    assert found.share == pytest.approx(counts.mean() / 23, abs=1e-12)


def test_dead_units_are_counted_and_left_out_of_everything_else() -> None:
    x = mixed()
    dead = np.column_stack([x, np.zeros(len(x)), np.full(len(x), 3.7)])
    alone, found = similar_units(x), similar_units(dead)
    assert found.dead == 2
    assert (found.mean, found.share) == (alone.mean, alone.share)
    assert found.per_unit.tolist() == [*alone.per_unit.tolist(), 0, 0]
    assert live_units(dead).tolist() == [True] * 24 + [False] * 2


def test_a_tensor_in_half_the_precision_gives_the_same_answer_and_is_not_changed() -> None:
    x = torch.from_numpy(mixed()).float()
    before = x.clone()
    assert similar_units(x).per_unit.tolist() == similar_units(x.double().numpy()).per_unit.tolist()
    assert torch.equal(x, before)


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.5, float("nan"), True])
def test_thresholds_out_of_range_are_refused(threshold: float) -> None:
    with pytest.raises(UsageError, match="threshold"):
        similar_units(mixed(), threshold)


BAD = {
    "nan": lambda x: np.where(np.arange(len(x))[:, None] == 7, np.nan, x),
    "infinite": lambda x: np.where(np.arange(len(x))[:, None] == 7, np.inf, x),
    "few samples": lambda x: x[:2],
    "no samples": lambda x: x[:0],
    "one unit": lambda x: x[:, :1],
    "constant": lambda x: np.ones_like(x),
    "integers": lambda x: (10 * x).astype(int),
    "booleans": lambda x: x > 0,
    "one dimension": lambda x: x[:, 0],
    "three dimensions": lambda x: x[:, :, None],
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_features_are_refused_by_every_measure_of_features(kind: str) -> None:
    from compressor.capacity.measures import chunk_reconstruction, redundancy95, redundancy95_live

    bad = BAD[kind](mixed())
    for measure in (similar_units, redundancy95, redundancy95_live, lambda x: chunk_reconstruction(x, [1], 1, 0)):
        with pytest.raises(DataError, match=r"got .*expected .*Next: "):
            measure(bad)


def test_the_sample_that_is_not_finite_is_named() -> None:
    with pytest.raises(DataError, match="sample 7"):
        similar_units(BAD["nan"](mixed()))

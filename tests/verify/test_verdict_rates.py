"""The verdict's rate of wrong "passed", measured small; all settings: `recipes/verdict_rates.py`."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

from verdict_rates import SEQUENCES, TRUTHS, Stairs, candidates_drawn, maps, measured, sequence


@pytest.mark.parametrize("truth", TRUTHS, ids=lambda truth: truth.name)
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_a_network_that_loses_what_is_allowed_rarely_passes(truth, confidence: float) -> None:
    found = measured(truth, 200, confidence, 2000)
    assert found["kept"]
    assert found["checks_agree"]
    assert 0 < found["exact"] <= 1 - confidence + 1e-4
    low, high = found["interval"]
    assert low <= found["exact"] <= high or abs(found["rate"] - found["exact"]) < 0.01


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_search_over_candidates_is_wrong_no_more_often(name: str) -> None:
    found = sequence(name, SEQUENCES[name], 200, 0.9, 2000)
    assert found["kept"]
    assert found["unordered"]["rate"] >= found["rate"]


def test_taking_the_best_of_five_would_be_wrong_too_often() -> None:
    found = sequence("five, all at the limit", SEQUENCES["five, all at the limit"], 200, 0.9, 2000)
    assert not found["unordered"]["kept"]


def test_maps() -> None:
    assert maps(0.9, 200)["kept"]


def test_what_passes_is_a_staircase() -> None:
    """More losses never help, more gains never hurt: so the edge says it all."""
    stairs = Stairs(30, 15.0, 0.9)
    for gains, losses in itertools.product(range(31), range(31)):
        if gains + losses < 30:
            assert (stairs.verdict(losses, gains).value == "passed") == (losses <= stairs.most(gains))


def test_candidates_have_the_drops_that_were_asked_for_and_share_samples() -> None:
    drops = [0.01, 0.03, 0.05]
    losses, gains = candidates_drawn(drops, 0.02, 1000, 4000, np.random.default_rng(0))
    assert np.allclose((losses - gains).mean(0) / 1000, drops, atol=5e-4)
    assert np.corrcoef(losses.T).min() > 0.2
    assert (losses + gains <= 1000).all()

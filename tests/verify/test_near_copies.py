"""Near-copies of calibration samples in the judge split are warned of; an honest split is not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.sources.data import load_data
from compressor.sources.samples import as_samples
from compressor.verify.near_copies import near_copies, near_copies_warning

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

from near_copies import COPIES

DATA = load_data("digits")
IMAGES = DATA.calibrate.batch(np.arange(400))[0]
NOT_NOTICED = "cropped by a pixel"
"""On pictures of 8 x 8: a pixel is an eighth of the picture."""


def test_an_honest_split_is_not_suspected() -> None:
    assert near_copies_warning(DATA.judge, {"calibrate": DATA.calibrate, "tune": DATA.tune}) is None


@pytest.mark.parametrize("kind", [kind for kind in COPIES if kind != NOT_NOTICED])
def test_a_split_of_copies_is_warned_of(kind: str) -> None:
    words = near_copies_warning(as_samples(COPIES[kind](IMAGES)), {"calibrate": DATA.calibrate, "tune": DATA.tune})
    assert words is not None
    assert "in 'calibrate'" in words
    assert "'tune'" not in words


def test_a_few_copies_among_honest_samples_are_counted() -> None:
    honest = DATA.judge.batch(np.arange(380))[0]
    mixed = torch.cat([honest, IMAGES[:20] * 1.01 + 0.01])
    found = near_copies(as_samples(mixed[torch.randperm(400)]), {"calibrate": DATA.calibrate})
    assert found is not None
    assert 20 <= found.found["calibrate"] <= 24
    assert found.checked == 400


def test_vectors_are_compared_by_their_standardised_entries() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(600, 20, generator=generator) * torch.logspace(-3, 3, 20)
    scale = torch.logspace(-3, 3, 20)
    near = rows[:300] + 0.01 * scale * torch.randn(300, 20, generator=generator)
    assert near_copies_warning(as_samples(near), {"tune": as_samples(rows)}) is not None
    assert near_copies_warning(as_samples(rows[300:]), {"tune": as_samples(rows[:300])}) is None


@pytest.mark.parametrize("inputs", [torch.arange(4000).reshape(200, 20), torch.randn(200, 6), torch.randn(4, 1, 8, 8)])
def test_what_has_no_nearness_is_left_alone(inputs: torch.Tensor) -> None:
    assert near_copies(as_samples(inputs), {"tune": as_samples(inputs)}) is None


def test_random_numbers_and_samples_stay() -> None:
    before, rng = IMAGES.clone(), torch.get_rng_state()
    near_copies_warning(as_samples(IMAGES), {"tune": DATA.tune})
    assert torch.equal(IMAGES, before)
    assert torch.equal(torch.get_rng_state(), rng)

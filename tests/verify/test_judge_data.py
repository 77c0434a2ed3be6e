from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from compressor.algebra.intervals import smallest_decidable_drop
from compressor.errors import DataError
from compressor.sources.samples import as_samples
from compressor.verify.judge_data import (
    before_work,
    chance_warning,
    decidable,
    refuse_overlap,
    repeats_warning,
    training_data_warning,
)


def test_a_large_enough_split_needs_no_warning() -> None:
    assert before_work(600, 0.95, 0.5) is None
    assert before_work(2000, 0.95, 0.5) is None
    assert before_work(300, 0.95, 1.0) is None


def test_a_small_split_says_what_it_can_decide() -> None:
    words = before_work(300, 0.95, 0.5)
    assert words is not None
    assert "300 judge samples can pass a drop of 0.995 points at 95 % confidence" in words
    assert "0.5 points need at least 599 samples" in words
    assert before_work(598, 0.95, 0.5) is not None


def test_no_drop_at_all_is_said_apart() -> None:
    words = before_work(10_000, 0.95, 0.0)
    assert words is not None
    assert "measurably better" in words


@pytest.mark.parametrize("n", [37, 600, 12_345])
def test_the_promised_drop_is_rounded_up(n: int) -> None:
    points = float(decidable(n).split("a drop of ")[1].split(" points")[0])
    best = 100 * smallest_decidable_drop(n)
    assert best <= points <= best * 1.01


def test_training_data_is_suspected() -> None:
    assert training_data_warning(99.95, 5000) is not None
    assert training_data_warning(99.0, 5000) is None
    assert training_data_warning(93.0, 5000, 92.5, 5000) is None
    words = training_data_warning(97.0, 5000, 92.0, 5000)
    assert words is not None
    assert "5.0 points better" in words
    assert training_data_warning(97.0, 60, 92.0, 60) is None  # so few samples differ by chance
    assert training_data_warning(93.9, 100_000, 92.0, 100_000) is None  # certain, but small
    assert training_data_warning(90.0, 5000, 95.0, 5000) is None


def test_answers_no_better_than_one_for_all_are_told() -> None:
    labels = np.repeat(np.arange(10), [190, *[90] * 9])
    words = chance_warning(20.1, labels)
    assert words is not None
    assert "right on 20.10 % of the 1,000 judge samples, and one answer for all of them on 19.00 %" in words
    assert chance_warning(9.0, labels) is not None
    assert chance_warning(23.0, labels) is None
    assert chance_warning(100.0, np.zeros(50)) is not None  # one class only


def images(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(seed))


def test_shared_samples_are_counted_by_split() -> None:
    own, other = images(40, 0), images(50, 1)
    mixed = torch.cat([other[:10], own[[5, 3, 9]], other[10:]])
    judge = as_samples((own, torch.zeros(40, dtype=torch.int64)))
    splits = {"calibrate": as_samples(mixed), "tune": as_samples(other), "train": as_samples(own.flip(0)[:7])}
    with pytest.raises(DataError, match="3 also in 'calibrate', 7 also in 'train'") as refused:
        refuse_overlap(judge, splits)
    assert refused.value.exit_code == 3
    assert "tune" not in refused.value.got
    refuse_overlap(judge, {"tune": splits["tune"]})
    refuse_overlap(judge, {})


@pytest.mark.parametrize(("shared", "next_step"), [(0, "out of --unlabelled"), (2, "a judge split of its own")])
def test_the_split_at_fault_is_named(shared: int, next_step: str) -> None:
    rows = images(60, 0)
    others = {"tune": as_samples(rows[40 - shared : 50]), "unlabelled": as_samples(rows[30:])}
    with pytest.raises(DataError) as refused:
        refuse_overlap(as_samples(rows[:40]), others)
    assert next_step in refused.value.next_step


@pytest.mark.parametrize("form", ["S16", "rows"])
def test_any_form_of_hashes_is_compared_whole(form: str) -> None:
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 256, (20, 16), dtype=np.uint8)
    rows[0, 15] = 0  # a trailing zero byte must not be lost
    near = rows.copy()
    near[:, 0] ^= 1

    def samples(values: np.ndarray) -> Any:
        hashes = values if form == "rows" else np.ascontiguousarray(values).view("S16").ravel()
        return SimpleNamespace(hashes=hashes, __len__=lambda: len(values))

    refuse_overlap(samples(rows), {"tune": samples(near)})
    with pytest.raises(DataError, match="1 also in 'tune'"):
        refuse_overlap(samples(rows), {"tune": samples(np.concatenate([near, rows[:1]]))})


def test_copies_within_the_split_are_said() -> None:
    x = images(10, 0)
    assert repeats_warning(as_samples(x)) is None
    found = repeats_warning(as_samples(torch.cat([x] * 20)))
    assert found is not None
    assert "200 judge samples are 10 different inputs" in found

"""R95 and the participation ratio: known answers, an oracle, and the nulls that must come out as they do."""

from __future__ import annotations

import numpy as np
import pytest

from compressor.capacity.measures import growth, redundancy95, redundancy95_live

WIDTHS = (32, 64, 128, 256, 512)


def oracle(x: np.ndarray, standardise: bool = False) -> float:
    matrix = np.cov(x, rowvar=False)
    if standardise:
        with np.errstate(invalid="ignore"):
            matrix = np.nan_to_num(np.corrcoef(x, rowvar=False))
    values = np.clip(np.linalg.eigvalsh(matrix), 0, None)
    return (int(np.argmax(np.cumsum(values) / values.sum() > 0.05)) + 1) / len(values)


def noise(samples: int, units: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((samples, units))


@pytest.mark.parametrize(("samples", "units", "rank"), [(500, 20, 20), (300, 40, 7), (60, 100, 30)])
def test_an_oracle_agrees(samples: int, units: int, rank: int) -> None:
    x = noise(samples, rank) @ noise(rank, units, 1) + 0.1 * noise(samples, units, 2) + 5
    found = redundancy95(x)
    values = np.linalg.eigvalsh(np.cov(x, rowvar=False))
    assert found.covariance == pytest.approx(oracle(x), abs=1e-8)
    assert found.correlation == pytest.approx(oracle(x, standardise=True), abs=1e-8)
    assert found.participation_ratio == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-8)
    assert (found.units, found.samples) == (units, samples)


def test_a_duplicated_unit_makes_a_direction_redundant() -> None:
    x = noise(20_000, 12)
    assert redundancy95(np.column_stack([x, x[:, 0]])).covariance >= 2 / 13  # the empty one, and the one that crosses


def test_independent_units_of_equal_variance_have_just_over_five_percent() -> None:
    assert 0.05 < redundancy95(noise(50_000, 100)).covariance <= 0.05 + 2 / 100


def test_a_layer_of_rank_k_needs_no_more_than_k_directions() -> None:
    found = redundancy95(noise(400, 6) @ noise(6, 48, 1))
    assert round(48 * (1 - found.covariance)) <= 6
    assert found.participation_ratio <= 6


def test_one_loud_unit_rules_the_covariance_but_not_the_correlation() -> None:
    x = noise(20_000, 20)
    x[:, 0] *= 100
    assert redundancy95(x).covariance == 1.0
    assert redundancy95(x).correlation <= 0.1


def test_dead_units_count_as_redundant_unless_left_out() -> None:
    x = noise(5_000, 30)
    with_dead = np.column_stack([x, np.zeros((5_000, 10)) + 2.5])
    found, live = redundancy95(with_dead), redundancy95_live(with_dead)
    assert found.covariance >= 10 / 40
    assert (found.covariance, found.correlation) == (oracle(with_dead), oracle(with_dead, standardise=True))
    assert live == redundancy95(x)


def test_single_precision_far_from_zero_is_centred_in_double_precision() -> None:
    x = (30 + 0.1 * noise(5_000, 40)).astype(np.float32)
    assert redundancy95(x).covariance == oracle(x.astype(np.float64))


# -- nulls: what the same measure gives where nothing was learned (arXiv:1912.04783's protocol) ---------------------


def test_white_noise_on_768_samples_is_redundant_by_sample_size_alone() -> None:
    shares = [redundancy95(noise(768, units)).covariance for units in (*WIDTHS, 1024)]
    assert shares == pytest.approx([0.094, 0.094, 0.117, 0.168, 0.281, 0.483], abs=0.004)
    rates = [growth([shares[i], 2 * shares[i + 1]]).value for i in range(1, 5)]
    assert rates == pytest.approx([2.5, 2.9, 3.3, 3.4], abs=0.06)


@pytest.mark.slow
def test_white_noise_on_many_samples() -> None:
    shares = [redundancy95(noise(9_856, units)).covariance for units in (*WIDTHS, 1024)]
    assert shares == pytest.approx([0.062, 0.062, 0.062, 0.070, 0.078, 0.095], abs=0.002)
    assert [redundancy95(noise(50_000, n)).covariance for n in WIDTHS] == pytest.approx([0.06] * 5, abs=0.005)


def random_relu(samples: int, inputs: int, units: int, seed: int) -> np.ndarray:
    return np.maximum(noise(samples, inputs, seed) @ noise(inputs, units, 100 + seed), 0)


def test_untrained_relu_features_of_ten_inputs_are_redundant_and_grow_so_with_width() -> None:
    seeds = [[redundancy95(random_relu(9_856, 10, n, s)).covariance for n in WIDTHS] for s in range(2)]
    shares = np.mean(seeds, axis=0)
    assert shares == pytest.approx([0.41, 0.56, 0.69, 0.82, 0.90], abs=0.025)
    directions = [n * (1 - s) for n, s in zip(WIDTHS, shares, strict=True)]
    assert directions == pytest.approx([19, 28, 40, 47, 51], abs=2)
    rates = [growth([shares[i], 2 * shares[i + 1]]).value for i in range(4)]
    assert rates == pytest.approx([2.8, 2.4, 2.4, 2.2], abs=0.15)


@pytest.mark.slow
def test_untrained_relu_features_of_many_inputs_are_white_noise() -> None:
    shares = [redundancy95(random_relu(768, 10_000, n, 0)).covariance for n in WIDTHS]
    assert shares == pytest.approx([0.094, 0.094, 0.117, 0.172, 0.287], abs=0.005)

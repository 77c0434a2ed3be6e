"""Nulls: what they destroy, what they keep, and that they stand beside every number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor.capacity.measures import redundancy95, similar_units
from compressor.capacity.nulls import (
    beside_nulls,
    permuted,
    permuted_labels,
    random_labels,
    sample_ratio,
    untrained,
    white_noise,
)
from compressor.errors import DataError, ModelError


def alike(samples: int = 600, units: int = 10) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.exp(rng.standard_normal((samples, 1)) + 0.1 * rng.standard_normal((samples, units)))


def test_permuted_samples_keep_each_units_values_and_nothing_else() -> None:
    x = alike()
    found = permuted(x, seed=1)
    np.testing.assert_array_equal(np.sort(found, 0), np.sort(x, 0))
    assert similar_units(x).mean == 9
    assert similar_units(found).mean == 0
    np.testing.assert_array_equal(found, permuted(x, seed=1))
    assert not np.array_equal(found, permuted(x, seed=2))


def test_white_noise_is_seeded_and_standard() -> None:
    found = white_noise(20_000, 3, seed=0)
    assert found.shape == (20_000, 3)
    assert found.mean() == pytest.approx(0, abs=0.02)
    assert found.std() == pytest.approx(1, abs=0.02)
    np.testing.assert_array_equal(found, white_noise(20_000, 3, seed=0))


def test_random_labels_are_uniform_and_know_nothing_of_the_true_ones() -> None:
    labels = torch.arange(4).repeat(5_000)
    found = random_labels(labels, seed=0)
    assert found.dtype == labels.dtype
    assert (found.bincount(minlength=4) / 20_000).tolist() == pytest.approx([0.25] * 4, abs=0.02)
    assert float((found == labels).double().mean()) == pytest.approx(0.25, abs=0.02)
    assert int(random_labels(labels, 0, classes=7).max()) == 6
    with pytest.raises(DataError):
        random_labels(labels.double(), 0)
    with pytest.raises(DataError):
        random_labels(labels - 1, 0)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def test_an_untrained_twin_is_drawn_anew_and_the_original_stays() -> None:
    model = net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    state = torch.random.get_rng_state()
    one, same, other = untrained(model, 0), untrained(model, 0), untrained(model, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(bool((p == 7).all()) for p in model.parameters())
    assert not any(bool((p == 7).any()) for p in one.parameters())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one[0].weight, other[0].weight)  # type: ignore[arg-type]


class Scaled(nn.Module):
    """A parameter that no method draws."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_a_module_that_cannot_be_drawn_anew_is_named() -> None:
    with pytest.raises(ModelError, match=r"'1'.*Scaled"):
        untrained(nn.Sequential(nn.Linear(3, 3), Scaled()), 0)


def test_too_few_samples_per_unit_are_refused_and_few_are_marked() -> None:
    assert sample_ratio(2_000, 100).thin is False
    assert sample_ratio(1_999, 100).thin is True
    assert sample_ratio(500, 100).ratio == 5
    with pytest.raises(DataError, match=r"499 samples for 100 units.*500 in all"):
        sample_ratio(499, 100)


def test_every_number_has_its_nulls() -> None:
    x = alike()
    twin = np.maximum(white_noise(600, 10, seed=3), 0)
    found = beside_nulls(
        lambda rows: {"similar": similar_units(rows).mean, "r95": redundancy95(rows).correlation}, x,
        others={"untrained": twin},
    )  # fmt: skip
    assert found.values["similar"] == 9
    assert set(found.nulls) == {"white noise", "permuted", "untrained"}
    assert {name: null["similar"] for name, null in found.nulls.items()} == dict.fromkeys(found.nulls, 0)
    assert found.values["r95"] > max(null["r95"] for null in found.nulls.values())
    assert (found.ratio.samples, found.ratio.units, found.ratio.thin) == (600, 10, False)


def test_too_small_a_sample_and_another_width_are_refused() -> None:
    def measure(x: object) -> dict[str, float]:
        raise AssertionError("measured before it was refused")

    with pytest.raises(DataError, match="samples per unit"):
        beside_nulls(measure, alike(samples=40))
    with pytest.raises(DataError, match="'untrained'"):
        beside_nulls(lambda _x: {}, alike(), others={"untrained": white_noise(600, 9, 0)})


def test_chance_correlations_stay_far_below_one_half() -> None:
    x = white_noise(768, 200, seed=0)
    pairs = np.abs(np.corrcoef(x, rowvar=False)[np.triu_indices(200, 1)])
    assert pairs.mean() == pytest.approx(0.029, abs=0.001)
    assert similar_units(x).mean == 0


def test_permuted_labels_are_the_same_labels() -> None:
    labels = torch.arange(90) % 9
    mixed = permuted_labels(labels, 4)
    assert torch.equal(mixed.bincount(), labels.bincount())
    assert torch.equal(mixed, permuted_labels(labels, 4))
    assert not torch.equal(mixed, permuted_labels(labels, 5))
    assert float((mixed == labels).double().mean()) < 0.4

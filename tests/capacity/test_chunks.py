"""Chunks of a layer: regression from the Gram matrix against scikit-learn's on the data, and known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge
from torch.nn import functional as F

from compressor.capacity.measures import (
    ChunkErrors,
    ChunkReconstruction,
    chunk_errors,
    chunk_losses,
    chunk_reconstruction,
    clones,
    correlation_null,
    critical_width,
    draws,
    ladder,
)
from compressor.errors import DataError, UsageError

SIZES = [1, 4, 16, 30, 31, 32]


def layer(samples: int = 800, units: int = 32, rank: int = 5, noise: float = 0.5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((samples, rank)) @ rng.standard_normal((rank, units)) / math.sqrt(rank)
    return signal + noise * rng.standard_normal((samples, units)) + 3


def oracle(fitted: np.ndarray, scored: np.ndarray, chunk: np.ndarray) -> tuple[float, float, float, float]:
    """scikit-learn's regression on the data and the paper's formulas on its residuals."""
    ridge = Ridge(alpha=len(fitted) * 1e-8 * fitted.var(0).mean())
    rest = scored - ridge.fit(fitted[:, chunk], fitted).predict(scored[:, chunk])
    rest[:, chunk] = 0.0
    units = scored.shape[1]
    outside = np.setdiff1d(np.arange(units), chunk)
    covariance = np.cov(rest, rowvar=False, bias=True)
    spread = np.sqrt(np.diag(covariance))
    r = np.abs(covariance / (np.outer(spread, spread) + 1e-8))
    alone = r[np.ix_(outside, outside)][np.tril_indices(len(outside), -1)]
    left, whole = rest.var(0), scored.var(0)
    return (
        1 - left.sum() / whole.sum(),
        1 - left[outside].sum() / whole[outside].sum() if len(outside) else math.nan,
        float(r[np.tril_indices(units, -1)].mean()),
        float(alone.mean()) if len(alone) else math.nan,
    )


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_scikit_learn_on_the_data_agrees(noise: float, held_out: bool) -> None:
    x = layer(noise=noise)
    fitted, scored = (x[:500], x[500:]) if held_out else (x, x)
    found = chunk_reconstruction(fitted, SIZES, 4, seed=3, held_out=scored if held_out else None)
    assert [entry.size for entry in found] == SIZES
    for entry in found:
        values = (entry.r2, entry.r2_outside, entry.residual_correlation, entry.residual_correlation_outside)
        expected = [oracle(fitted, scored, chunk) for chunk in draws(32, entry.size, 4, 3)]
        np.testing.assert_allclose(np.transpose(values), expected, rtol=0, atol=1e-8)


def test_the_penalty_is_too_small_to_matter() -> None:
    x = layer(noise=0.05)
    entry = chunk_reconstruction(x[:500], [16], 1, 3, held_out=x[500:])[0]
    chunk = next(draws(32, 16, 1, 3))
    rest = x[500:] - LinearRegression().fit(x[:500][:, chunk], x[:500]).predict(x[500:][:, chunk])
    assert entry.r2.item() == pytest.approx(1 - rest.var(0).sum() / x[500:].var(0).sum(), abs=1e-8)


def test_a_layer_of_rank_k_is_determined_by_k_units() -> None:
    x = layer(noise=0.0)
    small, enough, more = chunk_reconstruction(x, [4, 5, 12], 5, 0, held_out=layer(noise=0.0)[::2])
    assert (small.r2_outside < 0.999).all()
    assert enough.r2_outside == pytest.approx(np.ones(5), abs=1e-5)
    assert more.r2 == pytest.approx(np.ones(5), abs=1e-7)


def test_independent_units_determine_only_themselves() -> None:
    x = np.random.default_rng(0).standard_normal((20_000, 40))
    entry = chunk_reconstruction(x[:10_000], [10], 10, 0, held_out=x[10_000:])[0]
    assert entry.r2.mean() == pytest.approx(10 / 40, abs=0.005)
    assert entry.r2_outside.mean() == pytest.approx(0.0, abs=0.005)
    null = correlation_null(10_000)
    assert entry.residual_correlation_outside.mean() == pytest.approx(null, rel=0.1)
    assert entry.residual_correlation.mean() == pytest.approx(null * (30 * 29) / (40 * 39), rel=0.1)


def test_scoring_on_the_samples_of_the_fit_lifts_r2_by_units_over_samples() -> None:
    x = np.random.default_rng(1).standard_normal((200, 60))
    assert chunk_reconstruction(x, [30], 20, 0)[0].r2_outside.mean() == pytest.approx(30 / 200, abs=0.02)


def test_the_fall_of_the_residual_correlation_is_half_mechanical() -> None:
    entry = chunk_reconstruction(layer(4_000, 256, rank=9, noise=1.0), [128], 3, 0)[0]
    assert entry.residual_correlation.mean() < 0.3 * entry.residual_correlation_outside.mean()


def test_dead_units_change_no_correlation() -> None:
    x = layer()
    dead = np.column_stack([x, np.full(len(x), 2.0)])
    (with_dead,) = chunk_reconstruction(dead, [33 - 1], 1, seed=0)
    assert with_dead.residual_correlation.item() >= 0
    chunk = next(draws(33, 8, 1, 0))
    entry = chunk_reconstruction(dead, [8], 1, seed=0)[0]
    expected = oracle(x, x, chunk[chunk < 32])
    assert entry.r2.item() == pytest.approx(expected[0], abs=1e-8)
    assert entry.residual_correlation_outside.item() == pytest.approx(expected[3], abs=1e-8)


def test_tiny_activations_are_not_called_uncorrelated() -> None:
    big, tiny = layer(), 1e-5 * layer()
    a, b = (chunk_reconstruction(x, [4], 3, 0)[0].residual_correlation_outside for x in (big, tiny))
    np.testing.assert_allclose(a, b, rtol=1e-3)


def test_what_rounding_leaves_of_determined_units_is_not_called_correlated() -> None:
    x = 1e3 * layer(1_500, 400, rank=3, noise=0.0)
    for entry in chunk_reconstruction(x, [3, 50, 250], 3, 0):
        assert entry.r2 == pytest.approx(np.ones(3), abs=1e-7)
        assert entry.residual_correlation_outside.max() < 0.02


def test_draws_are_the_same_whatever_else_is_drawn_and_nothing_given_changes() -> None:
    x = torch.from_numpy(layer()).float()
    before = x.clone()
    state = torch.random.get_rng_state(), np.random.get_state()[1][:5].tolist()  # type: ignore[index]
    one, two = chunk_reconstruction(x, [4], 3, 1)[0], chunk_reconstruction(x, [2, 4, 8], 3, 1)[1]
    np.testing.assert_array_equal(one.r2, two.r2)
    assert torch.equal(x, before)
    assert torch.equal(torch.random.get_rng_state(), state[0])
    assert np.random.get_state()[1][:5].tolist() == state[1]  # type: ignore[index]
    assert not np.array_equal(one.r2, chunk_reconstruction(x, [4], 3, 2)[0].r2)


def test_the_ladder_halves_down_to_one() -> None:
    assert ladder(512) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert ladder(1408)[-7:] == [22, 44, 88, 176, 352, 704, 1408]
    assert ladder(1) == [1]


def test_the_null_of_the_correlation_is_what_simulation_gives() -> None:
    rng = np.random.default_rng(0)
    r = [np.corrcoef(rng.standard_normal(40), rng.standard_normal(40))[0, 1] for _ in range(4_000)]
    assert correlation_null(40) == pytest.approx(np.abs(r).mean(), rel=0.03)
    assert correlation_null(10_000) == pytest.approx(math.sqrt(2 / (math.pi * 10_000)), rel=1e-3)


@pytest.mark.parametrize("sizes", [[], [0], [33], [2.5], [-1]])
def test_sizes_out_of_range_are_refused(sizes: list[int]) -> None:
    with pytest.raises(UsageError, match="sizes"):
        chunk_reconstruction(layer(), sizes, 2, 0)


def test_counts_samples_and_other_layers_are_refused() -> None:
    x = layer()
    for repeats, seed in ((0, 0), (1.5, 0), (1, -1), (True, 0)):
        with pytest.raises(UsageError):
            chunk_reconstruction(x, [2], repeats, seed)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="17 samples; expected more than 17"):
        chunk_reconstruction(x[:17], [16], 2, 0)
    with pytest.raises(DataError, match="held_out"):
        chunk_reconstruction(x, [2], 2, 0, held_out=x[:, :5])
    with pytest.raises(DataError, match="held_out"):
        chunk_reconstruction(x, [2], 2, 0, held_out=np.full_like(x, np.nan))


# -- errors ---------------------------------------------------------------------------------------------------------


def head(units: int = 32, classes: int = 6, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((classes, units)), rng.standard_normal(classes)


@pytest.mark.parametrize("scale_bias", [False, True])
def test_an_oracle_agrees_on_chunk_errors(scale_bias: bool) -> None:
    x, (weight, bias) = layer(), head()
    labels = np.random.default_rng(1).integers(0, 6, len(x))
    found = chunk_errors(x, weight, bias, labels, SIZES, 5, seed=2, scale_bias=scale_bias)
    for entry in found:
        constant = bias * (entry.size / 32 if scale_bias else 1)
        expected = [
            ((x[:, c] @ weight[:, c].T + constant).argmax(1) != labels).mean() for c in draws(32, entry.size, 5, 2)
        ]
        np.testing.assert_allclose(entry.errors, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rescale", [False, True])
def test_an_oracle_agrees_on_cross_entropies(rescale: bool) -> None:
    x, (weight, bias) = layer(), head()
    labels = np.random.default_rng(1).integers(0, 6, len(x))
    for entry in chunk_losses(x, weight, bias, labels, SIZES, 5, seed=2, rescale=rescale):
        factor = 32 / entry.size if rescale else 1
        logits = [factor * (x[:, c] @ weight[:, c].T) + bias for c in draws(32, entry.size, 5, 2)]
        expected = [float(F.cross_entropy(torch.from_numpy(z), torch.from_numpy(labels))) for z in logits]
        np.testing.assert_allclose(entry.losses, expected, rtol=1e-10)
    one = chunk_losses(x, weight[:1], bias[:1], labels % 2, [32], 1, 0)[0].losses
    scores = torch.from_numpy(x @ weight[0] + bias[0])
    target = torch.from_numpy(labels % 2).double()
    assert one.item() == pytest.approx(float(F.binary_cross_entropy_with_logits(scores, target)))


def test_few_logits_at_a_time_are_the_same_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    x, (weight, bias) = layer(), head()
    labels = np.random.default_rng(1).integers(0, 6, len(x))
    at_once = chunk_errors(x, weight, bias, labels, SIZES, 5, seed=2)
    monkeypatch.setattr("compressor.capacity.measures.classification.ROOM", 1)
    for one, other in zip(at_once, chunk_errors(x, weight, bias, labels, SIZES, 5, seed=2), strict=True):
        np.testing.assert_array_equal(one.errors, other.errors)


def test_all_units_make_the_networks_own_error_in_every_trial() -> None:
    x, (weight, _) = layer(), head()
    labels = torch.from_numpy((x @ weight.T).argmax(1))
    entry = chunk_errors(torch.from_numpy(x), torch.from_numpy(weight), None, labels, [32], 3, 0)[0]
    assert entry.errors.tolist() == [0.0, 0.0, 0.0]


def test_one_output_is_two_classes() -> None:
    x, (weight, bias) = layer(), head(classes=1)
    labels = (x @ weight[0] + bias[0] > 0).astype(int)
    assert chunk_errors(x, weight, bias, labels, [32], 1, 0)[0].errors.item() == 0.0
    assert chunk_errors(x, weight, bias, 1 - labels, [32], 1, 0)[0].errors.item() == 1.0


def test_chunks_of_both_measures_are_the_same() -> None:
    x = layer(noise=0.0)
    first = next(draws(32, 4, 1, 9))
    weight = np.zeros((2, 32))
    weight[1, first] = 1.0
    labels = (x[:, first].sum(1) > 0).astype(int)
    assert chunk_errors(x, weight, None, labels, [4], 1, 9)[0].errors.item() == 0.0


@pytest.mark.parametrize(
    "change",
    [
        {"weight": np.ones((6, 31))},
        {"weight": np.ones(32)},
        {"bias": np.ones(5)},
        {"labels": np.full(800, 6)},
        {"labels": np.full(800, -1)},
        {"labels": np.zeros(799, dtype=int)},
        {"labels": np.zeros(800)},
        {"weight": np.full((6, 32), np.nan)},
        {"features": np.ones((800, 32), dtype=int)},
    ],
)
def test_heads_and_labels_that_do_not_fit_are_refused(change: dict[str, np.ndarray]) -> None:
    weight, bias = head()
    given = {"features": layer(), "weight": weight, "bias": bias, "labels": np.zeros(800, dtype=int)} | change
    with pytest.raises(DataError):
        chunk_errors(**given, sizes=[4], repeats=2, seed=0)


# -- critical width -------------------------------------------------------------------------------------------------


def entries(
    errors: list[float], r2: list[float], r: list[float]
) -> tuple[list[ChunkErrors], list[ChunkReconstruction]]:
    sizes = [2**i for i in range(len(errors))]
    arrays = [(np.array([a]), np.array([b]), np.array([c])) for a, b, c in zip(errors, r2, r, strict=True)]
    return (
        [ChunkErrors(size, a) for size, (a, _, _) in zip(sizes, arrays, strict=True)],
        [ChunkReconstruction(size, b, b, c, c) for size, (_, b, c) in zip(sizes, arrays, strict=True)],
    )


def test_the_critical_width_passes_all_three_criteria() -> None:
    null = correlation_null(10_000)
    errors, rest = entries([0.5, 0.001, 0.0, 0.0], [0.1, 0.99, 0.99, 1.0], [0.1, 0.1, 1.9 * null, null])
    found = critical_width(errors, rest, samples=10_000)
    assert (found.value, found.by_error, found.by_r2, found.by_correlation) == (4, 2, 2, 4)
    assert clones(64, found) == 16


def test_no_critical_width_is_none_and_the_whole_layer_is_no_evidence() -> None:
    errors, rest = entries([0.5, 0.0], [0.1, math.nan], [0.1, math.nan])
    found = critical_width(errors, rest, samples=1_000)
    assert (found.value, found.by_error, found.by_r2) == (None, 2, None)
    assert clones(64, found) is None


def test_errors_count_above_the_whole_layers_own() -> None:
    errors, rest = entries([0.0155], [1.0], [0.0])
    assert critical_width(errors, rest, 1_000).value is None
    assert critical_width(errors, rest, 1_000, full_error=0.0150).value == 1


def test_ladders_without_a_size_in_common_are_refused() -> None:
    errors, rest = entries([0.0, 0.0], [1.0, 1.0], [0.0, 0.0])
    with pytest.raises(DataError, match="critical width"):
        critical_width(errors[:1], rest[1:], 1_000)


def test_clones_planted_as_mixtures_plus_noise_are_counted() -> None:
    """240 units, each a random mixture of 3 signals plus noise that shrinks: chunks of enough units stand for all."""
    x = layer(8_000, 240, rank=3, noise=0.05)
    rest = chunk_reconstruction(x[:4_000], ladder(240), 5, 0, held_out=x[4_000:])
    errors = [ChunkErrors(entry.size, np.zeros(5)) for entry in rest]
    found = critical_width(errors, rest, 4_000)
    assert found.by_r2 in (3, 7)
    assert found.value is not None
    assert found.value >= 3

"""Claims of Doimo et al. (arXiv:2106.03485) about chunks of the last hidden layer. S seeds, W widths, K chunk sizes."""

from __future__ import annotations

import math

import numpy as np

from compressor.capacity.claims.casper import rate
from compressor.capacity.claims.evidence import Evidence, NotInStudy, Part, accuracy, chunk_mean
from compressor.capacity.claims.judging import Joint, every, judged
from compressor.capacity.claims.registry import DOIMO, claim
from compressor.capacity.measures import fitted_slope
from compressor.capacity.measures.checks import Array

LEAST_SIZES = 3
"""Chunk sizes, or widths, from w* on that a slope with its floor can be fitted to."""


def at_the_greatest(study: Evidence, setting: str, name: str, size: int) -> Array:
    """(S,) mean over chunks of `size` at the greatest width."""
    what = f"{name.replace('_', ' ')} of chunks of {size} units"
    return study.curve_at(study.widths[-1], setting, chunk_mean(name, size), None, what)


def critical(study: Evidence, setting: str, name: str) -> tuple[int, list[int]]:
    """(w* by one criterion at the greatest width, the ladder of sizes there): the largest of all seeds.

    NotInStudy where the layer was refused or a seed has none.
    """
    found = []
    for seed in study.seeds:
        chunks = study.rung(setting, study.widths[-1], seed)["measures"]["chunks"]
        if "refused" in chunks:
            raise NotInStudy(f"{setting}: the last hidden layer could not be measured: {chunks['refused']}")
        if chunks["critical"][name] is None:
            words = {"by_error": "interpolates", "by_r2": "determines the layer (R² 0.98)"}.get(
                name, "passes all criteria"
            )
            raise NotInStudy(f"{setting}, seed {seed}: no chunk {words} at the greatest width")
        found.append((chunks["critical"][name], chunks["sizes"]))
    return max(found)


def nulls_at_the_greatest(study: Evidence, setting: str, name: str, size: int) -> dict[str, Array]:
    """Null -> (S,) mean over chunks of `size` at the greatest width; NaN where it was not measured."""
    return study.nulls_at(study.widths[-1], setting, chunk_mean(name, size))


def stacked(parts: list[dict[str, Array]]) -> dict[str, Array]:
    """Null -> (S, K) of K such parts."""
    return {null: np.stack([part[null] for part in parts], axis=1) for null in parts[0]}


@claim(
    "B-1",
    DOIMO,
    "From the critical size on the chunks' test error falls as size to a power of -0.60 to -0.35 towards "
    "its floor; below, at least 0.2 steeper.",
)
def two_regimes(study: Evidence) -> Joint:
    """Exponent and floor fitted together to sizes from w* (zero training error) to less than the width."""
    tests = []
    for name in study.true_settings():
        start, ladder = critical(study, name, "by_error")
        sizes = [size for size in ladder if start <= size < ladder[-1]]
        before = [size for size in ladder if size <= start / 4]
        if len(sizes) < LEAST_SIZES or not before:
            raise NotInStudy(
                f"{name}: {len(sizes)} chunk sizes between w* = {start} and the width, too few for a slope"
            )
        used = [before[-1], *sizes]
        rows = np.stack([at_the_greatest(study, name, "test_error", size) for size in used], axis=1)
        beside = stacked([nulls_at_the_greatest(study, name, "test_error", size) for size in used])

        def above(values: Array, sizes: list[int] = sizes) -> float:
            return fitted_slope(sizes, values[:, 1:].mean(0)).value

        def kink(values: Array, sizes: list[int] = sizes, first: int = before[-1]) -> float:
            fit, mean = fitted_slope(sizes, values[:, 1:].mean(0)), values.mean(0)
            excess = mean[:2] - fit.floor
            below = math.log(excess[1] / excess[0]) / math.log(sizes[0] / first) if (excess > 0).all() else math.nan
            return below - fit.value

        tests.append(judged(name, "exponent above w*", rows, above, -0.60, -0.35, beside))
        tests.append(judged(name, "exponent below w* - above", rows, kink, high=-0.2, nulls=beside))
    return every(tests)


@claim(
    "B-2",
    DOIMO,
    "Chunks that determine the layer (R² 0.98) have a training error within 0.01 of the whole layer's; "
    "chunks of a quarter of that size have one of at least 0.05.",
)
def interpolating_chunks(study: Evidence) -> Joint:
    """Training error in eval mode; w* by R² alone, so that the error is free to disagree."""
    tests = []
    for name in study.true_settings():
        start, ladder = critical(study, name, "by_r2")
        small = [size for size in ladder if size <= start / 4]
        if not small:
            raise NotInStudy(f"{name}: w* = {start} leaves no chunk of a quarter of its size")
        full = at_the_greatest(study, name, "train_error", ladder[-1])
        above = at_the_greatest(study, name, "train_error", start) - full
        below = at_the_greatest(study, name, "train_error", small[-1]) - full
        high, low = (_excess(study, name, size, ladder[-1]) for size in (start, small[-1]))
        tests.append(judged(name, f"training error of {start} units - of all", above, mean_of, high=0.01, nulls=high))
        tests.append(judged(name, f"training error of {small[-1]} units - of all", below, mean_of, low=0.05, nulls=low))
    return every(tests)


@claim(
    "B-3",
    DOIMO,
    "The smallest chunks with zero training error (at most 0.001 above the layer's) explain at least 95 %"
    " of the variance of the other units.",
)
def chunks_determine(study: Evidence) -> Joint:
    """Held-out R² of the units outside the chunk; w* by the training error alone."""
    tests = []
    for name in study.true_settings():
        start, ladder = critical(study, name, "by_error")
        if start == ladder[-1]:
            raise NotInStudy(f"{name}: only the whole layer has zero training error")
        rows = at_the_greatest(study, name, "r2_outside", start)
        nulls = nulls_at_the_greatest(study, name, "r2_outside", start)
        nulls["permuted"] = study.null_curve(name, chunk_mean("r2_outside", start), "permuted")[:, -1]
        tests.append(judged(name, f"R² outside chunks of {start}", rows, mean_of, low=0.95, nulls=nulls))
    return every(tests)


@claim(
    "B-4",
    DOIMO,
    "The residual correlation of the units outside a chunk is at twice the critical size at most 0.5 "
    "times what it is at a quarter of it.",
)
def residuals_decorrelate(study: Evidence) -> Joint:
    """Ratio of mean |correlation| over pairs outside the chunk (pairs with the chunk's own units fall mechanically)."""
    tests = []
    for name in study.true_settings():
        start, ladder = critical(study, name, "by_error")
        before = [size for size in ladder if size <= start / 4]
        after = [size for size in ladder if 2 * start <= size <= ladder[-1] / 2]
        if not before or not after:
            raise NotInStudy(f"{name}: the ladder does not reach from w*/4 to 2 w* (w* = {start}) below the width")
        quantity = "residual_correlation_outside"
        used = (before[-1], after[0])
        rows = np.stack([at_the_greatest(study, name, quantity, size) for size in used], axis=1)
        nulls = stacked([nulls_at_the_greatest(study, name, quantity, size) for size in used])
        what = f"residual correlation at {after[0]} / at {before[-1]}"
        tests.append(judged(name, what, rows, ratio_of, high=0.5, nulls=nulls))
    return every(tests)


@claim(
    "B-5",
    DOIMO,
    "The number of clones (width / critical size) grows by a factor of 1.75 to 2.25 per doubling of the "
    "width, where there are any.",
)
def clones_grow(study: Evidence) -> Joint:
    """g of W / w* from the first width on at which every seed has a w* smaller than the width."""
    tests = []
    for name in study.true_settings():
        rows = np.array([[_clones(study.rung(name, w, s)["measures"]) for w in study.widths] for s in study.seeds])
        good = np.flatnonzero((np.nan_to_num(rows, nan=0.0) > 1).all(0))
        first = int(good[0]) if len(good) else len(study.widths)
        if len(study.widths) - first < LEAST_SIZES or not np.isfinite(rows[:, first:]).all():
            raise NotInStudy(f"{name}: fewer than {LEAST_SIZES} widths at which every seed has clones")
        grow = rate(study.doublings(first))
        nulls = {null: values[:, first:] for null, values in study.nulls(name, _clones).items()}
        tests.append(judged(name, "g of clones", rows[:, first:], grow, 1.75, 2.25, nulls))
    return every(tests)


@claim(
    "B-8",
    DOIMO,
    "The test error of whole networks falls with their width as a power of -0.70 to -0.30 towards its "
    "floor, from the critical width on.",
)
def width_averages(study: Evidence) -> Joint:
    """Exponent and floor fitted together to the networks at least as wide as w* at the greatest width."""
    tests = []
    for name in study.true_settings():
        start, _ = critical(study, name, "by_error")
        units = _units(study, name)
        places = [place for place, count in enumerate(units) if count >= start]
        if len(places) < LEAST_SIZES:
            raise NotInStudy(f"{name}: {len(places)} widths from w* = {start} on, too few for a slope")
        rows = 1 - study.curve(name, accuracy("test"), what="test accuracy")[:, places] / 100
        sizes = [units[place] for place in places]

        def slope(values: Array, sizes: list[int] = sizes) -> float:
            return fitted_slope(sizes, values.mean(0)).value

        nulls = {null: values[:, places] for null, values in study.nulls(name, _whole_error).items()}
        tests.append(judged(name, "exponent of the test error in the width", rows, slope, -0.70, -0.30, nulls))
    return every(tests)


@claim(
    "B-9",
    DOIMO,
    "Below half of the critical size chunks err at least 0.02 more than a network trained at that width; "
    "from the critical size on they differ by at most 0.01.",
)
def chunks_against_narrow_networks(study: Evidence) -> Joint:
    """Chunks of the widest network against networks of that width, at the sizes nearest to w* that both have."""
    tests = []
    for name in study.true_settings():
        start, ladder = critical(study, name, "by_error")
        units = _units(study, name)
        both = [(size, units.index(size)) for size in ladder[:-1] if size in units]
        below = [pair for pair in both if pair[0] <= start / 2]
        above = [pair for pair in both if pair[0] >= start]
        if not below or not above:
            raise NotInStudy(f"{name}: no trained networks on both sides of w* = {start} below the greatest width")
        scratch = 1 - study.curve(name, accuracy("test"), what="test accuracy") / 100
        for (size, place), low, high in ((below[-1], 0.02, math.inf), (above[0], -0.01, 0.01)):
            rows = at_the_greatest(study, name, "test_error", size) - scratch[:, place]
            parts = nulls_at_the_greatest(study, name, "test_error", size)
            whole = study.nulls(name, _whole_error)
            nulls = {null: errors - whole[null][:, place] for null, errors in parts.items()}
            what = f"error of chunks of {size} - of networks of {size}"
            tests.append(judged(name, what, rows, mean_of, low, high, nulls))
    return every(tests)


def _units(study: Evidence, name: str) -> list[int]:
    """Units of the last hidden layer at every width."""
    found = [study.rung(name, width, study.seeds[0])["measures"]["chunks"] for width in study.widths]
    if any("units" not in chunks for chunks in found):
        raise NotInStudy(f"{name}: the last hidden layer could not be measured at every width")
    return [chunks["units"] for chunks in found]


def _excess(study: Evidence, name: str, size: int, whole: int) -> dict[str, Array]:
    one, all_ = (nulls_at_the_greatest(study, name, "train_error", count) for count in (size, whole))
    return {null: one[null] - all_[null] for null in one}


def _whole_error(part: Part) -> float | None:
    """Test error of the whole last hidden layer; of an untrained network with the head that was fitted to it."""
    chunks = part["chunks"]
    return chunk_mean("test_error", chunks["units"])(part)


def _clones(part: Part) -> float:
    chunks = part["chunks"]
    found = chunks.get("critical", {}).get("by_r2")
    return math.nan if found is None else chunks["units"] / found


def mean_of(rows: Array) -> float:
    """Of all entries of (S, ...)."""
    return float(rows.mean())


def ratio_of(rows: Array) -> float:
    """Of the means of the second and the first column of (S, 2); not a number where the first is 0."""
    mean = rows.mean(0)
    return float(mean[1] / mean[0]) if mean[0] > 0 else math.nan

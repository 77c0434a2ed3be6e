"""Claims of Casper et al. (arXiv:1912.04783) that compare settings. S seeds, W widths.

A contrast's rows are (S, 2, W): the same seeds and widths of both settings.
"""

from __future__ import annotations

import math

import numpy as np

from compressor.capacity.claims.casper import rate
from compressor.capacity.claims.evidence import Evidence, NotInStudy, Read, prunable, redundancy
from compressor.capacity.claims.judging import Joint, Reading, Statistic, every, judged
from compressor.capacity.claims.registry import CASPER_V5, claim
from compressor.capacity.measures.checks import Array

SAME = "before training the networks of both settings are the same ones: their difference is 0"
"""Holds of the untrained null; where the recipe asks for networks on random labels these stand beside the effect."""


@claim(
    "A-7",
    CASPER_V5,
    "He initialisation gives a larger redundant share (by at least 0.02) and a smaller prunable share (by"
    " at least 0.02) than Glorot at the greatest width.",
)
def initialisation_decides(study: Evidence) -> Joint:
    """Differences of R95 and x* at the greatest width, He minus Glorot of the same shape."""
    tests = []
    for one, other in study.contrasts("initialisation"):
        names = {study.traits(name)["initialisation"]: name for name in (one, other)}
        for shape in ("normal", "uniform"):
            if {f"he_{shape}", f"glorot_{shape}"} == set(names):
                pair = names[f"he_{shape}"], names[f"glorot_{shape}"]
                tests += [
                    _contrast(study, pair, "R95, He - Glorot", redundancy, _last_difference, low=0.02),
                    _contrast(study, pair, "x*, He - Glorot", prunable, _last_difference, high=-0.02),
                ]
    if not tests:
        raise NotInStudy("not in this study: He and Glorot initialisation of the same shape")
    return every(tests)


@claim(
    "A-8",
    CASPER_V5,
    "Directions that are not redundant grow by at most 1.5 per doubling for inputs of at most 20 "
    "dimensions, and by at least 1.75 for inputs of at least 1,000.",
)
def dimension_decides(study: Evidence) -> Joint:
    """g of width · (1 - R95) for both kinds of data."""
    tests, widths = [], np.array(study.widths)
    for pair in study.contrasts("dimension", also=("data", "model")):
        few, many = sorted(pair, key=lambda name: study.traits(name)["dimension"])
        if study.traits(few)["dimension"] > 20 or study.traits(many)["dimension"] < 1000:
            continue
        for name, low, high in ((few, -math.inf, 1.5), (many, 1.75, math.inf)):
            rows = widths * (1 - study.curve(name, redundancy, what="R95"))
            nulls = {null: widths * (1 - values) for null, values in study.nulls(name, redundancy).items()}
            what = "g of directions that are not redundant"
            tests.append(judged(name, what, rows, rate(study.doublings()), low, high, nulls))
    if not tests:
        raise NotInStudy("not in this study: data of at most 20 and of at least 1,000 dimensions")
    return every(tests)


@claim(
    "A-9",
    CASPER_V5,
    "Random labels at least halve the prunable share at the greatest width and change the redundant share"
    " by at most 0.1.",
)
def random_labels_lower_prunability(study: Evidence) -> Joint:
    """Ratio of x* and difference of R95, random labels against true ones."""
    tests = []
    for pair in study.contrasts("labels", also=("regulariser", "epochs")):
        random, true = sorted(pair, key=lambda name: study.traits(name)["labels"])
        tests += [
            _contrast(study, (random, true), "x*, random / true", prunable, _last_ratio, high=0.5),
            _contrast(study, (random, true), "R95, random - true", redundancy, _last_difference, -0.1, 0.1),
        ]
    return every(tests)


@claim(
    "A-10",
    CASPER_V5,
    "Growth of the prunable units differs by at most 0.3 between regularisers.",
    without_null=SAME,
)
def regularisers_hardly_matter(study: Evidence) -> Joint:
    """Difference of g between every two settings that differ in the regulariser alone."""
    return _same_growth(study, "regulariser", 0.3)


@claim(
    "A-11",
    CASPER_V5,
    "Growth of the prunable units differs by at most 0.4 when learning rate and batch size are scaled together.",
    without_null=SAME,
)
def scale_hardly_matters(study: Evidence) -> Joint:
    """Difference of g between every two settings that differ in the scale alone."""
    return _same_growth(study, "scale", 0.4)


@claim(
    "A-12",
    CASPER_V5,
    "Where one layer alone is widened, its prunable units grow by at least 1.5 per doubling and those of "
    "the other layers by 0.9 to 1.1.",
)
def widening_stays_local(study: Evidence) -> Joint:
    """g of x* · units of every layer ablated alone."""
    tests = []
    for name in study.settings:
        first, last = (
            study.rung(name, width, study.seeds[0])["measures"] for width in (study.widths[0], study.widths[-1])
        )
        sizes = [(a["name"], a["units"], b["units"]) for a, b in zip(first["layers"], last["layers"], strict=True)]
        if all(before == after for _, before, after in sizes) or all(before != after for _, before, after in sizes):
            continue
        for place, (layer, before, after) in enumerate(sizes):
            rows = study.curve(name, _layer_prunable(place), what="the ablation of single layers (by_layer)")
            nulls = study.nulls(name, _layer_prunable(place))
            low, high = (0.9, 1.1) if before == after else (1.5, math.inf)
            what = f"g of prunable units of {layer}"
            tests.append(judged(name, what, rows, rate(study.doublings()), low, high, nulls))
    if not tests:
        raise NotInStudy("not in this study: a ladder in which one layer alone is widened")
    return every(tests)


@claim(
    "A-13",
    CASPER_V5,
    "Prunable and redundant share change by at most 0.05 over the last snapshots of training.",
    without_null="an untrained network has no course of training",
)
def flat_at_the_end(study: Evidence) -> Joint:
    """End minus the first snapshot at or after half of the training, at the greatest width."""
    tests = []
    for name in study.settings:
        for what, read in (("x*", prunable), ("R95", redundancy)):
            end = study.curve_at(study.widths[-1], name, read, None, what)
            late = f"not in this study: {what} of a snapshot of the second half of training"
            early = study.curve_at(study.widths[-1], name, _snapshot(read), None, late)
            rows = np.stack([end, early], axis=1)[:, :, None]
            tests.append(judged(name, f"{what}, end - snapshot", rows, _last_difference, -0.05, 0.05))
    return every(tests)


@claim(
    "A-14",
    CASPER_V5,
    "Growth of the prunable units differs by at most 0.2 between numbers of training examples that differ"
    " by a factor of 10 or more.",
    without_null=SAME,
)
def samples_hardly_matter(study: Evidence) -> Joint:
    """Difference of g between settings that differ in the number of training samples alone."""
    return _same_growth(study, "train_samples", 0.2, least_factor=10.0)


def _same_growth(study: Evidence, trait: str, most: float, least_factor: float = 1.0) -> Joint:
    tests, grow, widths = [], rate(study.doublings()), np.array(study.widths)
    for pair in study.contrasts(trait):
        if least_factor > 1:
            few, many = sorted(study.traits(name)[trait] for name in pair)
            if many < least_factor * few:
                continue
        rows = widths * np.stack([study.curve(name, prunable) for name in pair], axis=1)
        nulls = {
            null: widths * np.stack([study.null_curve(name, prunable, null) for name in pair], axis=1)
            for null in study.networks(*pair)
            if null != "untrained"
        }

        def difference(values: Array) -> float:
            return grow(values[:, 0]) - grow(values[:, 1])

        what = "g of prunable units, first - second"
        tests.append(judged(" / ".join(pair), what, rows, difference, -most, most, nulls))
    if not tests:
        raise NotInStudy(f"not in this study: {trait.replace('_', ' ')} that differ by a factor of {least_factor:g}")
    return every(tests)


def _contrast(
    study: Evidence, pair: tuple[str, str], what: str, read: Read, statistic: Statistic, low: float = -math.inf,
    high: float = math.inf,
) -> Reading:  # fmt: skip
    """At the greatest width, which is all that the propositions speak of; narrower networks may have failed."""
    nulls = {null: _at_greatest(study, pair, read, null) for null in study.networks(*pair)}
    return judged(" / ".join(pair), what, _at_greatest(study, pair, read, None), statistic, low, high, nulls)


def _at_greatest(study: Evidence, pair: tuple[str, str], read: Read, null: str | None) -> Array:
    """(S, 2, 1) values of both settings; of a null NaN where one is missing."""
    width = study.widths[-1]
    rows = [
        study.curve_at(width, name, read, None, "this number")
        if null is None
        else study.nulls_at(width, name, read)[null]
        for name in pair
    ]
    return np.stack(rows, axis=1)[:, :, None]


def _last_difference(rows: Array) -> float:
    return float((rows[:, 0, -1] - rows[:, 1, -1]).mean())


def _last_ratio(rows: Array) -> float:
    return float(rows[:, 0, -1].mean() / rows[:, 1, -1].mean())


def _layer_prunable(place: int) -> Read:
    return lambda part: part["by_layer"][place]["prunable_mean"] * part["layers"][place]["units"]


def _snapshot(read: Read) -> Read:
    return lambda part: read(next(s for s in part["snapshots"] if s["share"] >= 0.5)) if _late(part) else None


def _late(part: object) -> bool:
    return isinstance(part, dict) and any(s["share"] >= 0.5 for s in part.get("snapshots", []))

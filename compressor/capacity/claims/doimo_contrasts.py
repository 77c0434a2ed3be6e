"""Claims of Doimo et al. (arXiv:2106.03485) that compare moments of training, settings, or sets of networks."""

from __future__ import annotations

import numpy as np

from compressor.capacity.claims.doimo import at_the_greatest, critical, mean_of, ratio_of
from compressor.capacity.claims.evidence import Evidence, NotInStudy, Read, accuracy, chunk_mean
from compressor.capacity.claims.judging import Joint, every, judged
from compressor.capacity.claims.registry import DOIMO, claim
from compressor.capacity.measures.checks import Array

INTERPOLATES = 99.0
"""Training accuracy in percent from which on a network counts as interpolating here."""


@claim(
    "B-6",
    DOIMO,
    "Before the training error reaches 0, chunks of the critical size err on at least 1 % of the training "
    "samples, and the residual correlation outside chunks of twice that size is at the end at most 0.75 "
    "times what it was then.",
    without_null="an untrained network has no course of training",
)
def clones_need_interpolation(study: Evidence) -> Joint:
    """The end against the last snapshot whose training accuracy was below 99 % in every seed."""
    tests, width = [], study.widths[-1]
    for name in study.true_settings():
        start, ladder = critical(study, name, "by_error")
        after = [size for size in ladder if 2 * start <= size <= ladder[-1] / 2]
        early = _before_interpolation(study, name)
        if not after:
            raise NotInStudy(f"{name}: no chunk size of twice w* = {start} below the width")
        read = chunk_mean("residual_correlation_outside", after[0])
        before = study.curve_at(width, name, _in_snapshot(read, early), None, "a snapshot's chunks")
        end = study.curve_at(width, name, read, None, "residual correlation")
        what = f"residual correlation at {after[0]} units, end / before"
        tests.append(judged(name, what, np.stack([before, end], axis=1), ratio_of, high=0.75))
        errs = _in_snapshot(chunk_mean("train_error", start), early)
        rows = study.curve_at(width, name, errs, None, "a snapshot's chunks")
        tests.append(judged(name, f"training error of chunks of {start} before, %", 100 * rows, mean_of, low=1.0))
    return every(tests)


@claim(
    "B-7",
    DOIMO,
    "With regularisation chunks of an eighth of the last hidden layer explain at least 0.02 more of the "
    "variance of the other units than without.",
)
def clones_need_regularisation(study: Evidence) -> Joint:
    """Held-out R² outside the chunk at the greatest width, with minus without any regulariser."""
    tests = []
    for pair in study.contrasts("regulariser"):
        bare = [name for name in pair if not any(study.traits(name)["regulariser"])]
        if len(bare) != 1:
            continue
        regular = pair[1 - pair.index(bare[0])]
        chunks = study.rung(regular, study.widths[-1], study.seeds[0])["measures"]["chunks"]
        size = chunks["sizes"][-4] if len(chunks.get("sizes", [])) > 3 else None
        if size is None:
            raise NotInStudy(f"{regular}: the last hidden layer has no ladder of four sizes")
        rows = at_the_greatest(study, regular, "r2_outside", size) - at_the_greatest(study, bare[0], "r2_outside", size)
        what, read = f"R² outside chunks of {size}, with - without", chunk_mean("r2_outside", size)
        one, other = (study.nulls_at(study.widths[-1], name, read) for name in (regular, bare[0]))
        nulls = {null: one[null] - other[null] for null in study.networks(regular, bare[0])}
        tests.append(judged(f"{regular} / {bare[0]}", what, rows, mean_of, low=0.02, nulls=nulls))
    if not tests:
        raise NotInStudy("not in this study: a setting without any regulariser beside one that has some")
    return every(tests)


@claim(
    "B-10",
    "arXiv:2106.03485v1",
    "The test error of a wide network minus that of an ensemble of networks of the critical width with as"
    " many units in all is below 0.",
    without_null="untrained networks, and ensembles of them, answer at chance",
)
def wide_beats_ensemble(study: Evidence) -> Joint:
    """Test error of the network of m · w* units minus that of m networks of w* units."""
    tests = []
    for name in study.true_settings():
        start, _ = critical(study, name, "by_error")
        for few in study.ensembles:
            if few["setting"] != name or few["units"] != start:
                continue
            for wide in study.ensembles:
                members = str(wide["units"] // start)
                if wide["setting"] == name and members in few["errors"] and wide["units"] % start == 0:
                    rows = 1 - study.curve_at(wide["width"], name, accuracy("test"), None, "test accuracy") / 100
                    rows = rows - np.array(few["errors"][members])
                    tests.append(
                        judged(name, f"error of {wide['units']} units - of {members} x {start}", rows, mean_of, high=0)
                    )
    if not tests:
        raise NotInStudy("not in this study: a width that is the critical one, and as many seeds as an ensemble needs")
    return every(tests)


@claim(
    "B-11",
    DOIMO,
    "The variance between networks peaks near the width that first interpolates: at the greatest width it"
    " is at most 0.75 times as large, and at the least width smaller.",
    without_null="untrained networks have no width at which they interpolate",
)
def variance_peaks(study: Evidence) -> Joint:
    """Variance of the test probabilities over seeds, for each seed half its mean squared distance to the others."""
    tests = []
    for name in study.true_settings():
        rows = _variances(study, name)
        if len(rows) < 3:
            raise NotInStudy("fewer than 3 seeds: the variance between networks has no interval")
        train = study.curve(name, accuracy("train"), what="training accuracy").mean(0)
        places = np.flatnonzero(train >= INTERPOLATES)
        if not len(places) or places[0] in (0, len(train) - 1):
            raise NotInStudy(f"{name}: the first width that interpolates is not inside the ladder")
        peak = int(places[0])

        def falls(values: Array, peak: int = peak) -> float:
            return float(values[:, -1].mean() / values[:, peak].mean())

        def rises(values: Array, peak: int = peak) -> float:
            return float(values[:, 0].mean() / values[:, peak].mean())

        tests.append(judged(name, "variance, greatest width / interpolating width", rows, falls, high=0.75))
        tests.append(judged(name, "variance, least width / interpolating width", rows, rises, high=1.0))
    return every(tests)


def _variances(study: Evidence, name: str) -> Array:
    """(S, W)"""
    found = {entry["width"]: entry["variance"] for entry in study.ensembles if entry["setting"] == name}
    if any(found.get(width) is None for width in study.widths):
        raise NotInStudy(f"{name}: the variance between networks is missing (fewer than 2 seeds)")
    return np.array([found[width] for width in study.widths]).T


def _in_snapshot(read: Read, place: int) -> Read:
    return lambda part: read(part["snapshots"][place])


def _before_interpolation(study: Evidence, name: str) -> int:
    """Place of the last snapshot at which no seed's network of the greatest width interpolated."""
    runs = [study.rung(name, study.widths[-1], seed)["measures"].get("snapshots") or [] for seed in study.seeds]
    count = min(len(run) for run in runs)
    early = [i for i in range(count) if all(run[i]["accuracy"]["train"] < INTERPOLATES for run in runs)]
    if not early:
        raise NotInStudy(f"not in this study: {name} has no snapshot from before interpolation")
    return early[-1]

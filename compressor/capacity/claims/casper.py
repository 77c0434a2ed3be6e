"""Claims of Casper et al. (arXiv:1912.04783) about one setting at a time. S seeds, W widths."""

from __future__ import annotations

import math

import numpy as np

from compressor.capacity.claims.evidence import (
    Evidence,
    NotInStudy,
    accuracy,
    gap,
    prunable,
    redundancy,
    removable,
    similar,
)
from compressor.capacity.claims.judging import Joint, Reading, Statistic, all_of, every, judged, some
from compressor.capacity.claims.registry import CASPER_V2, CASPER_V5, claim
from compressor.capacity.measures import growth
from compressor.capacity.measures.checks import Array

NEARLY = 1.9
"""Growth per doubling that counts as at least in proportion: the paper's own curves go down to 1.92."""


@claim(
    "A-1",
    CASPER_V5,
    "Test accuracy at the greatest width is at most 1 point below the best narrower width's.",
    without_null="before training, or on random labels, every network answers at chance",
)
def accuracy_does_not_fall(study: Evidence) -> Joint:
    """In every setting with true labels; the best narrower width is chosen on the mean of the seeds."""
    return every([
        judged(name, "accuracy at the greatest width - best narrower one, points",
               study.curve(name, accuracy("test"), what="test accuracy"), _against_the_best, low=-1.0)
        for name in study.true_settings()
    ])  # fmt: skip


@claim(
    "A-2",
    CASPER_V5,
    "Random labels are learned to at least 99 % from the second width on; the test stays within 3 points of chance.",
    without_null="chance itself is what the test accuracy is compared with",
)
def random_labels_are_learned(study: Evidence) -> Joint:
    """Least training accuracy from the second width on; greatest distance of the test accuracy from chance."""
    tests = []
    for name in study.settings:
        if study.traits(name)["labels"] != "random":
            continue
        train = study.curve(name, accuracy("train"), what="training accuracy")[:, 1:]
        test = study.curve(name, accuracy("test"), what="test accuracy")
        classes = study.curve(name, accuracy("chance"), what="chance")
        tests.append(judged(name, "least training accuracy, %", train, _least, low=99.0))
        tests.append(judged(name, "greatest test accuracy above chance, points", test - classes, _largest, high=3.0))
    if not tests:
        raise NotInStudy("not in this study: no setting with random labels")
    return every(tests)


@claim(
    "A-3",
    CASPER_V2,
    "From the least to the greatest width the removable area A rises by more than 0.02, or the similar "
    "units per unit rise by more than 0.5, or both.",
)
def removable_or_repeated(study: Evidence) -> Joint:
    """In every setting at least one of the two rises."""
    joints = []
    for name in study.settings:
        both: list[Reading] = []
        for what, read, least in (("rise of A", removable, 0.02), ("rise of similar units per unit", similar, 0.5)):
            rows = study.curve(name, read, what=what)
            both.append(judged(name, what, rows, _rise, low=least, nulls=study.nulls(name, read)))
        joints.append(some(both))
    return all_of(joints)


@claim(
    "A-4",
    CASPER_V2,
    "Ablating the most similar units first costs more agreement than a random order, by at least 0.01 at "
    "the greatest width and by more than at the least width.",
)
def targeted_gap_grows(study: Evidence) -> Joint:
    """Gap at the greatest width, and its rise over the ladder (the paper: in AlexNet, hardly in ResNets)."""
    joints = []
    for name in study.true_settings():
        rows, nulls = study.curve(name, gap, what="targeted gap"), study.nulls(name, gap)
        joints.append(every([
            judged(name, "targeted gap at the greatest width", rows, lambda r: float(r[:, -1].mean()), low=0.01,
                   nulls=nulls),
            judged(name, "rise of the targeted gap", rows, _rise, low=0.0, nulls=nulls),
        ]))  # fmt: skip
    return all_of(joints)


@claim(
    "A-5",
    CASPER_V5,
    f"The number of prunable units grows by a factor of at least {NEARLY} with every doubling of the width.",
)
def prunability_grows(study: Evidence) -> Joint:
    """g of width · x*, in every setting where ablation can be told from a constant answer."""
    doublings, widths = study.doublings(), np.array(study.widths)
    tests, missing = [], []
    for name in study.settings:
        try:
            rows = study.curve(name, prunable, what="an x* below 1 of the ablation curve")
        except NotInStudy as error:
            missing.append(error)
            continue
        nulls = {null: widths * values for null, values in study.nulls(name, prunable).items()}
        tests.append(judged(name, "g of prunable units", widths * rows, rate(doublings), low=NEARLY, nulls=nulls))
    if not tests:
        raise missing[0]
    return every(tests)


@claim(
    "A-6",
    CASPER_V5,
    f"The number of redundant directions grows by a factor of at least {NEARLY} with every doubling of the width.",
)
def redundancy_grows(study: Evidence) -> Joint:
    """g of width · R95 from the second width on (as published, where there are three or more), in every setting."""
    first = 1 if len(study.widths) > 2 else 0
    widths = np.array(study.widths)[first:]
    tests = []
    for name in study.settings:
        rows = study.curve(name, redundancy, what="R95")[:, first:]
        beside = [*study.networks(name), "white noise"]
        nulls = {null: widths * study.null_curve(name, redundancy, null)[:, first:] for null in beside}
        what = "g of redundant directions"
        tests.append(judged(name, what, widths * rows, rate(study.doublings(first)), low=NEARLY, nulls=nulls))
    return every(tests)


def rate(doublings: float) -> Statistic:
    """The growth per doubling of rows (S, W), from the first width to the last."""
    return lambda rows: growth(np.atleast_2d(rows), doublings=doublings).value if (rows > 0).all() else math.nan


def _rise(rows: Array) -> float:
    return float((rows[:, -1] - rows[:, 0]).mean())


def _against_the_best(rows: Array) -> float:
    mean = rows.mean(0)
    return float(mean[-1] - mean[:-1].max())


def _least(rows: Array) -> float:
    return float(rows.mean(0).min())


def _largest(rows: Array) -> float:
    return float(rows.mean(0).max())

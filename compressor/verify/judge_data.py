"""Is this judge split fit to judge? Large enough, not used for anything else, not seen in training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from compressor.algebra.intervals import samples_needed, smallest_decidable_drop
from compressor.errors import DataError

SUSPICIOUS_ACCURACY = 99.9
"""Percent at or above which judge data may be training data."""

SUSPICIOUS_POINTS = 2.0
SUSPICIOUS_ERRORS = 3.0
"""Judge accuracy above tune accuracy by more than these many points and standard errors is suspicious too."""

DIFFERENT = 0.95
"""Share of judge inputs that must differ from all before them, or a warning is due."""

TYPICAL_DISCORDANCE = 0.02
"""Share of samples whose correctness changes under a compression worth judging; only for advice."""


class HashedSamples(Protocol):
    """What is needed of data: one hash for each sample's input."""

    def __len__(self) -> int: ...

    @property
    def hashes(self) -> np.ndarray:
        """(n,) or (n, bytes), equal for equal inputs."""
        ...


def decidable(n: int, confidence: float = 0.95) -> str:
    """One line: the smallest drop that n judge samples can pass at best, and with 2 % discordant samples."""
    best = 100 * smallest_decidable_drop(n, confidence)
    typical = 100 * smallest_decidable_drop(n, confidence, TYPICAL_DISCORDANCE)
    return (
        f"{n:,} judge samples can pass a drop of {_up(best)} points at {100 * confidence:g} % confidence "
        f"if not one answer gets worse, of about {_up(typical)} points if {100 * TYPICAL_DISCORDANCE:g} % "
        "of the answers change, for better and worse alike"
    )


def before_work(n: int, confidence: float = 0.95, allowed: float = 0.5) -> str | None:
    """A warning if n samples cannot pass `allowed` percentage points even without any loss, else None.

    Says the smallest drop that they can decide and how many samples `allowed` needs.
    """
    if allowed > 0 and 100 * smallest_decidable_drop(n, confidence) <= allowed:
        return None
    if allowed <= 0:
        advice = "an allowed drop of 0 passes only a network that is measurably better"
    else:
        needed = samples_needed(allowed / 100, confidence)
        advice = f"{allowed:g} points need at least {needed:,} samples without any loss, and more with losses"
    line = decidable(n, confidence)
    return f"The verdict will be 'undecided' at best unless accuracy grows: {line}; {advice}."


def repeats_warning(judge: HashedSamples) -> str | None:
    """A warning where many judge inputs are copies of others: n samples are n draws only if they came by chance."""
    count, different = len(judge), len(np.unique(_plain(judge.hashes)))
    if different >= DIFFERENT * count:
        return None
    return (
        f"The {count:,} judge samples are {different:,} different inputs. If the others are copies (oversampling), and "
        f"not drawn alike by chance, the verdict is surer than {different:,} samples allow: judge on each once."
    )


def training_data_warning(
    judge_accuracy: float, judge_samples: int, tune_accuracy: float | None = None, tune_samples: int = 0
) -> str | None:
    """A warning where the original's accuracy (percent) suggests that it was trained on the judge data.

    That is at 99.9 % and above, or more than 2 points and 3 standard errors above that on the tune data.
    """
    if judge_accuracy >= SUSPICIOUS_ACCURACY:
        return (
            f"The original is right on {judge_accuracy:.2f} % of the {judge_samples:,} judge samples: if it "
            "was trained on them, losses on new data are underestimated. Judge on data it has not seen."
        )
    if tune_accuracy is None or tune_samples < 1 or judge_samples < 1:
        return None
    higher = judge_accuracy - tune_accuracy
    pooled = (judge_accuracy * judge_samples + tune_accuracy * tune_samples) / (judge_samples + tune_samples)
    error = math.sqrt(pooled * (100 - pooled) * (1 / judge_samples + 1 / tune_samples))
    if higher <= max(SUSPICIOUS_POINTS, SUSPICIOUS_ERRORS * error):
        return None
    return (
        f"The original is {higher:.1f} points better on the judge data ({judge_accuracy:.2f} %) than on the "
        f"tune data ({tune_accuracy:.2f} %): the judge data may be training data. "
        "Judge on data it has not seen."
    )


def chance_warning(accuracy: float, labels: np.ndarray) -> str | None:
    """A warning where the original's accuracy (percent) is no better than the commonest of `labels` (n,), for each.

    Within two standard errors counts as no better.
    """
    commonest = 100 * float(np.unique(labels, return_counts=True)[1].max()) / len(labels)
    if accuracy > commonest + 2 * math.sqrt(commonest * (100 - commonest) / len(labels)):
        return None
    return (
        f"The original is right on {accuracy:.2f} % of the {len(labels):,} judge samples, and one answer for all of "
        f"them on {commonest:.2f} %: that nothing was lost says little. Are inputs prepared, and labels numbered, as "
        "when it was trained?"
    )


def refuse_overlap(judge: HashedSamples, others: Mapping[str, HashedSamples]) -> None:
    """DataError if any judge input is also in another split (by content, in any order), naming each split."""
    own = _plain(judge.hashes)
    shared = {name: int(np.isin(own, _plain(other.hashes)).sum()) for name, other in others.items()}
    found = [f"{count:,} also in '{name}'" for name, count in shared.items() if count]
    if found:
        more = [name for name, count in shared.items() if count] == ["unlabelled"]  # the rest was cut well
        raise DataError(
            f"judge data ({len(own):,} samples)",
            f"inputs that other splits hold too: {', '.join(found)}",
            "no shared sample: what calibrated or tuned a network cannot judge it",
            "take the judge's inputs out of --unlabelled; or give, with DATA, a judge split that is not in there"
            if more
            else "give a judge split of its own, or leave it out to have one split off",
        )


def _plain(hashes: np.ndarray) -> np.ndarray:
    """One comparable value for each sample: rows of bytes become fixed-size byte strings."""
    rows = np.ascontiguousarray(hashes)
    if rows.ndim == 1:
        return rows
    hexed = [row.tobytes().hex() for row in rows.reshape(len(rows), -1)]
    return np.array(hexed, dtype=str)


def _up(points: float) -> str:
    """Points rounded up to three significant digits, so that the promise holds."""
    step = 10.0 ** (math.floor(math.log10(points)) - 2)
    return f"{math.ceil(points / step - 1e-9) * step:.3g}"

"""How a claim is judged: a statistic over seeds against the range that the proposition names. S seeds, W widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy import stats

from compressor.capacity.claims.evidence import NotInStudy
from compressor.capacity.measures import over_seeds
from compressor.capacity.measures.checks import Array
from compressor.errors import CompressorError

CONFIDENCE = 0.95
Statistic = Callable[[Array], float]


@dataclass(frozen=True)
class Reading:
    """One statistic of one setting: effect, interval, and how likely such data are outside / inside the range."""

    setting: str
    what: str
    effect: float
    interval: tuple[float, float]
    low: float
    high: float
    p_for: float
    """One-sided: the effect would look so far inside the range if it were at its nearest edge."""
    p_against: float
    """The same for outside."""
    nulls: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Null -> its effect, its interval, and whether it lies in the range too."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON; unbounded ends are None."""
        return {
            "setting": self.setting,
            "what": self.what,
            "effect": self.effect,
            "interval": bounded(self.interval),
            "range": bounded((self.low, self.high)),
            "p_for": self.p_for,
            "p_against": self.p_against,
            "null": {name: dict(null) for name, null in self.nulls.items()},
        }


def judged(
    setting: str, what: str, rows: Array, statistic: Statistic, low: float = -math.inf, high: float = math.inf,
    nulls: Mapping[str, Array] | None = None,
) -> Reading:  # fmt: skip
    """Judge whether `statistic` of `rows` (S, ...) lies in [low, high]; `nulls` are rows of the same kind.

    The interval is over seeds (see `over_seeds`). Seeds that all agree to the last digit have no spread to judge by:
    then the p-value is that of S coins falling on one side. NotInStudy for fewer than 2 seeds, or where the statistic
    cannot be computed.
    """
    if len(rows) < 2:
        raise NotInStudy("fewer than 2 seeds: nothing is known of the spread between networks")
    effect, interval = _estimate(rows, statistic, what)
    p_above, p_below = (_p(effect, interval, edge, len(rows)) for edge in (low, high))
    p_for = max(p_above, 1 - p_below if math.isfinite(high) else 0.0)
    p_against = min(1.0, (2 if math.isfinite(low) and math.isfinite(high) else 1) * min(1 - p_above, p_below))
    if interval[0] == interval[1]:
        inside, coins = low <= effect <= high, 0.5 ** len(rows)
        p_for, p_against = (coins, 1.0) if inside else (1.0, coins)
    beside = {}
    for name, other in (nulls or {}).items():
        beside[name] = _beside(other, statistic, f"{what} of the null '{name}'", low, high)
    return Reading(setting, what, effect, interval, low, high, p_for, p_against, beside)


def _beside(rows: Array, statistic: Statistic, what: str, low: float, high: float) -> dict[str, Any]:
    """A null's effect; one whose statistic does not exist (no number of clones, no slope) reproduces nothing."""
    try:
        value, around = _estimate(rows, statistic, what)
    except NotInStudy as missing:
        return {"effect": None, "interval": None, "reproduces": False, "reason": str(missing)}
    return {"effect": value, "interval": bounded(around), "reproduces": low <= value <= high}


def _estimate(rows: Array, statistic: Statistic, what: str) -> tuple[float, tuple[float, float]]:
    try:
        found = over_seeds(rows, statistic, CONFIDENCE)
    except CompressorError as error:
        raise NotInStudy(f"{what} cannot be computed: {error.got}") from error
    if not math.isfinite(found.value) or any(math.isnan(end) for end in found.interval):
        raise NotInStudy(f"{what} cannot be computed: not finite")
    return found.value, found.interval


def _p(effect: float, interval: tuple[float, float], edge: float, seeds: int) -> float:
    """P(T >= t) of the effect against an edge below it: small where the effect lies well above the edge."""
    if math.isinf(edge):
        return 0.0 if edge < 0 else 1.0
    error = (interval[1] - interval[0]) / 2 / float(stats.t.isf((1 - CONFIDENCE) / 2, seeds - 1))
    if error == 0:
        return 0.5
    return float(stats.t.sf((effect - edge) / error, seeds - 1))


@dataclass(frozen=True)
class Joint:
    """The tests of a claim together: whether all of them hold, or one of several."""

    tests: tuple[Reading, ...]
    p_for: float
    p_against: float
    shown: Reading
    """The one whose effect and interval stand for the claim."""
    shown_by: tuple[str, ...]
    """Nulls whose own effects are as the whole proposition says."""


def every(tests: Sequence[Reading]) -> Joint:
    """All must hold (intersection-union: the weakest decides); one that fails refutes it (Bonferroni)."""
    worst = max(tests, key=lambda test: (test.p_for, -test.p_against))
    against = min(1.0, len(tests) * min(test.p_against for test in tests))
    return Joint(tuple(tests), worst.p_for, against, worst, _in_all([_shown_by(test) for test in tests]))


def some(tests: Sequence[Reading]) -> Joint:
    """One must hold (Bonferroni); it is refuted where all fail."""
    best = min(tests, key=lambda test: (test.p_for, -test.p_against))
    against = max(test.p_against for test in tests)
    found = dict.fromkeys(name for test in tests for name, yes in _shown_by(test).items() if yes)
    return Joint(tuple(tests), min(1.0, len(tests) * best.p_for), against, best, tuple(found))


def all_of(joints: Sequence[Joint]) -> Joint:
    """All of several joint tests must hold."""
    worst = max(joints, key=lambda joint: (joint.p_for, -joint.p_against))
    tests = tuple(test for joint in joints for test in joint.tests)
    against = min(1.0, len(joints) * min(joint.p_against for joint in joints))
    known = [{name: name in joint.shown_by for test in joint.tests for name in test.nulls} for joint in joints]
    return Joint(tests, worst.p_for, against, worst.shown, _in_all(known))


def _shown_by(test: Reading) -> dict[str, bool]:
    return {name: bool(null["reproduces"]) for name, null in test.nulls.items()}


def _in_all(known: Sequence[Mapping[str, bool]]) -> tuple[str, ...]:
    """Nulls that show it wherever they stand beside it; where a setting cannot have one, the others decide."""
    names = dict.fromkeys(name for one in known for name in one)
    return tuple(name for name in names if all(one.get(name, True) for one in known))


def bounded(interval: tuple[float, float]) -> list[float | None]:
    """Ends for JSON: None where there is none."""
    return [end if math.isfinite(end) else None for end in interval]

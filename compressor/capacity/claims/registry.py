"""The claims by their number, and their verdicts: Holm's correction over all claims that a study can test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compressor.capacity.claims.evidence import Evidence, NotInStudy
from compressor.capacity.claims.judging import CONFIDENCE, Joint, bounded
from compressor.capacity.nulls import RANDOM_LABELS

Function = Callable[[Evidence], Joint]


@dataclass(frozen=True)
class Claim:
    """A proposition with a number in it, where it was published, and its test."""

    id: str
    paper: str
    proposition: str
    test: Function
    without_null: str | None = None
    """Why no null can stand beside its effect, where none does."""


CLAIMS: dict[str, Claim] = {}
CASPER_V2, CASPER_V5 = "arXiv:1912.04783v2", "arXiv:1912.04783v5"
DOIMO = "arXiv:2106.03485v4"


def claim(id: str, paper: str, proposition: str, without_null: str | None = None) -> Callable[[Function], Function]:
    """Register the test of a claim."""

    def register(test: Function) -> Function:
        assert id not in CLAIMS, id
        CLAIMS[id] = Claim(id, paper, proposition, test, without_null)
        return test

    return register


def judge_claims(evidence: Evidence) -> list[dict[str, Any]]:
    """Every registered claim with its verdict: `supported`, `not supported` or `undecided`.

    p-values are two-sided over the directions and corrected after Holm over the claims that could be tested. A claim
    that a null shows too says so: `null` has the null's effect, `reproduced` is True.
    """
    from compressor.capacity.claims import casper, casper_contrasts, doimo, doimo_contrasts  # noqa: F401 (they register)

    rows = [_tested(CLAIMS[id], evidence) for id in sorted(CLAIMS, key=_order)]
    waiting = sorted((row for row in rows if row["p_value"] is not None), key=lambda row: row["p_value"])
    largest = 0.0
    for place, row in enumerate(waiting):
        largest = max(largest, min(1.0, (len(waiting) - place) * row["p_value"]))
        row["p_corrected"] = largest
        row["verdict"] = _verdict(row, largest)
        row["reproduced"] = row["reproduced"] and row["verdict"] == "supported"
        row["reproduced_by"] = row["reproduced_by"] if row["reproduced"] else []
        if row["verdict"] == "undecided":
            row["reason"] = f"p = {largest:.2g} after correction over {len(waiting)} claims"
        elif row["reproduced"]:
            row["reason"] = _shown_too(row["reproduced_by"])
    return [{key: value for key, value in row.items() if key != "direction"} for row in rows]


def _shown_too(names: list[str]) -> str:
    """What a supported claim says no more of, because these nulls show it too."""
    if names == [RANDOM_LABELS]:
        return f"its null ({names[0]}) shows it too: it says nothing of what the labels teach"
    return f"its null shows it too ({', '.join(names)}): it says nothing of learning"


def _tested(one: Claim, evidence: Evidence) -> dict[str, Any]:
    about: dict[str, Any] = {
        "id": one.id,
        "proposition": one.proposition,
        "paper": one.paper,
        "verdict": "undecided",
        "without_null": one.without_null,
    }
    nothing = {**dict.fromkeys(("effect", "interval", "null", "p_value", "p_corrected")), "nulls": {}}
    try:
        joint = one.test(evidence)
    except NotInStudy as missing:
        return {**about, **nothing, "reproduced": False, "reproduced_by": [], "reason": str(missing), "tests": []}
    shown = joint.shown
    null = None
    if shown.nulls:
        name = max(shown.nulls, key=lambda key: (key in joint.shown_by, shown.nulls[key]["effect"] is not None))
        null = {"name": name, **shown.nulls[name]}
    return {
        **about,
        "effect": shown.effect,
        "interval": bounded(shown.interval),
        "null": null,
        "nulls": {name: dict(one) for name, one in shown.nulls.items()},
        "reproduced_by": list(joint.shown_by),
        "p_value": min(1.0, 2 * min(joint.p_for, joint.p_against)),
        "p_corrected": None,
        "direction": joint.p_for <= joint.p_against,
        "reproduced": bool(joint.shown_by),
        "without_null": None if shown.nulls else one.without_null,
        "reason": "",
        "tests": [test.as_dict() for test in joint.tests],
    }


def _verdict(row: dict[str, Any], p: float) -> str:
    if p > 1 - CONFIDENCE:
        return "undecided"
    return "supported" if row["direction"] else "not supported"


def _order(id: str) -> tuple[str, int]:
    letter, _, number = id.partition("-")
    return letter, int(number)

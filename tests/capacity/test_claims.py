"""Verdicts on invented studies whose answer is known."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from compressor.capacity.claims.evidence import Evidence, NotInStudy
from compressor.capacity.claims.judging import every, judged, some
from compressor.capacity.claims.registry import judge_claims

WIDTHS, SEEDS = (8, 16, 32, 64), range(4)
TRAITS = {
    "labels": "true",
    "initialisation": "own",
    "train_samples": 1000,
    "scale": 1.0,
    "regulariser": (0.0, 0.0, False, 0, 0),
    "optimizer": ("sgd", "one_cycle", 0.1),
    "epochs": 10,
    "model": {},
    "dimension": 64,
    "data": {},
}


def part(
    prunable: float = 0.3, r95: float = 0.3, removable: float = 0.5, similar: float = 1.0, gap: float = 0.0
) -> Any:
    ablation = {"prunable_mean": prunable, "removable": removable, "targeted_gap": gap}
    return {"r95": r95, "similar": similar, "ablation": ablation, "layers": []}


def rung(width: float, seed: int, setting: str = "base", **changes: Any) -> dict[str, Any]:
    """A rung with a little noise of its own; `changes`: measures, untrained, test, train, traits, chunks."""
    noise = np.random.default_rng([seed, int(width), len(setting)]).normal()
    measures = part(**{k: v * (1 + 0.01 * noise) for k, v in changes.get("measures", {}).items()})
    measures["accuracy"] = {
        "train": changes.get("train", 100.0),
        "test": changes.get("test", 90.0) + 0.1 * noise,
        "chance": 10.0,
    }
    measures["chunks"] = changes.get("chunks", {"refused": "no chunks here"})
    nulls = {"untrained": part(**changes.get("untrained", {})), "white noise": part(), "permuted": part()}
    if "memorised" in changes:
        nulls["random labels"] = part(**changes["memorised"])
    traits = {**TRAITS, **changes.get("traits", {})}
    return {"setting": setting, "width": width, "seed": seed, "measures": measures, "nulls": nulls, "traits": traits}


def ladder(setting: str = "base", seeds: Any = SEEDS, **changes: Any) -> list[dict[str, Any]]:
    """All rungs; what is callable is asked for each width."""
    rungs = []
    for width, seed in itertools.product(WIDTHS, seeds):
        given = {k: v(width) if callable(v) else v for k, v in changes.items()}
        rungs.append(rung(width, seed, setting, **given))
    return rungs


def verdicts(rungs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in judge_claims(Evidence(rungs))}


def test_every_claim_of_both_papers_is_there_with_a_number_and_a_paper() -> None:
    found = verdicts(ladder())
    assert list(found) == [*(f"A-{n}" for n in range(1, 15)), *(f"B-{n}" for n in range(1, 12))]
    for row in found.values():
        assert any(letter.isdigit() for letter in row["proposition"])
        assert row["paper"].startswith("arXiv:")
        assert row["reason"] or row["verdict"] != "undecided"


def test_what_a_study_does_not_vary_stays_undecided() -> None:
    found = verdicts(ladder())
    for number in ("A-2", "A-7", "A-8", "A-9", "A-10", "A-11", "A-12", "A-14"):
        assert found[number]["verdict"] == "undecided"
        assert found[number]["reason"].startswith("not in this study")
    for number in ("B-1", "B-5", "B-9"):
        assert found[number]["verdict"] == "undecided"
        assert "no chunks here" in found[number]["reason"] or "fewer than" in found[number]["reason"]


def test_an_x_of_1_says_nothing() -> None:
    """A constant answer agrees as often: neither such a setting nor such a null counts."""
    rising = ladder(measures=lambda w: {"prunable": 0.1 * (w / 8) ** 0.5}, untrained={"prunable": 1.0})
    flat = [{**row, "setting": "flat"} for row in rising]
    flat = [{**row, "measures": {**row["measures"], "ablation": {"prunable_mean": 1.0}}} for row in flat]
    both, alone = verdicts([*rising, *flat])["A-5"], verdicts(flat)["A-5"]
    assert [test["setting"] for test in both["tests"]] == ["base"]
    assert both["verdict"] == "supported"
    assert both["tests"][0]["null"]["untrained"]["effect"] is None
    assert "below 1" in alone["reason"]


def test_a_prunable_share_that_rises_is_supported_and_one_that_falls_is_not() -> None:
    less = lambda w: {"prunable": 0.8 * (8 / w) ** 0.5}  # noqa: E731
    rises = verdicts(ladder(measures=lambda w: {"prunable": 0.1 * (w / 8) ** 0.5}, untrained=less))["A-5"]
    assert rises["verdict"] == "supported"
    assert rises["effect"] == pytest.approx(2 * 2**0.5, rel=0.02)
    low, high = rises["interval"]
    assert low < rises["effect"] < high
    assert rises["null"]["effect"] == pytest.approx(2 / 2**0.5, rel=0.02)
    assert not rises["reproduced"]
    falls = verdicts(ladder(measures=lambda w: {"prunable": 0.9 * (8 / w) ** 0.5}))["A-5"]
    assert falls["verdict"] == "not supported"
    assert falls["effect"] == pytest.approx(2 / 2**0.5, rel=0.02)


def test_a_claim_that_its_null_shows_too_says_so() -> None:
    shares = lambda w: {"r95": 0.1 * (w / 8) ** 0.5, "prunable": 0.1 * (w / 8) ** 0.5}  # noqa: E731
    found = verdicts(ladder(measures=shares, untrained=shares))["A-5"]
    assert found["verdict"] == "supported"
    assert found["reproduced"]
    assert found["null"]["name"] == "untrained"
    assert "null shows it too" in found["reason"]


def test_a_network_on_random_labels_is_a_null_too() -> None:
    rises = lambda w: {"r95": 0.1 * (w / 8) ** 0.5, "prunable": 0.1 * (w / 8) ** 0.5}  # noqa: E731
    falls = lambda w: {"prunable": 0.5 * (8 / w) ** 0.5}  # noqa: E731
    found = verdicts(ladder(measures=rises, memorised=rises, untrained=falls))["A-5"]
    assert found["verdict"] == "supported"
    assert found["reproduced_by"] == ["random labels"]
    assert found["null"]["name"] == "random labels"
    assert not found["nulls"]["untrained"]["reproduces"]
    assert found["reason"].endswith("nothing of what the labels teach")
    assert verdicts(ladder(measures=rises, memorised=falls, untrained=falls))["A-5"]["reproduced_by"] == []
    without = [{**row, "nulls": {k: v for k, v in row["nulls"].items() if k != "random labels"}} for row in ladder()]
    assert "random labels" not in verdicts(without)["A-5"]["nulls"]


def test_one_of_two_is_enough_for_a_null_as_for_the_networks() -> None:
    rises = lambda w: {"similar": w / 8, "removable": 0.5}  # noqa: E731
    found = verdicts(ladder(measures=lambda w: {"similar": w / 8, "removable": w / 128}, untrained=rises))["A-3"]
    assert found["verdict"] == "supported"
    assert found["reproduced_by"] == ["untrained"]


def test_accuracy_that_falls_refutes_the_first_claim() -> None:
    assert verdicts(ladder(test=90.0))["A-1"]["verdict"] == "supported"
    falls = verdicts(ladder(test=lambda w: 90.0 if w < 64 else 80.0))["A-1"]
    assert falls["verdict"] == "not supported"
    assert falls["effect"] == pytest.approx(-10, abs=0.3)


def test_one_seed_says_nothing_of_others() -> None:
    found = verdicts(ladder(seeds=[0]))
    assert {row["verdict"] for row in found.values()} == {"undecided"}
    assert "fewer than 2 seeds" in found["A-1"]["reason"]


def test_labels_are_compared_where_nothing_else_differs() -> None:
    true = ladder("true", measures={"prunable": 0.4, "r95": 0.3})
    random = {"labels": "random"}
    both = [*true, *ladder("random", measures={"prunable": 0.1, "r95": 0.31}, traits=random, test=10.0)]
    found = verdicts(both)
    assert found["A-9"]["verdict"] == "supported"
    assert found["A-2"]["verdict"] != "not supported"
    both = [
        *true,
        *ladder("random", measures={"prunable": 0.1, "r95": 0.31}, traits={**random, "scale": 4.0}, test=10.0),
    ]
    assert "not in this study" in verdicts(both)["A-9"]["reason"]


def test_initialisation_decides_between_he_and_glorot_only() -> None:
    he = ladder("he", measures={"r95": 0.6, "prunable": 0.2}, traits={"initialisation": "he_normal"})
    glorot = ladder("glorot", measures={"r95": 0.3, "prunable": 0.4}, traits={"initialisation": "glorot_normal"})
    assert verdicts([*he, *glorot])["A-7"]["verdict"] == "supported"
    assert verdicts([*he, *ladder("lecun", traits={"initialisation": "lecun_normal"})])["A-7"]["effect"] is None


def test_holm_correction_only_ever_raises_p_values() -> None:
    rows = [row for row in verdicts(ladder()).values() if row["p_value"] is not None]
    assert len(rows) > 2
    ordered = sorted(rows, key=lambda row: row["p_value"])
    assert ordered[0]["p_corrected"] == pytest.approx(min(1.0, len(rows) * ordered[0]["p_value"]))
    assert all(row["p_corrected"] >= row["p_value"] for row in rows)
    corrected = [row["p_corrected"] for row in ordered]
    assert corrected == sorted(corrected)


def test_seeds_without_any_spread_count_as_coins() -> None:
    same = judged("s", "effect", np.full((3, 1), 0.5), lambda rows: float(rows.mean()), low=0.0)
    assert (same.p_for, same.p_against) == (0.125, 1.0)


def test_joint_tests() -> None:
    rows = np.array([[1.0], [1.1], [0.9], [1.05], [0.95]])
    good = judged("s", "effect", rows, lambda r: float(r.mean()), low=0.0)
    bad = judged("s", "effect", -rows, lambda r: float(r.mean()), low=0.0)
    assert good.p_for < 0.001 < 0.999 < bad.p_for
    assert every([good, bad]).shown is bad
    assert every([good, bad]).p_against == pytest.approx(2 * bad.p_against)
    assert some([good, bad]).shown is good
    assert some([good, bad]).p_for == pytest.approx(2 * good.p_for)
    inside = judged("s", "effect", rows, lambda r: float(r.mean()), 0.5, 1.5)
    outside = judged("s", "effect", rows, lambda r: float(r.mean()), 2.0, 3.0)
    assert inside.p_for < 0.01
    assert outside.p_against < 0.01
    assert outside.p_for > 0.99


def chunks(width: int) -> dict[str, Any]:
    """Chunks of a layer of `width` units that is made of clones of 8: error 0.02 + 0.3 size^-1/2 above, steep below."""
    sizes = [2**i for i in range(int(np.log2(width)) + 1)]
    error = [0.02 + 0.3 * s**-0.5 if s >= 8 else 0.02 + 0.3 * 8**-0.5 * (8 / s) ** 2 for s in sizes]
    noise = np.random.default_rng(width).normal(size=len(sizes)) * 1e-4
    return {
        "units": width,
        "sizes": sizes,
        "test_error": [[e + n] for e, n in zip(error, noise, strict=True)],
        "train_error": [[0.0 if s >= 8 else 0.4] for s in sizes],
        "r2_outside": [[0.99 if s >= 8 else 0.3] if s < width else [None] for s in sizes],
        "residual_correlation_outside": [[0.01 if s > 8 else 0.2] if s < width else [None] for s in sizes],
        "critical": {"value": 8, "by_error": 8, "by_r2": 8, "by_correlation": 16},
    }


def clones_study() -> list[dict[str, Any]]:
    rungs = ladder(chunks=lambda w: chunks(int(w)))
    for one in rungs:
        generator = np.random.default_rng([one["seed"], int(one["width"])])
        for name in ("test_error", "train_error", "r2_outside", "residual_correlation_outside"):
            rows = one["measures"]["chunks"][name]
            moved = [[None if v is None else v * (1 + 0.003 * generator.normal()) for v in row] for row in rows]
            one["measures"]["chunks"] = {**one["measures"]["chunks"], name: moved}
        one["nulls"]["untrained"]["chunks"] = {**chunks(64), "r2_outside": [[0.1]] * 7}
        one["nulls"]["permuted"]["chunks"] = {"sizes": [2**i for i in range(7)], "r2_outside": [[0.0]] * 7}
    return rungs


def test_planted_clones_are_seen() -> None:
    found = verdicts(clones_study())
    assert found["B-1"]["effect"] is not None
    slope = next(t for t in found["B-1"]["tests"] if t["what"] == "exponent above w*")
    assert slope["effect"] == pytest.approx(-0.5, abs=0.1)
    assert found["B-3"]["verdict"] == "supported"
    assert not found["B-3"]["reproduced"]
    assert found["B-4"]["verdict"] == "supported"
    assert found["B-4"]["effect"] == pytest.approx(0.05, rel=0.1)
    assert found["B-5"]["effect"] == pytest.approx(2.0)
    with pytest.raises(NotInStudy, match="not complete"):
        Evidence(clones_study()[1:]).curve("base", lambda p: p["r95"])

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from compressor.algebra.intervals import bounded_bounds, paired_bounds
from compressor.errors import DataError, ModelError, UsageError
from compressor.records import Verdict
from compressor.verify.accuracy import Outputs
from compressor.verify.judge import Candidate, fixed_sequence, judge, judge_outputs


def outputs(n: int, wrong: int = 0, losses: int = 0, gains: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of an original with `wrong` errors and of a compressed network with losses and gains; labels."""
    labels = torch.arange(n) % 3
    before = torch.nn.functional.one_hot(labels, 3).float()
    before[:wrong] = before[:wrong].roll(1, 1)
    after = before.clone()
    after[:gains] = after[:gains].roll(-1, 1)
    after[wrong : wrong + losses] = after[wrong : wrong + losses].roll(1, 1)
    return before, after, labels


def test_without_losses_600_samples_pass_half_a_point() -> None:
    before, after, labels = outputs(600, wrong=30)
    verdict = judge(before, after, labels, allowed=0.5)
    assert (verdict.value, verdict.samples, verdict.difference) == ("passed", 600, 0.0)
    assert verdict.original == verdict.compressed == 95.0
    assert -0.5 <= verdict.interval[0] < -0.49
    assert judge(before[:590], after[:590], labels[:590], allowed=0.5).value == "undecided"


def test_numbers_are_percentage_points_of_the_exact_bound() -> None:
    before, after, labels = outputs(2000, wrong=100, losses=12, gains=5)
    verdict = judge(before, after, labels, allowed=1.0, confidence=0.9)
    lower, upper = paired_bounds(12, 5, 2000, 0.9)
    assert verdict.interval == (100 * lower, 100 * upper)
    assert verdict.difference == pytest.approx(-0.35)
    assert (verdict.original, verdict.compressed) == (pytest.approx(95), pytest.approx(94.65))
    assert verdict.interval[0] < verdict.difference < verdict.interval[1]
    assert (verdict.details["losses"], verdict.details["gains"]) == (12, 5)
    assert verdict.value == "passed"
    json.dumps(verdict.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("losses", "gains", "allowed", "value"),
    [
        (2, 2, 0.5, "passed"),
        (10, 0, 0.5, "undecided"),
        (40, 2, 0.5, "failed"),
        (0, 40, 0.0, "passed"),
        (0, 0, 0.0, "undecided"),
    ],
)
def test_three_values(losses: int, gains: int, allowed: float, value: str) -> None:
    before, after, labels = outputs(2000, wrong=100, losses=losses, gains=gains)
    assert judge(before, after, labels, allowed=allowed).value == value


def test_the_limit_itself_passes_and_is_never_failed() -> None:
    before, after, labels = outputs(1000, wrong=50, losses=5, gains=1)
    lower, upper = judge(before, after, labels).interval
    assert judge(before, after, labels, allowed=-lower).value == "passed"
    assert judge(before, after, labels, allowed=-lower - 1e-9).value == "undecided"
    before, after, labels = outputs(1000, wrong=50, losses=60)
    lower, upper = judge(before, after, labels).interval
    assert judge(before, after, labels, allowed=-upper).value == "undecided"
    assert judge(before, after, labels, allowed=-upper - 1e-9).value == "failed"


def test_the_order_of_the_samples_does_not_matter() -> None:
    before, after, labels = outputs(700, wrong=20, losses=4, gains=3)
    order = torch.randperm(700, generator=torch.Generator().manual_seed(0))
    assert judge(before, after, labels) == judge(before[order], after[order], labels[order])


def test_a_worse_network_rarely_passes() -> None:
    """Simulated: truth just beyond the allowed drop; wrong "passed" at most 5 % of the time."""
    generator, n, trials = np.random.default_rng(0), 1500, 400
    labels = torch.zeros(n, dtype=torch.int64)
    before = torch.eye(2)[labels]
    counts = generator.multinomial(n, [0.0151, 0.005, 0.9799], size=trials)
    wrong = 0
    for lost, won, _ in counts.tolist():
        after, first = before.clone(), before.clone()
        after[:lost] = torch.tensor([0.0, 1.0])
        first[lost : lost + won] = torch.tensor([0.0, 1.0])
        wrong += judge(first, after, labels, allowed=1.0).value == "passed"
    assert 0 < wrong <= 0.05 * trials + 3 * (0.05 * 0.95 * trials) ** 0.5


def test_agreement_needs_no_labels() -> None:
    before, after, _ = outputs(1200, losses=3)
    verdict = judge(before, after, metric="agreement", allowed=1.0)
    assert (verdict.metric, verdict.original, verdict.value) == ("agreement", 100.0, "passed")
    assert verdict.compressed == pytest.approx(99.75)
    assert verdict.difference == pytest.approx(verdict.compressed - 100)
    assert verdict.details["gains"] == 0
    assert verdict.interval[0] == 100 * paired_bounds(3, 0, 1200)[0]


def test_missing_labels_are_refused() -> None:
    before, after, labels = outputs(10)
    with pytest.raises(DataError, match="no labels"):
        judge(before, after)
    original = Outputs(before, labels, "'logits' of the output (dict)", torch.float32)
    assert judge(original, after).details["judged"] == "'logits' of the output (dict)"


def test_outputs_that_are_not_finite_are_wrong() -> None:
    before, after, labels = outputs(2000)
    after[:] = torch.nan
    for metric in ("accuracy", "agreement"):
        verdict = judge(before, after, labels, metric=metric)
        assert (verdict.value, verdict.compressed) == ("failed", 0.0)


def test_maps_are_judged_by_their_share_of_positions() -> None:
    labels = torch.zeros(400, 4, 4, dtype=torch.int64)
    before = torch.zeros(400, 2, 4, 4)
    before[:, 0] = 1
    after = before.clone()
    after[::40, 1, 0, 0] = 2
    keys = np.arange(400)
    verdict = judge(before, after, labels, allowed=3.0, keys=keys)
    differences = np.zeros(400)
    differences[::40] = -1 / 16
    lower, upper = bounded_bounds(differences, keys)
    assert verdict.interval == (100 * lower, 100 * upper)
    assert verdict.difference == pytest.approx(-100 / 640)
    assert verdict.value == "passed"
    assert "betting" in verdict.details["bound"]


@pytest.mark.parametrize("allowed", [-0.1, 100.0, float("nan")])
def test_allowed_out_of_range_is_refused(allowed: float) -> None:
    before, after, labels = outputs(10)
    with pytest.raises(UsageError, match="allowed drop"):
        judge(before, after, labels, allowed=allowed)


def test_other_metrics_and_shapes_are_refused() -> None:
    before, after, labels = outputs(10)
    with pytest.raises(UsageError, match="metric"):
        judge(before, after, labels, metric="f1")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="shape"):
        judge(before, after[:9], labels)


def wave(n: int = 40, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "small", "large"),
    [(torch.float64, 1e-12, 1e-8), (torch.float32, 1e-6, 1e-2), (torch.bfloat16, 5e-3, 1.0)],
)
def test_exact_mode_passes_only_rounding(dtype: torch.dtype, small: float, large: float) -> None:
    before = wave()
    noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def answer(change: float) -> Outputs:
        return Outputs(before + change * noise, None, "the output", dtype)

    assert judge_outputs(answer(0), answer(small)).value == "passed"
    verdict = judge_outputs(answer(0), answer(large))
    assert (verdict.value, verdict.metric, verdict.allowed) == ("failed", "outputs", 0.0)
    assert verdict.details["max_relative_change"] > verdict.details["tolerance"]
    json.dumps(verdict.as_dict(), allow_nan=False)


def test_exact_mode_takes_the_coarser_dtype() -> None:
    before = wave()
    double = Outputs(before, None, "the output", torch.float64)
    single = Outputs(before.float().double(), None, "the output", torch.float32)
    assert judge_outputs(double, single).value == "passed"
    assert judge_outputs(double, before.float().double()).value == "failed"


def test_exact_mode_sees_flips_beyond_the_margin() -> None:
    before = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.3, 0.3000001]])
    near = before.clone()
    near[2] = torch.tensor([0.3000001, 0.3])  # a tie broken by rounding is no fault
    verdict = judge_outputs(before, near)
    assert (verdict.value, verdict.details["flips_beyond_margin"]) == ("passed", 0)
    assert verdict.compressed == pytest.approx(200 / 3)
    far = before.clone()
    far[0] = torch.tensor([0.45, 0.55])  # changes by 0.55 what was apart by 1
    spread = verdict.details["spread"]
    assert judge_outputs(before, far, tolerance=1.1 / spread).value == "passed"
    verdict = judge_outputs(before, far, tolerance=0.9 / spread)
    assert verdict.details["max_relative_change"] < verdict.details["tolerance"]
    assert (verdict.value, verdict.details["flips_beyond_margin"]) == ("failed", 1)


def test_exact_mode_fails_what_is_not_finite() -> None:
    after = wave()
    after[3, 2] = torch.nan
    verdict = judge_outputs(wave(), after)
    assert verdict.value == "failed"
    assert verdict.details["not_finite"] == 1
    json.dumps(verdict.as_dict(), allow_nan=False)


def verdict_of(value: str) -> Verdict:
    return Verdict(value, "accuracy", 90.0, 90.0, 0.0, (-1.0, 1.0), 0.5, 0.95, 10)  # type: ignore[arg-type]


def sequence(values: list[str]) -> tuple[list[Candidate], list[int]]:
    opened: list[int] = []

    def at(place: int) -> Verdict:
        opened.append(place)
        return verdict_of(values[place])

    return [Candidate(f"net{place}", 10.0 - place, lambda p=place: at(p)) for place in range(len(values))], opened


@pytest.mark.parametrize(
    ("values", "winner", "judged"),
    [
        (["passed", "passed", "undecided", "passed"], 1, 3),
        (["passed", "failed", "passed"], 0, 2),
        (["undecided", "passed"], None, 1),
        (["passed", "passed"], 1, 2),
    ],
)
def test_the_sequence_stops_at_the_first_that_does_not_pass(values: list[str], winner: int | None, judged: int) -> None:
    candidates, opened = sequence(values)
    found = fixed_sequence(candidates)
    assert opened == list(range(judged))  # what comes after is never looked at
    assert found.winner == winner
    assert found.judged == tuple(f"net{place}" for place in range(judged))
    assert found.judged + found.unjudged == tuple(candidate.name for candidate in candidates)
    assert [bool(verdict.details.get("selected")) for verdict in found.verdicts] == [
        place == winner for place in range(judged)
    ]
    assert found.verdict is found.verdicts[winner or 0]


def test_the_sequence_must_fall_in_size() -> None:
    candidates, opened = sequence(["passed", "passed"])
    with pytest.raises(UsageError, match="largest to the smallest"):
        fixed_sequence(candidates[::-1])
    with pytest.raises(UsageError):
        fixed_sequence([])
    assert opened == []

"""How often the verdict is wrong: thousands of pairs of networks with known true drops, judged by the real functions.

Each setting draws per-sample outcomes of an original and a compressed network whose true drop is exactly the allowed
one (the worst truth at which "passed" is wrong) and counts how often `verify.judge.judge` passes it; sequences of
correlated candidates go through `verify.judge.fixed_sequence`. Verdicts are asked of `judge` once for each pair of
counts, and only where losses begin to be too many (`Stairs`); random outcomes check that this loses nothing. Beside
the simulated rate stands the exact one, summed over all outcomes.

Run in a checkout: `python recipes/verdict_rates.py --out recipes/results/verdict_rates.json`
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from compressor.records import Verdict  # noqa: E402
from compressor.verify.judge import Candidate, fixed_sequence, judge  # noqa: E402

CONFIDENCES = (0.90, 0.95, 0.99)
ALLOWED = {50: 12.0, 200: 4.0, 1000: 1.0, 3000: 0.5, 10_000: 0.5}
"""Points, for each number of samples: about twice what it can decide at best."""
CHECKS = 10
"""Drawn outcomes of each setting that are asked of `judge` directly."""
TAIL = 1e-5
"""Gains less probable than this, on each side, count as passed in the exact rate."""
SHARED = 0.5
"""Share of every candidate's losses and gains that falls on samples which the other candidates lose or gain too."""


@dataclass(frozen=True)
class Truth:
    """What is true of a pair of networks beside the drop: the original's accuracy and P(gain)."""

    name: str
    accuracy: float
    gains: float


TRUTHS = (
    Truth("ties: no gains", 0.90, 0.0),
    Truth("few changes", 0.93, 0.01),
    Truth("near-perfect", 0.999, 0.0005),
    Truth("chance of two", 0.52, 0.20),
)


class Stairs:
    """`judge` at one number of samples, allowed drop (points) and confidence: per gains, the most losses that pass."""

    def __init__(self, samples: int, allowed: float, confidence: float) -> None:
        self.samples, self.allowed, self.confidence = samples, allowed, confidence
        self._verdicts: dict[tuple[int, int], Verdict] = {}
        self._most: dict[int, int] = {}

    @property
    def calls(self) -> int:
        """How many verdicts were asked of `judge`."""
        return len(self._verdicts)

    def verdict(self, losses: int, gains: int) -> Verdict:
        """Of `judge`, on outputs with these counts; one sample is wrong before and after, so that answers vary."""
        key = (losses, gains)
        if key not in self._verdicts:
            before = torch.zeros(self.samples, 2)
            before[:, 0] = 1
            before[gains + losses : gains + losses + 1] = torch.tensor([0.0, 1.0])
            after = before.clone()
            before[:gains] = torch.tensor([0.0, 1.0])
            after[gains : gains + losses] = torch.tensor([0.0, 1.0])
            labels = torch.zeros(self.samples, dtype=torch.int64)
            self._verdicts[key] = judge(before, after, labels, allowed=self.allowed, confidence=self.confidence)
        return self._verdicts[key]

    def most(self, gains: int) -> int:
        """The largest number of losses that passes beside these gains, -1 if none; it grows with the gains."""
        if gains not in self._most:
            near = self._most.get(gains - 1, self._most.get(gains + 1))
            self._most[gains] = self._bisected(gains) if near is None else self._walked(gains, near)
        return self._most[gains]

    def passes(self, losses: np.ndarray, gains: np.ndarray) -> np.ndarray:
        """For many outcomes at once."""
        found, places = np.unique(gains, return_inverse=True)
        most = np.array([self.most(int(value)) for value in found])
        return losses <= most[places].reshape(losses.shape)

    def _fits(self, losses: int, gains: int) -> bool:
        return losses < 0 or (losses + gains <= self.samples and self.verdict(losses, gains).value == "passed")

    def _bisected(self, gains: int) -> int:
        low, high = -1, self.samples - gains + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(middle, gains) else (low, middle)
        return low

    def _walked(self, gains: int, start: int) -> int:
        place = start
        while not self._fits(place, gains):
            place -= 1
        while self._fits(place + 1, gains):
            place += 1
        return place


def clopper_pearson(count: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a rate (Clopper & Pearson 1934), as fractions."""
    tail = (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, count, trials - count + 1)) if count else 0.0
    high = float(stats.beta.ppf(1 - tail, count + 1, trials - count)) if count < trials else 1.0
    return low, high


def rated(count: int, trials: int, confidence: float) -> dict[str, Any]:
    """A measured rate of wrong verdicts beside what was promised."""
    low, high = clopper_pearson(count, trials)
    promised = 1 - confidence
    return {
        "wrong": count, "trials": trials, "rate": count / trials, "interval": [low, high],
        "promised": round(promised, 6), "kept": low <= promised,
    }  # fmt: skip


def exact_rate(stairs: Stairs, losses: float, gains: float) -> float:
    """P(passed) at these probabilities, summed over all outcomes; an upper limit (see TAIL)."""
    n = stairs.samples
    first, last = (int(value) for value in stats.binom.ppf([TAIL, 1 - TAIL], n, gains)) if gains else (0, 0)
    won = np.arange(first, last + 1)
    most = np.array([stairs.most(int(value)) for value in won])
    weight = stats.binom.pmf(won, n, gains)
    passed = stats.binom.cdf(most, n - won, losses / (1 - gains))
    return float((weight * passed).sum() + max(0.0, 1 - weight.sum()))


def measured(truth: Truth, samples: int, confidence: float, trials: int, seed: int = 0) -> dict[str, Any]:
    """How often a network that loses exactly what is allowed is passed."""
    start, allowed = time.process_time(), ALLOWED[samples]
    lost = truth.gains + allowed / 100
    stairs = Stairs(samples, allowed, confidence)
    generator = np.random.default_rng([seed, samples, round(1e4 * confidence), TRUTHS.index(truth)])
    counts = generator.multinomial(samples, [lost, truth.gains, 1 - lost - truth.gains], size=trials)
    passed = stairs.passes(counts[:, 0], counts[:, 1])
    checked = [
        (stairs.verdict(int(counts[i, 0]), int(counts[i, 1])).value == "passed") == passed[i] for i in range(CHECKS)
    ]
    return {
        "truth": truth.name, "accuracy": truth.accuracy, "discordance": lost + truth.gains, "samples": samples,
        "allowed": allowed, "confidence": confidence, **rated(int(passed.sum()), trials, confidence),
        "exact": exact_rate(stairs, lost, truth.gains), "checks_agree": all(checked), "calls": stairs.calls,
        "seconds": round(time.process_time() - start, 1),
    }  # fmt: skip


def candidates_drawn(
    drops: Sequence[float], gains: float, samples: int, trials: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Losses and gains of several candidates on the same samples, (trials, candidates) each; `drops` must not fall.

    A share of the losses is nested: what a larger network loses, the smaller ones lose too.
    """
    lost = np.asarray(drops) + gains
    nested = np.diff(lost * SHARED, prepend=0.0)
    own_losses, own_gains = lost * (1 - SHARED), np.full(len(lost), gains * (1 - SHARED))
    parts = [*nested, *own_losses, gains * SHARED, *own_gains]
    counts = generator.multinomial(samples, [*parts, 1 - sum(parts)], size=trials)
    k = len(lost)
    losses = counts[:, :k].cumsum(1) + counts[:, k : 2 * k]
    return losses, counts[:, 2 * k, None] + counts[:, 2 * k + 1 : 3 * k + 1]


def sequence(
    name: str, shares: Sequence[float], samples: int, confidence: float, trials: int, seed: int = 0
) -> dict[str, Any]:
    """How often the search over candidates ends at one that loses as much as allowed, or more.

    `shares` are the candidates' true drops in units of the allowed one, from the largest network to the smallest.
    `unordered` is what taking the smallest that passes, of all that were judged, would give: the usual mistake.
    """
    start, allowed, gains = time.process_time(), ALLOWED[samples], 0.01
    stairs = Stairs(samples, allowed, confidence)
    generator = np.random.default_rng([seed, samples, round(1e4 * confidence), len(name)])
    drops = [share * allowed / 100 for share in shares]
    losses, won = candidates_drawn(drops, gains, samples, trials, generator)
    passed = stairs.passes(losses, won)
    sample = stairs.verdict(0, 0)
    said = {True: replace(sample, value="passed"), False: replace(sample, value="undecided")}
    wrong = 0
    for row in passed:
        entries = [
            Candidate(str(place), float(-place), lambda value=bool(value): said[value])
            for place, value in enumerate(row)
        ]
        winner = fixed_sequence(entries).winner
        wrong += winner is not None and shares[winner] >= 1
    null = np.asarray(shares) >= 1
    return {
        "candidates": name, "shares_of_allowed": list(shares), "samples": samples, "allowed": allowed,
        "confidence": confidence, **rated(wrong, trials, confidence),
        "unordered": rated(int((passed & null).any(1).sum()), trials, confidence), "calls": stairs.calls,
        "seconds": round(time.process_time() - start, 1),
    }  # fmt: skip


SEQUENCES = {
    "five, the third at the limit": (0.2, 0.6, 1.0, 1.4, 1.8),
    "five, all at the limit": (1.0,) * 5,
}


def maps(confidence: float, trials: int, samples: int = 500, seed: int = 0) -> dict[str, Any]:
    """The same for scores between 0 and 1: maps of 16 positions, of which a share is right."""
    start = time.process_time()
    generator = np.random.default_rng([seed, round(1e4 * confidence)])
    keys = np.arange(samples)
    labels = torch.zeros(samples, 16, dtype=torch.int64)
    allowed = 100 * (0.2 * 2.5 - 0.2) / 16  # expected losses and gains below, in positions
    wrong = 0
    for _ in range(trials):
        lost = generator.integers(1, 5, samples) * (generator.random(samples) < 0.2)
        won = (generator.random(samples) < 0.2).astype(int)
        before, after = torch.zeros(samples, 2, 16), torch.zeros(samples, 2, 16)
        before[:, 0, 2:] = before[:, 1, :2] = 1  # two positions of each are wrong
        place = torch.arange(16)
        right = (place >= 2 + torch.from_numpy(lost)[:, None]) | ((place == 0) & (torch.from_numpy(won)[:, None] > 0))
        after[:, 0], after[:, 1] = right.float(), (~right).float()
        found = judge(before, after, labels, allowed=allowed, confidence=confidence, keys=keys)
        wrong += found.value == "passed"
    return {
        "truth": "maps: betting bound", "samples": samples, "allowed": allowed, "confidence": confidence,
        **rated(wrong, trials, confidence), "seconds": round(time.process_time() - start, 1),
    }  # fmt: skip


def wanted(truth: Truth, samples: int, confidence: float) -> bool:
    """Settings with many gains take minutes at many samples: those at one confidence, or not at all."""
    gained = samples * truth.gains
    return gained <= 50 or (gained <= 200 and confidence == 0.95)


def main() -> None:
    """Write the figures after every setting, so that a stopped run keeps what it has."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "verdict_rates.json")
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--samples", type=int, nargs="*", default=list(ALLOWED))
    parser.add_argument("--parts", nargs="*", default=["settings", "sequences", "maps", "near_copies"])
    options = parser.parse_args()
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    record |= {
        "command": " ".join(["python recipes/verdict_rates.py", *sys.argv[1:]]),
        "truths": [asdict(truth) for truth in TRUTHS],
    }

    def keep(part: str, row: dict[str, Any], *key: str) -> None:
        """In place of an earlier row of the same setting."""
        rows = [old for old in record.get(part, []) if any(old.get(name) != row[name] for name in key)]
        record[part] = [*rows, row]
        print(json.dumps(row), flush=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")

    for samples in options.samples if "settings" in options.parts else []:
        for truth in TRUTHS:
            for confidence in CONFIDENCES:
                if wanted(truth, samples, confidence):
                    row = measured(truth, samples, confidence, options.trials)
                    keep("settings", row, "truth", "samples", "confidence")
    for samples in (200, 1000) if "sequences" in options.parts else []:
        for name, shares in SEQUENCES.items():
            for confidence in CONFIDENCES:
                row = sequence(name, shares, samples, confidence, options.trials)
                keep("sequences", row, "candidates", "samples", "confidence")
    for confidence in CONFIDENCES if "maps" in options.parts else []:
        keep("maps", maps(confidence, options.trials // 10), "confidence")
    if "near_copies" in options.parts:
        from near_copies import copies_found

        for row in copies_found():
            keep("near_copies", row, "data", "copies")


if __name__ == "__main__":
    main()

"""Seconds and memory of each stage of a lossy run, from its work and the machine's rates.

With N samples in batches of b, taps t of D_t regressors and O_t outputs, r_t rows and p_t positions for one sample,
F and B seconds of a forward and a backward pass for one sample, k the share of the parameters that is kept (so that
widths shrink to sqrt(k)), and g, e, s the fitted rates of `costing.rates` (products, elimination, regression):

* observe   N (F + B) + sum_t g(N/b, N r_t, D_t) + g(N/b, N p_t, O_t)
* findings  (A + 4 + log2 U) min(N, 256) F: the units that are really ablated, A of them at most and all removable ones
            at once, and the bisection over the U live units, each beside the network as it is
* paths     sum_t e(D_t) over taps that a live unit is read at
* surgery   (n + 2 b) F (1 + k) + sum_t [g(n/b, n r_t, D_t sqrt(k)) + g'(n r_t, (D_t + O_t) sqrt(k)) +
            2 n r_t D_t O_t k / flops + 2 s(D_t sqrt(k))], for one candidate, with n the samples that the fits need:
            g' is the linear part of g, for rows that are gathered; each network is recorded on a batch as well
* verdict   J F (1 + k) with J judge samples

Memory: the network three times (original, working copy, candidate) and the largest of: the sums of one pass,
sum_t 8 (D_t^2 + O_t^2), over several passes where a quarter of the memory is less; the matrices of the largest
elimination, 3 of 8 D^2 bytes beside its sums; the activations of the lock-step refit, where a quarter of the memory is
less in files beyond it. Left out: alignment, export, recovery, what the findings do beside ablating, and what
recording takes for each operation whatever its size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from compressor.costing.rates import Rates
from compressor.costing.work import TapWork, Work

ABLATED, ABLATION_SAMPLES = 24, 256
ROWS_PER_REGRESSOR, REFIT_SAMPLES = 12, 2000
BUDGET_SHARE = 0.25
"""Part of the memory that sums, and that activations, may take."""
STAGES = ("observe", "findings", "paths", "surgery", "verdict")


@dataclass(frozen=True)
class Cost:
    """Seconds of each stage, and bytes of memory at the peak and by what takes them."""

    seconds: dict[str, float]
    bytes: dict[str, float]
    passes: int
    """Readings of the data that the statistics take within the memory."""

    @property
    def hours(self) -> float:
        """All stages."""
        return sum(self.seconds.values()) / 3600

    @property
    def peak(self) -> float:
        """Bytes at the most demanding moment."""
        parts = self.bytes
        return parts["networks"] + max(parts["sums"], parts["sums of one tap"] + parts["elimination"], parts["refit"])

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "seconds": self.seconds, "hours": self.hours, "bytes": {**self.bytes, "peak": self.peak},
            "passes": self.passes,
        }  # fmt: skip


def predicted(work: Work, rates: Rates, memory: float, keep: float = 0.5) -> Cost:
    """What one `compress --keep params=KEEP` of this work costs on a machine of `memory` bytes."""
    n, batches = work.samples, math.ceil(work.samples / work.batch)
    width = math.sqrt(keep)
    fitted = _refitted(work)
    sums = [8.0 * (tap.regressors**2 + tap.outputs**2) for tap in work.taps]
    passes = max(1, math.ceil(sum(sums) / (BUDGET_SHARE * memory)))
    products = sum(
        rates.products(batches, n * tap.rows, tap.regressors) + rates.products(batches, n * tap.positions, tap.outputs)
        for tap in work.taps
    )
    live = [tap for tap in work.taps if tap.block]
    bisected = math.log2(1 + sum(tap.regressors / tap.block for tap in live))
    seconds = {
        "observe": passes * n * (work.forward + work.backward) + products,
        "findings": (ABLATED + 4 + bisected) * min(n, ABLATION_SAMPLES) * work.forward,
        "paths": sum(rates.elimination(tap.regressors, tap.block) for tap in live),
        "surgery": (fitted + 2 * work.batch) * work.forward * (1 + keep)
        + sum(_refit(tap, work, rates, fitted, width) for tap in live),
        "verdict": work.judged * work.forward * (1 + keep),
    }
    widest = max((tap.regressors for tap in live), default=0)
    memory_of = {
        "networks": 3.0 * 4 * work.params,
        "sums": min(sum(sums), max([BUDGET_SHARE * memory, *sums])),
        "sums of one tap": max(sums, default=0.0),
        "elimination": 3 * 8.0 * widest**2,
        "refit": min(fitted * work.activations, BUDGET_SHARE * memory),
    }
    return Cost(seconds, memory_of, passes)


def _refitted(work: Work) -> int:
    """Samples of the lock-step run: what the fits need, as far as there are so many."""
    needed = max([REFIT_SAMPLES, *(math.ceil(ROWS_PER_REGRESSOR * t.regressors / t.positions) for t in work.taps)])
    return max(1, min(work.samples, needed))


def _refit(tap: TapWork, work: Work, rates: Rates, samples: int, width: float) -> float:
    """Seconds of one consumer's fit: its sums, the products with what it should give, and the regressions."""
    regressors = width * tap.regressors
    rows = samples * min(tap.positions, max(tap.rows, ROWS_PER_REGRESSOR * tap.regressors / samples))
    crossed = 2 * rows * regressors * width * tap.outputs / rates.flops
    summed = rates.products(math.ceil(samples / work.batch), rows, regressors)
    gathered = rates.gram[1] * rows * (regressors + width * tap.outputs)
    return summed + gathered + crossed + 2 * rates.regression(regressors)

"""Which units can stand in for others: a greedy cover for pairs, a greedy basis for linear combinations.

Shape letters: n units, U units of one tap, k units kept so far.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

JITTER = 1e-10
MIN_FREE = 10
"""Dependence is claimed only with at least so many degrees of freedom left."""


def samples_for_pairs(pairs: int, threshold: float, chance: float = 1e-3) -> int:
    """Independent samples from which on no pair of `pairs` unrelated units reaches |correlation| >=
    threshold, but for a probability of `chance` (Fisher's z with Bonferroni's correction).
    """
    needed = norm.isf(min(0.5, chance / (2 * max(pairs, 1)))) / np.arctanh(min(threshold, 1 - 1e-9))
    return 4 + int(np.ceil(needed**2))


def cover(similar: Tensor, coverable: Tensor, leaders: Tensor, worth: Tensor, threshold: float) -> Tensor:
    """(n,) long: for each covered unit the leader that stands in for it, else -1. Greedy and deterministic.

    `similar[i, j]` (n, n) says how well j stands in for i; `coverable`, `leaders` (n,) bool; among equals the
    leader of larger `worth` (n,), then of the lower number. A leader is never covered; every unit left over
    is similar to no leader. A covered unit gets the most similar leader.
    """
    near = (similar >= threshold) & coverable[:, None] & leaders[None, :]
    near.fill_diagonal_(False)
    table = near.cpu().numpy()
    value = worth.double().cpu().numpy()
    can_lead = leaders.cpu().numpy().copy()
    covered = np.zeros(len(table), dtype=bool)
    chosen = np.zeros(len(table), dtype=bool)
    gain = table.sum(0)
    while len(gain):
        gain[~can_lead] = 0
        top = np.flatnonzero(gain == gain.max())
        if gain[top[0]] == 0:
            break
        leader = top[np.argmax(value[top])]
        chosen[leader] = True
        can_lead[leader] = False
        new = np.flatnonzero(table[:, leader] & ~covered & ~chosen)
        covered[new] = True
        can_lead[new] = False
        taken = np.append(new, leader)
        gain = gain - table[taken].sum(0)  # who is covered or leads no longer counts for others
        table[taken] = False
    lead = torch.from_numpy(np.flatnonzero(chosen)).to(similar.device)
    result = torch.full((len(table),), -1, dtype=torch.long, device=similar.device)
    rows = torch.from_numpy(np.flatnonzero(covered)).to(similar.device)
    if len(rows):
        result[rows] = lead[similar[rows][:, lead].argmax(1)]
    return result


def factor(matrix: Tensor) -> Tensor:
    """Cholesky factor of a correlation matrix with JITTER on its diagonal, or as much more as its rounding asks for.

    Fewer samples than units leave eigenvalues of zero, which rounding makes negative.
    """
    jitter = JITTER
    while True:
        lower, info = torch.linalg.cholesky_ex(matrix + jitter * torch.eye(len(matrix)).to(matrix))
        if not bool(info.any()) or not jitter < 1:
            return lower
        jitter *= 10


@dataclass
class Span:
    """Residual shares of the units of one tap after regression on the units kept so far (partial Cholesky).

    `correlation` (U, U) with zero rows for units that do not vary; `places` (U,) in 0..n-1; `samples`
    independent samples behind it.
    """

    correlation: Tensor
    places: Tensor
    samples: int
    _factor: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.residual = self.correlation.diagonal().clone()
        self.kept = 0
        self._local = {int(p): i for i, p in enumerate(self.places.tolist())}
        self._room = self.correlation.new_zeros(len(self.places), 0)

    def alone(self) -> Tensor:
        """(U,) residual share of every unit regressed on all the others."""
        alive = self.correlation.diagonal() > 0
        matrix = self.correlation + torch.diag(torch.where(alive, JITTER, 1.0))
        inverse = torch.linalg.inv(matrix)
        return torch.where(alive, 1 / inverse.diagonal(), 0.0)

    def keep(self, chosen: Tensor) -> None:
        """Keep several units at once: `chosen` (n,) bool."""
        rows = torch.nonzero(chosen[self.places] & (self.correlation.diagonal() > 0)).flatten()
        lower = factor(self.correlation[rows][:, rows])
        solved = torch.linalg.solve_triangular(lower, self.correlation[rows], upper=False)
        self.residual = (self.correlation.diagonal() - solved.square().sum(0)).clamp_min(0)
        self.kept = len(rows)
        self._room = torch.cat([solved.T, solved.new_zeros(len(self.places), len(self.places) - len(rows))], 1)

    def add(self, unit: int) -> None:
        """Keep one more unit; one that the kept units explain entirely adds nothing."""
        row = self._local.get(unit)
        if row is None or float(self.residual[row]) <= 10 * JITTER:
            return
        column = self.correlation[row] - self._room[:, : self.kept] @ self._room[row, : self.kept]
        column = column / self.residual[row].sqrt()
        self._room[:, self.kept] = column
        self.residual = (self.residual - column.square()).clamp_min(0)
        self.kept += 1

    def expected(self) -> Tensor:
        """(U,) residual share expected on samples the regression has not seen, by generalised
        cross-validation: in-sample share over (1 - (k + 1)/samples)² (Craven & Wahba 1979).

        Infinite for units that vary where there are fewer than two samples per kept unit, or fewer than
        `MIN_FREE` more samples than kept units: what is left would say more of the samples than of the units.
        """
        free = self.samples - self.kept - 1
        if free < MIN_FREE or 2 * free < self.samples:
            return torch.where(self.correlation.diagonal() > 0, torch.inf, 0.0)
        return self.residual / (free / self.samples) ** 2


def explained(spans: list[Span], candidates: Tensor, kept: Tensor, worth: Tensor, threshold: float) -> Tensor:
    """(n,) share of each candidate explained by the units kept in the end, at its worst tap; nan where it is
    kept.

    Greedy and deterministic: units that even all the others do not explain are kept; then, as long as a
    candidate's expected share is below `threshold`, the least explained one is kept (among equals the one of
    larger `worth`, then of the lower number). `candidates`, `kept` (n,) bool, disjoint; what is in neither is
    left out of everything.
    """
    result = torch.full(candidates.shape, torch.nan, dtype=torch.float64, device=candidates.device)
    allowed = 1 - threshold
    within = candidates | kept
    spans = [_restricted(span, within) for span in spans]
    hopeless = torch.zeros_like(candidates)
    for span in spans:
        hopeless[span.places] |= span.alone() > allowed
    left = candidates & ~hopeless
    for span in spans:
        span.keep(within & ~left)
    rank = torch.empty(len(worth), dtype=torch.float64, device=worth.device)
    rank[torch.sort(worth, stable=True, descending=True).indices] = -torch.arange(len(worth)).to(rank)
    while True:
        share = torch.zeros_like(result)
        for span in spans:
            share[span.places] = torch.maximum(share[span.places], span.expected().to(share))
        bad = left & ~(share <= allowed)
        if not bool(bad.any()):
            break
        worst = share[bad].max()
        top = bad & ((share >= worst * (1 - 1e-9)) | torch.isinf(share))
        unit = int(torch.where(top, rank, -torch.inf).argmax())
        left[unit] = False
        for span in spans:
            span.add(unit)
    result[left] = 1 - share[left]
    return result


def _restricted(span: Span, within: Tensor) -> Span:
    chosen = torch.nonzero(within[span.places]).flatten()
    return Span(span.correlation[chosen][:, chosen], span.places[chosen], span.samples)

"""Which columns are exactly scaled copies or linear combinations of others, at several taps at once.

Everything works on rows in float64, never on a Gram matrix alone: that squares the condition number, so
it only names suspects here. Shape letters: R rows, U units, M members, K kept units, D dropped units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FLAT = 1e-7
"""A column whose spread is below this part of its size counts as constant."""
NEAR = 1e-8
"""Columns whose cosine is this close to one are looked at as copies."""
SUSPECT = 1e-8
"""A unit is a suspect if the earlier ones leave less than this part of its variance."""
COPY_ROWS = 512
"""Rows on which copies are looked for; what is found is tested on all rows."""


@dataclass(frozen=True)
class Columns:
    """What one tap reads: `x` (R, U), centred if a constant may be folded there, else as read."""

    x: Tensor
    mean: Tensor
    """(U,) what was taken away from each column; zeros where no constant may be folded."""
    spread: Tensor
    """(U,) length of each centred column: residuals are stated relative to it."""
    present: Tensor
    """(U,) bool: units that this tap reads at all."""

    @property
    def active(self) -> Tensor:
        """(U,) bool: the column is more than a constant."""
        size = (self.x + self.mean).square().sum(0).sqrt()
        return self.present & (self.spread > FLAT * size) & (self.spread > 0)


def columns(rows: Tensor, present: Tensor, intercept: bool) -> Columns:
    """Columns of `rows` (R, U); with `intercept`, combinations may add a constant."""
    rows = rows.double()
    mean = rows.mean(0)
    centred = rows - mean
    spread = centred.square().sum(0).sqrt()
    if intercept:
        return Columns(centred, mean, spread, present)
    return Columns(rows, torch.zeros_like(mean), spread, present)


def eligible(taps: Sequence[Columns]) -> Tensor:
    """(U,) bool: units that vary at every tap that reads them, and that some tap reads."""
    fine = torch.stack([tap.active | ~tap.present for tap in taps]).all(0)
    return fine & torch.stack([tap.present for tap in taps]).any(0)


def copies(taps: Sequence[Columns], usable: Tensor, tolerance: float) -> Tensor:
    """(U,) for each unit the unit it is a scaled copy of at every tap, or itself.

    The one with the largest spread stands for all its copies, so that factors are at most about one.
    """
    units = len(usable)
    alike = usable[:, None] & usable[None, :]
    for tap in taps:
        step = max(1, len(tap.x) // COPY_ROWS)
        part = tap.x[::step]
        part = part / part.square().sum(0).sqrt().clamp_min(1e-300)
        close = (part.T @ part).abs() > 1 - NEAR
        both = tap.present[:, None] & tap.present[None, :]
        alike &= (close & both) | ~(tap.present[:, None] | tap.present[None, :])
    of = torch.arange(units)
    weight = torch.stack([tap.spread / tap.spread.max().clamp_min(1e-300) for tap in taps]).sum(0)
    taken = ~usable
    crowded = alike.sum(1) > 1
    for i in weight.argsort(descending=True, stable=True).tolist():
        if taken[i] or not crowded[i]:
            continue
        taken[i] = True
        members = torch.nonzero(alike[i] & ~taken)[:, 0]
        true = torch.ones(len(members), dtype=torch.bool)
        for tap in taps:
            factor = factors(tap, members, torch.full_like(members, i))
            rest = tap.x[:, members] - tap.x[:, [i]] * factor
            true &= rest.square().sum(0).sqrt() <= tolerance * tap.spread[members]
        of[members[true]] = i
        taken[members[true]] = True
    return of


def factors(tap: Columns, units: Tensor, of: Tensor) -> Tensor:
    """Least-squares factor of each column in `units` on the column in `of`."""
    donor = tap.x[:, of]
    return (tap.x[:, units] * donor).sum(0) / donor.square().sum(0).clamp_min(1e-300)


def suspects(taps: Sequence[Columns], units: Tensor) -> list[Tensor]:
    """Sets of units that look linearly dependent at some tap: each a suspect with all that explain it,
    joined where they share units. Fast (one factorisation per tap); what it names must be tested on rows.
    """
    links = torch.zeros(len(units), len(units), dtype=torch.bool)
    for tap in taps:
        here = torch.nonzero(tap.present[units])[:, 0]
        x = tap.x[:, units[here]]
        x = x / x.square().sum(0).sqrt().clamp_min(1e-300)
        gram = x.T @ x
        ridge = 1e-2 * SUSPECT * torch.eye(len(here), dtype=gram.dtype)
        low = torch.linalg.cholesky(gram + ridge)
        found = low.diagonal().square() < SUSPECT
        if not bool(found.any()):
            continue
        free, bound = torch.nonzero(~found)[:, 0], torch.nonzero(found)[:, 0]
        low = torch.linalg.cholesky(gram[free][:, free] + ridge[: len(free), : len(free)])
        share = torch.cholesky_solve(gram[free][:, bound], low).abs()
        rows, cols = torch.nonzero(share > 1e-6 * share.amax(0, keepdim=True), as_tuple=True)
        links[here[free[rows]], here[bound[cols]]] = True
        links[here[bound], here[bound]] = True
    return [units[part] for part in _components(links | links.T)]


def _components(links: Tensor) -> list[Tensor]:
    left = links.any(1)
    found = []
    while bool(left.any()):
        inside = torch.zeros_like(left)
        inside[int(torch.nonzero(left)[0])] = True
        while True:
            grown = inside | links[inside].any(0)
            if bool((grown == inside).all()):
                break
            inside = grown
        found.append(torch.nonzero(inside)[:, 0])
        left &= ~inside
    return found


def spanned(taps: Sequence[Columns], units: Tensor, tolerance: float) -> tuple[Tensor, list[Tensor]]:
    """Units of `units` that the others span at every tap, and for each tap the kept units that form its
    basis.

    Pivoted modified Gram-Schmidt with re-orthogonalisation, run over all taps together: the pivot is the
    unit with the largest relative residual at any tap, and it becomes a direction of every tap where it
    has one.
    """
    frames = [_Frame(tap, units) for tap in taps]
    left = torch.ones(len(units), dtype=torch.bool)
    while bool(left.any()):
        relative = torch.stack([frame.relative() for frame in frames])
        worst = torch.where(left, relative.amax(0), -1.0)
        pivot = int(worst.argmax())
        stale = [frame for frame in frames if frame.stale(pivot)]
        if stale:
            for frame in stale:
                frame.refresh()
            continue
        if float(worst[pivot]) <= tolerance:
            break
        left[pivot] = False
        for frame, size in zip(frames, relative[:, pivot].tolist(), strict=True):
            if size > tolerance:
                frame.grow(pivot)
    return units[left], [units[torch.tensor(frame.basis, dtype=torch.long)] for frame in frames]


class _Frame:
    """Residuals of one tap's columns outside an orthonormal frame.

    Their lengths are updated by subtraction, and a column whose length has lost more than half its digits is
    computed again before it is believed.
    """

    def __init__(self, tap: Columns, units: Tensor) -> None:
        self._rest = tap.x[:, units].clone()
        self._scale = tap.spread[units].clamp_min(1e-300)
        self._frame = torch.empty(len(self._rest), min(self._rest.shape), dtype=torch.float64)
        self._measured = self._square = self._rest.square().sum(0)
        self._fresh = 0
        self.basis: list[int] = []

    def relative(self) -> Tensor:
        """(M,) length of each residual relative to its column's spread."""
        return self._square.clamp_min(0).sqrt() / self._scale

    def stale(self, place: int) -> bool:
        """True if the length of this residual is not to be believed."""
        lost = float(self._square[place]) < 1e-8 * float(self._measured[place])
        return lost and self._fresh < len(self.basis)

    def refresh(self) -> None:
        """Compute all residuals again, orthogonal to the whole frame."""
        frame = self._frame[:, : len(self.basis)]
        for _ in range(2):
            self._rest -= frame @ (frame.T @ self._rest)
        self._measured = self._square = self._rest.square().sum(0)
        self._fresh = len(self.basis)

    def grow(self, place: int) -> None:
        """Take one column's residual as the next direction."""
        if len(self.basis) == self._frame.shape[1]:
            return
        direction = self._rest[:, place].clone()
        frame = self._frame[:, : len(self.basis)]
        for _ in range(2):
            direction -= frame @ (frame.T @ direction)
        direction /= direction.norm().clamp_min(1e-300)
        self._frame[:, len(self.basis)] = direction
        self.basis.append(place)
        self._square = self._square - (direction @ self._rest).square()
        self._square[place] = 0.0


def coefficients(tap: Columns, units: Tensor, basis: Tensor, tolerance: float) -> Tensor:
    """(D, K) coefficients of `units` on `basis` at one tap; those too small to matter are exactly zero."""
    if not len(basis):
        return torch.zeros(len(units), 0, dtype=torch.float64)
    size = tap.x[:, basis].square().sum(0).sqrt().clamp_min(1e-300)
    q, r = torch.linalg.qr(tap.x[:, basis] / size)
    share = torch.linalg.solve_triangular(r, q.T @ tap.x[:, units], upper=True).T
    share[share.abs() < 0.01 * tolerance * tap.spread[units, None]] = 0.0
    return share / size

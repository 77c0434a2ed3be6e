"""Claims about one group, found on some rows and judged on others that the fit has not seen.

Shape letters: N samples, P positions, C features, R rows, U units, M copies, D dependent units, K kept units.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from compressor.algebra.span import Columns, coefficients, copies, eligible, factors, spanned, suspects
from compressor.planning.reading import Spot

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Largest residual, relative to the unit's own spread, that counts as rounding; by the dtype of the
parameters.
"""
HELD_FACTOR = 4.0
"""On held-out rows the residual may be this many times the tolerance of the fit."""
HELD_ROWS_PER_UNIT = 10
"""A linear combination is claimed where held-out rows are at least this many times the units."""
FIT_ROWS_PER_UNIT = 1.25
"""... and where the fit has at least this many rows per unit."""
COPY_ROWS, ACTIVE_SAMPLES = 48, 16
"""A copy has one free number: it is claimed where this many held-out rows agree, and both units varied on
this many distinct held-out samples. The donors of a combination must have varied, too.
"""
MAX_GAIN = {torch.float64: 1e5, torch.float32: 1e3}
"""Combinations with larger coefficients (in units of spread) would amplify rounding: refused."""
JUDGED_VALUES = 4_000_000
"""Values of one tap that are judged per batch; of larger maps a fixed random part of the positions is."""


@dataclass
class Claims:
    """Claims about one group: constants, copies of one unit, and combinations of several; one number set
    per tap.
    """

    spots: list[Spot]
    constant: Tensor
    copy: Tensor
    of: Tensor
    dependent: Tensor
    twin: Tensor
    """(M,) bool: copies whose weights are equal; these need not have varied at every tap. What they are copies of may
    itself be a copy, but no twin."""
    certain: Tensor
    """(M,) bool: twins that are known to be wired alike, so that no sample needs to move them."""
    values: list[Tensor] = field(default_factory=list)
    factor: list[Tensor] = field(default_factory=list)
    shift: list[Tensor] = field(default_factory=list)
    basis: list[Tensor] = field(default_factory=list)
    share: list[Tensor] = field(default_factory=list)
    offset: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.constant) + len(self.copy) + len(self.dependent)


def find_claims(
    spots: list[Spot],
    taps: list[Columns],
    exact: list[bool],
    constant: Tensor,
    usable: Tensor,
    twins: Tensor,
    dense: bool,
    dtype: torch.dtype,
) -> Claims:
    """What the fit rows say of one group. `constant` (U,) bool: certified to be so; `usable`: units that
    may be dropped or serve as donors; `dense`: whether the rows suffice for combinations; `exact`: taps
    that take constants.
    """
    tolerance = TOLERANCE[dtype]
    values = [tap.x.mean(0) + tap.mean for tap in taps]
    for tap, value, takes in zip(taps, values, exact, strict=True):
        flat = tap.spread <= 1e-3 * tolerance * len(tap.x) ** 0.5 * value.abs()
        silent = (tap.spread == 0) & (value == 0)
        constant = constant & (silent | (flat if takes else silent) | ~tap.present)
    of = _twins(taps, usable & ~constant, twins, tolerance)
    own = torch.arange(len(of))
    twin = of != own
    usable = usable & eligible(taps) & ~constant & ~twin
    # a twin's unit may be claimed as a copy of a third one; the twin does not depend on whether that claim holds
    of = torch.where(twin, of, copies(taps, usable, tolerance))
    copy = torch.nonzero(of != own)[:, 0]
    none = torch.tensor([], dtype=torch.long)
    certain = torch.zeros_like(copy, dtype=torch.bool)
    claims = Claims(spots, torch.nonzero(constant)[:, 0], copy, of[copy], none, twin[copy], certain)
    claims.values = [value[claims.constant] for value in values]
    for tap in taps:
        factor = torch.where(claims.twin, 1.0, factors(tap, copy, claims.of))
        claims.factor.append(factor)
        shift = tap.mean[copy] - factor * tap.mean[claims.of]
        claims.shift.append(_worthy(shift, tap, copy, tolerance))
    usable[copy] = False
    _combine(claims, taps, torch.nonzero(usable)[:, 0] if dense else copy[:0], tolerance, MAX_GAIN[dtype])
    return claims


def _twins(taps: list[Columns], usable: Tensor, twins: Tensor, tolerance: float) -> Tensor:
    """(U,) the first unit with equal weights that reads alike on all rows, or the unit itself."""
    of = torch.arange(len(usable))
    _, numbers, counts = torch.unique(twins, return_inverse=True, return_counts=True)
    for number in torch.nonzero(counts > 1)[:, 0].tolist():
        members = torch.nonzero((numbers == number) & usable)[:, 0]
        if len(members) < 2:
            continue
        same = torch.ones(len(members), dtype=torch.bool)
        for tap in taps:
            x = tap.x[:, members] + tap.mean[members]
            gap = (x - x[:, :1]).square().sum(0).sqrt()
            same &= gap <= tolerance * torch.minimum(x[:, 0].norm(), tap.spread[members]) + 1e-14 * x.norm()
            same &= tap.present[members] == tap.present[members[0]]
        of[members[same]] = members[0]
    return of


def _combine(claims: Claims, taps: list[Columns], units: Tensor, tolerance: float, gain: float) -> None:
    """Add combinations among `units`; each set of linked units is solved on its own, so that donors stay
    few.
    """
    dropped: list[Tensor] = []
    parts: list[tuple[list[Tensor], list[Tensor]]] = []
    for linked in suspects(taps, units) if len(units) > 1 else []:
        found, bases = spanned(taps, linked, tolerance)
        shares = [coefficients(tap, found, basis, tolerance) for tap, basis in zip(taps, bases, strict=True)]
        fine = torch.ones(len(found), dtype=torch.bool)
        for tap, basis, share in zip(taps, bases, shares, strict=True):
            relative = share.abs() * tap.spread[basis] / tap.spread[found, None].clamp_min(1e-300)
            fine &= (relative.amax(1) if len(basis) else torch.zeros(len(found))) <= gain
        if bool(fine.any()):
            dropped.append(found[fine])
            parts.append((bases, [share[fine] for share in shares]))
    claims.dependent = torch.cat(dropped) if dropped else claims.dependent
    for t, tap in enumerate(taps):
        claims.basis.append(torch.cat([bases[t] for bases, _ in parts]) if parts else claims.copy.new_zeros(0))
        claims.share.append(
            torch.block_diag(*[shares[t] for _, shares in parts]) if parts else torch.zeros(0, 0, dtype=torch.float64)
        )
        offset = tap.mean[claims.dependent] - claims.share[t] @ tap.mean[claims.basis[t]]
        claims.offset.append(_worthy(offset, tap, claims.dependent, tolerance))


def _worthy(constant: Tensor, tap: Columns, units: Tensor, tolerance: float) -> Tensor:
    """Constants, zero where they are rounding: a layer without bias should not get one for that."""
    deviation = tap.spread[units] / len(tap.x) ** 0.5
    return torch.where(constant.abs() > 0.1 * tolerance * deviation, constant, 0.0)


class Judge:
    """Tests the claims about one group on held-out rows; `verdict` afterwards."""

    def __init__(self, claims: Claims, seed: int) -> None:
        self.claims, self._seed = claims, seed
        c = claims
        self.tested = [torch.cat([c.copy, c.dependent]) for _ in c.spots]
        units = len(c.spots[0].present)
        spots = range(len(c.spots))
        self._square = [torch.zeros(len(self.tested[t]), dtype=torch.float64) for t in spots]
        self._count = [0 for _ in spots]
        self._off = [torch.zeros(len(c.constant), dtype=torch.float64) for _ in spots]
        self._marks: list[list[Tensor]] = [[] for _ in spots]
        self._total = [torch.zeros(2, units, dtype=torch.float64) for _ in spots]
        self._drawn: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def visit(self, t: int, read: Tensor) -> None:
        """Count the rows (N, P, C) that tap `t` of this group reads."""
        spot, c = self.claims.spots[t], self.claims
        samples, positions, features = read.shape
        if len(c.constant):
            some = Spot(spot.tap, spot.entries[c.constant], spot.present[c.constant])
            seen = some.rows(read.flatten(0, 1)).cpu().double()
            self._off[t] = torch.maximum(self._off[t], (seen - c.values[t]).abs().amax(0))
        if not len(self.tested[t]):
            return
        width = spot.entries.shape[1]
        if (positions, width) not in self._drawn:
            generator = torch.Generator().manual_seed(self._seed + positions)
            count = min(positions, max(1, JUDGED_VALUES // (samples * features)))
            chosen = torch.rand(positions, generator=generator).argsort()[:count].sort().values
            weights = torch.randn(count * width, generator=generator, dtype=torch.float64)
            self._drawn[positions, width] = chosen, weights
        chosen, weights = self._drawn[positions, width]
        x = spot.rows(read[:, chosen.to(read.device)].flatten(0, 1)).cpu().double()
        usable = torch.isfinite(x).all(1)
        self._add(t, x[usable])
        marks = (x.reshape(samples, -1, x.shape[1]) * weights[: len(x) // samples, None]).sum(1)
        self._marks[t].append(marks[torch.isfinite(marks).all(1)])

    def _add(self, t: int, x: Tensor) -> None:
        c = self.claims
        copied = x[:, c.copy] - x[:, c.of] * c.factor[t] - c.shift[t]
        built = x[:, c.dependent] - x[:, c.basis[t]] @ c.share[t].T - c.offset[t]
        self._square[t] += torch.cat([copied, built], 1).square().sum(0)
        self._count[t] += len(x)
        self._total[t] += torch.stack([x.sum(0), x.square().sum(0)])

    def verdict(self, dtype: torch.dtype) -> tuple[Tensor, bool]:
        """(U,) bool: units whose claim held at every tap that reads them; and whether some claim held as far
        as it was seen, but too few samples moved its units."""
        c = self.claims
        units = len(c.spots[0].present)
        good = torch.zeros(units, dtype=torch.bool)
        held = torch.ones(len(c.copy) + len(c.dependent), dtype=torch.bool)
        seen = held.clone()
        somewhere = torch.cat([c.certain, torch.zeros(len(c.dependent), dtype=torch.bool)])
        alike = torch.cat([c.twin, torch.zeros(len(c.dependent), dtype=torch.bool)])
        still = torch.ones(len(c.constant), dtype=torch.bool)
        allowed = TOLERANCE[dtype]
        for t, spot in enumerate(c.spots):
            still &= (self._off[t] <= allowed * c.values[t].abs()) | ~spot.present[c.constant]
            if len(held):
                absent = ~spot.present[self.tested[t]]
                held &= self._fits(t, HELD_FACTOR * allowed) | absent
                enough = self._seen(t)
                seen &= enough | absent | alike
                somewhere |= enough & ~absent
        seen &= somewhere
        good[c.constant[still]] = True
        good[torch.cat([c.copy, c.dependent])[held & seen]] = True
        return good, bool((held & ~seen).any())

    def refuted(self, dtype: torch.dtype) -> Tensor:
        """(U,) bool: units whose claim fails at some tap that reads them, on whatever was seen."""
        c, allowed = self.claims, TOLERANCE[dtype]
        wrong = torch.zeros(len(c.spots[0].present), dtype=torch.bool)
        for t, spot in enumerate(c.spots):
            here = torch.zeros_like(wrong)
            here[c.constant[self._off[t] > allowed * c.values[t].abs()]] = True
            if len(self.tested[t]):
                here[self.tested[t][~self._fits(t, HELD_FACTOR * allowed)]] = True
            wrong |= here & spot.present
        return wrong

    def _fits(self, t: int, allowed: float) -> Tensor:
        """Claims whose residual is rounding at one tap."""
        mean, square = self._total[t] / max(self._count[t], 1)
        deviation = (square - mean.square()).clamp_min(0).sqrt()[self.tested[t]]
        rounding = 1e-14 * square[self.tested[t]].sqrt()
        return (self._square[t] / max(self._count[t], 1)).sqrt() <= allowed * deviation + rounding

    def _seen(self, t: int) -> Tensor:
        """Claims that enough rows and enough different samples of one tap speak for."""
        c, spot, count = self.claims, self.claims.spots[t], self._count[t]
        active = (_distinct(torch.cat(self._marks[t])) > ACTIVE_SAMPLES) | ~spot.present
        seen = active[self.tested[t]] & (count >= COPY_ROWS)
        seen[: len(c.copy)] &= active[c.of]
        if len(c.dependent):
            quiet = (c.share[t] != 0) & ~active[c.basis[t]]
            seen[len(c.copy) :] &= ~quiet.any(1) & (count >= HELD_ROWS_PER_UNIT * len(spot.present))
        return seen


def _distinct(marks: Tensor) -> Tensor:
    """(U,) how many samples differ: a unit that is silent on most samples marks these all alike."""
    ordered = marks.sort(0).values
    steps = ordered.diff(dim=0)
    return (steps > 1e-6 * (ordered[-1] - ordered[0])).sum(0) + 1

"""First and second moments as additive sums in float64. Shape letters: R rows, D regressors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 64 * torch.finfo(torch.float32).eps
"""A variance below this part of the squared distance between mean and shift is what float32 products leave of nothing:
measured up to 3.4e-6 of it for constants. Taken for a variance it would be correlated with anything, also beyond 1."""


def wide(device: torch.device) -> torch.dtype:
    """float64 where the device has it, else float32 (mps)."""
    return torch.float32 if device.type == "mps" else torch.float64


def varying(variance: Tensor) -> Tensor:
    """Which regressors (D) vary, bool: as far as float32 products can tell, which hardly have a digit below its
    smallest normal number, and next to the one that varies most.

    >>> varying(torch.tensor([1.0, 1e-9, 1e-13])), varying(torch.tensor([1e-39, 0.0]))
    (tensor([ True,  True, False]), tensor([False, False]))
    """
    return variance > (variance.max() * 1e-12).clamp_min(torch.finfo(torch.float32).tiny)


@dataclass
class Moments:
    """Sums over rows x (R, D), taken relative to a fixed `shift` (D): count, Σ(x-shift), Σ(x-shift)(x-shift)ᵀ.

    The shift makes float32 products of one batch safe (raw float32 moments are wrong at large means); sums are float64.
    Two `Moments` with the same shift add up.
    """

    count: int
    shift: Tensor
    total: Tensor
    gram: Tensor

    @classmethod
    def empty(cls, shift: Tensor) -> Moments:
        """No rows yet; `shift` (D) is usually the mean of the first rows."""
        size, dtype = len(shift), wide(shift.device)
        zeros = torch.zeros(size, size, dtype=dtype, device=shift.device)
        return cls(0, shift.detach().clone(), zeros[0].clone(), zeros)

    def add(self, rows: Tensor) -> None:
        """Add rows (R, D). float32 rows are multiplied in float32 and summed in float64."""
        centred = rows - self.shift.to(rows.dtype)
        self.count += len(rows)
        self.total += centred.sum(0, dtype=self.total.dtype)
        for part in centred.split(16384):  # short products keep float32 rounding near one batch's worth
            self.gram += part.T @ part

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of rows. Raises ValueError if the shifts differ."""
        if not torch.equal(self.shift, other.shift):
            raise ValueError("moments with different shifts do not add up")
        return Moments(self.count + other.count, self.shift, self.total + other.total, self.gram + other.gram)

    def rebase(self, shift: Tensor) -> None:
        """The same rows relative to another `shift` (D): exact but for the rounding of the sums' own precision."""
        shift = shift.detach().to(self.total)
        step = self.shift.to(self.total) - shift
        self.shift = shift.clone()
        if not bool(step.any()):  # as a rule: spares the temporary matrices of wide layers
            return
        cross = torch.outer(self.total, step)
        self.gram += cross + cross.T + self.count * torch.outer(step, step)
        self.total += self.count * step

    def mean(self) -> Tensor:
        """(D,) mean of the rows."""
        return self.shift.to(self.total.dtype) + self.total / max(self.count, 1)

    def covariance(self) -> Tensor:
        """(D, D) centred second moments, divided by the count; all 0 for regressors that vary by rounding only."""
        centre = self.total / max(self.count, 1)
        found = self.gram / max(self.count, 1)
        found.sub_(torch.outer(centre, centre))
        flat = found.diagonal() <= ROUNDING * centre.square()
        return found.masked_fill_(flat[:, None], 0.0).masked_fill_(flat[None, :], 0.0)

    def second(self) -> Tensor:
        """(D, D) E[x xᵀ], not centred."""
        mean = self.mean()
        return self.covariance().add_(torch.outer(mean, mean))

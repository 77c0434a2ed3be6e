"""Ridge regression from additive sums. Shape letters: R rows, D regressors, O outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.algebra.moments import varying, wide


def solve_ridge(gram: Tensor, cross: Tensor, prior: Tensor, ridge: float) -> Tensor:
    """(O, D) weights W that minimise |Y - W X|² + Σ_d ridge · var_d · |W_d - prior_d|².

    `gram` (D, D) and `cross` (O, D) are moments of the same rows. The penalty is in units of each regressor's
    variance, so large and small channels are treated alike; where the data say nothing, the prior stands.
    """
    variance = gram.diagonal().clamp_min(0)
    alive = varying(variance)
    scale = torch.where(alive, variance, torch.ones_like(variance)).sqrt()
    system = torch.where(alive[:, None] & alive[None, :], gram / scale[:, None] / scale[None, :], 0.0)
    system.diagonal().copy_(torch.ones_like(variance) + ridge + 1e-9)
    rest = torch.where(alive, (cross - prior @ gram) / scale, 0.0)
    return prior + torch.cholesky_solve(rest.T, torch.linalg.cholesky(system)).T / scale


@dataclass
class PairedSums:
    """Sums over rows of regressors x (R, D) and targets y (R, O), relative to fixed shifts, in float64."""

    count: int
    x: Tensor
    y: Tensor
    xx: Tensor
    yx: Tensor
    shift_x: Tensor
    shift_y: Tensor

    @classmethod
    def starting(cls, x: Tensor, y: Tensor) -> PairedSums:
        """No rows yet; the means of the first rows become the shifts."""
        dtype, inputs, outputs = wide(x.device), x.shape[1], y.shape[1]
        xx = torch.zeros(inputs, inputs, dtype=dtype, device=x.device)
        yx = torch.zeros(outputs, inputs, dtype=dtype, device=x.device)
        return cls(0, xx[0].clone(), yx[:, 0].clone(), xx, yx, x.mean(0), y.mean(0))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows; products in the rows' own precision, sums in float64."""
        x, y = x - self.shift_x, y - self.shift_y
        self.count += len(x)
        self.x += x.sum(0, dtype=self.x.dtype)
        self.y += y.sum(0, dtype=self.y.dtype)
        for x_part, y_part in zip(x.split(16384), y.split(16384), strict=True):
            self.xx += x_part.T @ x_part
            self.yx += y_part.T @ x_part

    def solve(self, prior: Tensor, ridge: float, intercept: bool) -> tuple[Tensor, Tensor | None]:
        """Weights (O, D) of the ridge regression of y on x, and with `intercept` the constants (O,)."""
        mean_x, mean_y = self.x / self.count, self.y / self.count
        gram = self.xx / self.count - torch.outer(mean_x, mean_x)
        cross = self.yx / self.count - torch.outer(mean_y, mean_x)
        full_x, full_y = mean_x + self.shift_x, mean_y + self.shift_y
        if intercept:
            weight = solve_ridge(gram, cross, prior.to(gram), ridge)
            return weight, full_y - weight @ full_x
        gram, cross = gram + torch.outer(full_x, full_x), cross + torch.outer(full_y, full_x)
        return solve_ridge(gram, cross, prior.to(gram), ridge), None

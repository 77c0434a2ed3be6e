"""One subspace of a feature space that serves several readers at once. Letters: d features, k directions, m blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 60
"""Iterations of the search at most; more changed nothing measurable."""
JITTER = 1e-6
"""Directions of less than this part of the mean variance count as having it: sums of float32 rows say no more."""


@dataclass(frozen=True)
class Reader:
    """Someone who reads x (m·d), m views of the same d features side by side, and feels errors e of it as eᵀ G e.

    `moments` is the covariance of x and `weight` is G, both (m·d, m·d), symmetric and positive semi-definite; `mean` is
    that of x (m·d). Each view has a constant length, as a norm gives it.
    """

    moments: Tensor
    mean: Tensor
    weight: Tensor

    def lost(self, basis: Tensor) -> Tensor:
        """What is felt of x where only Qᵀ x is known, and brought to a constant length by a norm."""
        return self.unguessed(basis) + self.wavering(basis)

    def unguessed(self, basis: Tensor) -> Tensor:
        """tr G (S - S Q (Qᵀ S Q)⁻¹ Qᵀ S): what is felt of x after the best linear guess of it from Qᵀ x."""
        q = torch.block_diag(*[basis] * (len(self.moments) // len(basis)))
        seen = self.moments @ q
        inner = q.T @ seen
        inner = inner + JITTER * self.moments.diagonal().mean() * torch.eye(len(inner)).to(inner)
        return (self.weight * (self.moments - seen @ torch.linalg.solve(inner, seen.T))).sum()

    def wavering(self, basis: Tensor) -> Tensor:
        """What is felt of the guess's length, which varies as the energy |x|² - |Qᵀ x|² that the norm misses.

        That energy's variance is the Gaussian one, 2 tr (P S)² + 4 μᵀ P S P μ with P = I - Q Qᵀ; a length varies by
        half as much, relatively.
        """
        features = len(basis)
        rest = torch.eye(features).to(basis) - basis @ basis.T
        felt = basis.new_zeros(())
        for start in range(0, len(self.mean), features):
            part = slice(start, start + features)
            own, mean, weight = self.moments[part, part], self.mean[part], self.weight[part, part]
            missing, away = rest @ own, rest @ mean
            varies = 2 * (missing * missing.T).sum() + 4 * away @ own @ away
            kept = own.trace() - missing.trace() + mean @ mean - away @ away
            felt = felt + varies / (4 * kept.square().clamp_min(1e-300)) * ((weight * own).sum() + mean @ weight @ mean)
        return felt


def positive(matrix: Tensor) -> Tensor:
    """The nearest matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp_min(0)) @ vectors.T


def without_mean(columns: Tensor) -> Tensor:
    """Orthonormal columns that span these, less their means: (d, k), k < d."""
    return torch.linalg.qr(columns - columns.mean(0))[0]


def orthonormal(columns: Tensor) -> Tensor:
    """Orthonormal columns that span these: (d, k), k ≤ d."""
    return torch.linalg.qr(columns)[0]


def shared_basis(readers: Sequence[Reader], features: int, size: int, centred: bool = True) -> Tensor:
    """(d, k) orthonormal directions (orthogonal to the ones, if `centred`) from which all readers together lose least.

    Starts at the principal directions, every reader's variance weighted by what it feels of it, and descends from there
    (quasi-Newton on any matrix that spans the space). A reader alone would have a closed form, reduced-rank regression
    (Izenman 1975); several have none.
    """
    total = torch.zeros(features, features, dtype=torch.float64, device=readers[0].moments.device)
    for reader in readers:
        blocks = len(reader.moments) // features
        felt = (reader.weight * reader.moments).sum() / reader.moments.trace().clamp_min(1e-300)
        grid = reader.moments.reshape(blocks, features, blocks, features)
        total += felt * sum(grid[block, :, block, :] for block in range(blocks))
    if centred:
        total = total - total.mean(0)
        total = total - total.mean(1, keepdim=True)
    spanned = without_mean if centred else orthonormal
    start = spanned(torch.linalg.eigh(total)[1].flip(1)[:, :size])
    if size >= features - centred:
        return start
    whole = float(sum(reader.lost(start) for reader in readers))
    if not whole > 0:
        return start
    free = start.contiguous().clone(memory_format=torch.contiguous_format).requires_grad_(True)
    descent = torch.optim.LBFGS([free], max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> float:
        basis = spanned(free)
        lost = torch.stack([reader.lost(basis) for reader in readers]).sum() / whole
        (free.grad,) = torch.autograd.grad(lost, [free])
        free.grad = free.grad.contiguous()
        return float(lost.detach())

    with torch.enable_grad():
        descent.step(loss)
    found = spanned(free.detach())
    better = bool(torch.isfinite(found).all()) and float(sum(reader.lost(found) for reader in readers)) < whole
    return found if better else start

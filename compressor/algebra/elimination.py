"""Drop units one by one at the least predicted loss, re-solving the rest in closed form (block optimal brain surgery).

For a tap with regressor covariance H and consumer weights W, dropping the regressors S of one unit and re-solving the
others by least squares costs tr(M_SS [H⁻¹]_SS⁻¹) with M = Wᵀ F W and F the curvature of the loss at the consumer's
outputs (Hassibi & Stork 1993; Kurtic et al. 2023 for structures). H⁻¹ and M are all that a step needs: the weights
themselves are never touched. Updates are collected and applied in blocks, as matrix products.

Shape letters: D regressors of a tap, U units at a tap, B regressors per unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compressor.algebra.moments import varying

PENDING = 128
AT_ONCE = 4096
"""Columns of an inverse that are solved for together: solving takes twice their memory beside it."""


def precision(covariance: Tensor, ridge: float, consume: bool = False) -> tuple[Tensor, Tensor]:
    """Inverse of D^½ (R + ridge I) D^½ for a covariance (D, D), R its correlations; and which regressors vary (bool).

    A ridge on correlations treats large and small channels alike. Regressors without variance get a unit diagonal. With
    `consume` the memory of `covariance` is worked in: of wide layers two matrices and a part are there at a time.
    """
    variance = covariance.diagonal().clamp_min(0)
    alive = varying(variance)
    scale = torch.where(alive, variance, torch.ones_like(variance)).sqrt()
    correlation = covariance.div_(scale[:, None]) if consume else covariance / scale[:, None]
    correlation.div_(scale[None, :])
    correlation.masked_fill_(~alive[:, None], 0.0).masked_fill_(~alive[None, :], 0.0)
    correlation.diagonal().copy_(torch.ones_like(variance) + ridge)
    factor = torch.linalg.cholesky(correlation)
    inverse = correlation.zero_().fill_diagonal_(1.0)  # its memory again
    if len(inverse) <= AT_ONCE:
        inverse = torch.cholesky_solve(inverse, factor)  # cholesky_inverse is 3 to 6 times slower
    else:
        for columns in inverse.split(AT_ONCE, dim=1):
            columns.copy_(torch.cholesky_solve(columns, factor))
    return inverse.div_(scale[:, None]).div_(scale[None, :]), alive


@dataclass
class TapState:
    """The quantities of one tap while units are dropped; used up (changed in place) by the drops.

    `blocks` (U, B) lists the regressors of each unit, padded with -1; `units` (U,) are their numbers in the cluster.
    What decides which entries are touched is kept on the CPU; `inverse` and `weight` (D, D) may be on any device.
    """

    inverse: Tensor
    weight: Tensor
    blocks: np.ndarray
    units: np.ndarray

    def __post_init__(self) -> None:
        blocks, self.units = np.asarray(self.blocks), np.asarray(self.units)
        self._local = {int(u): i for i, u in enumerate(self.units)}
        self._pad, self._index = blocks < 0, np.maximum(blocks, 0)
        self._live = np.ones(len(self.units), dtype=bool)
        self._cost: np.ndarray | None = None
        self._place()
        self._inverse_blocks = self._gathered(self.inverse, 1.0)
        self._weight_blocks = self._gathered(self.weight, 0.0)
        self._reset()

    def _on_device(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, device=self.inverse.device)

    def _place(self) -> None:
        """Copies of the index arrays on the device of the matrices."""
        self._entries = self._on_device(self._index)
        self._real = self._on_device(~self._pad[:, :, None] & ~self._pad[:, None, :])
        self._padded = bool(self._pad.any())
        self._alive = self._on_device(self._live.astype(np.float64)).to(self.inverse.dtype)

    def _gathered(self, matrix: Tensor, diagonal: float) -> Tensor:
        """(U, B, B) diagonal blocks of a matrix; padded entries are `diagonal` on the diagonal and 0 elsewhere."""
        blocks = matrix[self._entries[:, :, None], self._entries[:, None, :]]
        blocks = torch.where(self._real, blocks, torch.zeros_like(blocks))
        return blocks + diagonal * torch.diag_embed(self._on_device(self._pad).to(blocks.dtype))

    def _reset(self) -> None:
        size, room = len(self.inverse), PENDING + self._index.shape[1]
        self._used_h = self._used_m = 0
        self._left_h, self._right_h = self.inverse.new_empty(2, room, size)
        self._left_m, self._right_m = self.inverse.new_empty(2, 2 * room, size)
        self._views = self._shared()

    def _shared(self) -> list[np.ndarray] | None:
        """Arrays on the memory that `_drop_one` changes; None where units have several regressors, or on a device."""
        if self._index.shape[1] > 1 or self.inverse.device.type != "cpu":
            return None
        pending = (self._left_h, self._right_h, self._left_m, self._right_m)
        return [x.numpy() for x in (self.inverse, self.weight, *pending, self._inverse_blocks, self._weight_blocks)]

    def costs(self) -> np.ndarray:
        """(U,) predicted loss of dropping each unit now (unit order of `units`); 0 where already dropped."""
        if self._cost is not None:
            return self._cost
        if self._views is not None:
            inverse_blocks, weight_blocks = self._views[-2:]
            with np.errstate(over="ignore"):  # infinite: never the cheapest
                cost = (weight_blocks / np.maximum(inverse_blocks, 1e-300)).ravel()
        else:
            filler = torch.eye(self._index.shape[1], dtype=self.inverse.dtype, device=self.inverse.device)
            blocks = torch.where(self._alive[:, None, None] > 0, self._inverse_blocks, filler)
            cost = _numbers(torch.linalg.solve(blocks, self._weight_blocks).diagonal(dim1=1, dim2=2).sum(1))
        self._cost = np.where(self._live, np.maximum(cost, 0), 0.0)
        return self._cost

    def drop(self, unit: int) -> None:
        """Drop a unit (number in the cluster); does nothing if this tap does not read it."""
        place = self._local.get(unit)
        if place is None or not self._live[place]:
            return
        if self._views is not None:
            self._drop_one(int(self._index[place, 0]), self._views)
        else:
            self._drop_block(self._on_device(self._index[place][~self._pad[place]]))
            self._alive[place] = 0.0
        self._live[place] = False
        self._cost = None
        if self._used_h >= PENDING:
            self._apply()

    def _drop_one(self, at: int, views: list[np.ndarray]) -> None:
        """The same as `_drop_block` for one regressor on the CPU: small steps, mostly overhead if done in torch."""
        h, m = self._used_h, self._used_m
        inverse, weight, left_h, right_h, left_m, right_m, inverse_blocks, weight_blocks = views
        row_h = inverse[at] - left_h[:h, at] @ right_h[:h]
        row_m = weight[at] - left_m[:m, at] @ right_m[:m]
        ratio, rest = right_h[h], right_m[m + 1]
        np.divide(row_h, row_h[at], out=ratio)
        np.subtract(row_m, row_m[at] * ratio, out=rest)
        left_h[h], left_m[m], right_m[m], left_m[m + 1] = row_h, row_m, ratio, ratio
        self._used_h, self._used_m = h + 1, m + 2
        entries = self._index[:, 0]
        share = ratio[entries]
        inverse_blocks[:, 0, 0] -= row_h[entries] * share
        weight_blocks[:, 0, 0] -= (row_m + rest)[entries] * share

    def _drop_block(self, chosen: Tensor) -> None:
        h, m = self._used_h, self._used_m
        rows_h = torch.addmm(self.inverse[chosen], self._left_h[:h, chosen].T, self._right_h[:h], alpha=-1)
        rows_m = torch.addmm(self.weight[chosen], self._left_m[:m, chosen].T, self._right_m[:m], alpha=-1)
        ratio = torch.linalg.solve(rows_h[:, chosen], rows_h)  # [H⁻¹]_SS⁻¹ [H⁻¹]_S:
        rest = torch.addmm(rows_m, rows_m[:, chosen], ratio, alpha=-1)
        self._update_blocks(rows_h, rows_m, ratio, rest)
        count = len(chosen)
        self._left_h[h : h + count], self._right_h[h : h + count] = rows_h, ratio
        self._left_m[m : m + count], self._right_m[m : m + count] = rows_m, ratio
        self._left_m[m + count : m + 2 * count], self._right_m[m + count : m + 2 * count] = ratio, rest
        self._used_h, self._used_m = h + count, m + 2 * count

    def _update_blocks(self, rows_h: Tensor, rows_m: Tensor, ratio: Tensor, rest: Tensor) -> None:
        index = self._entries
        h_u, t_u = rows_h[:, index].movedim(1, 0), ratio[:, index].movedim(1, 0)  # (U, S, B)
        m_u, r_u = rows_m[:, index].movedim(1, 0), rest[:, index].movedim(1, 0)
        change_h = h_u.transpose(1, 2) @ t_u
        change_m = m_u.transpose(1, 2) @ t_u + t_u.transpose(1, 2) @ r_u
        if self._padded:
            change_h, change_m = change_h * self._real, change_m * self._real
        self._inverse_blocks -= change_h
        self._weight_blocks -= change_m

    def _apply(self) -> None:
        """Carry the collected updates out on the matrices, and forget dropped regressors once they are many."""
        h, m = self._used_h, self._used_m
        self.inverse.addmm_(self._left_h[:h].T, self._right_h[:h], alpha=-1)
        self.weight.addmm_(self._left_m[:m].T, self._right_m[:m], alpha=-1)
        gone = self._index[~self._live][~self._pad[~self._live]]
        if len(gone) > 0.15 * len(self.inverse):
            self._compact(gone)
        self._reset()

    def _compact(self, gone: np.ndarray) -> None:
        stay = np.ones(len(self.inverse), dtype=bool)
        stay[gone] = False
        number, live = np.cumsum(stay) - 1, self._live
        rest, units = self._on_device(np.flatnonzero(stay)), self._on_device(np.flatnonzero(live))
        self.inverse, self.weight = (m[rest[:, None], rest] for m in (self.inverse, self.weight))
        self.units, self._pad = self.units[live], self._pad[live]
        self._index = np.maximum(number[self._index[live]], 0)
        self._inverse_blocks, self._weight_blocks = self._inverse_blocks[units], self._weight_blocks[units]
        self._live = np.ones(len(self.units), dtype=bool)
        self._local = {int(u): i for i, u in enumerate(self.units)}
        self._place()


def _numbers(values: Tensor) -> np.ndarray:
    """Costs from where they were computed, to be compared on the CPU."""
    return values.cpu().double().numpy()


class QuadraticState:
    """Units whose joint loss is ½ Σ_ij G_ij over what was dropped: no other unit takes anything over.

    `gram` (U, U) is G, `units` (U,) are the numbers in the cluster.
    """

    def __init__(self, gram: Tensor, units: np.ndarray) -> None:
        self._gram, self.units = gram.detach().cpu().double().numpy(), np.asarray(units)
        self._local = {int(u): i for i, u in enumerate(self.units)}
        self._gone = np.zeros(len(self.units), dtype=bool)

    def costs(self) -> np.ndarray:
        """(U,) predicted loss of dropping each unit now; 0 where already dropped."""
        cost = 0.5 * self._gram.diagonal() + self._gram[:, self._gone].sum(1)
        return np.where(self._gone, 0.0, np.maximum(cost, 0.0))

    def drop(self, unit: int) -> None:
        """Drop a unit (number in the cluster); does nothing if it is none of these."""
        place = self._local.get(unit)
        if place is not None:
            self._gone[place] = True


def eliminate(
    taps: Sequence[TapState | QuadraticState], group_of: Tensor | np.ndarray, worth: Tensor | None = None
) -> tuple[list[int], list[float]]:
    """Order in which the units of one cluster are dropped, and the predicted loss (nats) that each drop adds.

    `group_of` (units,) gives each unit's group: the last unit of a group is never dropped. `worth` (units,) is what
    dropping a unit saves; the cheapest loss per worth goes first. `taps` are used up. Deterministic.
    """
    groups = np.asarray(group_of)
    left = np.bincount(groups, minlength=int(groups.max(initial=-1)) + 1)
    blocked = left[groups] <= 1
    scale = np.ones(len(groups)) if worth is None else worth.cpu().double().clamp_min(1e-12).numpy()
    order: list[int] = []
    increments: list[float] = []
    while not blocked.all():
        cost = np.zeros(len(groups))
        for tap in taps:  # those that changed are costed anew, the others' costs are kept
            cost[tap.units] += tap.costs()  # a tap has each unit once
        unit, increment = _cheapest(cost, scale, blocked)
        order.append(unit)
        increments.append(increment)
        for tap in taps:
            tap.drop(unit)
        blocked[unit] = True
        left[groups[unit]] -= 1
        if left[groups[unit]] <= 1:
            blocked |= groups == groups[unit]
    return order, increments


def _cheapest(cost: np.ndarray, scale: np.ndarray, blocked: np.ndarray) -> tuple[int, float]:
    """The first of the units that cost least per worth, and its cost."""
    unit = int(np.argmin(np.where(blocked, np.inf, cost / scale)))
    return unit, float(cost[unit])

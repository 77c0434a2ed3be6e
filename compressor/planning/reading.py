"""What consumers read, as rows: forward pre-hooks at the taps, always removed.

Shape letters: N samples, P positions of one sample, C input features of the tap, U units, E entries of a
unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.units.graph import Group, Tap, UnitGraph
from compressor.units.program import forward

Visit = Callable[[int, Tensor], None]
"""Called with the place of a tap and what it reads (N, P, C), once for every call of the consumer."""


@dataclass(frozen=True)
class Spot:
    """One group at one tap: `entries` (U, E) are the input features of each unit, -1 where the tap lacks
    it.
    """

    tap: int
    entries: Tensor
    present: Tensor

    def rows(self, read: Tensor) -> Tensor:
        """(R, C) rows of the tap -> (R x E, U) rows of the group; units not read here are zero."""
        units, width = self.entries.shape
        picked = read[:, self.entries.clamp_min(0).reshape(-1)].reshape(len(read), units, width)
        return (picked * self.present[:, None]).transpose(1, 2).reshape(-1, units)


def spots(graph: UnitGraph, group: Group) -> list[Spot] | None:
    """The taps that read `group`; None if some tap reads more of one unit than of another."""
    place = np.full(graph.n_units + 1, -1)
    place[group.units] = np.arange(len(group.units))
    found = []
    for number, tap in enumerate(graph.taps):
        mine = place[tap.units]
        entries = np.flatnonzero(mine >= 0)
        if not len(entries):
            continue
        counts = np.bincount(mine[entries], minlength=len(group.units))
        width = int(counts.max())
        if not np.isin(counts, (0, width)).all():
            return None
        table = np.full((len(group.units), width), -1)
        table[counts > 0] = entries[np.argsort(mine[entries], kind="stable")].reshape(-1, width)
        found.append(Spot(number, torch.from_numpy(table), torch.from_numpy(counts > 0)))
    return found


def visit_taps(
    model: nn.Module, taps: Sequence[Tap], batches: Iterable[tuple[int, Any]], visit: dict[int, Visit]
) -> None:
    """Run `model` over `batches` (number of samples, inputs) and call `visit[place](place, read)` at each
    tap.
    """
    size = [1]

    def watch(place: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x: Tensor = (args[0] if args else next(iter(kwargs.values()))).detach()
            x = x.movedim(1, -1) if taps[place].kind != "linear" else x
            x = x.flatten(0, -2)
            # windows folded into the batch belong to their sample; else every row counts as a sample
            visit[place](place, x.reshape(size[0] if len(x) % size[0] == 0 else len(x), -1, x.shape[-1]))

        return hook

    with ExitStack() as stack, torch.no_grad():
        for place in visit:
            module = model.get_submodule(taps[place].module)
            stack.callback(module.register_forward_pre_hook(watch(place), with_kwargs=True).remove)
        for count, inputs in batches:
            size[0] = count
            forward(model, inputs)


class RowStore:
    """Rows of several taps, evenly drawn over the samples up to a number per tap, on the CPU in float64."""

    def __init__(self, wanted: dict[int, int], samples: int, generator: torch.Generator) -> None:
        self._wanted, self._samples, self._generator = wanted, samples, generator
        self._parts: dict[int, list[Tensor]] = {place: [] for place in wanted}

    def visit(self, place: int, read: Tensor) -> None:
        """Keep this tap's share of rows of one batch (N, P, C)."""
        flat = read.flatten(0, 1)
        count = -(-self._wanted[place] * len(read) // self._samples)
        if count < len(flat):
            chosen = torch.rand(len(flat), generator=self._generator).argsort()[:count].sort().values
            flat = flat[chosen.to(flat.device)]
        flat = flat.cpu().double()
        self._parts[place].append(flat[torch.isfinite(flat).all(1)])

    def rows(self, place: int) -> Tensor:
        """(R, C) all rows kept of one tap."""
        return torch.cat(self._parts[place])

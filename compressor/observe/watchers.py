"""Hooks on the consumers for one pass; always removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from compressor.algebra.moments import Moments, wide
from compressor.observe.readers import TapReader
from compressor.observe.statistics import PairStatistics, TapStatistics
from compressor.units.modes import HALF, home_of

FIRST = 16
"""Samples whose mean the sums are relative to."""
FINEST = 2.0**-16
"""Part of their size to which means of what does not vary are rounded."""


def coarse_mean(rows: Tensor) -> Tensor:
    """(D,) means of rows (R, D), each to about an eighth of its column's spread: the same on every machine.

    Relative to the level they may not be coarse: float32 products of what hardly varies would be all rounding.
    """
    mean, spread = rows.mean(0), rows.std(0, correction=0)
    grid = torch.maximum(spread / 4, mean.abs() * FINEST).clamp_min(torch.finfo(rows.dtype).tiny)
    grid = torch.exp2(grid.log2().floor())
    return (mean / grid).round() * grid


class Watcher:
    """Hooks of one tap for one pass."""

    def __init__(self, reader: TapReader) -> None:
        self.reader = reader
        self.ids: Tensor | None = None
        self.statistics: TapStatistics | None = None
        self.edges: list[GradientEdge] = []
        self.adding = True
        """False while only the shift is wanted."""

    def start(self, shift: Tensor) -> None:
        """No rows yet; `shift` (D,) is what the sums are relative to."""
        outputs, device = self.reader.outputs, shift.device
        curvature = torch.zeros(outputs, outputs, dtype=wide(device), device=device)
        self.statistics = TapStatistics(Moments.empty(shift), curvature, self.reader.per_kernel)

    def forward(self, _module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        """Add what the consumer reads; a view is replaced by a copy, because writing into it would cut the gradient."""
        x = args[0].detach()
        ids = self.ids
        ids = torch.arange(len(x), device=x.device) if ids is None or len(ids) != len(x) else ids.to(x.device)
        with torch.autocast(x.device.type, enabled=False), torch.no_grad():
            rows = self.reader.rows(x.float() if x.dtype in HALF else x, self.reader.picked(ids, x, out))
            if self.statistics is None:
                self.start(coarse_mean(rows[: max(1, len(rows) * FIRST // max(len(x), FIRST))]))
            if self.adding:
                self.statistics.moments.add(rows)  # type: ignore[union-attr]
        if not out.requires_grad:
            return None
        self.edges.append(get_gradient_edge(out))  # not `out`: an in-place activation would take its place
        return out.clone() if out._is_view() else None

    def curve(self, gradient: Tensor | None) -> None:
        """Add Σ g gᵀ over samples and positions; None where the output did not matter."""
        if self.statistics is None or gradient is None:
            return
        g = gradient.detach().float() if gradient.dtype in HALF else gradient.detach()
        g = g.reshape(-1, g.shape[-1]) if self.reader.tap.kind == "linear" else g.transpose(0, 1).flatten(1).T
        for part in g.split(65536):
            self.statistics.curvature += part.T @ part


class PairWatcher:
    """Hooks of one pairing for one pass: what its layer writes, until the gradient there is known."""

    def __init__(self, features: int, device: torch.device) -> None:
        self.statistics = PairStatistics(torch.zeros(features, features, dtype=wide(device), device=device))
        self.edges: list[GradientEdge] = []
        self._written: list[Tensor] = []
        self._sums: Tensor | None = None

    def forward(self, _module: nn.Module, _args: tuple[Any, ...], out: Tensor) -> None:
        """Keep what the layer writes (N, ..., F)."""
        if out.requires_grad:
            self._written.append(out.detach())
            self.edges.append(get_gradient_edge(out))

    def curve(self, gradient: Tensor | None) -> None:
        """Σ_positions z g of each sample for one call; calls of one sample add up."""
        written = self._written.pop(0)
        if gradient is not None:
            total = (written * gradient.detach()).flatten(1, -2).sum(1) if written.dim() > 2 else written * gradient
            self._sums = total if self._sums is None or len(total) != len(self._sums) else self._sums + total
        if not self._written and self._sums is not None:
            sums = self._sums.to(self.statistics.gram)
            self.statistics.gram += sums.T @ sums
            self.statistics.samples += len(sums)
            self._sums = None


@contextmanager
def watching(
    model: nn.Module, watchers: Mapping[str, Watcher], pairs: Mapping[str, PairWatcher] | None = None
) -> Iterator[None]:
    """Hooks on the consumers, eval mode, gradients for every parameter, a caller's autocast switched off; all of it is
    taken back at the end.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(home_of(model).type, enabled=False))
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
            module.training = False
        for parameter in model.parameters():
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        for name, watcher in [*watchers.items(), *(pairs or {}).items()]:
            handle = model.get_submodule(name).register_forward_hook(watcher.forward)
            stack.callback(handle.remove)
        yield

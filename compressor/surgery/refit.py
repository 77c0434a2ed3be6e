"""Sequential refit: consumers relearn, in execution order, to reproduce their original pre-activations.

Both networks are run in lock-step, operation by operation, on the same samples, so that every consumer is fitted with
everything upstream of it already compressed; each network runs exactly once. The last layer before a sum is fitted to
(original sum - compressed skip), so that errors of the skip are corrected on the way. From one fit to the next every
chunk of samples takes its turn: only what the following fits read stays, in memory or in files.

Shape letters: R rows, D regressors, O outputs, U entries of a tap, K entries that stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from compressor.algebra.patches import output_rows, sampled_positions
from compressor.algebra.ridge import PairedSums
from compressor.observe import Geometry, TapReader, takes_constant
from compressor.surgery.landing import Landing, landings
from compressor.surgery.lanes import Lane, last_uses, peak_bytes
from compressor.surgery.operate import kept_outputs, kept_regressors, write_consumer
from compressor.units.cut import keep_mask
from compressor.units.graph import Tap, UnitGraph, merged_taps
from compressor.units.modes import home_of
from compressor.units.program import Program, record


def wanted_values(program: Program) -> dict[Node, list[Node]]:
    """Values that a refit reads beside the operation itself: consumer -> its input and the other summand."""
    wanted: dict[Node, list[Node]] = {}
    for spot in landings(program):
        values = [spot.source] if spot.other is None else [spot.source, spot.other]
        wanted[spot.node] = [v for v in values if v not in program.state_nodes]
    return wanted


def bytes_per_chunk(program: Program) -> int:
    """Memory that one chunk of samples needs in a lock-step run of two networks."""
    return 2 * peak_bytes(program, wanted_values(program))


@dataclass(frozen=True)
class Reference:
    """A network to refit to, and `turns` as `Refit` takes them."""

    model: nn.Module
    turns: Mapping[str, Tensor]


class Refit:
    """One lock-step run: `Refit(...).run()` refits `small` in place and returns it.

    `chunks` are inputs, all of the same batch size; `original` is only read, and `program` is its record on one chunk.
    `small` must be `original` cut to `kept`. So many chunks as are `resident` stay in memory all the time (all, unless
    said); of the others one is there at a time, and what it is still needed for waits in files, with the same result.
    Where layers of `small` write other features (`surgery.rotate`), `turns` has for each of them the matrix (new, old)
    that makes them from the original's.
    """

    def __init__(
        self,
        original: nn.Module,
        small: nn.Module,
        graph: UnitGraph,
        kept: Mapping[str, tuple[int, ...]],
        chunks: list[Any],
        ridge: float,
        seed: int = 0,
        program: Program | None = None,
        resident: int | None = None,
        turns: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.original, self.small, self.ridge, self.seed = original, small, ridge, seed
        self.turns = turns or {}
        self.mask: np.ndarray = keep_mask(graph, kept)
        self.rows = kept_outputs(graph, self.mask)
        self.taps = {tap.module: tap for tap in merged_taps(graph)}
        home = home_of(original)
        example = pytree.tree_map_only(Tensor, lambda leaf: leaf.to(home), chunks[0])  # it may wait in a file
        self.left = Lane.start(original, program or record(original, example), chunks, resident)
        self.right = Lane.start(small, record(small, example), chunks, resident)
        if len(self.left.program.nodes) != len(self.right.program.nodes):
            raise RuntimeError("the compressed network runs other operations than the original")
        self.twin = dict(zip(self.left.program.nodes, self.right.program.nodes, strict=True))

    def run(self, progress: Callable[[float], None] | None = None) -> nn.Module:
        """Refit every consumer whose input differs between the networks; `progress` gets the share done."""
        wanted = wanted_values(self.left.program)
        spots = {s.node: s for s in landings(self.left.program) if self._open(s)}
        free_left = last_uses(self.left.program, wanted)
        free_right = last_uses(
            self.right.program, {self.twin[n]: [self.twin[v] for v in values] for n, values in wanted.items()}
        )
        steps = [node for node in self.twin if node.op in ("call_function", "get_attr")]
        done = 0
        with torch.no_grad():
            for part in parted(steps, spots):
                if part[0] in spots:
                    self._refit(spots[part[0]])
                for chunk in range(len(self.left.values)):
                    for node in part:
                        if node not in spots:
                            self.left.step(node, chunk)
                        self.right.step(self.twin[node], chunk)
                        self.left.forget(free_left.get(node, []), chunk)
                        self.right.forget(free_right.get(self.twin[node], []), chunk)
                    self.left.rest(chunk)
                    self.right.rest(chunk)
                done += len(part)
                if progress is not None:
                    progress(done / len(steps))
        return self.small

    def _open(self, spot: Landing) -> bool:
        """True for a layer that can learn: a turned convolution or embedding has been written anew already."""
        tap = self.taps.get(spot.module) if spot.once else None
        return tap is not None and (tap.kind == "linear" or spot.module not in self.turns)

    def _refit(self, spot: Landing) -> None:
        """Run the original's layer on all chunks, and refit its twin if what it reads differs between the networks."""
        for chunk in range(len(self.left.values)):
            self.left.step(spot.node, chunk)
            self.left.rest(chunk)
        if self._differs(spot):
            self._fit(spot, self.taps[spot.module])

    def _differs(self, spot: Landing) -> bool:
        for node in (spot.source, spot.other):
            for chunk in range(len(self.left.values) if node is not None else 0):
                left, right = self.left.value(node, chunk), self.right.value(self.twin[node], chunk)  # type: ignore[index]
                if left.shape != right.shape or not torch.equal(left, right):
                    return True
        return False

    def _fit(self, spot: Landing, tap: Tap) -> None:
        module: Any = self.small.get_submodule(spot.module)
        samples = sum(len(in_rows(tap, self.left.value(spot.source, i))) for i in range(len(self.left.values)))
        reader = TapReader(tap, module, samples, self.seed, geometry_of(spot, module) if tap.kind == "conv" else None)
        by_output = reader.per_kernel or tap.kind == "linear"
        rows = self.rows.get(spot.module)
        sums: PairedSums | None = None
        start = 0
        for i in range(len(self.left.values)):
            x = in_rows(tap, self.right.value(self.twin[spot.source], i))
            ids = torch.arange(start, start + len(x), device=x.device)
            start += len(x)
            pair = (
                self._output_rows(spot, tap, reader, ids, i, rows)
                if by_output
                else self._input_rows(spot, reader, ids, i)
            )
            sums = sums or PairedSums.starting(*pair)
            sums.add(*pair)
        if sums is None:
            return
        if by_output:
            prior = module.weight.detach().flatten(1)
            weight, bias = sums.solve(prior, self.ridge, spot.intercept)
            self._write(spot, weight, bias)
            return
        self._refold(spot, tap, sums)

    def _output_rows(
        self, spot: Landing, tap: Tap, reader: TapReader, ids: Tensor, chunk: int, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What the consumer reads now, and what it should give: its original pre-activation, plus the skip's error."""
        x = in_rows(tap, self.right.value(self.twin[spot.source], chunk))
        y = in_rows(tap, self.left.value(spot.node, chunk))
        y = y if spot.apart is None else y + self.left.state[spot.apart]
        y = self._turned(spot, y)
        y = y if rows is None else y.index_select(1, rows.to(y.device))
        if spot.other is not None:
            y = self._corrected(spot, y, chunk, rows)
        if tap.kind == "linear":
            picked = thinned(ids, reader, len(self.left.values))
            return (x, y) if picked is None else (x[picked], y[picked])
        positions = reader.picked(ids, x, y)
        if positions is None:
            raise RuntimeError("a convolution's rows need sampled positions")
        return reader.rows(x, positions), output_rows(y, positions)

    def _turned(self, spot: Landing, y: Tensor) -> Tensor:
        """What the original writes in this place, in the small network's features."""
        turn = self.turns.get(spot.module)
        return y if turn is None or turn.shape[1] != y.shape[-1] else y @ turn.T.to(y)

    def _input_rows(self, spot: Landing, reader: TapReader, ids: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        """Compressed and original inputs of the consumer at the same positions (too wide for kernel regressors)."""
        x, y = self.right.value(self.twin[spot.source], chunk), self.left.value(spot.source, chunk)
        positions = sampled_positions(ids, int(np.prod(x.shape[2:])), reader.rows_per_sample, self.seed)
        return output_rows(x, positions), output_rows(y, positions)

    def _refold(self, spot: Landing, tap: Tap, sums: PairedSums) -> None:
        """Fold anew: rebuild the original input from the compressed one, then apply the original weights."""
        whole: Any = self.original.get_submodule(spot.module)
        stay = kept_regressors(tap, self.mask, 1).to(sums.xx.device)
        start = torch.eye(tap.units.shape[-1], dtype=sums.xx.dtype, device=sums.xx.device)[:, stay]
        centred = takes_constant(tap, False, spot.intercept)
        expand, offset = sums.solve(start, self.ridge, centred)
        weight = whole.weight.detach().to(expand)
        transposed = tap.kind == "conv_transpose"
        folded = torch.einsum("uo...,uk->ko..." if transposed else "ou...,uk->ok...", weight, expand)
        bias = None
        if offset is not None:
            bias = weight.flatten(2).sum(2) @ offset
            bias = bias if whole.bias is None else bias + whole.bias.detach().to(bias)
        rows = self.rows.get(spot.module)
        if rows is not None:
            folded = folded.index_select(1 if transposed else 0, rows.to(folded.device))
            bias = bias if bias is None else bias[rows.to(folded.device)]
        self._write(spot, folded, bias)

    def _write(self, spot: Landing, weight: Tensor, bias: Tensor | None) -> None:
        module: Any = self.small.get_submodule(spot.module)
        if bias is not None and module.bias is None and spot.norm is not None:
            rows = self.rows.get(spot.module)
            whole: Any = self.original.get_submodule(spot.norm)
            mean = whole.running_mean if rows is None else whole.running_mean[rows.to(whole.running_mean.device)]
            norm: Any = self.small.get_submodule(spot.norm)
            norm.running_mean.copy_(mean)  # constants are relative to the original's
        write_consumer(self.small, spot, weight, bias, relative=False)

    def _corrected(self, spot: Landing, y: Tensor, chunk: int, rows: Tensor | None) -> Tensor:
        """The target that also makes up for the error of the other summand, seen through the batch norm between."""
        left = self.left.value(spot.other, chunk)
        right = self.right.value(self.twin[spot.other], chunk)  # type: ignore[index]
        if left.dim() > y.dim() == 2:  # tokens: linear layers see them flattened
            left, right = left.flatten(0, -2), right.flatten(0, -2)
        left = self._turned(spot, left)
        left = left if rows is None or left.shape[1] == right.shape[1] else left.index_select(1, rows.to(left.device))
        if left.shape != right.shape or left.shape != y.shape:
            return y
        error = left - right
        if spot.norm is None:
            return y + error
        norm: Any = self.small.get_submodule(spot.norm)
        std = (norm.running_var + norm.eps).sqrt()
        slope = norm.weight if norm.weight is not None else torch.ones_like(std)
        usable = slope.abs() > 1e-3 * slope.abs().max()  # where the norm's scale is ~0 nothing can be corrected
        factor = torch.where(usable, std / torch.where(usable, slope, torch.ones_like(slope)), torch.zeros_like(std))
        return y + error * factor.reshape([1, -1] + [1] * (y.dim() - 2))


def parted(steps: list[Node], heads: Collection[Node]) -> list[list[Node]]:
    """Steps in their order, in parts that begin at `heads`."""
    parts: list[list[Node]] = []
    for node in steps:
        if not parts or node in heads:
            parts.append([])
        parts[-1].append(node)
    return parts


def in_rows(tap: Tap, value: Tensor) -> Tensor:
    """What a linear layer reads or writes as (rows, features); of other layers as it is."""
    return value.flatten(0, -2) if tap.kind == "linear" else value


def geometry_of(spot: Landing, module: Any) -> Geometry:
    """Where a convolution of the program reads its source; padding by another mode is an operation before it."""
    stride, padding, dilation = (tuple(int(v) for v in spot.node.args[i]) for i in (3, 4, 5))  # type: ignore[union-attr]
    kernel = tuple(int(k) for k in module.weight.shape[2:])
    spread = [values * len(kernel) if len(values) == 1 else values for values in (stride, dilation, padding)]
    return Geometry(kernel, spread[0], spread[1], tuple(p for size in reversed(spread[2]) for p in (size, size)))


def thinned(ids: Tensor, reader: TapReader, chunks: int) -> Tensor | None:
    """An even part of a chunk's rows of a linear layer where there are far more than the fit needs, else None."""
    count = max(2048, math.ceil(2 * reader.wanted_rows / chunks))
    return None if count >= len(ids) else sampled_positions(ids[:1], len(ids), count, 1)[0]

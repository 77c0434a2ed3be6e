"""Sequential refit: consumers relearn, in execution order, to reproduce their original pre-activations.

Both networks are run in lock-step, operation by operation, on the same samples, so that every consumer is fitted with
everything upstream of it already compressed; each network runs exactly once. The last layer before a sum is fitted to
(original sum - compressed skip), so that errors of the skip are corrected on the way.

Shape letters: R rows, D regressors, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from compressor.algebra.moments import wide
from compressor.algebra.patches import output_rows
from compressor.observe import TapReader
from compressor.surgery.landing import Landing, landings
from compressor.units.graph import UnitGraph
from compressor.units.program import Program, call_arguments, named_state, record


@dataclass
class Lane:
    """One network in the lock-step run: its program, its tensors, and the values alive in every chunk."""

    program: Program
    state: dict[str, Tensor]
    values: list[dict[Node, Any]]

    @classmethod
    def start(cls, model: nn.Module, program: Program, chunks: list[Any]) -> Lane:
        """Chunks are inputs of the batch size the program was recorded with."""
        state, _ = named_state(model)
        values = []
        for chunk in chunks:
            leaves, _ = pytree.tree_flatten(call_arguments(chunk))
            values.append(dict(zip(program.input_nodes, leaves, strict=True)))
        return cls(program, state, values)

    def value(self, node: Any, chunk: int) -> Any:
        """A value alive in one chunk: a parameter by its current content, or an activation."""
        if not isinstance(node, Node):
            return node
        if node in self.program.state_nodes:
            return self.state[self.program.state_nodes[node]]
        return self.values[chunk][node]

    def step(self, node: Node) -> None:
        """Run one operation on every chunk."""
        if node.op == "get_attr":
            constant = self.program.graph
            for part in str(node.target).split("."):
                constant = getattr(constant, part)
            for chunk in self.values:
                chunk[node] = constant
            return
        target: Any = node.target
        for i, chunk in enumerate(self.values):
            args = torch.fx.map_arg(node.args, lambda n, i=i: self.value(n, i))
            kwargs = torch.fx.map_arg(node.kwargs, lambda n, i=i: self.value(n, i))
            chunk[node] = target(*args, **kwargs)

    def forget(self, nodes: list[Node]) -> None:
        """Free values that nobody reads any more."""
        for chunk in self.values:
            for node in nodes:
                chunk.pop(node, None)


def last_uses(program: Program, pinned: Mapping[Node, Node]) -> dict[Node, list[Node]]:
    """Node -> values whose last reader it is; `pinned` adds readers (value -> node that will still want it)."""
    seen: set[Node] = set()
    wanted: dict[Node, list[Node]] = {}
    for value, reader in pinned.items():
        wanted.setdefault(reader, []).append(value)
    last: dict[Node, list[Node]] = {}
    for node in reversed(program.nodes):
        for used in [*node.all_input_nodes, *wanted.get(node, [])]:
            if used not in seen and used not in program.state_nodes:
                seen.add(used)
                last.setdefault(node, []).append(used)
    return last


def solve_ridge(gram: Tensor, cross: Tensor, prior: Tensor, ridge: float) -> Tensor:
    """(O, D) weights that minimise |Y - W X|² + ridge · |W - prior|² in units of each regressor's variance.

    `gram` (D, D) and `cross` (O, D) are centred moments of the same rows.
    """
    variance = gram.diagonal().clamp_min(0)
    floor = variance.max().clamp_min(1e-300) * 1e-9
    damping = ridge * variance + floor
    system = gram + torch.diag(damping)
    rest = cross - prior @ gram
    return prior + torch.cholesky_solve(rest.T, torch.linalg.cholesky(system)).T


@dataclass
class Sums:
    """Centred-able sums of regressors x (R, D) and targets y (R, O) in float64."""

    count: int
    x: Tensor
    y: Tensor
    xx: Tensor
    yx: Tensor
    yy: Tensor
    shift_x: Tensor
    shift_y: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Sums:
        """Start from the first rows, whose means become the shifts."""
        dtype, dx, dy = wide(x.device), x.shape[1], y.shape[1]
        new = lambda *shape: torch.zeros(*shape, dtype=dtype, device=x.device)  # noqa: E731
        sums = cls(0, new(dx), new(dy), new(dx, dx), new(dy, dx), new(dy), x.mean(0), y.mean(0))
        sums.add(x, y)
        return sums

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows."""
        x, y = x - self.shift_x, y - self.shift_y
        self.count += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.yx += y.T @ x
        self.yy += (y * y).sum(0)

    def solve(self, prior: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """Weights (O, D) and bias (O,) of the ridge regression of y on x with intercept."""
        mx, my = self.x / self.count, self.y / self.count
        gram = self.xx / self.count - torch.outer(mx, mx)
        cross = self.yx / self.count - torch.outer(my, mx)
        weight = solve_ridge(gram, cross, prior.to(gram), ridge)
        bias = (my + self.shift_y) - weight @ (mx + self.shift_x).to(weight)
        return weight, bias


class Refit:
    """Runs original and small network in lock-step over `chunks` and refits the consumers whose inputs were cut."""

    def __init__(
        self,
        original: nn.Module,
        small: nn.Module,
        graph: UnitGraph,
        kept_rows: Callable[[str], Tensor | None],
        chunks: list[Any],
        ids: Tensor,
        ridge: float,
        skip: bool = True,
    ) -> None:
        self.small, self.graph, self.kept_rows, self.ids = small, graph, kept_rows, ids
        self.ridge, self.skip = ridge, skip
        self.left = Lane.start(original, record(original, chunks[0]), chunks)
        self.right = Lane.start(small, record(small, chunks[0]), chunks)
        if len(self.left.program.nodes) != len(self.right.program.nodes):
            raise RuntimeError("the compressed network runs other operations than the original")
        self.twin = dict(zip(self.left.program.nodes, self.right.program.nodes, strict=True))
        self.original = original

    def run(self, progress: Callable[[int], None] | None = None) -> nn.Module:
        """Refit `small` in place and return it."""
        taps = {tap.module: tap for tap in self.graph.taps}
        spots = {landing.node: landing for landing in landings(self.left.program)}
        pinned = {spot.source: node for node, spot in spots.items()}
        pinned |= {spot.other: node for node, spot in spots.items() if spot.other is not None}
        free_left = last_uses(self.left.program, pinned)
        free_right = last_uses(self.right.program, {self.twin[v]: self.twin[n] for v, n in pinned.items()})
        done: set[str] = set()
        with torch.no_grad():
            for node, twin in self.twin.items():
                if node.op not in ("call_function", "get_attr"):
                    continue
                self.left.step(node)
                spot = spots.get(node)
                if spot is not None and spot.module in taps and spot.module not in done:
                    done.add(spot.module)
                    self.fit(spot, taps[spot.module])
                self.right.step(twin)
                self.left.forget(free_left.get(node, []))
                self.right.forget(free_right.get(twin, []))
                if progress is not None:
                    progress(1)
        return self.small

    def fit(self, spot: Landing, tap: Any) -> None:
        """Refit one consumer on the compressed inputs it has now."""
        module: Any = self.small.get_submodule(spot.module)
        if tap.kind == "conv_transpose":
            return
        reader = TapReader(tap, module, len(self.ids), 0)
        rows = self.kept_rows(spot.module)
        sums: Sums | None = None
        start = 0
        for i in range(len(self.left.values)):
            x = self.right.value(self.twin[spot.source], i)
            y = self.left.value(spot.node, i)
            y = y + self._correction(spot, i, y) if self.skip and spot.other is not None else y
            size = len(x) if tap.kind == "conv" else len(x)
            ids = torch.arange(start, start + size, device=x.device)
            start += size
            positions = reader.picked(ids, x, y)
            regressors = reader.rows(x, positions)
            targets = output_rows(y, positions) if tap.kind == "conv" and positions is not None else y
            targets = targets if rows is None else targets[:, rows]
            if sums is None:
                sums = Sums.of(regressors, targets)
            else:
                sums.add(regressors, targets)
        if sums is None:
            return
        prior = module.weight.detach().flatten(1)
        weight, bias = sums.solve(prior, self.ridge)
        self._write(spot, module, weight, bias)

    def _correction(self, spot: Landing, chunk: int, y: Tensor) -> Tensor:
        """What the consumer's output must add so that the sum it lands in is right, seen through its batch norm."""
        other = self.left.value(spot.other, chunk)
        mine = self.right.value(self.twin[spot.other], chunk)  # type: ignore[index]
        rows = self.kept_rows(spot.module)
        wanted = torch.zeros_like(y)
        spread = [1, -1] + [1] * (y.dim() - 2)
        picked = other if rows is None else other.index_select(1, rows)
        if picked.shape != mine.shape or picked.dim() != y.dim():
            return wanted
        difference = picked - mine
        if spot.norm is not None:
            norm: Any = self.small.get_submodule(spot.norm)
            slope = norm.weight if norm.weight is not None else torch.ones_like(norm.running_var)
            std = (norm.running_var + norm.eps).sqrt()
            usable = slope.abs() > 1e-3 * slope.abs().max()
            factor = torch.where(usable, std / torch.where(usable, slope, torch.ones_like(slope)), torch.zeros_like(std))
            difference = difference * factor.reshape(spread)
        if rows is None:
            return difference
        return wanted.index_copy(1, rows, difference)

    def _write(self, spot: Landing, module: Any, weight: Tensor, bias: Tensor) -> None:
        module.weight.data.copy_(weight.reshape(module.weight.shape).to(module.weight))
        if module.bias is not None:
            module.bias.data.copy_(bias.to(module.bias))
        elif spot.norm is not None:
            norm: Any = self.small.get_submodule(spot.norm)
            norm.running_mean.sub_(bias.to(norm.running_mean))

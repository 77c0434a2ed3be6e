"""One dry run: a double-precision copy with chosen units unread, and the same network with these units cut
out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from compressor.units.cut import cut, keep_mask
from compressor.units.graph import Axis, UnitGraph
from compressor.units.modes import unrounded
from compressor.units.program import example_pair, failed, first_line, forward, tensors_in, unfused

Kept = Mapping[str, tuple[int, ...]]
Place = tuple[str, int]
"""A weight and one of its axes; the keys' weight of an attention is read along both."""
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference relative to the largest output that counts as rounding."""
BLUR = 30
"""Outputs may differ by this many times what the network makes of the rounding of its weights."""
MOST = 100
"""But never by more than this many times what counts as rounding: a network that makes more of it tells nothing."""
SIGNAL = 1e3
"""A unit has signal if its reach is this many times what counts as rounding."""


class Trial:
    """Dry runs of one model on two samples of `inputs`, on the CPU, in double precision where the model
    allows it."""

    def __init__(self, model: nn.Module, graph: UnitGraph, inputs: Any, seed: int) -> None:
        self._model, self._graph, self._seed = model, graph, seed
        self._consumers = [axis for axis in graph.axes if axis.role == "consumes"]
        self._inputs, self.dtype = self._runnable(inputs)
        self.rounding = ROUNDING[self.dtype]

    def _runnable(self, inputs: Any) -> tuple[Any, torch.dtype]:
        """The first of: two samples in float64, in float32; all samples in float64, in float32, that runs."""
        error: Exception | None = None
        for given in (example_pair(inputs), inputs):
            for dtype in ROUNDING:
                ready = pytree.tree_map(lambda leaf, dtype=dtype: _cast(leaf, dtype), given)
                try:
                    outputs = self._forward(unrounded(copy.deepcopy(self._model), dtype), ready)
                except Exception as raised:  # noqa: BLE001  (the next way is tried)
                    error = error or raised
                    continue
                if all(out.dtype == dtype for out in outputs if out.is_floating_point()):
                    return ready, dtype
        raise failed(error or RuntimeError("outputs have neither float64 nor float32 values"))

    def difference(self, kept: Kept, draw: int, near: bool = False) -> str | None:
        """None if the network cut to `kept` equals the one that ignores all other units; else what is wrong.

        Draw 0 has the model's own weights, later draws have random ones; `near` its own where those make so much of
        rounding that they tell nothing.
        """
        whole = self._reference(kept, draw, near)
        expected = self._forward(whole, self._inputs)
        try:
            got = self._forward(cut(whole, self._graph, kept), self._inputs)
        except Exception as error:  # noqa: BLE001  (any failure of the cut network is the finding)
            return f"dry run: forward fails after the cut: {first_line(error)}"
        if [out.shape for out in got] != [out.shape for out in expected]:
            return "dry run: outputs changed their shape when units were cut"
        worst = _gap(got, expected)
        if worst <= self.rounding:
            return None
        blur, most = BLUR * self._amplified(whole, expected), MOST * self.rounding
        if worst <= min(blur, most):
            return None
        if draw > 0 and not near and blur > most:
            return self.difference(kept, draw, near=True)
        return f"dry run: outputs changed by {worst:.0e} when units were cut"

    def _amplified(self, whole: nn.Module, expected: list[Tensor]) -> float:
        """What this network makes of rounding: deep random networks amplify it by many orders."""
        generator = torch.Generator().manual_seed(self._seed)
        blurred = copy.deepcopy(whole)
        with torch.no_grad():
            for parameter in blurred.parameters():
                if parameter.is_floating_point():
                    sign = 2.0 * torch.randint(2, parameter.shape, generator=generator) - 1
                    parameter.mul_(1 + torch.finfo(self.dtype).eps * sign.to(parameter))
        return _gap(self._forward(blurred, self._inputs), expected)

    def heard(self, kept: Kept, draw: int) -> set[tuple[str, Place, bool]]:
        """Where units can be told: (group, consumer weight's axis, whether among the kept or the dropped units)."""
        whole = self._reference(kept, draw)
        reach = self._reach(whole)
        found = set()
        for name, place, stays, entries in self.parts(kept):
            if place in reach:
                loud = bool((reach[place][entries] > SIGNAL * self.rounding).any())
            else:  # no gradient comes here (computed under no_grad): change the weights and look
                loud = self._moves(whole, place, entries) > SIGNAL * self.rounding
            if loud:
                found.add((name, place, stays))
        return found

    def parts(self, kept: Kept) -> Iterator[tuple[str, Place, bool, np.ndarray]]:
        """(group, consumer weight's axis, whether these are the kept units, their positions in the weight)."""
        by_name = {group.name: group for group in self._graph.groups}
        for name, indices in kept.items():
            group = by_name[name]
            for stays in (True, False):
                inside = np.zeros(self._graph.n_units + 1, dtype=bool)
                inside[group.units] = not stays
                inside[group.units[list(indices)]] = stays
                for axis in self._consumers:
                    entries = np.flatnonzero(inside[axis.units])
                    if len(entries):
                        yield name, (axis.tensor, axis.axis), stays, entries

    def _moves(self, whole: nn.Module, place: Place, entries: np.ndarray) -> float:
        expected = self._forward(whole, self._inputs)
        tensor, axis = place
        weight = whole.get_parameter(tensor)
        before = weight.detach().clone()
        with torch.no_grad():
            fill = before.square().mean().sqrt()
            weight.index_add_(
                axis,
                torch.from_numpy(entries),
                torch.full_like(before.index_select(axis, torch.from_numpy(entries)), float(fill)),
            )
            moved = _gap(self._forward(whole, self._inputs), expected)
            weight.copy_(before)
        return moved

    def _reference(self, kept: Kept, draw: int, near: bool = False) -> nn.Module:
        """A copy that reads only `kept`: with its own weights (draw 0), or with random ones, or ones `near` its own."""
        whole = unrounded(copy.deepcopy(self._model), self.dtype)
        mask = keep_mask(self._graph, kept)
        generator = torch.Generator().manual_seed(self._seed + 1000 * draw)
        with torch.no_grad():
            if draw > 0 and not near:
                _randomise(whole, self._consumers, mask, generator)
            else:
                _awaken(whole, generator)
            if near:
                _vary(whole, generator)
            for axis in self._consumers:
                whole.get_parameter(axis.tensor).index_fill_(axis.axis, _gone(axis, mask), 0.0)
        if draw > 0 and not near:
            self._restandardise(whole)
            if not all(bool(torch.isfinite(out).all()) for out in self._forward(whole, self._inputs)):
                return self._reference(kept, draw=0)
        return whole

    def _restandardise(self, whole: nn.Module) -> None:
        """Set the statistics of batch norms by the inputs, so that random weights neither fade nor explode.

        The mean is taken away by half, and the size, not the deviation, becomes one: centred anew in every layer, deep
        networks amplify rounding by ten orders.
        """

        def settle(module: nn.Module, args: tuple[Any, ...]) -> None:
            assert isinstance(module, nn.modules.batchnorm._BatchNorm)
            if isinstance(module.running_mean, Tensor) and isinstance(module.running_var, Tensor):
                dims = [d for d in range(args[0].dim()) if d != 1]
                module.running_mean.copy_(args[0].mean(dims) / 2)
                module.running_var.copy_(args[0].square().mean(dims) + 1e-3)

        norms = [m for m in whole.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        handles = [norm.register_forward_pre_hook(settle) for norm in norms]
        self._forward(whole, self._inputs)
        for handle in handles:
            handle.remove()

    def _forward(self, model: nn.Module, inputs: Any, grad: bool = False) -> list[Tensor]:
        own = pytree.tree_map(lambda a: a.clone() if isinstance(a, Tensor) else a, inputs)
        with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(grad), unfused():
            torch.manual_seed(self._seed)
            return tensors_in(forward(model, own))

    def _reach(self, whole: nn.Module) -> dict[Place, np.ndarray]:
        """For each axis of a consumer weight: how far reading each input feature can move the outputs, relative to
        them."""
        weights = {axis.tensor: whole.get_parameter(axis.tensor) for axis in self._consumers}
        for parameter in whole.parameters():
            parameter.requires_grad_(False)
        for weight in weights.values():
            weight.requires_grad_(True)
        generator = torch.Generator().manual_seed(self._seed)
        total = torch.zeros((), dtype=self.dtype)
        for out in self._forward(whole, self._inputs, grad=True):
            if out.is_floating_point() and out.requires_grad:
                scale = out.detach().abs().max().clamp_min(torch.finfo(out.dtype).tiny) * max(out.numel(), 1) ** 0.5
                total = total + (torch.randn(out.shape, generator=generator, dtype=out.dtype) * out).sum() / scale
        if not total.requires_grad:
            return {}
        total.backward()
        reach: dict[Place, np.ndarray] = {}
        for axis in self._consumers:
            weight = weights[axis.tensor]
            if weight.grad is not None:
                other = [d for d in range(weight.dim()) if d != axis.axis]
                size = weight.detach().square().mean().sqrt()
                reach[axis.tensor, axis.axis] = (weight.grad.square().sum(other).sqrt() * size).numpy()
        return reach


def _vary(whole: nn.Module, generator: torch.Generator) -> None:
    """Every weight times a number of its own between a half and one and a half."""
    for parameter in whole.parameters():
        if parameter.is_floating_point():
            parameter.mul_((0.5 + torch.rand(parameter.shape, generator=generator)).to(parameter))


def _cast(leaf: Any, dtype: torch.dtype) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.detach().cpu().to(dtype) if leaf.is_floating_point() else leaf.detach().cpu()


def _relative(got: Tensor, expected: Tensor) -> float:
    if not got.is_floating_point():
        return 0.0  # counts and indices follow from values that are compared
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    gap = float((got - expected).abs().max()) if expected.numel() else 0.0
    return gap / scale if scale > 0 else (0.0 if gap == 0 else float("inf"))


def _gap(got: list[Tensor], expected: list[Tensor]) -> float:
    return max((_relative(a, b) for a, b in zip(got, expected, strict=True)), default=0.0)


def _gone(axis: Axis, mask: np.ndarray) -> Tensor:
    return torch.from_numpy(np.flatnonzero((axis.units >= 0) & ~mask[np.maximum(axis.units, 0)]))


def _awaken(model: nn.Module, generator: torch.Generator) -> None:
    """Give parameters that are zero all over (heads, gammas, layer scales) small random values."""
    for name, parameter in model.named_parameters():
        asleep = parameter.is_floating_point() and not bool(parameter.any())
        if asleep and not name.endswith("bias"):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def _randomise(model: nn.Module, consumers: list[Axis], mask: np.ndarray, generator: torch.Generator) -> None:
    """Random weights that keep the size of activations, with only the kept inputs counted."""
    share = {a.tensor: max(1, int(mask[a.units[a.units >= 0]].sum() + (a.units < 0).sum())) for a in consumers}
    inputs = {a.tensor: a.axis for a in consumers}
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        shape = parameter.shape
        if len(shape) > 1 and shape.numel() > max(shape):
            axis = inputs.get(name, 1)
            fan = shape.numel() / shape[0] if axis == 1 else shape.numel() / shape[1]
            fan = fan / shape[axis] * share.get(name, shape[axis])
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64) * (2 / fan) ** 0.5
        elif name.endswith("bias"):
            drawn = 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
        else:
            drawn = 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)
        parameter.copy_(drawn)

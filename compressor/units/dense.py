"""A model whose attention and recurrent layers are written as linear layers, so that their heads, dimensions and hidden
units can be followed as units; and the ways back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from compressor.attention.dense import DenseAttention
from compressor.attention.known import attention_names, plain_again, reader_of, rewritten
from compressor.attention.normal import concentrate
from compressor.attention.transposed import straightened
from compressor.computed import computed_again, computed_layers, made_plain
from compressor.errors import ModelError
from compressor.recurrent.known import recurrent_names, rolled_again, unrolled
from compressor.units.check import sift
from compressor.units.modes import in_precision
from compressor.units.program import example_pair, failed, first_line, forward, tensors_in, unfused

SAME = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference of an output, relative to the largest, that counts as rounding, by the weights' precision."""


def in_dense_form(model: nn.Module, inputs: Any, normal: bool = True) -> nn.Module:
    """A copy of `model` with known attention in dense form, recurrent layers unrolled, and layers that are transposed
    or compute their weights as plain ones; `model` itself where there is none of them.

    Proven on two samples of `inputs` in double precision (on the CPU): what would move an output stays as it is. With
    `normal`, what the weights alone prove surplus inside an attention is moved into zero dimensions and heads (see
    `attention.normal`). Raises ModelError where the model does not run.
    """
    given, model = model, _with_plain_weights(model, inputs)
    names, loops = attention_names(model), recurrent_names(model)
    if not names and not loops and straightened(model) is model:
        return model
    probe = Probe(given, inputs)
    names = _without_change(probe, names, lambda some: rewritten(copy.deepcopy(model), some))
    rest = rewritten(copy.deepcopy(model), names)
    loops = _loops_without_change(probe, rest, loops, inputs)
    rest = unrolled(rest, loops)
    dense = straightened(rest)
    if dense is not rest and probe.changed(dense):
        dense = rest
    if not names:
        return dense if loops or dense is not rest else model
    if not normal:
        return dense

    def concentrated(some: list[str]) -> nn.Module:
        made = copy.deepcopy(dense)
        for name in some:
            attention, reader = made.get_submodule(name), reader_of(made, name)
            if isinstance(attention, DenseAttention) and reader is not None:
                concentrate(attention, reader)
        return made

    return concentrated(_without_change(probe, names, concentrated))


def given_form(small: nn.Module, original: nn.Module) -> nn.Module:
    """`small` (changed in place), worked on as `in_dense_form`, in the classes of `original` again: whatever is as wide
    as there; recurrent layers that are not are run by torch's own for each layer and direction.
    """
    return computed_again(plain_again(rolled_again(small, original), original), original)


def _with_plain_weights(model: nn.Module, inputs: Any) -> nn.Module:
    """A copy with the layers that compute their weights as plain ones; `model` itself where there is none."""
    layers = computed_layers(model)
    if not layers:
        return model

    def made(some: list[str]) -> nn.Module:
        return made_plain(copy.deepcopy(model), {name: layers[name] for name in some})

    held = _without_change(Probe(model, inputs), list(layers), made)
    return made(held) if held else model


def _loops_without_change(probe: Probe, model: nn.Module, names: list[str], inputs: Any) -> list[str]:
    """The recurrent layers that can be unrolled, also where inputs that are all zero (states to begin with) are not."""

    def made(some: list[str]) -> nn.Module:
        return unrolled(copy.deepcopy(model), some)

    names = _without_change(probe, names, made)
    lively = pytree.tree_map_only(Tensor, _without_zeros, inputs)
    if not names or all(a is b for a, b in zip(pytree.tree_leaves(lively), pytree.tree_leaves(inputs), strict=True)):
        return names
    try:
        second = Probe(model, lively)
    except ModelError:
        return names
    return _without_change(second, names, made)


def _without_zeros(given: Tensor) -> Tensor:
    if not given.is_floating_point() or bool(given.any()):
        return given
    return torch.linspace(-1, 1, given.numel(), dtype=given.dtype, device=given.device).reshape(given.shape)


def _without_change(probe: Probe, names: list[str], make: Callable[[list[str]], nn.Module]) -> list[str]:
    return sift(names, lambda some: probe.changed(make(some)), {})


class Probe:
    """Outputs of a model on two samples, to compare others with."""

    def __init__(self, model: nn.Module, inputs: Any, limit: float | None = None) -> None:
        """`limit`: how far outputs may move, as a share of the largest; None as the model's dtype rounds."""
        floats = {p.dtype for p in model.parameters() if p.is_floating_point()}
        self._limit = limit or SAME[torch.float64 if floats == {torch.float64} else torch.float32]
        error: Exception | None = None
        for given in (example_pair(inputs), inputs):
            for dtype in (torch.float64, torch.float32):
                self._dtype, self._inputs = dtype, pytree.tree_map(lambda leaf, d=dtype: _cast(leaf, d), given)
                try:
                    self._outputs = self._run(model)
                except Exception as raised:  # noqa: BLE001  (the next way is tried)
                    error = error or raised
                    continue
                return
        raise failed(error or RuntimeError("no inputs"))

    def _run(self, model: nn.Module) -> list[Tensor]:
        net = in_precision(copy.deepcopy(model).cpu(), self._dtype).eval()
        own = pytree.tree_map(lambda a: a.clone() if isinstance(a, Tensor) else a, self._inputs)
        with torch.random.fork_rng(devices=[]), torch.no_grad(), unfused():
            torch.manual_seed(0)
            return [out for out in tensors_in(forward(net, own)) if out.is_floating_point()]

    def changed(self, other: nn.Module) -> str | None:
        """None if `other` gives the same outputs, else what is wrong."""
        try:
            outputs = self._run(other)
        except Exception as error:  # noqa: BLE001  (any failure of the other network is the finding)
            return first_line(error)
        if [out.shape for out in outputs] != [out.shape for out in self._outputs]:
            return "outputs of other shapes"
        for before, after in zip(self._outputs, outputs, strict=True):
            size = float(before.abs().max()) if before.numel() else 0.0
            gap = float((before - after).abs().max()) if before.numel() else 0.0
            if not gap <= self._limit * size:
                return f"outputs moved by {gap:.0e}"
        return None


def _cast(leaf: Any, dtype: torch.dtype) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.detach().cpu().to(dtype) if leaf.is_floating_point() else leaf.detach().cpu()

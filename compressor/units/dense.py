"""A model whose attention is written in dense form, so that its heads and dimensions can be followed as units."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from compressor.attention.dense import DenseAttention
from compressor.attention.known import attention_names, reader_of, rewritten
from compressor.attention.normal import concentrate
from compressor.attention.transposed import straightened
from compressor.units.check import sift
from compressor.units.modes import in_precision
from compressor.units.program import call_arguments, example_pair, failed, first_line, tensors_in, unfused

SAME = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference of an output, relative to the largest, that counts as rounding, by the weights' precision."""


def with_dense_attention(model: nn.Module, inputs: Any, normal: bool = True) -> nn.Module:
    """A copy of `model` with every known attention module in dense form, and transposed linear layers as plain ones;
    `model` itself where there is neither.

    Proven on two samples of `inputs` in double precision (on the CPU): what would move an output stays as it is. With
    `normal`, what the weights alone prove surplus inside an attention is moved into zero dimensions and heads (see
    `attention.normal`). Raises ModelError where the model does not run.
    """
    names = attention_names(model)
    if not names and straightened(model) is model:
        return model
    probe = Probe(model, inputs)
    names = _without_change(probe, names, lambda some: rewritten(copy.deepcopy(model), some))
    rest = rewritten(copy.deepcopy(model), names)
    dense = straightened(rest)
    if dense is not rest and probe.changed(dense):
        dense = rest
    if not names:
        return model if dense is rest else dense
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
        args, kwargs = call_arguments(
            pytree.tree_map(lambda a: a.clone() if isinstance(a, Tensor) else a, self._inputs)
        )
        with torch.random.fork_rng(devices=[]), torch.no_grad(), unfused():
            torch.manual_seed(0)
            return [out for out in tensors_in(net(*args, **kwargs)) if out.is_floating_point()]

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

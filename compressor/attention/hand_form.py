"""Self-attention that somebody wrote by hand, known by what it computes: a module of linear layers, tokens in and out.

Which layers are query, key and value, and how their features are split into heads, is proposed from the layers' shapes
and an attribute with the number of heads. A proposal counts only if it gives the same outputs as the module itself,
in double precision, with random weights, for random tokens of several lengths: the module's code is not read.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.attention.dense import DenseAttention, additive, copied, copy_numbers, hooked, scales
from compressor.attention.fused import Rows, fill_fused, rows_apart, taken_apart
from compressor.errors import ModelError

HEADS = ("num_heads", "n_heads", "heads", "n_head", "nhead", "num_attention_heads")
LENGTHS = ((2, 5), (1, 1), (3, 12), (1, 70))
"""Samples and tokens of the trials."""
SAME = 1e-10
OWN_FORMS = ("torch.", "torchvision.", "timm.", "transformers.")
"""Packages whose attention is taken by name or not at all."""


@dataclass(frozen=True)
class Reading:
    """How a module's layers make up attention."""

    inputs: tuple[str, ...]
    """Layers of query, key and value, or the one that has all three."""
    output: str
    heads: int
    by_head: bool
    """Of one layer: query, key and value of a head lie beside each other, not those of all heads."""
    causal: bool
    dropout: float
    out_dropout: float


class HandAttention(DenseAttention):
    """In the place of a module that takes tokens (N, T, E) as its only argument and gives tokens back."""

    def __init__(self, *layers: Any, reading: Reading, **options: Any) -> None:
        super().__init__(*layers, **options)
        self.reading = reading

    @classmethod
    def of(cls, module: nn.Module) -> DenseAttention | str | None:
        """Modules of one or three linear layers into heads and one out of them, nothing else with numbers in it."""
        if type(module).__module__.startswith(OWN_FORMS) or not _eligible(module):
            return None
        for reading in _readings(module):
            made = cls._read(module, reading)
            if _same(module, reading):
                return made
        return None

    @classmethod
    def _read(cls, module: nn.Module, reading: Reading) -> HandAttention:
        out: Any = module.get_submodule(reading.output)
        layers = _parts([module.get_submodule(name) for name in reading.inputs], reading)
        scale = scales((layers[0].out_features / reading.heads) ** -0.5, reading.heads, out.weight)
        return cls(*layers, copied(out), scale, reading=reading, dropout=reading.dropout)

    def fill(self, plain: nn.Module) -> None:
        """Into a module of that class."""
        copy_numbers(self.out, plain.get_submodule(self.reading.output))  # type: ignore[arg-type]
        layers: list[Any] = [plain.get_submodule(name) for name in self.reading.inputs]
        if len(layers) == 3:
            for own, layer in zip((self.q, self.k, self.v), layers, strict=True):
                copy_numbers(own, layer)
            return
        fill_fused(layers[0], self, _rows(self.reading, len(layers[0].weight)))

    def forward(self, x: Tensor, *more: Any, **others: Any) -> Tensor:
        """(N, T, E) -> (N, T, E). Other arguments must be None."""
        if any(value is not None for value in (*more, *others.values())):
            raise ModelError(
                "attention in dense form",
                "further arguments",
                "tokens alone",
                "call the attention with tokens only, or use nn.MultiheadAttention, which takes masks.",
            )
        mask = None
        if self.reading.causal:
            seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
            mask = additive(seen, x.dtype, keeps=True)
        return F.dropout(self.attend(x, x, x, mask)[0], self.reading.out_dropout, self.training)


def _eligible(module: nn.Module) -> bool:
    """Only linear layers and dropouts inside, one required argument, a number of heads, no tensors of its own."""
    children = list(module.children())
    if not 2 <= sum(type(child) is nn.Linear for child in children) <= 4:
        return False
    plain = all(type(child) in (nn.Linear, nn.Dropout, nn.Identity) for child in children)
    if not plain or next(module.parameters(recurse=False), None) is not None or hooked(module, *children):
        return False
    if any(buffer.is_floating_point() for buffer in module.buffers()) or not _heads(module):
        return False
    needed = [
        p
        for p in inspect.signature(module.forward).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    return len(needed) == 1


def _heads(module: nn.Module) -> int:
    found = [getattr(module, name, None) for name in HEADS]
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool) and n > 0), 0)


def _readings(module: nn.Module) -> Iterator[Reading]:
    layers = {name: child for name, child in module.named_children() if type(child) is nn.Linear}
    drops = [float(child.p) for child in module.children() if isinstance(child, nn.Dropout)]
    attention, output = (drops[0], drops[-1]) if len(drops) > 1 else (0.0, drops[0] if drops else 0.0)
    heads = _heads(module)
    *inputs, last = layers
    width = layers[last].in_features
    if width % heads or layers[last].out_features != layers[inputs[0]].in_features:
        return
    sizes = [layers[name].out_features for name in inputs]
    for causal in (False, True):
        rest = (causal, attention, output)
        if len(inputs) == 3 and sizes == [width] * 3 and len({layers[n].in_features for n in inputs}) == 1:
            one, two, three = inputs
            for order in ((one, two, three), (two, one, three)):  # q, k, v, or k, q, v
                yield Reading(order, last, heads, False, *rest)
        elif len(inputs) == 1 and sizes == [3 * width]:
            for by_head in (False, True):
                yield Reading((inputs[0],), last, heads, by_head, *rest)


def _rows(reading: Reading, count: int) -> Rows:
    """Which of so many rows of the one layer are queries, keys and values."""
    return rows_apart(reading.heads, 1, count // (3 * reading.heads), reading.by_head)


def _parts(layers: list[Any], reading: Reading) -> list[nn.Linear]:
    if len(layers) == 3:
        return [copied(layer) for layer in layers]
    (layer,) = layers
    return taken_apart(layer.weight, layer.bias, layer.weight, _rows(reading, len(layer.weight)))


def _same(module: nn.Module, reading: Reading) -> bool:
    """True if the reading gives what the module gives, with random weights, for random tokens, some of them zero."""
    generator = torch.Generator().manual_seed(0)
    trial = copy.deepcopy(module).cpu().double().eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for parameter in trial.parameters():
            size = max(1, parameter[0].numel()) ** -0.5 if parameter.dim() > 1 else 0.5
            parameter.copy_(1.5 * size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        made = HandAttention._read(trial, reading).eval()
        for samples, tokens in LENGTHS:
            x = 2 * torch.randn(samples, tokens, made.q.in_features, generator=generator, dtype=torch.float64)
            x[:, tokens // 2 + 1 :] *= (torch.rand(tokens - tokens // 2 - 1, 1, generator=generator) > 0.3).double()
            try:
                expected = trial(x.clone())
            except Exception:  # noqa: BLE001  (a module that does not take tokens is none of these)
                return False
            got = made(x)
            if not isinstance(expected, Tensor) or expected.shape != got.shape:
                return False
            if not float((got - expected).abs().max()) <= SAME * float(expected.abs().max()):
                return False
    return True

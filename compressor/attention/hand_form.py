"""Self-attention that somebody wrote by hand, known by what it computes: a module of linear layers, tokens in and out.

Which layers are query, key and value, and how their features are split into heads, is proposed from the layers' shapes
and attributes with the number of heads and the scale; a LayerNorm inside may come before them. A proposal counts only
if it gives the same outputs as the module itself, in double precision, with random weights, for random tokens of
several lengths: the module's code is not read.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.attention.dense import DenseAttention, additive, copied, copy_numbers, hooked, scales
from compressor.attention.fused import Rows, fill_fused, rows_apart, taken_apart
from compressor.errors import ModelError

HEADS = ("num_heads", "n_heads", "heads", "n_head", "nhead", "num_attention_heads", "num_head", "n_attn_heads", "h")
SCALES = ("scale", "scaling")
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
    scale: float
    norm: str | None
    """A LayerNorm that the tokens pass first."""
    nones: int
    """It returns so many Nones beside the tokens, in a tuple."""
    dropout: float
    out_dropout: float


class HandAttention(DenseAttention):
    """In the place of a module that takes tokens (N, T, E) as its only argument and gives tokens back."""

    def __init__(self, *layers: Any, reading: Reading, norm: nn.Module | None = None, **options: Any) -> None:
        super().__init__(*layers, **options)
        self.reading, self.norm = reading, norm

    @classmethod
    def of(cls, module: nn.Module) -> DenseAttention | str | None:
        """Modules of one or three linear layers into heads and one out of them; nothing else with numbers in it, but
        for a LayerNorm before them.
        """
        if type(module).__module__.startswith(OWN_FORMS) or not _eligible(module):
            return None
        trial, generator = _trial(module)
        for reading in _readings(trial, _nones(trial)):
            if _same(trial, reading, generator):
                return cls._read(module, reading)
        return None

    @classmethod
    def _read(cls, module: nn.Module, reading: Reading) -> HandAttention:
        out: Any = module.get_submodule(reading.output)
        layers = _parts([module.get_submodule(name) for name in reading.inputs], reading)
        scale = scales(reading.scale, reading.heads, out.weight)
        norm = None if reading.norm is None else copy.deepcopy(module.get_submodule(reading.norm))
        return cls(*layers, copied(out), scale, reading=reading, norm=norm, dropout=reading.dropout)

    def fill(self, plain: nn.Module) -> None:
        """Into a module of that class."""
        copy_numbers(self.out, plain.get_submodule(self.reading.output))  # type: ignore[arg-type]
        if self.norm is not None and self.reading.norm is not None:
            plain.get_submodule(self.reading.norm).load_state_dict(self.norm.state_dict())
        layers: list[Any] = [plain.get_submodule(name) for name in self.reading.inputs]
        if len(layers) == 3:
            for own, layer in zip((self.q, self.k, self.v), layers, strict=True):
                copy_numbers(own, layer)
            return
        fill_fused(layers[0], self, _rows(self.reading, len(layers[0].weight)))

    def forward(self, x: Tensor, *more: Any, **others: Any) -> Any:
        """(N, T, E) -> (N, T, E), with the Nones that the module returns. Other arguments must be None."""
        if any(value is not None for value in (*more, *others.values())):
            raise ModelError(
                "attention in dense form",
                "further arguments",
                "tokens alone",
                "call the attention with tokens only, or use nn.MultiheadAttention, which takes masks.",
            )
        x, mask = x if self.norm is None else self.norm(x), None
        if self.reading.causal:
            seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
            mask = additive(seen, x.dtype, keeps=True)
        mixed = F.dropout(self.attend(x, x, x, mask)[0], self.reading.out_dropout, self.training)
        return (mixed, *[None] * self.reading.nones) if self.reading.nones else mixed


def _eligible(module: nn.Module) -> bool:
    """Two to four linear layers inside and at most one LayerNorm, besides them no numbers; one required argument, a
    number of heads."""
    parts = [part for part in module.modules() if part is not module]
    linears, norms = (sum(type(part) is kind for part in parts) for kind in (nn.Linear, nn.LayerNorm))
    others = (part for part in (module, *parts) if type(part) not in (nn.Linear, nn.LayerNorm))
    if not 2 <= linears <= 4 or norms > 1 or hooked(module, *parts):
        return False
    if any(next(part.parameters(recurse=False), None) is not None for part in others) or not _heads(module):
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


def _scales(module: nn.Module, size: int) -> list[float]:
    """What logits may be multiplied by: that of heads of so many dimensions, or what the module says."""
    said = [getattr(module, name, None) for name in SCALES]
    return [size**-0.5, *[value for value in said if isinstance(value, float) and value != size**-0.5]]


def _readings(module: nn.Module, nones: int) -> Iterator[Reading]:
    layers = {name: part for name, part in module.named_modules() if type(part) is nn.Linear}
    drops = [float(part.p) for part in module.modules() if isinstance(part, nn.Dropout)]
    attention, output = (drops[0], drops[-1]) if len(drops) > 1 else (0.0, drops[0] if drops else 0.0)
    norm = next((name for name, part in module.named_modules() if type(part) is nn.LayerNorm), None)
    heads, names = _heads(module), list(layers)
    for last, causal in itertools.product(reversed(names), (False, True)):
        inputs = [name for name in names if name != last]
        width, sizes = layers[last].in_features, [layers[name].out_features for name in inputs]
        reads = {layers[name].in_features for name in inputs}
        if width % heads or reads != {layers[last].out_features}:
            continue
        for scale in _scales(module, width // heads):
            rest = (causal, scale, norm, nones, attention, output)
            if len(inputs) == 3 and sizes == [width] * 3:
                for order in itertools.permutations(inputs):
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


def _trial(module: nn.Module) -> tuple[nn.Module, torch.Generator]:
    """A copy in double precision on the CPU, with random weights, and what goes on drawing."""
    generator = torch.Generator().manual_seed(0)
    trial = copy.deepcopy(module).cpu().double().eval()
    with torch.no_grad():
        for parameter in trial.parameters():
            size = max(1, parameter[0].numel()) ** -0.5 if parameter.dim() > 1 else 0.5
            parameter.copy_(1.5 * size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return trial, generator


def _answer(trial: nn.Module, x: Tensor) -> Any:
    """What the module makes of tokens; None where it does not take them."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return trial(x.clone())
    except Exception:  # noqa: BLE001  (a module that does not take tokens is none of these)
        return None


def _nones(trial: nn.Module) -> int:
    layers = [part for part in trial.modules() if type(part) is nn.Linear]
    answers = (_answer(trial, torch.zeros(1, 2, layer.in_features, dtype=torch.float64)) for layer in layers)
    found = next((answer for answer in answers if answer is not None), None)
    return len(found) - 1 if isinstance(found, tuple) and all(other is None for other in found[1:]) else 0


def _same(trial: nn.Module, reading: Reading, generator: torch.Generator) -> bool:
    """True if the reading gives what the module gives, for random tokens, some of them zero."""
    made = HandAttention._read(trial, reading).eval()
    for samples, tokens in LENGTHS:
        x = 2 * torch.randn(samples, tokens, made.q.in_features, generator=generator, dtype=torch.float64)
        x[:, tokens // 2 + 1 :] *= (torch.rand(tokens - tokens // 2 - 1, 1, generator=generator) > 0.3).double()
        expected, got = _answer(trial, x), _answer(made, x)
        if reading.nones and isinstance(expected, tuple):
            expected, got = expected[0], got[0]
        if not isinstance(expected, Tensor) or expected.shape != got.shape:
            return False
        if not float((got - expected).abs().max()) <= SAME * float(expected.abs().max()):
            return False
    return True

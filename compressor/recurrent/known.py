"""Which recurrent layers of a model are worked on, and the ways there and back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from compressor.attention.dense import hooked, linear
from compressor.recurrent.rolled import OneWay, Rolled, fill, numbers, rolled
from compressor.recurrent.unrolled import Layer, Unrolled


def recurrent_names(model: nn.Module) -> list[str]:
    """torch's own recurrent layers, without projections and hooks; one that is used under two names, or shares its
    numbers with another module, counts as none.
    """
    names: dict[int, int] = {}
    for _, part in (*model.named_modules(remove_duplicate=False), *model.named_parameters(remove_duplicate=False)):
        names[id(part)] = names.get(id(part), 0) + 1
    return [
        name
        for name, module in model.named_modules()
        if name
        and type(module) in (nn.LSTM, nn.GRU, nn.RNN)
        and all(names[id(part)] == 1 for part in (module, *module.parameters()))
        and not module.proj_size
        and not hooked(module)
    ]


def unrolled_form(module: nn.RNNBase) -> Unrolled:
    """The layer in a loop of linear layers; its numbers are copied, nothing is shared."""
    found = [_layer(module, ending) for ending in _endings(module)]
    made = Unrolled(found, module.mode, 1 + module.bidirectional, module.batch_first, float(module.dropout))
    return made.train(module.training)


def _endings(module: nn.RNNBase) -> list[str]:
    ways = ("", "_reverse")[: 1 + module.bidirectional]
    return [f"_l{layer}{way}" for layer in range(module.num_layers) for way in ways]


def _layer(module: Any, ending: str) -> Layer:
    weight, second = (getattr(module, f"weight_{kind}{ending}") for kind in ("ih", "hh"))
    bias = getattr(module, f"bias_ih{ending}") if module.bias else None
    inner = getattr(module, f"bias_hh{ending}").detach().clone() if module.bias else None
    inner = None if inner is None else nn.Parameter(inner, weight.requires_grad)
    x, h = linear(weight, bias, weight), linear(second, None, weight)
    return Layer(module.mode, x, h, inner, ending.endswith("_reverse"))


def unrolled(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """`model` (changed in place) with these recurrent layers unrolled."""
    for name in names:
        model.set_submodule(name, unrolled_form(_given(model, name)))
    return model


def rolled_again(small: nn.Module, original: nn.Module) -> nn.Module:
    """`small` (changed in place) with every unrolled layer run by torch's own again: by that of the original where it
    is as wide as there, else by one for each layer and direction.
    """
    for name, module in list(small.named_modules()):
        if isinstance(module, Unrolled):
            again = _again(module, _given(original, name))
            inside = isinstance(small.get_submodule(name.rpartition(".")[0]), OneWay)
            again = again.get_submodule("layers.0.inner") if inside and isinstance(again, Rolled) else again
            small.set_submodule(name, again)
    return small


def _again(module: Unrolled, given: nn.RNNBase) -> nn.Module:
    layers = [layer for layer in module.layers if isinstance(layer, Layer)]
    plain = copy.deepcopy(given).to(layers[0].x.weight).train(module.training)
    for layer, ending in zip(layers, _endings(plain), strict=True):
        known = numbers(layer)
        own = {
            name: getattr(plain, f"{name}{ending}", None) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        if {n: t.shape for n, t in own.items() if t is not None} != {n: t.shape for n, t in known.items()}:
            return rolled(module)
        fill(plain, known, ending)
    return plain


def rolled_names(model: nn.Module) -> list[str]:
    """Recurrent layers of several widths."""
    return [name for name, module in model.named_modules() if isinstance(module, Rolled)]


def with_rolled(original: nn.Module, names: Sequence[str]) -> nn.Module:
    """A copy with these recurrent layers as `Rolled` ones of the same widths; the same object without names.

    Raises ValueError or AttributeError where one of them is none that is worked on.
    """
    if not names:
        return original
    made, known = copy.deepcopy(original), recurrent_names(original)
    for name in names:
        if name not in known:
            raise ValueError(f"'{name}' is no recurrent layer that can be narrower")
        made.set_submodule(name, rolled(unrolled_form(_given(made, name))))
    return made


def _given(model: nn.Module, name: str) -> nn.RNNBase:
    module = model.get_submodule(name)
    if not isinstance(module, nn.RNNBase):
        raise ValueError(f"'{name}' is no recurrent layer")
    return module

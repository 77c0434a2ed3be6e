"""Linear layers whose weight lies the other way round (transformers' `Conv1D`, of GPT-2 and its kin), as plain ones."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from compressor.attention.dense import hooked, linear


def is_transposed(module: nn.Module) -> bool:
    """Whether it is a `Conv1D` of transformers: x W + b with W (in, out)."""
    kind = type(module)
    return (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D") and not hooked(module)


def upright(module: Any) -> nn.Linear:
    """The same layer as `nn.Linear`, sharing nothing."""
    return linear(module.weight.T, module.bias, module.weight)


def straightened(model: nn.Module) -> nn.Module:
    """A copy of `model` with every such layer as `nn.Linear`; `model` itself where there is none."""
    names = [name for name, module in model.named_modules() if name and is_transposed(module)]
    if not names or len(names) < sum(is_transposed(m) for _, m in model.named_modules(remove_duplicate=False)):
        return model  # one that is used under two names would be two
    made = copy.deepcopy(model)
    for name in names:
        made.set_submodule(name, upright(made.get_submodule(name)).train(made.get_submodule(name).training))
    return made


def transposed_again(small: nn.Module, original: nn.Module) -> nn.Module:
    """`small` (changed in place) with the layers that are transposed in `original` in that class again."""
    modules = dict(small.named_modules())
    for name, given in original.named_modules():
        layer = modules.get(name)
        if is_transposed(given) and type(layer) is nn.Linear:
            small.set_submodule(name, _laid_down(layer, given))
    return small


def _laid_down(layer: nn.Linear, given: Any) -> nn.Module:
    made = copy.copy(given)
    made._parameters = dict(given._parameters)
    weight = layer.weight.detach().T.contiguous()
    made.weight = nn.Parameter(weight, layer.weight.requires_grad)
    made.bias = nn.Parameter(layer.bias.detach().clone(), layer.bias.requires_grad)
    made.nx, made.nf = weight.shape
    return made.train(layer.training)

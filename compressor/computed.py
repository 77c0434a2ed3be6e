"""Layers that compute their weight from their own parameters at every call (weight norm, Salimans & Kingma 2016;
spectral norm, Miyato et al. 2018; weight standardisation, Qiao et al. 2019; scaled weights), as the plain layers that
they are."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

PLAIN: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    )
}  # fmt: skip
Kind = Literal[
    "Linear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Conv2dSame"
]
"""Classes of plain layers."""
SAME_PADS = "Conv2dSame"
"""timm's convolution that pads as TensorFlow's do: what its standardised ones are with plain weights."""
KINDS: tuple[str, ...] = get_args(Kind)
_PRODUCTS = {F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
_WRITERS = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
"""Hooks of torch that compute a weight before the forward pass."""
_OF_MODULES = ("_parameters", "_buffers", "_modules")
SAME = 1e-9
"""Largest difference of a layer's outputs in double precision, relative to the largest, that counts as rounding."""
BEYOND = (3, 6)
"""Positions of an input beyond the kernel's reach, in the two trials of a layer."""


def copy_of(model: nn.Module) -> nn.Module:
    """A copy, also where hooks of torch have left the weights that they computed in a graph, or a module keeps tensors
    of a graph in a dict (a cache), which `copy.deepcopy` refuses. Raises RuntimeError where others are part of one.
    """
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in _left_in_graphs(model)})


def left_in_graphs(model: nn.Module) -> bool:
    """True if `copy_of` makes a copy where `copy.deepcopy` makes none."""
    return bool(_left_in_graphs(model))


def _left_in_graphs(model: nn.Module) -> list[Tensor]:
    held: list[Any] = []
    for module in model.modules():
        own = vars(module)
        held += own.values() if kept_by_hook(module) else []
        for place, value in own.items():
            held += value.values() if isinstance(value, dict) and place not in _OF_MODULES else []
    return [value for value in held if isinstance(value, Tensor) and not value.is_leaf]


def kept_by_hook(module: nn.Module) -> bool:
    """True if a hook of torch (weight norm, spectral norm, pruning) writes a weight of this module at every call."""
    return any(isinstance(hook, _WRITERS) for hook in module._forward_pre_hooks.values())


def computed_layers(model: nn.Module) -> dict[str, Kind]:
    """Name -> kind of the plain layer, of every layer that computes its weight from parameters of its own alone.

    One that is used under two names, or shares a parameter, counts as none.
    """
    uses: dict[int, int] = {}
    for _, part in (*model.named_modules(remove_duplicate=False), *model.named_parameters(remove_duplicate=False)):
        uses[id(part)] = uses.get(id(part), 0) + 1
    found: dict[str, Kind] = {}
    for name, module in model.named_modules():
        if not name or _base(module) is None or any(uses[id(p)] > 1 for p in (module, *module.parameters())):
            continue
        kind = _kind(module)
        if kind is not None:
            found[name] = cast(Kind, kind)
    return found


def made_plain(model: nn.Module, layers: Mapping[str, str]) -> nn.Module:
    """`model` (changed in place) with these layers as plain ones of the weights that they compute now.

    Raises ValueError or AttributeError where one is no such layer.
    """
    for name, kind in layers.items():
        module = model.get_submodule(name)
        if _base(module) is None or kind not in KINDS:
            raise ValueError(f"'{name}' is no layer that computes its weight")
        model.set_submodule(name, plain_layer(module, kind))
    return model


def computed_again(small: nn.Module, original: nn.Module) -> nn.Module:
    """`small` (changed in place) with the layers that compute their weights in `original` and still have them, bit by
    bit, in that class again."""
    for name, kind in _plain_in(small, original).items():
        given, layer = original.get_submodule(name), small.get_submodule(name)
        own, new = plain_layer(given, kind).state_dict(), layer.state_dict()
        if own.keys() == new.keys() and all(torch.equal(own[key].to(new[key]), new[key]) for key in own):
            small.set_submodule(name, copy_of(given).to(next(layer.parameters()).device).train(layer.training))
    return small


def plain_names(original: nn.Module, small: nn.Module) -> dict[str, Kind]:
    """Name -> kind of the layers that compute their weight in `original` and are plain in `small`, or that are not
    there any more: parts of attention whose dense form was made of plain ones."""
    there = dict(small.named_modules())
    gone: dict[str, Kind] = {name: kind for name, kind in computed_layers(original).items() if name not in there}
    return _plain_in(small, original) | gone


def _plain_in(small: nn.Module, original: nn.Module) -> dict[str, Kind]:
    given = dict(original.named_modules())
    return {
        name: cast(Kind, type(module).__name__)
        for name, module in small.named_modules()
        if name in given and _plain(module) and not _plain(given[name]) and _base(given[name]) is not None
    }


def plain_layer(module: Any, kind: str) -> nn.Module:
    """The plain layer of a kind with the weights that the module computes now; nothing is shared.

    Raises ValueError where it computes none.
    """
    found = _weights(module)
    if found is None:
        raise ValueError(f"a {type(module).__name__} computes no weight of its own")
    (weight, bias), learns = found, any(p.requires_grad for p in module.parameters())
    own: dict[str, Any] = {"bias": bias is not None, "device": "meta"}
    if kind == "Linear":
        made = nn.Linear(module.in_features, module.out_features, **own)
    else:
        names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"]
        names += ["padding_mode"] * (kind != SAME_PADS) + ["output_padding"] * bool(module.transposed)
        own |= {name: getattr(module, name) for name in names}
        made = _class(kind)(**own)
    made.register_parameter("weight", nn.Parameter(weight.detach().clone(), learns))
    if bias is not None:
        made.register_parameter("bias", nn.Parameter(bias.detach().clone(), learns))
    return made.train(module.training)


def _class(kind: str) -> type[nn.Module]:
    return PLAIN[kind] if kind in PLAIN else getattr(importlib.import_module("timm.layers"), kind)


def _plain(module: nn.Module) -> bool:
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return type(module).__name__ in KINDS and type(module) is _class(type(module).__name__) and not hooks


def _base(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch whose numbers it computes in a way of its own, if it is of one, and nothing else listens."""
    base = next((kind for kind in type(module).__mro__ if kind in PLAIN.values()), None)
    hooks = module._forward_pre_hooks.values()
    others = module._forward_hooks or any(not isinstance(hook, _WRITERS) for hook in hooks)
    return None if base is None or others or (type(module) is base and not hooks) else base


def _kind(module: nn.Module) -> str | None:
    """The plain layer that answers the same to any input, whatever the module's weights are computed from."""
    base = _base(module)
    if base is None:
        return None
    module = copy_of(module).to(device="cpu", dtype=torch.float64).eval()
    kinds = [base.__name__, *([SAME_PADS] if base is nn.Conv2d and _of_timm(module) else [])]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = [_input(module, beyond) for beyond in BEYOND]
        return next((kind for kind in kinds if _same(module, kind, inputs)), None)


def _same(module: nn.Module, kind: str, inputs: list[Tensor]) -> bool:
    try:
        plain = plain_layer(module, kind)
        with torch.no_grad():
            pairs = [(module(x), plain(x)) for x in inputs]
    except Exception:  # noqa: BLE001  (a layer that cannot be asked so is none of these)
        return False
    return all(a.shape == b.shape and float((a - b).abs().max()) <= SAME * float(a.abs().max()) for a, b in pairs)


def _of_timm(module: nn.Module) -> bool:
    return any(kind.__module__.startswith("timm.") for kind in type(module).__mro__)


def _input(module: Any, beyond: int) -> Tensor:
    """A random input that the layer takes, in double precision on the CPU."""
    if isinstance(module, nn.Linear):
        return torch.randn(2, module.in_features, dtype=torch.float64)
    reach = [step * (size - 1) + 1 + beyond for size, step in zip(module.kernel_size, module.dilation, strict=True)]
    return torch.randn(2, module.in_channels, *reach, dtype=torch.float64)


def _weights(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """The weight and the bias that it multiplies with, where it computes them and not from its input."""
    module = copy_of(module).eval()
    like = next((p for p in module.parameters() if p.is_floating_point()), None)
    if like is None:
        return None
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        calls = [_call(module, _input(module, beyond).to(like)) for beyond in BEYOND]
    first, second = calls
    if first is None or second is None or any(first[0] is p for p in module.parameters()):
        return None
    return first if all(_equal(one, other) for one, other in zip(first, second, strict=True)) else None


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def _call(module: nn.Module, given: Tensor) -> tuple[Tensor, Tensor | None] | None:
    given.requires_grad_(True)
    with _Listener() as heard:
        module(given)
    if len(heard.calls) != 1:
        return None
    read = [part for part in heard.calls[0] if part is not None and part.requires_grad]
    moved = [torch.autograd.grad(part.sum(), given, retain_graph=True, allow_unused=True)[0] for part in read]
    return heard.calls[0] if all(gradient is None for gradient in moved) else None


class _Listener(TorchFunctionMode):
    """Hears weight and bias of every product with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _PRODUCTS:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            self.calls.append((weight, bias))
        return func(*args, **kwargs)

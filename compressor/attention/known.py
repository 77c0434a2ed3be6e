"""Attention modules that are known by type and structure, written as `DenseAttention` of the same function."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from compressor.attention.dense import DenseAttention, TorchAttention

Form = Callable[[Any], "DenseAttention | str | None"]
"""A module -> the same function in dense form; a reason why not; None if it is no attention of this kind."""


def linear(weight: Tensor, bias: Tensor | None, like: Tensor) -> nn.Linear:
    """A linear layer of its own with these numbers (copied), taking gradients as `like` does."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), like.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), like.requires_grad)
    return layer


def scales(value: float, heads: int, like: Tensor) -> Tensor:
    """(heads,) the same scale for every head."""
    return torch.full((heads,), value, dtype=like.dtype, device=like.device)


def torch_attention(module: Any) -> DenseAttention | str | None:
    """`nn.MultiheadAttention`."""
    if not isinstance(module, nn.MultiheadAttention):
        return None
    if type(module) is not nn.MultiheadAttention:
        return f"attention heads ({type(module).__name__}, a subclass of MultiheadAttention)"
    if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
        return "attention heads (MultiheadAttention with added keys)"
    if _hooked(module) or _hooked(module.out_proj):
        return "attention heads (MultiheadAttention with hooks)"
    like = module.out_proj.weight
    if module._qkv_same_embed_dim:
        weights = list(module.in_proj_weight.chunk(3))
    else:
        weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    biases = [None] * 3 if module.in_proj_bias is None else list(module.in_proj_bias.chunk(3))
    first = module.in_proj_weight if module._qkv_same_embed_dim else module.q_proj_weight
    layers = [linear(w, b, first) for w, b in zip(weights, biases, strict=True)]  # type: ignore[arg-type]
    out = linear(like, module.out_proj.bias, like)
    heads = module.num_heads
    return TorchAttention(
        *layers,
        out,
        scales(module.head_dim**-0.5, heads, like),
        dropout=module.dropout,
        batch_first=module.batch_first,
    )


def _hooked(module: nn.Module) -> bool:
    """True if something else listens to the module or computes its weights (hooks, parametrisations)."""
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"))


def as_torch_attention(dense: TorchAttention, original: nn.MultiheadAttention) -> nn.MultiheadAttention:
    """A module like `original`, with the numbers of `dense`, which has the same widths."""
    plain, layers = copy.deepcopy(original), (dense.q, dense.k, dense.v)
    with torch.no_grad():
        if plain._qkv_same_embed_dim:
            plain.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        else:
            for layer, weight in zip(
                layers, (plain.q_proj_weight, plain.k_proj_weight, plain.v_proj_weight), strict=True
            ):
                weight.copy_(layer.weight)
        if plain.in_proj_bias is not None:
            plain.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        _copy_linear(dense.out, plain.out_proj)
    return plain


def _copy_linear(source: nn.Linear | None, target: nn.Linear) -> None:
    assert source is not None
    target.weight.copy_(source.weight)
    if source.bias is not None and target.bias is None:
        target.bias = nn.Parameter(source.bias.detach().clone())
    elif source.bias is not None:
        target.bias.copy_(source.bias)


FORMS: tuple[Form, ...] = (torch_attention,)


def dense_form(module: nn.Module) -> DenseAttention | str | None:
    """The module in dense form (its numbers copied, nothing shared); why it has none; None if it is no attention."""
    if isinstance(module, DenseAttention):
        return None
    for form in FORMS:
        found = form(module)
        if isinstance(found, DenseAttention):
            return found.train(module.training)
        if found is not None:
            return found
    return None


def rewritten(model: nn.Module, names: list[str]) -> nn.Module:
    """`model` (changed in place) with the attention modules of these names in dense form.

    Raises ValueError where one has none.
    """
    for name in names:
        owner, _, leaf = name.rpartition(".")
        form = dense_form(model.get_submodule(name))
        if not isinstance(form, DenseAttention):
            raise ValueError(f"'{name}' is no attention that has a dense form")
        setattr(model.get_submodule(owner), leaf, form)
    return model


def attention_names(model: nn.Module) -> list[str]:
    """Modules of the model that have a dense form, outermost first; one used under two names counts as none."""
    seen: dict[int, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        seen[id(module)] = seen.get(id(module), 0) + 1
    return [
        name
        for name, module in model.named_modules()
        if name and seen[id(module)] == 1 and isinstance(dense_form(module), DenseAttention)
    ]


def plain_again(small: nn.Module, original: nn.Module) -> nn.Module:
    """`small` (changed in place) with every attention as wide as in `original` in the class it has there.

    Where nothing about it changed, its numbers are those of `original`, bit by bit.
    """
    for name, dense in list(small.named_modules()):
        if not isinstance(dense, DenseAttention):
            continue
        given = original.get_submodule(name)
        form = dense_form(given)
        if not isinstance(form, DenseAttention) or not _as_wide(dense, form):
            continue
        state, own = dense.state_dict(), form.to(dense.scale.device).state_dict()
        if state.keys() == own.keys() and all(torch.equal(state[key], own[key]) for key in own):
            plain: nn.Module = copy.deepcopy(given)
        elif isinstance(dense, TorchAttention) and isinstance(given, nn.MultiheadAttention):
            plain = as_torch_attention(dense, copy.deepcopy(given).to(dense.scale))
        else:
            continue
        owner, _, leaf = name.rpartition(".")
        setattr(small.get_submodule(owner), leaf, plain.train(dense.training))
    return small


def _as_wide(one: DenseAttention, other: DenseAttention) -> bool:
    pairs = ((one.q, other.q), (one.k, other.k), (one.v, other.v))
    return len(one.scale) == len(other.scale) and all(a.weight.shape == b.weight.shape for a, b in pairs)


def reader_of(model: nn.Module, name: str) -> nn.Linear | None:
    """The linear layer that reads the heads of the attention `name` in dense form, if it is known."""
    attention = model.get_submodule(name)
    if isinstance(attention, DenseAttention) and attention.out is not None:
        return attention.out
    return None

"""Attention modules that are known by type and structure, written as `DenseAttention` of the same function."""

from __future__ import annotations

import copy

import torch
from torch import nn

from compressor.attention.alibi_form import AlibiAttention
from compressor.attention.causal_form import CausalAttention
from compressor.attention.deberta_form import DebertaAttention
from compressor.attention.decoder_form import RotaryAttention
from compressor.attention.dense import DenseAttention
from compressor.attention.hand_form import HandAttention
from compressor.attention.hf_form import HFAttention
from compressor.attention.hf_swin2_form import HFSwin2Attention
from compressor.attention.hf_swin_form import HFSwinAttention
from compressor.attention.layout_form import LayoutAttention
from compressor.attention.neo_form import NeoAttention
from compressor.attention.roformer_form import RoFormerAttention
from compressor.attention.swin_form import SwinAttention
from compressor.attention.t5_form import T5Attention
from compressor.attention.timm_form import TimmAttention
from compressor.attention.timm_swin_form import TimmSwinAttention
from compressor.attention.torch_form import TorchAttention
from compressor.attention.transposed import transposed_again

FORMS: tuple[type[DenseAttention], ...] = (
    TorchAttention, SwinAttention, TimmAttention, TimmSwinAttention, HFAttention, RotaryAttention, CausalAttention,
    T5Attention, HFSwinAttention, AlibiAttention, NeoAttention, RoFormerAttention, DebertaAttention,
    HFSwin2Attention, LayoutAttention, HandAttention,
)  # fmt: skip


def dense_form(module: nn.Module) -> DenseAttention | str | None:
    """The module in dense form (its numbers copied, nothing shared); why it has none; None if it is no attention."""
    for form in FORMS:
        found = form.of(module)
        if isinstance(found, DenseAttention):
            return found.train(module.training)
        if found is not None:
            return found
    return None


def rewritten(model: nn.Module, names: list[str]) -> nn.Module:
    """`model` (changed in place) with the attention modules of these names in dense form.

    Raises ValueError or AttributeError where one has none.
    """
    for name in names:
        form = dense_form(model.get_submodule(name))
        if not isinstance(form, DenseAttention):
            raise ValueError(f"'{name}' is no attention that has a dense form")
        model.set_submodule(name, form)
    return model


def attention_names(model: nn.Module) -> list[str]:
    """Modules of the model that have a dense form; one used under two names counts as none."""
    seen: dict[int, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        seen[id(module)] = seen.get(id(module), 0) + 1
    return [
        name
        for name, module in model.named_modules()
        if name and seen[id(module)] == 1 and isinstance(dense_form(module), DenseAttention)
    ]


def plain_again(small: nn.Module, original: nn.Module) -> nn.Module:
    """`small` (changed in place) with every attention as wide as in `original` in the class it has there, and linear
    layers that are transposed there so again.

    Where nothing about it changed, its numbers are those of `original`, bit by bit.
    """
    for name, dense in list(small.named_modules()):
        if not isinstance(dense, DenseAttention):
            continue
        given = original.get_submodule(name)
        form = dense_form(given)
        if not isinstance(form, DenseAttention) or not _as_wide(dense, form):
            continue
        plain = copy.deepcopy(given).to(dense.scale)
        state, own = dense.state_dict(), form.to(dense.scale).state_dict()
        if state.keys() != own.keys() or not all(torch.equal(state[key], own[key]) for key in own):
            dense.fill(plain)
        small.set_submodule(name, plain.train(dense.training))
    return transposed_again(small, original)


def _as_wide(one: DenseAttention, other: DenseAttention) -> bool:
    sizes = {name: parameter.shape for name, parameter in one.named_parameters()}
    same = all(sizes.get(name) == parameter.shape for name, parameter in other.named_parameters())
    return same and len(one.scale) == len(other.scale)


def reader_name(model: nn.Module, name: str) -> str | None:
    """The linear layer that reads the heads of the attention `name` in dense form, if it is known."""
    attention = model.get_submodule(name)
    if not isinstance(attention, DenseAttention):
        return None
    if attention.out is not None:
        return f"{name}.out"
    if attention.read_by is None:
        return None
    path = ".".join([*name.split(".")[:-1], attention.read_by])
    try:
        return path if type(model.get_submodule(path)) is nn.Linear else None
    except AttributeError:
        return None


def reader_of(model: nn.Module, name: str) -> nn.Linear | None:
    """The layer of `reader_name` itself."""
    path = reader_name(model, name)
    layer = None if path is None else model.get_submodule(path)
    return layer if isinstance(layer, nn.Linear) else None

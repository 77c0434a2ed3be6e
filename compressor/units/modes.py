"""Train and eval mode of a network's modules, its precision, and the dtype of its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from compressor.attention.dense import DenseAttention


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; every module's own mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def with_gradients() -> Iterator[None]:
    """Gradients as where nobody switched them off. Under a caller's `no_grad` or `inference_mode` torch's attention
    runs in one piece that shows no layers, so that less could be cut, and nothing can be trained.
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield


def in_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`model` (changed in place) with its real numbers in another precision; complex ones stay, where `Module.to`
    would drop their imaginary parts.
    """
    return model._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def unrounded(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`model` (changed in place) in eval mode on the CPU in another precision, in which attention in dense form
    computes its logits, too: rounding them to float32, as some networks do, would hide what a change does.
    """
    for module in model.modules():
        if isinstance(module, DenseAttention):
            module.scores_in = module.softmax_in = None
    return in_precision(model.cpu(), dtype).eval()


HALF = (torch.float16, torch.bfloat16)


def has_halves(model: nn.Module) -> bool:
    """Whether weights are in half precision: sums and steps of training get lost in it, and CPUs lack operations."""
    return any(weight.dtype in HALF for weight in model.parameters())


def unhalved(model: nn.Module) -> nn.Module:
    """`model` (changed in place) in float32 where weights were in half precision; as it is elsewhere."""
    return in_precision(model, torch.float32) if has_halves(model) else model


def floating(model: nn.Module) -> torch.dtype:
    """The dtype in which inputs are handed to a model: that of its first floating parameter (others may be complex)."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def home_of(model: nn.Module) -> torch.device:
    """The device that a network computes on."""
    return next(model.parameters()).device

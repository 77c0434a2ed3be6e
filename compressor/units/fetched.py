"""Weights that lie in the host's memory and compute on another device: for networks that are larger than the device.

Each operation fetches the weights that it reads and lets go of them afterwards, on the way forward and on the way back;
autograd keeps the tensor on the host. What only moves numbers about (views, copies, selections) is done where they lie.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import return_and_correct_aliasing

aten: Any = torch.ops.aten
STAYS = {
    aten.detach, aten.alias, aten.clone, aten.index_select, aten.index, aten.empty_like, aten.zeros_like,
    aten.ones_like, aten.full_like, aten._to_copy,
}  # fmt: skip
"""What is done on the host, with a result that stays there; and every view."""
BESIDE = {aten.new_empty, aten.new_zeros, aten.new_ones, aten.new_full}
"""What makes a tensor on the device from nothing but the kind of this one."""


class Fetched(Tensor):
    """A tensor whose numbers are those of `host`, a tensor of the CPU, and that computes on `device`."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor, device: torch.device) -> Fetched:
        """A tensor without numbers of its own."""
        return Tensor._make_wrapper_subclass(
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            device=device,
        )  # fmt: skip

    def __init__(self, host: Tensor, device: torch.device) -> None:
        self.host = host

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @property
    def data(self) -> Tensor:
        """The tensor without its history; a tensor of any kind that is set becomes this one, under all its names."""
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        learns = isinstance(self, nn.Parameter)
        torch.utils.swap_tensors(self, nn.Parameter(other, self.requires_grad) if learns else other.detach())

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            made = Fetched(self.host.clone(), self.device)
            memo[id(self)] = nn.Parameter(made, self.requires_grad) if isinstance(self, nn.Parameter) else made
        return memo[id(self)]

    def __repr__(self, **_: Any) -> str:
        return f"Fetched({self.host!r}, device={self.device})"

    def __tensor_flatten__(self) -> tuple[list[str], torch.device]:
        return ["host"], self.device

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], device: torch.device, _size: Any, _stride: Any) -> Fetched:
        return Fetched(inner["host"], device)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, first, packet = kwargs or {}, args[0] if args else None, func.overloadpacket
        if not isinstance(first, Fetched):
            return _on_device(func, args, kwargs)
        if func.is_view or packet in STAYS:
            return _on_host(func, args, kwargs, first.device)
        if packet in BESIDE:
            return func(torch.empty(0, dtype=first.dtype, device=first.device), *args[1:], **kwargs)
        if packet is aten.embedding:  # a few rows of a large table
            return func(first.host, args[1].cpu(), *args[2:], **kwargs).to(first.device)
        if func is aten.copy_.default:
            first.host.copy_(args[1].host if isinstance(args[1], Fetched) else args[1])
            return first
        return _on_device(func, args, kwargs)


def _on_host(func: Any, args: Any, kwargs: dict[str, Any], device: torch.device) -> Any:
    """The operation where the numbers lie; its result stays there unless a copy is asked for elsewhere."""
    stays = torch.device(kwargs.get("device") or device).type == device.type
    if stays and "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    host = lambda leaf: leaf.host if isinstance(leaf, Fetched) else leaf.cpu()  # noqa: E731
    given = pytree.tree_map_only(Tensor, host, (args, kwargs))
    found = func(*given[0], **given[1])
    if not stays:
        return found
    made = pytree.tree_map_only(Tensor, lambda leaf: Fetched(leaf, device), found)
    return return_and_correct_aliasing(func, args, kwargs, made) if func.is_view else made


def _on_device(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the device; what it writes into a fetched tensor goes back to the host."""
    moved: dict[int, tuple[Fetched, Tensor]] = {}

    def fetch(leaf: Fetched) -> Tensor:
        return moved.setdefault(id(leaf), (leaf, there(leaf)))[1]

    given = pytree.tree_map_only(Fetched, fetch, (args, kwargs))
    found = func(*given[0], **given[1])
    if not func._schema.is_mutable:
        return found
    for leaf, written in moved.values():
        leaf.host.copy_(written)
    own = {id(written): leaf for leaf, written in moved.values()}
    return pytree.tree_map_only(Tensor, lambda leaf: own.get(id(leaf), leaf), found)


def place(model: nn.Module, device: torch.device, room: float) -> None:
    """Let `model` (changed in place) compute on `device`, with at most `room` bytes of its weights there; the others
    are fetched for each operation.

    Biases, norms and buffers are there in any case; of the rest as many as fit, in the order of the layers.
    """
    state = [*model.parameters(), *model.buffers()]
    whole = sum(_size(tensor) for tensor in state)
    if device.type == "cpu" or (whole <= room and not any(isinstance(tensor, Fetched) for tensor in state)):
        model.to(device)
        return
    large = [weight for weight in model.parameters() if weight.dim() > 1]
    left = room - whole + sum(_size(weight) for weight in large)
    made: dict[int, Tensor] = {}
    device = torch.empty(0, device=device).device  # with its number, which autograd asks for
    for weight in large:
        stays = _size(weight) > left
        left -= 0 if stays else _size(weight)
        numbers = weight.detach()
        placed = Fetched(_numbers(numbers), device) if stays else _numbers(numbers).to(device)
        made[id(weight)] = nn.Parameter(placed, weight.requires_grad)
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None and id(weight) in made:
                module._parameters[name] = made[id(weight)]  # pyright: ignore[reportArgumentType]
    model.to(device)


def there(tensor: Tensor) -> Tensor:
    """The tensor on its device: itself, or a copy there of one that is fetched."""
    return tensor.host.to(tensor.device) if isinstance(tensor, Fetched) else tensor


def gradients_beside(model: nn.Module) -> None:
    """From now on gradients of fetched weights lie where the weights do."""
    for weight in model.parameters():
        if isinstance(weight, Fetched) and weight.requires_grad:
            weight.register_post_accumulate_grad_hook(_beside)


def _beside(weight: Tensor) -> None:
    if weight.grad is not None and not isinstance(weight.grad, Fetched):
        weight.grad = Fetched(weight.grad.cpu(), weight.device)


def fetched_bytes(model: nn.Module) -> int:
    """Bytes of the weights that do not lie on the device they compute on."""
    return sum(_size(weight) for weight in model.parameters() if isinstance(weight, Fetched))


def room_of(model: nn.Module) -> float:
    """Room for a network that shall be placed as this one is."""
    away = fetched_bytes(model)
    return math.inf if not away else sum(map(_size, (*model.parameters(), *model.buffers()))) - away


def _numbers(tensor: Tensor) -> Tensor:
    return tensor.host if isinstance(tensor, Fetched) else tensor.cpu()


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.itemsize

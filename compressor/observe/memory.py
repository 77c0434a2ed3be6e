"""How much memory there is, and where numbers wait that do not fit in it."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from compressor.errors import CompressorError
from compressor.observe.processes import processes
from compressor.units.fetched import Fetched

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux tells what a container may use."""
MEMINFO = Path("/proc/meminfo")
MEMORY_SHARE, FREE_SHARE = 0.25, 0.5
"""Part of a device's memory, and of what is free of it, that sums may take where no limit is given, and activations as
much again."""


def memory_of(device: torch.device) -> float:
    """Bytes of memory that are there in all: the device's own, else this process's part of the machine's."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    whole = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(whole, _allowed()) / _neighbours()


def free_of(device: torch.device) -> float:
    """Bytes that nobody uses now, of `memory_of`; all of it where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text(MEMINFO), re.MULTILINE)
    free = 1024.0 * int(found[1]) if found else float("inf")
    return min(free / _neighbours(), memory_of(device))


def room_for_weights(device: torch.device, allowed: float | None, networks: int = 2) -> float:
    """Bytes that the weights of one of `networks` may take on an accelerator: their share of what sums and activations
    leave of the memory that is free now."""
    free = free_of(device)
    return max(0.0, free - (FREE_SHARE * free if allowed is None else allowed)) / networks


def half(allowed: float | None) -> float | None:
    """What sums may take of the bytes that are allowed, and activations as much again; None for None."""
    return None if allowed is None else allowed / 2


def in_file(tensor: Tensor) -> Tensor:
    """The same numbers, in the same order of strides, in a file that goes with the tensor (in the folder for temporary
    files, as TMPDIR says): the system keeps them in memory only as long as nothing else wants it.

    Raises CompressorError where the disk is full.
    """
    if not tensor.numel() or (tensor.device.type == "cpu" and tensor.untyped_storage().filename is not None):
        return tensor
    flat = empty_in_file(tensor.numel(), tensor.dtype)
    dense = torch.ops.aten.is_non_overlapping_and_dense(tensor)
    return (flat.as_strided(tensor.size(), tensor.stride()) if dense else flat.reshape(tensor.shape)).copy_(tensor)


def empty_in_file(size: int, dtype: torch.dtype) -> Tensor:
    """(size,) numbers in a file that goes with the tensor. CompressorError where the disk is full."""
    try:
        with tempfile.NamedTemporaryFile() as file:
            if hasattr(os, "posix_fallocate"):  # or a full disk would end the process at the first write
                os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
            return torch.from_file(file.name, shared=True, size=size, dtype=dtype)
    except OSError as error:
        raise CompressorError(
            f"folder for temporary files ({tempfile.gettempdir()})", str(error),
            f"{size * dtype.itemsize / 1e9:.1f} GB more, for what does not fit in memory",
            "let TMPDIR name a folder on a larger disk, or give fewer samples.",
        ) from error  # fmt: skip


class Overflow:
    """What autograd keeps of a model's forward pass for its way back: so many bytes where they are, the rest in files.

    The model's own weights, which autograd keeps as well, stay where they are and do not count.
    """

    def __init__(self, model: nn.Module, budget: float) -> None:
        self.budget = budget
        self.held = self.in_files = 0
        state = [tensor for tensor in (*model.parameters(), *model.buffers()) if not isinstance(tensor, Fetched)]
        self._own = {tensor.untyped_storage().data_ptr() for tensor in state}

    def put(self, tensor: Tensor) -> tuple[Tensor, int, torch.device]:
        """The tensor, or its copy in a file; its version, because autograd looks at that of its own tensors only."""
        size = tensor.numel() * tensor.itemsize
        own = isinstance(tensor, Fetched) or tensor.untyped_storage().data_ptr() in self._own
        if own or self.held + size <= self.budget:
            self.held += 0 if own else size
            # with its history, an operation's own output would keep the operation alive, and with it all before it
            return tensor.detach(), tensor._version, tensor.device
        self.in_files += size
        stored = in_file(tensor.detach())
        return stored, stored._version, tensor.device

    def get(self, kept: tuple[Tensor, int, torch.device]) -> Tensor:
        """The tensor as it was. RuntimeError where an operation in place has changed it since."""
        tensor, version, device = kept
        if tensor._version != version:
            raise RuntimeError(f"a tensor of shape {tuple(tensor.shape)} that gradients need was changed in place")
        return tensor.to(device)


@contextmanager
def overflowing(model: nn.Module, budget: float) -> Iterator[Overflow]:
    """Autograd keeps at most `budget` bytes of what `model` computes inside, and the rest in files."""
    room = Overflow(model, budget)
    with saved_tensors_hooks(room.put, room.get):
        yield room


def _neighbours() -> int:
    """How many processes share this machine's memory."""
    return max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1) if processes()[1] > 1 else 1


def _allowed() -> float:
    """What a container may use at most."""
    said = [_text(CGROUP / name).strip() for name in ("memory.max", "memory/memory.limit_in_bytes")]
    return min([float(text) for text in said if text.isdecimal()], default=float("inf"))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""

"""Several processes that work on one data set, as `torchrun` starts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from compressor.algebra.moments import wide


def processes() -> tuple[int, int]:
    """This process's rank and how many work together: (0, 1) without an initialised process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


@contextmanager
def in_step(device: torch.device) -> Iterator[None]:
    """An error in one process ends the work inside in all of them, instead of leaving the others waiting."""
    if processes()[1] == 1:
        yield
        return
    try:
        yield
    except Exception as error:
        short = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "memory" in str(error).lower()
        _worst(2 if short else 1, device)
        raise
    state = _worst(0, device)
    if state:
        raise RuntimeError(f"{'out of memory' if state == 2 else 'an error'} in another process")


def _worst(state: int, device: torch.device) -> int:
    worst = torch.tensor([state], device=device)
    distributed.all_reduce(worst, distributed.ReduceOp.MAX)
    return int(worst)


def least(value: float, device: torch.device) -> float:
    """The least of the values that the processes have."""
    if processes()[1] == 1:
        return value
    found = torch.tensor([value], dtype=wide(device), device=device)
    distributed.all_reduce(found, distributed.ReduceOp.MIN)
    return float(found)

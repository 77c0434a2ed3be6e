"""Several processes that work on one data set, as `torchrun` starts them.

Every exchange begins with `meet`, where each process says whether it has failed. So one that fails anywhere meets the
others once more, with its error: they learn of it at their next exchange, and nobody waits for a process that is gone.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed

from compressor import errors
from compressor.algebra.moments import wide
from compressor.errors import CompressorError

Made = TypeVar("Made")


def processes() -> tuple[int, int]:
    """This process's rank and how many work together: (0, 1) without an initialised process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def meet(error: Exception | None = None) -> None:
    """Wait until every process is here; `error` is what ended the work of this one, for the others to know.

    Raises in every process without an error what another one brought: its CompressorError, or a RuntimeError for
    anything else; and a CompressorError where a process has gone without a word.
    """
    rank, world = processes()
    if world == 1:
        return
    said: list[Any] = [None] * world
    with connected():
        distributed.all_gather_object(said, None if error is None else _described(error, rank))
    if error is not None:
        _tell(error)
        return
    for words in said:
        if words is not None:
            raise _tell(_understood(words))


def told(error: BaseException) -> bool:
    """Whether the other processes know of this error already."""
    return bool(getattr(error, "_told", False))


@contextmanager
def in_step() -> Iterator[None]:
    """An error in one process ends the work inside in all of them, instead of leaving the others waiting."""
    if processes()[1] == 1:
        yield
        return
    try:
        yield
    except Exception as error:
        if not told(error):
            meet(error)
        raise
    meet()


@contextmanager
def in_turn() -> Iterator[None]:
    """In step, the first process before the others: what it downloads they find."""
    rank, _ = processes()
    if rank > 0:
        meet()
    with in_step():
        yield
    if rank == 0:
        meet()


def only_first(make: Callable[[], Made]) -> Made | None:
    """What `make` gives in the first process, None in the others, which wait; its error is raised in all of them.

    `make` starts when all processes are here, so that none of them disturbs what it may time.
    """
    meet()
    with in_step():
        return make() if processes()[0] == 0 else None


def from_first(make: Callable[[], Made]) -> Made:
    """What `make` gives in the first process, in all of them. Otherwise as `only_first`."""
    made: list[Any] = [only_first(make)]
    if processes()[1] > 1:
        with connected():
            distributed.broadcast_object_list(made, 0)
    return made[0]


def least(value: float, device: torch.device) -> float:
    """The least of the values that the processes have."""
    if processes()[1] == 1:
        return value
    meet()
    found = torch.tensor([value], dtype=wide(device), device=device)
    with connected():
        distributed.all_reduce(found, distributed.ReduceOp.MIN)
    return float(found)


@contextmanager
def connected() -> Iterator[None]:
    """For exchanges: a process that is gone is a CompressorError, not a fault."""
    try:
        yield
    except RuntimeError as error:
        gone = CompressorError(
            "processes that work together",
            f"one that no longer answers ({' '.join(str(error).split())[:200]})",
            "all of them until the end",
            "see its last words, if it was killed; then repeat the command with --resume.",
        )
        raise _tell(gone) from error


def _tell(error: Exception) -> Exception:
    error._told = True  # type: ignore[attr-defined]
    return error


def _described(error: Exception, rank: int) -> dict[str, Any]:
    if isinstance(error, CompressorError):
        where = f"process {rank}: {error.where}"
        return {"kind": type(error).__name__, "words": (where, error.got, error.expected, error.next_step)}
    short = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "memory" in str(error).lower()
    place = "".join(traceback.format_exception(error))
    return {"kind": None, "words": f"{'out of memory' if short else 'an error'} in another process ({rank}):\n{place}"}


def _understood(said: dict[str, Any]) -> Exception:
    if said["kind"] is None:
        return RuntimeError(said["words"])
    kind: type[CompressorError] = getattr(errors, said["kind"], CompressorError)
    return kind(*said["words"])

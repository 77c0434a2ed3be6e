"""Started by `torchrun`: the process group of a command, who speaks, and how the processes end together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from compressor.errors import CompressorError, UsageError

SHARED = ("compress", "analyze", "run", "frontier")
"""Commands that several processes share; the first process does the others alone."""
PATIENCE = timedelta(days=1)
"""How long a process waits for one that lives (the first may train for long); one that is gone is noticed at once."""


@contextmanager
def launched(command: str | None) -> Iterator[None]:
    """A process group for what is inside, where the environment says that several processes were started.

    The first process speaks and its exit code is the job's. An error of another one is raised in the first, at its
    next exchange with the others; these print nothing and end with exit code 0 (`torchrun` would stop the first
    process in the middle of its message otherwise). UsageError for an environment that lacks what `torchrun` sets.
    """
    rank, world = _place()
    if world == 1:
        yield
        return
    if command not in SHARED:
        if rank > 0:
            raise SystemExit(0)
        yield
        return
    with _silenced(rank > 0), _group():
        try:
            yield
        except Exception as error:
            _part(error)
            if rank > 0:
                raise SystemExit(0) from None
            raise
        except BaseException as stopped:
            if rank > 0:
                raise SystemExit(getattr(stopped, "exit_code", 0)) from None
            raise
        _part(None)
        if rank > 0:
            raise SystemExit(0)


def backend(devices: int, processes: int) -> str:
    """Of torch.distributed, for so many processes on a machine with so many CUDA devices.

    NCCL wants a device for each process; gloo carries everything else, and what is no number.
    """
    return "cpu:gloo,cuda:nccl" if 0 < processes <= devices else "gloo"


def _part(error: Exception | None) -> None:
    """The last exchange: the others learn of an error that they do not know yet."""
    from compressor.observe import meet, processes, told

    if error is None:
        with contextlib.suppress(CompressorError) if processes()[0] > 0 else contextlib.nullcontext():
            meet()
    elif not told(error):
        with contextlib.suppress(CompressorError):
            meet(error)


def _place() -> tuple[int, int]:
    """Rank and number of processes, from the environment: (0, 1) where nothing started several."""
    said = {name: os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")}
    if said["WORLD_SIZE"] in ("", "1"):
        return 0, 1
    if not all(said.values()) or not (said["WORLD_SIZE"] + said["RANK"]).isdecimal():
        given = ", ".join(f"{name}={value}" for name, value in said.items() if value)
        raise UsageError(
            "environment", given, "WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT",
            "start with `torchrun --nproc-per-node N -m compressor ...`, or unset WORLD_SIZE.",
        )  # fmt: skip
    return int(said["RANK"]), int(said["WORLD_SIZE"])


@contextmanager
def _silenced(quiet: bool) -> Iterator[None]:
    """Nothing of what Python code prints gets out."""
    if not quiet:
        yield
        return
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,  # noqa: PTH123 (no path of a file)
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


@contextmanager
def _group() -> Iterator[None]:
    """The process group, each process on a device of its own; left at the end, with the threads that carry it.

    A function of `torch.distributed.nn` has the group of the time of its import as a default argument. Imported inside
    (by `torch.export`) it would keep the group, and a thread of gloo that still holds a tensor when the interpreter
    goes aborts the process: imported before.
    """
    import torch
    import torch.distributed.nn.functional  # pyright: ignore[reportUnusedImport]
    from torch import distributed

    devices, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if devices:
        torch.cuda.set_device(local % devices)
    kind = backend(devices, int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])))
    distributed.init_process_group(kind, timeout=PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()

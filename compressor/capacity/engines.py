"""Where the rungs of a study run: one after the other here, in several processes, or as tasks of Ray.

A rung is a function of its cell alone and writes its own file, so every engine gives the same study, and one that was
stopped goes on with any other. All machines must see the output folder.
"""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compressor.capacity.rung import measure_rung
from compressor.capacity.settings import Setting, settings_of
from compressor.errors import CompressorError, UsageError
from compressor.export.files import write_json
from compressor.recipe import Recipe
from compressor.sections import RaySection
from compressor.sources.data import Data
from compressor.stages import Report, silent
from compressor.studies import REQUEST

RUNGS = "rungs"
LOCAL_RAY: dict[str, Any] = {
    "include_dashboard": False,
    "object_store_memory": 100 * 2**20,
    "_system_config": {"worker_niceness": 0},
}
"""A Ray that is started here: cells and their numbers pass through files, so its store needs no room, and its workers
are as urgent as the study itself (Ray's own choice is +15: beside anything else on the machine they stand still)."""


@dataclass(frozen=True)
class Cell:
    """One rung of a study: everything that another process needs to measure it."""

    recipe: Recipe
    base: Path
    folder: Path
    setting: str
    width: float
    seed: int

    @property
    def path(self) -> Path:
        """Where its numbers lie."""
        return self.folder / RUNGS / f"{_setting(self.recipe, self.setting).rung(self.width, self.seed)}.json"


def measure(cell: Cell, report: Report = silent) -> None:
    """Measure a rung into its file. Raises UsageError where this machine does not see the study's folder."""
    if not (cell.folder / REQUEST).is_file():
        expected = "the folder of the study, with its request in it"
        raise UsageError(f"output folder '{cell.folder}'", "nothing on this machine", expected, "use a shared folder.")
    setting = _setting(cell.recipe, cell.setting)
    data = _data(cell.recipe, cell.setting, cell.base, cell.seed)
    found = measure_rung(setting, cell.width, cell.seed, data, cell.base, cell.folder, report)
    write_json(cell.path, found, sort_keys=False)


def in_processes(cells: Sequence[Cell], workers: int, done: Callable[[], None]) -> None:
    """Measure all cells in so many processes of this machine, which share its threads.

    Raises what a cell raises, once the others have been stopped; CompressorError where a process was killed.
    """
    before = set(multiprocessing.active_children())
    threads = max(1, torch.get_num_threads() // workers)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(threads,))
    try:
        for future in as_completed([pool.submit(measure, cell) for cell in cells]):
            future.result()
            done()
        pool.shutdown()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        if isinstance(error, BrokenProcessPool):
            next_step = "lower capacity.workers (memory?), and go on with --resume."
            raise CompressorError("capacity.workers", "a process that was killed", "all alive", next_step) from None
        raise


def on_ray(cells: Sequence[Cell], asked: RaySection, done: Callable[[], None]) -> None:
    """Measure all cells as tasks of Ray: on the cluster that `asked` names, else on a Ray started here for this.

    Each task takes one CPU. Raises UsageError where Ray is not installed or the cluster cannot be reached, and what
    a cell raises.
    """
    with _connected(asked) as ray:
        task = ray.remote(num_cpus=1, max_retries=1)(_task)
        left, running = list(cells), list[Any]()
        while left or running:
            while left and (asked.workers is None or len(running) < asked.workers):
                running.append(task.remote(left.pop(0)))
            ready, running = ray.wait(running)
            try:
                ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, CompressorError) else error from None
            done()


def _task(cell: Cell) -> None:
    torch.set_num_threads(1)
    measure(cell)


@contextmanager
def _connected(asked: RaySection) -> Iterator[Any]:
    """Ray, connected; what was started here ends here, what the caller had begun stays."""
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise UsageError(
            "recipe: capacity.ray", "Ray is not installed", "the optional extra `ray`",
            "pip install 'compressor[ray]', or name `workers` instead.",
        ) from None  # fmt: skip
    started = not ray.is_initialized()
    if started:
        where = {"address": asked.address} if asked.address else {"num_cpus": asked.workers, **LOCAL_RAY}
        try:
            ray.init(log_to_driver=False, **where)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            got = " ".join(str(error).split())[:200]
            raise UsageError(
                "recipe: capacity.ray.address", got, "a cluster that answers", "see `ray status`."
            ) from None
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


def forget() -> None:
    """Drop the data that this process keeps: files may have changed since."""
    _kept.clear()
    _loaded.cache_clear()


def _begin(threads: int) -> None:
    """Of a worker process: it ends with its parent, and leaves Ctrl-C to it."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _setting(recipe: Recipe, name: str) -> Setting:
    return next(one for one in settings_of(recipe) if one.name == name)


_kept: dict[tuple[str, str, str, int], Data] = {}


def _data(recipe: Recipe, name: str, base: Path, seed: int) -> Data:
    """A setting's data; all seeds of a study stay in memory, and each source is read once."""
    key = recipe.model_dump_json(), name, str(base), seed
    if key not in _kept:
        if any(known[0] != key[0] for known in _kept):  # another study
            _kept.clear()
        _kept[key] = _setting(recipe, name).data(base, seed, _loaded)
    return _kept[key]


@functools.lru_cache(maxsize=4)
def _loaded(spec: str, base: Path) -> Data:
    from compressor.sources.data import load_data

    return load_data(spec, base=base)

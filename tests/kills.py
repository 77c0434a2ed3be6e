"""A tiny job that is killed at a random moment: what it leaves, and whether it can be resumed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from compressor.export.files import OUTPUTS
from compressor.jobs import Job, run
from compressor.options import Options
from compressor.report.record import read_record
from compressor.verification import hashes

JOB = Job("net.py:net", "net.py:data", Options(5.0, keep=("params", 0.8), align=1), onnx=False)
OTHER = replace(JOB, options=replace(JOB.options, keep=("params", 0.9)))
JOBS = {"new": JOB, "old": OTHER}
OF_THE_MOMENT = ("seconds", "created", "judge_uses", "command")


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing disturbs: its network, its record without times, and how long it takes."""

    weights: bytes
    record: dict[str, Any]
    seconds: float


def left(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """Network and record (without times) of a finished folder."""
    record = json.loads((folder / "record.json").read_text())
    return (folder / "model.safetensors").read_bytes(), {k: v for k, v in record.items() if k not in OF_THE_MOMENT}


class Runs:
    """Runs in processes of their own, from copies of one that has loaded the libraries; a context manager."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._zygote = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *exc: object) -> None:
        self._zygote.communicate()

    def run(
        self, job: str, folder: Path, *, force: bool = False, seconds: float | None = None, at: int = 0,
        after: bool = False,
    ) -> bool:  # fmt: skip
        """Whether it was killed: after so many seconds, or before / after file number `at` took its place."""
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        asked = {"job": job, "folder": str(folder), "force": force, "at": at, "after": after}
        self._zygote.stdin.write(json.dumps(asked) + "\n")
        self._zygote.stdin.flush()
        pid = int(self._zygote.stdout.readline())
        if seconds is not None:
            time.sleep(seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        status = int(self._zygote.stdout.readline())
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)

    def undisturbed(self, job: str) -> Undisturbed:
        """A run that nothing disturbs."""
        start = time.monotonic()
        self.run(job, self.home / job)
        return Undisturbed(*left(self.home / job), time.monotonic() - start)


def survived(folder: Path, aim: Undisturbed, old: Undisturbed | None) -> None:
    """What lies there is the old result, the new one, or one that says it is unfinished; resuming gives the new one.

    Raises AssertionError for anything else.
    """
    if (folder / "record.json").is_file():
        record = read_record(folder / "record.json")
        assert record.files == hashes(folder)
        assert left(folder) in [(state.weights, state.record) for state in (aim, old) if state is not None]
    else:
        whole = {state.weights for state in (aim, old) if state is not None}
        there = folder / "model.safetensors"
        assert not there.is_file() or there.read_bytes() in whole


def resumed(job: Job, folder: Path, aim: Undisturbed) -> None:
    """The same command with `--resume` (or `--force` over an older result) ends as if nothing had happened.

    On one thread, as the runs it is compared with: a record says on how many, and last bits hang on it.
    """
    request = folder / "request.txt"
    mine = request.is_file() and request.read_text().strip() == job.fingerprint
    older = any((folder / name).exists() for name in OUTPUTS) and not mine
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(job, folder, resume=not older, force=older)
    finally:
        torch.set_num_threads(threads)
    assert left(folder) == (aim.weights, aim.record)
    assert [name for name in os.listdir(folder) if name.endswith(".partial") or name == ".lock"] == []  # noqa: PTH208


def moments(count: int, seconds: float, seed: int = 0) -> list[float]:
    """Random moments of a run."""
    generator = random.Random(seed)
    return [generator.uniform(0, seconds) for _ in range(count)]


def killed_at(home: Path, count: int, seed: int) -> int:
    """How many of the kills came before the end of the run; all of them are survived.

    A run that was over before its kill (machines differ from minute to minute) is tried again in half the time.
    """
    hit = 0
    with Runs(home) as runs:
        new, old = runs.undisturbed("new"), runs.undisturbed("old")
        for place, moment in enumerate(moments(count, min(new.seconds, old.seconds), seed)):
            over = place % 3 == 2  # every third over an older result
            for again in range(5):
                folder = home / f"out{place}-{again}"
                if over:
                    shutil.copytree(home / "old", folder)
                early = runs.run("new", folder, force=over, seconds=moment / 2**again)
                survived(folder, new, old if over else None)
                if early:
                    resumed(JOB, folder, new)
                    break
            hit += early
    return hit

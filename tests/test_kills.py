"""Nothing lost: killed, interrupted, no space, no folder. Either the old state or the new one, and resumable."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import kills
import pytest
from runs import Terminal, results

from compressor import jobs
from compressor.errors import UsageError
from compressor.export import files
from compressor.jobs import run

pytestmark = [
    pytest.mark.usefixtures("no_page"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="copies of this process are killed"),
]


def test_three_kills(home: Path) -> None:
    assert kills.killed_at(home, 3, seed=1) >= 1


@pytest.mark.slow
def test_fifty_kills(home: Path) -> None:
    assert kills.killed_at(home, 50, seed=2) >= 40


def test_a_kill_at_every_rename(home: Path) -> None:
    """The moments that count: just before, and just after, each file takes its place."""
    with kills.Runs(home) as runs:
        new, count = runs.undisturbed("new"), 0
        for at in range(1, 6):
            for after in (False, True):
                folder = home / f"out{at}{after}"
                hit = runs.run("new", folder, at=at, after=after)
                kills.survived(folder, new, None)
                if hit:
                    kills.resumed(kills.JOB, folder, new)
                count += hit
    assert count >= 8  # request, network, manifest, page, record


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_without_space(home: Path, monkeypatch: pytest.MonkeyPatch, fault: int) -> None:
    """It ends with a message; the old result or none is there; with space, `--resume` finishes."""
    run(kills.JOB, home / "new")
    real, left = os.fsync, [2]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(fault, os.strerror(fault))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(UsageError, match=os.strerror(fault)) as caught:
            run(kills.JOB, home / "out")
    assert caught.value.exit_code == 2
    assert "record.json" not in results(home / "out")
    run(kills.JOB, home / "out", resume=True)
    assert kills.left(home / "out") == kills.left(home / "new")


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="only root may mount a disk")
def test_a_disk_that_is_really_full(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.deliver.write_html", lambda _, path: files.write_text(path, "a page" * 9999))
    disk = home / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], check=False)
    if mounted.returncode != 0:
        pytest.skip("no disk can be mounted here")
    try:
        with pytest.raises(UsageError, match=r"writing '.*': got "):
            run(kills.JOB, disk / "out")
        assert "record.json" not in results(disk / "out")
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_a_folder_that_is_removed_meanwhile(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = jobs.finished

    def removed(*args: Any, **kwargs: Any) -> Any:
        made = work(*args, **kwargs)
        shutil.rmtree(home / "out")
        return made

    monkeypatch.setattr(jobs, "finished", removed)
    try:
        run(kills.JOB, home / "out")
    except UsageError:
        assert "record.json" not in results(home / "out")
    else:
        assert results(home / "out")[-2:] == ["record.json", "report.html"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_a_message_and_it_can_be_resumed(
    home: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    asked = (
        "compress",
        "net.py:net",
        "--data",
        "net.py:data",
        "--keep",
        "params=0.8",
        "--max-drop",
        "30",
        "--align",
        "1",
    )
    monkeypatch.setattr("compressor.deliver._export", lambda *_: None)
    work = jobs.finished

    def stopped(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), number)
        return work(*args, **kwargs)

    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "finished", stopped)
        assert terminal(*asked, "--out=out") == 128 + number
    assert f"stopped by {number.name}" in terminal.err
    assert "--resume" in terminal.err
    assert "Traceback" not in terminal.err
    assert {n: signal.getsignal(n) for n in before} == before
    assert not {"record.json", "model.safetensors", ".lock"} & set(results(home / "out"))
    assert terminal(*asked, "--out", "out", "--resume") == 0
    assert terminal(*asked, "--out", "whole") == 0
    assert kills.left(home / "out") == kills.left(home / "whole")


def test_a_lock_of_a_dead_process_never_blocks(home: Path) -> None:
    (home / "out").mkdir()
    (home / "out" / ".lock").write_text('{"pid": 999999999, "host": "elsewhere", "started": "never"}')
    run(kills.JOB, home / "out")
    assert "record.json" in results(home / "out")

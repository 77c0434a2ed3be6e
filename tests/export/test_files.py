"""Atomic writes, JSON, and the rules for an output folder, among them: a dead process never blocks."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from compressor.errors import UsageError
from compressor.export import files, lock
from compressor.export.files import (
    claim_folder,
    clean_partial,
    replacing,
    scratch_folder,
    to_json,
    write_json,
)

HOLD = """
import sys
from compressor.export.files import claim_folder
claim = claim_folder(sys.argv[1], resume=True)
print("held", flush=True)
sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def other_process(tmp_path):
    """A second process that has claimed `tmp_path / "run"`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(files.__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_writes_replace_the_whole_file_and_leave_nothing_else(tmp_path):
    files.write_text(tmp_path / "a.txt", "old and long\n")
    files.write_text(tmp_path / "a.txt", "new é\n")
    assert (tmp_path / "a.txt").read_bytes() == "new é\n".encode()
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_a_writer_that_keeps_its_file_private_does_not_decide(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "weights") as partial:
            partial.touch(0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o640


def test_a_kill_between_write_and_rename_keeps_the_old_file(tmp_path, monkeypatch):
    files.write_text(tmp_path / "a.txt", "old")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        files.write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_partials_of_a_killed_process_go_at_the_next_claim_and_other_files_stay(tmp_path):
    code = (
        "import os\nfrom compressor.export.files import replacing\n"
        f"with replacing({str(tmp_path / 'model.onnx')!r}) as partial:\n"
        "    partial.write_bytes(b'half')\n    os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(files.__file__).parents[2], check=False)
    (tmp_path / ".mine.partial").write_text("the user's own")
    assert len(names(tmp_path)) == 2
    with claim_folder(tmp_path, resume=True):
        assert names(tmp_path) == [".lock", ".mine.partial"]


def test_a_folder_with_only_left_over_partials_counts_as_empty(tmp_path):
    (tmp_path / ".model.onnx.123-0a1b2c3d.partial").write_bytes(b"half")
    with claim_folder(tmp_path) as claim:
        assert claim.fresh


def test_an_error_while_writing_removes_the_partial(tmp_path):
    def fail(partial: Path) -> None:
        partial.write_bytes(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError), replacing(tmp_path / "a") as partial:
        fail(partial)
    with pytest.raises(RuntimeError), scratch_folder(tmp_path) as scratch:
        fail(scratch / "b")
    assert names(tmp_path) == []


def test_a_full_disk_is_a_usage_error_that_names_the_file(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"a\.txt.*No space left"):
        files.write_text(tmp_path / "a.txt", "new")
    assert names(tmp_path) == []


def test_json_is_stable_and_takes_scalars_of_numpy(tmp_path):
    value = {"b": np.float32(0.5), "a": [np.int64(3), (1, True, None)], "c": Path("x/y")}
    write_json(tmp_path / "r.json", value)
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text) == {"a": [3, [1, True, None]], "b": 0.5, "c": "x/y"}
    assert text == to_json(dict(reversed(list(value.items()))))
    assert text.endswith("}\n")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), np.float32("nan")])
def test_json_refuses_nan_and_says_where(tmp_path, bad):
    with pytest.raises(ValueError, match=r"verdict\.interval\[1\]"):
        write_json(tmp_path / "r.json", {"verdict": {"interval": [0.0, bad]}})
    assert names(tmp_path) == []


@pytest.mark.parametrize("bad", [{"a": {1: 2}}, {"a": object()}, {"a": {1, 2}}, {"a": b"bytes"}])
def test_json_refuses_what_is_not_plain(bad):
    with pytest.raises(TypeError, match=r"^a"):
        to_json(bad)


def test_new_folders_are_made_and_empty_ones_taken(tmp_path):
    with claim_folder(tmp_path / "x" / "y") as claim:
        assert claim.fresh
        files.write_text(claim.path / "record.json", "{}")
    assert names(tmp_path / "x" / "y") == ["record.json"]


def test_a_folder_made_for_a_run_that_wrote_nothing_goes_again(tmp_path):
    claim_folder(tmp_path / "new").release()
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    claim_folder(tmp_path / "old").release()
    assert names(tmp_path / "old") == []


def test_a_used_folder_needs_resume_or_force(tmp_path):
    for name in ("record.json", "notes.txt"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UsageError, match=r"notes\.txt, record\.json.*--resume.*--force") as caught:
        claim_folder(tmp_path)
    assert caught.value.exit_code == 2
    with claim_folder(tmp_path, resume=True) as claim:
        assert not claim.fresh
    with claim_folder(tmp_path, force=True) as claim:
        assert names(tmp_path) == [".lock", "notes.txt", "record.json"]
        claim.clear()
    assert names(tmp_path) == ["notes.txt"]
    with pytest.raises(UsageError, match="one of them"):
        claim_folder(tmp_path, resume=True, force=True)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for bad in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(UsageError, match="a file"):
            claim_folder(bad)
    with pytest.raises(UsageError, match=r"on the way \(.*file\)"):
        claim_folder(tmp_path / "file" / "deeper")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="a file"):
        claim_folder(tmp_path / "dangling")


def test_a_read_only_folder_is_refused(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(lock.os, "open", refuse)  # root may write anywhere, so a mode would prove nothing
    with pytest.raises(UsageError, match=r"Permission denied.*can be written"):
        claim_folder(tmp_path)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write")
def test_a_folder_that_cannot_be_made_is_refused():
    with pytest.raises(UsageError, match="can be written"):
        claim_folder("/proc/compressor-run")


def test_a_living_process_blocks_and_its_files_are_left_alone(tmp_path, other_process):
    half = tmp_path / "run" / ".model.onnx.1-0a1b2c3d.partial"
    half.write_bytes(b"half")
    for flags in ({}, {"resume": True}, {"force": True}):
        with pytest.raises(UsageError, match=f"process {other_process.pid} "):
            claim_folder(tmp_path / "run", **flags)
    assert half.exists()


def test_a_killed_process_does_not_block(tmp_path, other_process):
    other_process.kill()
    other_process.wait()
    assert names(tmp_path / "run") == [".lock"]
    with claim_folder(tmp_path / "run") as claim:
        assert claim.fresh


def test_the_same_process_cannot_claim_twice_and_can_after_release(tmp_path):
    with claim_folder(tmp_path), pytest.raises(UsageError, match=f"process {os.getpid()} "):
        claim_folder(tmp_path, force=True)
    with claim_folder(tmp_path):
        assert names(tmp_path) == [".lock"]


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks: the lock file's process and start time decide."""
    if lock.fcntl is None:
        pytest.skip("no record locks here")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)


def owner_file(folder: Path, **changes: object) -> None:
    (folder / ".lock").write_text(json.dumps({**lock._me(), **changes}))


def test_without_kernel_locks_a_living_process_blocks(tmp_path, no_locks, other_process):
    with pytest.raises(UsageError, match=f"process {other_process.pid} "):
        claim_folder(tmp_path / "run", force=True)
    other_process.kill()
    other_process.wait()
    with claim_folder(tmp_path / "run"):
        pass


def test_without_kernel_locks_an_id_given_out_again_does_not_block(tmp_path, no_locks):
    owner_file(tmp_path, pid=os.getppid(), started="12 ticks after boot")
    with claim_folder(tmp_path):
        pass
    owner_file(tmp_path, pid=os.getppid(), started=lock.started(os.getppid()))
    with pytest.raises(UsageError, match="another run"):
        claim_folder(tmp_path)
    owner_file(tmp_path, host="elsewhere")
    with pytest.raises(UsageError, match="elsewhere"):
        claim_folder(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', '{"pid": -1}', "\x00\xff"])
def test_without_kernel_locks_an_unreadable_lock_file_does_not_block(tmp_path, no_locks, content):
    (tmp_path / ".lock").write_text(content)
    with claim_folder(tmp_path):
        pass


def test_start_times_differ_between_processes_and_stay(other_process):
    mine = lock.started(os.getpid())
    assert mine is not None
    time.sleep(0.02)
    assert mine == lock.started(os.getpid())
    assert lock.started(other_process.pid) not in (None, mine)
    assert lock.started(2**22 + 5) is None


def test_clean_partial_leaves_links_targets_alone(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "keep").write_text("x")
    (tmp_path / ".s.1-00000000.partial").symlink_to(tmp_path / "real")
    clean_partial(tmp_path)
    assert names(tmp_path) == ["real"]
    assert names(tmp_path / "real") == ["keep"]

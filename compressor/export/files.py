"""Files that are whole or not there: atomic writes, JSON, and the rules for an output folder.

A file is written under a recognisable temporary name in its own folder, flushed to the disk and renamed.
Whoever reads the folder after a crash finds the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from compressor.errors import UsageError
from compressor.export.lock import LOCK_NAME, FolderLock

PRECISIONS = ("fp16", "int8")
VARIANTS = tuple(f"model.{name}{mark}.onnx" for name in PRECISIONS for mark in ("", ".failed"))
"""The ONNX file in lower precision; one whose verdict failed says so in its name."""

OUTPUTS = (
    "model.safetensors",
    "manifest.json",
    "model.onnx",
    "model.onnx.data",
    *VARIANTS,
    "record.json",
    "report.html",
)
"""What a finished run leaves in its folder; `Claim.clear` removes these and nothing else."""

_PARTIAL = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.partial")


class Claim:
    """A folder that belongs to this process until `release`; a context manager.

    `path` is the folder, `fresh` is True if nothing was in it.
    """

    def __init__(self, path: Path, fresh: bool, made: bool, lock: FolderLock) -> None:
        self.path, self.fresh = path, fresh
        self._made, self._lock = made, lock

    def clear(self, names: Iterable[str] = OUTPUTS) -> None:
        """Remove an earlier run's files (for `--force`, once the new run has read its inputs)."""
        for name in names:
            with _writing(self.path / name):
                (self.path / name).unlink(missing_ok=True)

    def release(self) -> None:
        """Give the folder back; if this claim made it and nothing was written, it goes away again."""
        if self._lock.held:
            clean_partial(self.path)
            _give_back(self.path, self._made, self._lock)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


def claim_folder(folder: str | Path, resume: bool = False, force: bool = False) -> Claim:
    """Make the output folder this process's own; nothing in it is changed except left-over temporary files.

    New and empty folders are always fine; one with files needs `resume` (carry on, keep them) or `force` (see
    `Claim.clear`). Raises UsageError for a folder in use, by files or by a living process, for a file in its
    place, and where nothing can be written.
    """
    if resume and force:
        raise UsageError(
            "--resume and --force", "both", "one of them", "resume to keep what is there, force to redo it."
        )
    path = output_path(folder)
    made = _make(path)
    lock = FolderLock(path)
    try:
        lock.acquire()
        clean_partial(path)
        found = sorted(entry.name for entry in path.iterdir() if entry.name != LOCK_NAME)
        if found and not (resume or force):
            some = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
            raise UsageError(
                f"output folder '{path}'",
                f"a folder with {some} in it",
                "a new or empty folder",
                "choose another folder, or add --resume to carry on here, or --force to replace its results.",
            )
    except BaseException:
        _give_back(path, made, lock)
        raise
    return Claim(path, not found, made, lock)


def output_path(out: str | Path) -> Path:
    """Where results go; UsageError for an empty name: that would be the current folder, which nobody meant."""
    if not str(out):
        raise UsageError("--out", "an empty name", "a path", "name one, for example --out smaller.")
    return Path(out).expanduser()


def _give_back(path: Path, made: bool, lock: FolderLock) -> None:
    lock.release()
    if made:
        with contextlib.suppress(OSError):  # not empty: it stays
            path.rmdir()


def clean_partial(folder: str | Path) -> None:
    """Remove temporary files that a killed process left in `folder`. Only for whoever has claimed it."""
    for left in Path(folder).iterdir():
        if not _PARTIAL.fullmatch(left.name):
            continue
        with contextlib.suppress(OSError):
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


@contextlib.contextmanager
def replacing(target: str | Path) -> Iterator[Path]:
    """A path to write to; on leaving without an error it becomes `target`, else it is removed.

    The file is on the disk before it is renamed, and has the permissions of any new file there, whatever the writer
    gave it. Raises UsageError where the folder cannot be written.
    """
    target = Path(target)
    partial = target.parent / _partial_name(target.name)
    with _writing(target):
        try:
            mode = _mode_of_new(partial)
            yield partial
            partial.chmod(mode)
            move(partial, target)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder inside `folder`, removed at the end: same disk, so `move` out of it is atomic."""
    scratch = Path(folder) / _partial_name("scratch")
    with _writing(scratch):
        scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def move(written: Path, target: Path) -> None:
    """Flush `written` to the disk and let it take the place of `target`, in one step."""
    with _writing(target):
        _sync(written)
        os.replace(written, target)  # noqa: PTH105 (the system call itself, for all Pythons the same)
        if os.name == "posix":
            _sync(target.parent)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a whole file atomically; UsageError where it cannot be written."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically, newlines as they are."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any, sort_keys: bool = True) -> None:
    """Write JSON atomically: the same value gives the same bytes. See `to_json`."""
    write_text(path, to_json(value, sort_keys))


def to_json(value: Any, sort_keys: bool = True) -> str:
    """Indented JSON text that ends with a newline.

    Takes mappings with text keys, sequences, paths, and numpy or torch scalars. NaN and infinity are no JSON:
    ValueError with the place, e.g. `verdict.interval[1]`; TypeError for anything that is not plain.
    """
    return json.dumps(_plain(value, ""), indent=2, sort_keys=sort_keys, allow_nan=False, ensure_ascii=False) + "\n"


def _partial_name(name: str) -> str:
    return f".{name}.{os.getpid()}-{secrets.token_hex(4)}.partial"


def _plain(value: Any, place: str) -> Any:
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{place or 'top level'}: the key {key!r} is not text")
        return {key: _plain(item, f"{place}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{place}[{at}]") for at, item in enumerate(value)]
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place or 'top level'}: {value} cannot be written as JSON")
    if isinstance(value, (bool, int, float)):
        return value
    raise TypeError(f"{place or 'top level'}: {type(value).__name__} cannot be written as JSON")


def _make(path: Path) -> bool:
    """Make the folder if it is not there (True); UsageError if that cannot be."""
    where = f"output folder '{path}'"
    try:
        if path.is_dir():
            return False
        if path.exists() or path.is_symlink():
            raise UsageError(where, "a file", "a folder, or a path where one can be made", "choose another folder.")
        path.mkdir(parents=True)
    except (FileExistsError, NotADirectoryError):
        file = next((place for place in path.parents if place.exists() and not place.is_dir()), path)
        raise UsageError(where, f"a file on the way ({file})", "folders only", "choose another folder.") from None
    except OSError as error:
        raise _unwritable(where, error) from None
    return True


def _unwritable(where: str, error: OSError) -> UsageError:
    return UsageError(
        where,
        error.strerror or type(error).__name__,
        "a place that can be written",
        "check permissions and free space, or choose another folder.",
    )


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Turns the disk's refusals into a UsageError that names the file."""
    try:
        yield
    except OSError as error:
        raise _unwritable(f"writing '{target}'", error) from error


def _mode_of_new(path: Path) -> int:
    """What the umask (or the folder) makes of a new file: asked of the file system, as the umask is all threads'."""
    path.touch()
    mode = path.stat().st_mode
    path.unlink()
    return mode & 0o777


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

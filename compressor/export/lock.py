"""One writer per folder, and a dead one never blocks.

The kernel's record lock is the judge: it ends with its process, however that ends, is not inherited by
forked workers, and is seen across containers. Where a file system has no locks, the process id in the
lock file together with the start time tells a living owner from a dead one whose id was given out again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

from compressor.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows: an open file cannot be deleted there, which serves as the lock (see `_open`)
    fcntl = None

LOCK_NAME = ".lock"

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_held: set[Path] = set()  # record locks do not stop a second claim by the same process


class FolderLock:
    """The lock of one folder: `acquire`, `release`. Usable once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder.resolve() / LOCK_NAME
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the folder, or UsageError: a living process has it, or nothing can be written here."""
        if self._file in _held:
            raise self._busy(_me())
        try:
            self._descriptor = self._locked()
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, json.dumps(_me()).encode())
        except OSError as error:
            self.release()
            raise UsageError(
                f"output folder '{self.folder}'",
                error.strerror or type(error).__name__,
                "a folder that can be written",
                "check its permissions, or choose another folder.",
            ) from None
        _held.add(self._file)

    @property
    def held(self) -> bool:
        """True between `acquire` and `release`."""
        return self._descriptor is not None

    def release(self) -> None:
        """Remove the lock file, if this object holds it."""
        if self._descriptor is None:
            return
        _held.discard(self._file)
        if fcntl is not None:  # removed while still locked, so that nobody can lock a file that is about to go
            self._file.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None
        if fcntl is None:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)

    def _locked(self) -> int:
        while True:
            descriptor = self._open()
            try:
                self._check(descriptor)
                if os.path.samestat(os.fstat(descriptor), self._file.stat()):
                    return descriptor
            except FileNotFoundError:
                pass  # its owner released and removed it between our opening and our locking: try again
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _open(self) -> int:
        if fcntl is None:
            try:
                self._file.unlink(missing_ok=True)
            except PermissionError:
                raise self._busy(_owner(self._file)) from None
        return os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)

    def _check(self, descriptor: int) -> None:
        """Lock the open file; UsageError if a living process has it."""
        if fcntl is None:
            return
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _owner(self._file)
            if error.errno not in _NO_LOCKS or _alive(owner):
                raise self._busy(owner) from None

    def _busy(self, owner: dict[str, Any]) -> UsageError:
        pid, host = owner.get("pid", "unknown"), owner.get("host", "an unknown machine")
        return UsageError(
            f"output folder '{self.folder}'",
            f"another run at work in it (process {pid} on {host})",
            "a folder that no other run is writing",
            "wait for that run or stop it, or choose another folder.",
        )


def _me() -> dict[str, Any]:
    return {"pid": os.getpid(), "started": started(os.getpid()), "host": socket.gethostname()}


def _owner(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _alive(owner: dict[str, Any]) -> bool:
    """True if the process in a lock file runs: same id *and* same start time. Unreadable files block nobody.

    A process of another machine cannot be asked; it counts as alive.
    """
    pid = owner.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    if owner.get("host") != socket.gethostname():
        return True
    now = started(pid)
    return now is not None and now == owner.get("started")


def started(pid: int) -> str | None:
    """When a process started, in the system's own words; None if there is no such process."""
    if pid <= 0:
        return None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[19]  # field 22: ticks after boot; field 2, the name, may hold blanks
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except (OSError, IndexError):
        return None
    asked = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or None

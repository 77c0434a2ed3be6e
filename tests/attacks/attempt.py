"""Runs attacks one after the other in this process, which has little memory; one line of JSON for each.

`python attempt.py FOLDER FIRST` begins with attack number FIRST: whoever started it goes on after one that ended it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "report"), str(HERE.parents[1])]

import hostile_checkpoints  # noqa: E402, F401
import hostile_models  # noqa: E402, F401
import hostile_tables  # noqa: E402, F401
import hostile_texts  # noqa: E402, F401
from corpus import ATTACKS, CANARY, Attack  # noqa: E402

SPARE = 1536 * 1024**2
"""Bytes of address space that an attack may take beyond what the libraries hold."""
GROWTH = 1024
"""MiB by which the process may grow at most."""
SECONDS = 300
SPAWNS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")
PARTS = (": got ", "; expected ", ". Next: ")

_spawned: list[str] = []


class TooLong(BaseException):
    """No handler of ordinary errors may swallow it."""


def limited() -> None:
    """From here on, memory is bounded and every process that is started is noted."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + SPARE, held + SPARE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(lambda event, _: _spawned.append(event) if event in SPAWNS else None)
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TooLong))


def called(words: list[str]) -> tuple[int, str]:
    """The exit code and the messages of a command line."""
    from compressor import cli
    from compressor.errors import CompressorError

    raw = io.BytesIO()
    messages = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    code = 0
    with contextlib.redirect_stderr(messages), contextlib.redirect_stdout(out):
        try:
            if words[0] == "original_of":
                from compressor.verification import original_of, recorded

                original_of(Path(words[2]), recorded(Path(words[2])))
            else:
                cli.main(words)
        except SystemExit as ended:
            code = int(ended.code or 0)
        except CompressorError as error:
            code = error.exit_code
            messages.write(f"error: {error}\n")
    return code, raw.getvalue().decode("utf-8", "replace")


@contextlib.contextmanager
def at_home(words: list[str]) -> Iterator[list[str]]:
    """The environment of one attack; a data set's folder is the working directory."""
    if words[0] != "FASHION_MNIST":
        yield words
        return
    os.environ["FASHION_MNIST"] = str(Path.cwd())
    try:
        yield words[1:]
    finally:
        del os.environ["FASHION_MNIST"]


def attempt(attack: Attack) -> dict[str, Any]:
    """Plant it, call it, and see what happened."""
    folder = Path(tempfile.mkdtemp(dir=Path.cwd()))
    before, start, home = peak(), time.monotonic(), Path.cwd()
    words = attack.plant(folder)
    os.chdir(folder)
    _spawned.clear()
    try:
        signal.alarm(SECONDS)
        with at_home(words) as asked:
            code, said = called(asked)
    except BaseException as error:  # noqa: BLE001 (whatever gets out of the command line is what is looked for)
        code, said = -1, "".join(traceback.format_exception(error))[-2000:]
    finally:
        signal.alarm(0)
        os.chdir(home)
    ran = [str(path) for path in (folder / CANARY, home / CANARY, home.parent / CANARY) if path.exists()]
    form = attack.code == 0 or (said.count("error: ") >= 1 and all(part in said for part in PARTS))
    clean = all(c.isprintable() or c == "\n" for c in said)
    grown = (peak() - before) // 1024
    stopped = code == attack.code and not ran and not _spawned and form and clean and grown < GROWTH
    return {
        "family": attack.family, "name": attack.name, "stopped": stopped and "Traceback" not in said, "code": code,
        "expected": attack.code, "ran": ran, "spawned": _spawned[:3], "grown_mib": grown,
        "seconds": round(time.monotonic() - start, 2), "said": said[-600:],
    }  # fmt: skip


def peak() -> int:
    """The most memory this process has held, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """From one attack to the last."""
    import compressor.analysis
    import compressor.api
    import compressor.export.session
    import compressor.replay  # noqa: F401

    os.chdir(sys.argv[1])
    os.environ["XDG_CACHE_HOME"] = str(Path.cwd() / "cache")
    limited()
    for place in range(int(sys.argv[2]), len(ATTACKS)):
        sys.__stdout__.write(json.dumps({"place": place, **attempt(ATTACKS[place])}) + "\n")  # pyright: ignore[reportOptionalMemberAccess]
        sys.__stdout__.flush()  # pyright: ignore[reportOptionalMemberAccess]


if __name__ == "__main__":
    main()

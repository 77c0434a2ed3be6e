"""A process that has loaded everything and done nothing: each line on its input is a run in a copy of it.

It never computes itself: torch's automatic differentiation does not survive a fork. Answers with the copy's process id,
then with how it ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import kills  # noqa: E402
import torch  # noqa: E402

from compressor import deliver  # noqa: E402
from compressor.export import files  # noqa: E402
from compressor.jobs import run  # noqa: E402


def dies(at: int, after: bool) -> Any:
    """`os.replace` that kills its process before or after the so-many-th file takes its place."""
    real, seen = os.replace, [0]

    def replace(source: Any, target: Any) -> None:
        seen[0] += 1
        if seen[0] == at and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)
        if seen[0] == at and after:
            os.kill(os.getpid(), signal.SIGKILL)

    return replace


def main() -> None:
    """Until the input ends."""
    torch.set_num_threads(1)
    setattr(deliver, "write_html", lambda _, path: files.write_text(path, "a page"))  # noqa: B010 (pictures take long)
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                if asked["at"]:
                    files.os.replace = dies(asked["at"], asked["after"])
                run(kills.JOBS[asked["job"]], asked["folder"], force=asked["force"])
                code = 0
            except BaseException:  # noqa: BLE001 (shown; a copy must not go on as its original)
                traceback.print_exc()
            os._exit(code)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        sys.stdout.write(f"{os.waitpid(pid, 0)[1]}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

"""How often a judge split has been used on this machine: a split that is asked again and again stops being blind."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path


def count_use(book: Path, fingerprint: str) -> int:
    """Note one more use of the judge data `fingerprint` in the file `book`; return how many there are now.

    The count is advice, not evidence: where the file cannot be written or read the answer is 1.
    """
    try:
        book.parent.mkdir(parents=True, exist_ok=True)
        with book.open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            try:
                uses = json.loads(file.read() or "{}")
            except ValueError:
                uses = {}
            uses = uses if isinstance(uses, dict) else {}
            count = int(uses.get(fingerprint, 0)) + 1
            uses[fingerprint] = count
            file.seek(0)
            file.truncate()
            file.write(json.dumps(uses, sort_keys=True))
        return count
    except (OSError, TypeError, ValueError):
        return 1

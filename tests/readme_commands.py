"""The README's commands, for CI and tests: `python tests/readme_commands.py test` prints one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def command(name: str) -> str:
    """The command in the code block behind `<!-- command: name -->`."""
    found = re.search(rf"<!-- command: {name} -->\s*```bash\n(.+?)\n```", README.read_text(), re.DOTALL)
    if found is None:
        raise SystemExit(f"README.md has no command {name!r}")
    return found.group(1).strip()


if __name__ == "__main__":
    sys.stdout.write(command(sys.argv[1]) + "\n")

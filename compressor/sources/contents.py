"""What the files behind a spec hold: whether it still means what it meant."""

from __future__ import annotations

import ast
from hashlib import sha256
from pathlib import Path

from compressor.sources.checkpoint import file_sha256

_MANIFEST = "manifest.json"
_PARTS = ("*.json", "*.safetensors", "*.bin", "vocab.txt", "merges.txt", "*.model")
"""Of a folder that transformers saved: configuration, weights (of large networks in several files), tokenizer."""


def content(spec: str, base: Path) -> str | None:
    """sha256 of the file behind a spec: Python, ONNX or data file, checkpoint, manifest (which has its weights'), or of
    all that makes up a network's folder. None where no such file is seen (a name, a folder of images).
    """
    head = spec.partition("?")[0]
    for place in (head, head.rpartition(":")[0], head.partition(":")[2]):
        path = base / Path(place).expanduser()
        for file in (path, path / _MANIFEST):
            if place and file.is_file():
                return file_sha256(file)
        if place and (path / "config.json").is_file():
            return _of_folder(path)
    return None


def code(path: Path) -> str:
    """sha256 of a Python file and of the files beside it that it imports, and those import, by their names."""
    seen: dict[str, str] = {}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file.name not in seen:
            seen[file.name] = file_sha256(file)
            waiting += [beside for name in _imports(file) if (beside := path.parent / f"{name}.py").is_file()]
    return sha256("".join(f"{name} {mark}\n" for name, mark in sorted(seen.items())).encode()).hexdigest()


def _imports(file: Path) -> set[str]:
    """First parts of the names of the modules that a file imports, anywhere in it; none where it is no Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def _of_folder(folder: Path) -> str:
    found = sorted({file for pattern in _PARTS for file in folder.glob(pattern) if file.is_file()})
    return sha256("".join(f"{file.name} {file_sha256(file)}\n" for file in found).encode()).hexdigest()

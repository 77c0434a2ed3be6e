"""What the files behind a spec hold: whether it still means what it meant."""

from __future__ import annotations

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


def _of_folder(folder: Path) -> str:
    found = sorted({file for pattern in _PARTS for file in folder.glob(pattern) if file.is_file()})
    return sha256("".join(f"{file.name} {file_sha256(file)}\n" for file in found).encode()).hexdigest()

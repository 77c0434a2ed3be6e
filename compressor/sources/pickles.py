"""Files of `torch.save`, read with `weights_only=True`: more than tensors is refused, and never run."""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compressor.errors import SourceError

_NUMBER_TYPES = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")]
_HARMLESS = [argparse.Namespace, np.dtype, np.ndarray, *_NUMBER_TYPES]
"""Bookkeeping that training scripts leave beside the weights; none of it can run code."""

_SHOWN = 4
_PICKLE_LIMIT = 64 * 1024**2
"""Bytes of a pickle that are searched for the names in it."""
_FAULTS = (
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError),
    *(ArithmeticError, AssertionError, MemoryError, NotImplementedError, struct.error, tarfile.TarError),
)
"""What torch's reader raises for files that lie."""


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU. SourceError for damaged files, code in pickles, whole modules."""
    _refuse_bomb(path)
    try:
        with torch.serialization.safe_globals([*_HARMLESS, *_numpy_helpers()]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickle protocols; the outcome says more
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused_pickle(path, error) from error
    except _FAULTS as error:
        raise damaged(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def _refuse_bomb(path: Path) -> None:
    """SourceError for an archive that would unfold to far more than its own size; torch.save does not compress."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            whole = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise damaged(path, str(error)) from error
    if whole > 4 * path.stat().st_size + _PICKLE_LIMIT:
        raise damaged(path, f"an archive that says it unfolds to {whole} bytes")


def _numpy_helpers() -> list[Any]:
    """What NumPy scalars and arrays (`best_accuracy`, ...) are pickled with; NumPy 2 moved the module."""
    module = import_module("numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray")
    return [module.scalar, module._reconstruct]


def _refused_pickle(path: Path, error: pickle.UnpicklingError) -> SourceError:
    names = _global_names(path)
    foreign = sorted(name for name in names if not _is_plain(name))
    if not foreign:
        return damaged(path, str(error).splitlines()[0])
    if any(name.startswith(("torch.nn.modules", "torch.fx", "__main__")) for name in foreign):
        return SourceError(
            f"checkpoint {path}",
            f"a whole pickled module ({first_of(foreign)})",
            "weights only (a state dict); a pickled module would run its code when loaded",
            "where its code is installed: torch.save(model.state_dict(), 'weights.pt').",
        )
    return SourceError(
        f"checkpoint {path}",
        f"a pickle with code in it ({first_of(foreign)}), which was not run",
        "tensors only",
        "if you trust its origin, load it there and save the state dict with safetensors.torch.save_file.",
    )


def _global_names(path: Path) -> set[str]:
    """Every `module.name` that the pickle would import, read without importing anything."""
    texts: list[bytes] = []
    with suppress(zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, zlib.error):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in [name for name in archive.namelist() if name.endswith(".pkl")][:4]:
                    with archive.open(name) as file:
                        texts.append(file.read(_PICKLE_LIMIT))
        else:
            with path.open("rb") as file:
                texts.append(file.read(_PICKLE_LIMIT))
    found: set[str] = set()
    for text in texts:
        stream = io.BytesIO(text)
        with suppress(ValueError, EOFError, IndexError, struct.error, MemoryError, OverflowError):
            while stream.tell() < len(text):  # the older format is several pickles in a row
                found |= _imports_of(stream)
    return found


def _imports_of(stream: io.BytesIO) -> set[str]:
    found: set[str] = set()
    strings: list[str] = []
    for code, value, _ in pickletools.genops(stream):
        if code.name == "GLOBAL":
            found.add(str(value).replace(" ", "."))
        elif code.name == "STACK_GLOBAL" and len(strings) >= 2:
            found.add(f"{strings[-2]}.{strings[-1]}")
        elif isinstance(value, str):
            strings.append(value)
    return found


def _is_plain(name: str) -> bool:
    """Names that a file of tensors needs: torch's rebuild functions and types, NumPy's numbers."""
    if name.startswith(("torch._utils.", "torch.storage.", "torch.nn.parameter.", "collections.OrderedDict")):
        return True
    return (name.startswith("torch.") and name.count(".") == 1) or name.startswith("numpy.")


def damaged(path: Path, words: str) -> SourceError:
    """The refusal of a file that is cut off or of another kind."""
    size = path.stat().st_size
    return SourceError(
        f"checkpoint {path}",
        f"{size} bytes that cannot be read as a checkpoint ({words.strip()[:160]})",
        "a complete safetensors or torch.save file",
        "copy or download it again (truncated?), or save it anew.",
    )


def first_of(keys: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(key if len(key) <= 100 else f"{key[:97]}..." for key in keys[:_SHOWN]) + more

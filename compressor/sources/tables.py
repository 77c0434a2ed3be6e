"""Data in files of tables: `.npz` archives of arrays, and CSV lists of pictures or texts."""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from compressor.errors import DataError, SourceError
from compressor.sources.words import Following

PARTS = ("calibrate", "tune", "judge", "train")
NPZ_LIMIT = 8 * 1024**3
"""Bytes of an archive's arrays at most."""
MOST_UNFOLDED, SMALL = 100, 256 * 1024**2
"""How many times its own size an archive may hold, from so many bytes on: only blank data packs better."""
_ROWS_LIMIT = 5_000_000

_UNREADABLE = (
    OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, MemoryError, NotImplementedError,
    TokenError, SyntaxError, TypeError, RecursionError, OverflowError,
)  # fmt: skip
"""What zipfile and numpy raise for files that are none of theirs."""


def npz(path: Path) -> Any:
    """The arrays `x` (and `y`, the labels) of a `.npz` file, or `calibrate_x`, `judge_x`, `judge_y`, ... as parts.

    Nothing in it is unpickled. Raises SourceError for a file that is none, DataError for other names.
    """
    where = f"data 'npz:{path}'"
    if not path.is_file():
        raise SourceError(where, "no such file", "a .npz file", "check the path.")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > NPZ_LIMIT or (size > SMALL and size > MOST_UNFOLDED * path.stat().st_size):
            expected = f"at most {NPZ_LIMIT:,}, and {MOST_UNFOLDED} times the file's own size"
            raise SourceError(where, f"{size:,} bytes of arrays", expected, "give a smaller part, or np.savez's file.")
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except _UNREADABLE as error:
        raise SourceError(
            where, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", "arrays as np.savez writes them",
            "write it again: np.savez('data.npz', x=inputs, y=labels).",
        ) from error  # fmt: skip
    for name, found in arrays.items():
        plain = isinstance(found, np.ndarray) and found.dtype.kind in "fiub" and found.dtype.itemsize <= 8
        if not plain or found.ndim == 0:
            got = f"{found.dtype} of shape {found.shape}" if isinstance(found, np.ndarray) else "no array"
            raise DataError(f"{where}, '{name}'", got, "numbers, one row for each sample", "write it with np.savez.")
        arrays[name] = found.astype(found.dtype.newbyteorder("="), copy=False)
    known = {"x", "y", *(f"{part}_{kind}" for part in PARTS for kind in ("x", "y"))}
    names = {name.rpartition("_")[0] for name in arrays}
    without = [name for name in names if f"{name}_x".lstrip("_") not in arrays]
    if not arrays or set(arrays) - known or without or ("" in names and len(names) > 1):
        raise DataError(
            where, f"arrays {', '.join(sorted(arrays))[:200] or 'none'}",
            "x (and y), or calibrate_x, judge_x, judge_y, ...", "name them so in np.savez.",
        )  # fmt: skip
    pairs = {name: _pair(arrays, f"{name}_" if name else "", where) for name in sorted(names)}
    return pairs.get("", pairs)


def _pair(arrays: Mapping[str, np.ndarray], prefix: str, where: str) -> Any:
    x, y = arrays[f"{prefix}x"], arrays.get(f"{prefix}y")
    if y is not None and len(x) != len(y):
        got = f"{len(x):,} rows of {prefix}x and {len(y):,} of {prefix}y"
        raise DataError(where, got, "a label for each input", "pair them, and write it again with np.savez.")
    return torch.as_tensor(x.astype(np.float32) if x.dtype == np.float64 else x) if y is None else (x, y)


Classes = Mapping[str, int] | None


class Listed(Dataset[Any]):
    """What a file lists (paths of pictures, texts), prepared when it is asked for, with labels where there are any."""

    def __init__(self, items: Sequence[Any], labels: list[Any] | None, prepare: Callable[[Any], Any]) -> None:
        self.items, self.labels, self.prepare = items, labels, prepare

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Any:
        prepared = self.prepare(self.items[place])
        return prepared if self.labels is None else (prepared, self.labels[place])


def pictures(path: Path, transform: Callable[[Any], Any], classes: Classes = None) -> Listed:
    """The pictures that a CSV file lists: columns `path` (relative to the file) and, if there are labels, `label`.

    Labels are class numbers; words are numbered as in `classes`, else in alphabetical order; numbers with a point are
    targets. Raises SourceError for a file that cannot be read or lists a missing picture, DataError for other columns.
    """
    where = f"data 'csv:{path}'"
    words, labels = _columns(where, path, "path", classes)
    paths = [path.parent / word for word in words]
    missing = next((place for place, found in enumerate(paths) if not found.is_file()), None)
    if missing is not None:
        raise SourceError(
            f"{where}, line {missing + 2}", f"no file '{paths[missing]}'", "pictures by paths relative to the CSV file",
            "correct the path.",
        )  # fmt: skip

    def opened(place: Path) -> Any:
        from PIL import Image

        with Image.open(place) as picture:
            return transform(picture.convert("RGB"))

    return Listed(paths, labels, opened)


def texts(path: Path, tokens: Callable[[str], Any], classes: Classes = None) -> Listed:
    """The texts of a CSV file: columns `text` and, if there are labels, `label` (as `pictures`). Raises as it does.

    Where the next tokens are the labels, texts of one word are left out.
    """
    where = f"data 'text:{path}'"
    words, labels = _columns(where, path, "text", classes)
    if not isinstance(tokens, Following):
        return Listed(words, labels, tokens)
    return Listed([words[place] for place in tokens.predictable(words, where)], None, tokens)


def _columns(where: str, path: Path, column: str, classes: Classes) -> tuple[list[str], list[Any] | None]:
    """One column of a CSV file, and its labels as numbers."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = [row for _, row in zip(range(_ROWS_LIMIT), reader, strict=False)]
    except (OSError, UnicodeError, csv.Error) as error:
        raise SourceError(where, f"{type(error).__name__}: {error}", "a CSV file", "check the path.") from error
    if column not in columns or not rows:
        got = f"columns {', '.join(map(str, columns))[:200] or 'none'}, {len(rows)} rows"
        raise DataError(where, got, f"columns `{column}` and `label`, and rows", "write them in the first line.")
    labels = [row.get("label") for row in rows] if "label" in columns else None
    return [str(row[column]) for row in rows], None if labels is None else numbered(where, labels, classes)


def numbered(where: str, words: Sequence[str | None], classes: Classes = None) -> list[Any]:
    """Numbers from words: class numbers, targets, those of `classes` (the network's, by their words), or places in
    alphabetical order. DataError for an empty one, and for a word that is none of `classes`.
    """
    empty = next((place for place, word in enumerate(words) if not (word or "").strip()), None)
    if empty is not None:
        raise DataError(f"{where}, line {empty + 2}", "no label", "a label in every row, or no such column", "add it.")
    said = [str(word).strip() for word in words]
    for kind in (int, float):
        try:
            return [kind(word) for word in said]
        except ValueError:
            continue
    if classes is None:
        numbers = {word: place for place, word in enumerate(sorted(set(said)))}
        return [numbers[word] for word in said]
    return _of_network(where, said, classes)


def _of_network(where: str, said: Sequence[str], classes: Mapping[str, int]) -> list[int]:
    """Words as the network numbers them: as they stand, else whatever their capitals."""
    folded = {word.casefold(): number for word, number in classes.items()}
    known, fold = (classes, str) if set(said) <= set(classes) or len(folded) < len(classes) else (folded, str.casefold)
    strange = next((word for word in said if fold(word) not in known), None)
    if strange is not None:
        raise DataError(
            where, f"the label {strange!r:.60}", f"one of the network's classes ({', '.join(classes)[:200]})",
            "name labels as the network's configuration does, or give class numbers.",
        )  # fmt: skip
    return [known[fold(word)] for word in said]

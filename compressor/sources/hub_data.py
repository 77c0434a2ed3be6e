"""`hfdata:NAME_OR_FOLDER`: data sets of Hugging Face's library, saved to a folder, of files in one, or in its cache.

Rows are read when they are asked for, from memory-mapped files: a data set may be larger than memory. No code of a
data set runs (the library has dropped that with version 4, which is asked for).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from compressor.errors import DataError, SourceError
from compressor.sources.built import needed, short
from compressor.sources.named import Parts, parts_of_splits
from compressor.sources.network import impatient
from compressor.sources.tables import numbered
from compressor.sources.words import Following

_SPLITS = {"train": ("train",), "val": ("validation", "valid", "val", "dev"), "test": ("test",)}
_LABELS = ("label", "labels", "target", "targets", "class", "coarse_label")


class Rows(Dataset[Any]):
    """Rows as (input, label), or inputs alone; `labels` numbers words, where labels are words."""

    def __init__(
        self, rows: Any, column: str, prepare: Callable[[Any], Any], label: str | None, labels: Mapping[str, Any] | None
    ) -> None:
        self.rows = rows.select_columns([column] if label is None else [column, label])
        self.column, self.prepare, self.label, self.labels = column, prepare, label, labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Any:
        row = self.rows[place]
        prepared = self.prepare(row[self.column])
        if self.label is None:
            return prepared
        return prepared, row[self.label] if self.labels is None else self.labels[row[self.label]]


def read(where: str, place: str, config: str | None, split: str | None) -> dict[str, Any]:
    """The splits of the data set, by name; `split` takes one of them. SourceError for what cannot be had."""
    datasets = needed("datasets", "hf", where)
    if int(datasets.__version__.split(".")[0]) < 4:
        raise SourceError(where, f"datasets {datasets.__version__}", "4 or newer, which runs no code", "upgrade it.")
    folder = Path(place)
    saved = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        with impatient(), _quiet(datasets):
            found = datasets.load_from_disk(place) if saved else datasets.load_dataset(place, config)
    except Exception as error:
        raise SourceError(
            where, short(error), "a folder that save_to_disk wrote, one of data files, or a name in the cache (or on a "
            "hub in reach)", "load it once with datasets.load_dataset (HF_HUB_OFFLINE=1 asks no hub at all).",
        ) from error  # fmt: skip
    sets = dict(found) if isinstance(found, dict) else {"train" if split is None else split: found}
    if split is not None and split not in sets:
        raise SourceError(where, f"split {split!r}", f"one of {', '.join(map(str, sets))}", "pick one.")
    return {str(name): rows for name, rows in sets.items() if split in (None, name)}


def parts(
    where: str,
    sets: Mapping[str, Any],
    given: Mapping[str, str | None],
    prepare_text: Callable[[], Callable[[str], Any]],
    prepare_image: Callable[[], Callable[[Any], Any]],
    classes: Mapping[str, int] | None = None,
) -> Parts | Rows:
    """Splits as parts of a run's data; one split alone as a whole.

    `given` names columns of kinds `text`, `image` and `label`; what it leaves open is the only column of texts, or of
    images, and `label`. Raises DataError where that is not clear, and what the preparations raise.
    """
    first = next(iter(sets.values()))
    column, is_image = _input(where, first.features, given)
    prepare = _image(prepare_image()) if is_image else prepare_text()
    label = _column(where, first.features, given["label"]) or next((n for n in _LABELS if n in first.features), None)
    if isinstance(prepare, Following) and given["label"] is not None:
        prepare = prepare.tokens
    if isinstance(prepare, Following):
        label = None
        sets = {name: rows.select(prepare.predictable(rows[column], where)) for name, rows in sets.items()}
    labels = None if label is None else _numbers(where, sets, label, classes)
    rows = {name: Rows(found, column, prepare, label, labels) for name, found in sets.items()}
    known = {kind: rows[name] for kind, names in _SPLITS.items() for name in names if name in rows}
    if len(rows) == 1 or not known:
        return next(iter(rows.values()))
    return parts_of_splits(known)


def _input(where: str, features: Any, given: Mapping[str, str | None]) -> tuple[str, bool]:
    """The column that is the input, and whether it holds images."""
    for kind in ("text", "image"):
        name = _column(where, features, given[kind])
        if name is not None:
            return name, kind == "image"
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    words = [
        n for n, f in features.items() if getattr(f, "dtype", "") in ("string", "large_string") and n not in _LABELS
    ]
    for found, kind in ((images, "image"), (words, "text")):
        if len(found) == 1 or (kind in found):
            return (kind if kind in found else found[0]), kind == "image"
    said = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    raise DataError(
        where, f"columns {said[:200]}", "one of texts or of images", "name it: ?text=COLUMN or ?image=COLUMN."
    )


def _column(where: str, features: Any, name: str | None) -> str | None:
    if name is not None and name not in features:
        raise DataError(where, f"no column {name!r}", f"one of {', '.join(features)}", "name another.")
    return name


def _numbers(
    where: str, sets: Mapping[str, Any], label: str, classes: Mapping[str, int] | None
) -> dict[Any, Any] | None:
    """Words that are labels -> numbers, the same in every split; None where labels are numbers."""
    kind = next(iter(sets.values())).features[label]
    names = getattr(kind, "names", None)  # numbers that have words, and may be others than the network's
    if names and classes and set(names) <= set(classes):
        return {-1: -1, **{place: classes[name] for place, name in enumerate(names)}}
    if getattr(kind, "dtype", "") not in ("string", "large_string"):
        return None
    words = sorted({word for rows in sets.values() for word in rows.unique(label)}, key=str)
    return dict(zip(words, numbered(where, words, classes), strict=True))


def _image(transform: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda picture: transform(picture.convert("RGB"))


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """No bars of another library on the terminal."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()

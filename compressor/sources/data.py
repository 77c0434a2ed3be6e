"""DATA specs -> the parts of a run's data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compressor.errors import DataError, SourceError, UsageError
from compressor.sources.consent import named_by_user
from compressor.sources.factories import find_factory, meant, split_query
from compressor.sources.named import NAMED
from compressor.sources.samples import Samples, as_samples, joined
from compressor.sources.schemes import FORMS, SCHEMES, Asked
from compressor.sources.splits import Data, complete, split_whole, with_unlabelled


def load_data(
    spec: str,
    *,
    seed: int = 0,
    base: Path | None = None,
    transform: Callable[[Any], Any] | None = None,
) -> Data:
    """The data that a DATA spec names, with every part.

    `digits`, `fashion-mnist`, `cifar10`, `cifar100`; `imagefolder:DIR?size=128`, `csv:FILE?size=128`,
    `text:FILE?tokenizer=FOLDER`, `hfdata:NAME_OR_FOLDER`, `webdataset:FILES` (these prepare their samples with
    `transform` where it fits them and nothing else was said); `npz:FILE`; or a factory `path/file.py:name?k=v` /
    `package.module:name`: it returns a Dataset of (input, label), a pair
    (inputs, labels), or a mapping with any of train, calibrate, tune and judge to such. What is missing is
    split off by content (`seed` chooses another cut). Relative paths start at `base`. Raises SourceError for
    what cannot be found, DataError for what cannot be worked with, UsageError for a malformed spec.
    """
    head, arguments = split_query(spec)
    if head in NAMED:
        if arguments:
            raise UsageError(f"data {spec!r}", f"arguments for {head}", f"`{head}` alone", "leave them out.")
        return complete(NAMED[head](seed), spec, seed, drop_shared=True)
    found = _found(spec, base, transform)
    return complete(found, spec, seed) if isinstance(found, Mapping) else split_whole(found, spec, seed)


def _found(spec: str, base: Path | None, transform: Callable[[Any], Any] | None) -> Any:
    """What a scheme (a folder of images, a table, ...) or a factory gives."""
    head, arguments = split_query(spec)
    scheme, colon, place = head.partition(":")
    if scheme in SCHEMES and colon:
        return SCHEMES[scheme](Asked(spec, place, arguments, base or Path.cwd(), transform))
    factory = find_factory(head, base)
    if factory is None:
        raise _no_such_data(spec, head)
    named_by_user(factory, arguments)
    return factory.call(arguments)


def load_unlabelled(
    spec: str, *, seed: int = 0, base: Path | None = None, transform: Callable[[Any], Any] | None = None
) -> Samples:
    """The inputs that a DATA spec names, for recovery: all of a data set; of a mapping its `train` and `calibrate`.

    Raises as `load_data`.
    """
    if split_query(spec)[0] in NAMED:
        data = load_data(spec, seed=seed, base=base)
        return joined([data.calibrate] if data.train is None else [data.train, data.calibrate])
    found = _found(spec, base, transform)
    if not isinstance(found, Mapping):
        return as_samples(found, "unlabelled data")
    parts = [as_samples(found[name], f"{name} data") for name in ("train", "calibrate") if name in found]
    if not parts:
        raise DataError(f"data {spec!r}", f"only {', '.join(map(str, found))}", "`train` or `calibrate`", "rename one.")
    return joined(parts)


def data_of(
    calibrate: Any, tune: Any = None, judge: Any = None, train: Any = None, *, seed: int = 0, unlabelled: Any = None
) -> Data:
    """The same from objects: loaders, Datasets or pairs; what is None is split off what is given.

    One dataset alone is cut into 35 % calibrate, 15 % tune and 50 % judge. `unlabelled` inputs are for recovery only.
    """
    if unlabelled is not None:
        return with_unlabelled(
            data_of(calibrate, tune, judge, train, seed=seed), as_samples(unlabelled, "unlabelled data"), "objects"
        )
    given = {"calibrate": calibrate, "tune": tune, "judge": judge, "train": train}
    given = {name: data for name, data in given.items() if data is not None}
    if list(given) == ["calibrate"]:
        return split_whole(calibrate, "objects", seed)
    return complete(given, "objects", seed)


def _no_such_data(spec: str, head: str) -> SourceError:
    hint = "for a folder of images: imagefolder:DIR." if Path(head).is_dir() else meant(head, list(NAMED))
    return SourceError(
        f"data {spec!r}",
        "nothing of that name",
        f"{', '.join(NAMED)}, {FORMS}, path/file.py:factory or package.module:factory",
        hint or "see `compressor compress --help`.",
    )


__all__ = ["Data", "data_of", "load_data", "load_unlabelled", "with_unlabelled"]

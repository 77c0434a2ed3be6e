"""`webdataset:FILES`: samples in tar files, as WebDataset writes them, read in place and never unpacked.

`a/0001.jpg` and `a/0001.cls` are the image and the class of one sample: members that lie side by side and have the same
name up to the first dot. The files are walked through once, header by header; a sample's bytes are read when it is
asked for. So a set may be larger than memory. Nothing is written, names are never taken for paths, and only plain
members of known kinds are read: links, devices, pickles and compressed files are refused.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from compressor.errors import DataError, SourceError
from compressor.sources.tables import Classes, numbered
from compressor.sources.words import Following

IMAGES = ("jpg", "jpeg", "png", "webp", "ppm", "bmp")
TEXTS, ARRAYS = ("txt", "text"), ("npy",)
LABELS = ("cls", "label.txt", "json")
MEMBER_LIMIT = 2**28
"""Bytes of a member at most."""
SAMPLES_LIMIT = 20_000_000
PIXELS_LIMIT = 2**27


@dataclass(frozen=True, slots=True)
class Member:
    """Where the bytes of a member lie."""

    shard: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Its bytes."""
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(slots=True)
class Sample:
    """The members of one sample by their endings."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)


class Shards(Dataset[Any]):
    """Samples of tar files, each prepared when it is asked for, with its label where it has one."""

    def __init__(
        self, where: str, samples: list[Sample], ending: str, prepare: Callable[[bytes], Any], classes: Classes = None
    ) -> None:
        self.where, self.samples, self.ending, self.prepare = where, samples, ending, prepare
        self.predicts = _following(prepare) is not None
        self.labels = None if self.predicts else _labels(where, samples, classes)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> Any:
        sample = self.samples[place]
        prepared = self.prepare(sample.members[self.ending].read())
        return prepared if self.labels is None else (prepared, self.labels[place])


def read(
    where: str,
    place: Path,
    prepare_text: Callable[[], Callable[[str], Any]],
    prepare_image: Callable[[], Callable[[Any], Any]],
    classes: Classes = None,
) -> Shards:
    """The samples of one tar file, of all in a folder, or of a pattern (`shards/train-*.tar`).

    Inputs are images, arrays (`.npy`, without objects) or texts; labels stand in `.cls` (numbers or words) or under
    `label` in `.json`. Raises SourceError for files that cannot be read or trusted, DataError for samples that are not
    alike.
    """
    shards = _files(where, place)
    samples = [sample for shard in shards for sample in _samples(where, shard)]
    if not samples:
        raise DataError(where, "no samples", "members such as 0001.jpg and 0001.cls", "look with `tar tf`.")
    known = [ending for ending in (*IMAGES, *ARRAYS, *TEXTS) if ending in samples[0].members]
    if not known:
        kinds = ", ".join(sorted(samples[0].members)) or "none"
        raise DataError(
            where, f"members {kinds[:200]}", f"one of {', '.join((*IMAGES, *ARRAYS, *TEXTS))}", "convert them."
        )
    other = next((sample for sample in samples if known[0] not in sample.members), None)
    if other is not None:
        raise DataError(f"{where}, sample {other.key!r}", f"no .{known[0]}", "one in every sample", "repair the shard.")
    prepare = _preparation(known[0], prepare_text, prepare_image)
    following = _following(prepare)
    if following is not None:
        said = (sample.members[known[0]].read().decode("utf-8", "replace") for sample in samples)
        samples = [samples[place] for place in following.predictable(said, where)]
    return Shards(where, samples, known[0], prepare, classes)


def _preparation(
    ending: str, prepare_text: Callable[[], Any], prepare_image: Callable[[], Any]
) -> Callable[[bytes], Any]:
    if ending in IMAGES:
        transform = prepare_image()
        return lambda content: transform(_image(content))
    if ending in ARRAYS:
        return _array
    return _Tokens(prepare_text())


@dataclass(frozen=True)
class _Tokens:
    """Bytes of a text -> what its tokenizer makes of it."""

    tokens: Callable[[str], Any]

    def __call__(self, content: bytes) -> Any:
        return self.tokens(content.decode("utf-8"))


def _following(prepare: Callable[[bytes], Any]) -> Following | None:
    """What makes the next tokens the labels, if anything does."""
    tokens = prepare.tokens if isinstance(prepare, _Tokens) else None
    return tokens if isinstance(tokens, Following) else None


def _array(content: bytes) -> np.ndarray:
    """The array of a `.npy` file, which must be as large as its header says: numpy takes that much memory first."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject or dtype.itemsize * math.prod(shape) != len(content) - file.tell():
        raise ValueError(f"{dtype} of shape {shape} in {len(content):,} bytes")
    return np.load(io.BytesIO(content), allow_pickle=False)


def _image(content: bytes) -> Any:
    from PIL import Image

    with warnings.catch_warnings(), Image.open(io.BytesIO(content)) as picture:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        if picture.width * picture.height > PIXELS_LIMIT:
            raise ValueError(f"{picture.width} x {picture.height} pixels")
        return picture.convert("RGB")


def _files(where: str, place: Path) -> list[Path]:
    if place.is_dir():
        found = sorted(place.glob("*.tar"))
    elif "*" in place.name or "?" in place.name:
        found = sorted(place.parent.glob(place.name))
    else:
        found = [place]
    if not found or not all(path.is_file() for path in found):
        raise SourceError(where, "no such file", "a tar file, a folder of them, or a pattern with *", "check the path.")
    return found


def _samples(where: str, shard: Path) -> Iterator[Sample]:
    """The samples of a shard, in its order."""
    current: Sample | None = None
    for name, member in _members(where, shard):
        folder, _, last = name.rpartition("/")
        stem, dot, ending = last.partition(".")
        if not dot or not stem:
            continue  # no sample's: README, .DS_Store
        key = f"{folder}/{stem}"
        if current is None or current.key != key:
            if current is not None:
                yield current
            current = Sample(key)
        if ending.lower() in current.members:
            raise DataError(f"{where}, {shard.name}", f"{name!r} twice", "each member once", "write the shard again.")
        current.members[ending.lower()] = member
    if current is not None:
        yield current


def _members(where: str, shard: Path) -> Iterator[tuple[str, Member]]:
    """Names and places of the plain members; refuses what is neither plain nor a folder."""
    size, last, count = shard.stat().st_size, -1, 0
    try:
        with tarfile.open(shard, "r:", errorlevel=2) as archive:
            for found in archive:
                count += 1
                if found.offset <= last or found.size < 0 or found.offset_data + found.size > size:
                    raise tarfile.ReadError(f"a member of {found.size} bytes at {found.offset_data} of {size}")
                last = found.offset
                archive.members = []  # type: ignore[attr-defined]  (it would keep every header)
                if found.isdir():
                    continue
                if not found.isreg() or found.issparse():
                    raise tarfile.ReadError(f"{found.name[:80]!r} is a link, a device or sparse")
                if found.size > MEMBER_LIMIT or count > SAMPLES_LIMIT:
                    raise tarfile.ReadError(f"{found.name[:80]!r} of {found.size:,} bytes, member {count:,}")
                yield found.name, Member(shard, found.offset_data, found.size)
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
        raise SourceError(
            f"{where}, {shard.name}", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
            f"an uncompressed tar file of plain members of at most {MEMBER_LIMIT:,} bytes",
            "unpack .gz first (gunzip); write shards with `tar --format=ustar`.",
        ) from None  # fmt: skip


def _labels(where: str, samples: list[Sample], classes: Classes) -> list[Any] | None:
    """A label for every sample, or None where there are none; words are numbered as in `numbered`."""
    ending = next((kind for kind in LABELS if kind in samples[0].members), None)
    if ending is None:
        return None
    words: list[str | None] = []
    for sample in samples:
        member = sample.members.get(ending)
        words.append(None if member is None else _label(where, sample.key, ending, member))
    if ending == "json" and all(word is None for word in words):
        return None
    missing = next((sample.key for sample, word in zip(samples, words, strict=True) if not word), None)
    if missing is not None:
        raise DataError(f"{where}, sample {missing!r}", "no label", "one in every sample, or in none", "add it.")
    return numbered(where, words, classes)


def _label(where: str, key: str, ending: str, member: Member) -> str | None:
    try:
        if member.size > 2**20:
            raise ValueError(f"{member.size:,} bytes")
        text = member.read().decode("utf-8")
        found = json.loads(text).get("label") if ending == "json" else text.strip()
        if found is None or (isinstance(found, (str, int, float)) and len(str(found)) < 200):
            return None if found is None else str(found)
        raise ValueError("no word or number")
    except (ValueError, AttributeError, RecursionError, OSError) as error:
        raise SourceError(
            f"{where}, sample {key!r}", f"label .{ending}: {' '.join(str(error).split())[:200]}",
            "a class number or word in .cls, or under `label` in .json", "repair the shard.",
        ) from None  # fmt: skip

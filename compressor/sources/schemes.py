"""`scheme:PLACE?argument=value` -> data: folders of images, archives, tables, texts, data sets of libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import UsageError
from compressor.sources import hub_data, named, shards, tables
from compressor.sources.factories import Argument, meant
from compressor.sources.words import Following, TextReader, resized, tokens_of

Transform = Callable[[Any], Any]
_NUMBERS = ("size", "limit", "length")
"""Arguments that are positive whole numbers."""
_NEXT = "next"
"""`?label=next`: the label of each token is the one that follows."""


@dataclass(frozen=True)
class Asked:
    """What a DATA spec says, taken apart; `transform` prepares the model's inputs, where the model says how."""

    spec: str
    place: str
    arguments: Mapping[str, Argument]
    base: Path
    transform: Transform | None = None

    @property
    def where(self) -> str:
        """For messages."""
        return f"data {self.spec!r}"

    @property
    def path(self) -> Path:
        """The place as a path."""
        return self.base / Path(self.place).expanduser()

    def allow(self, *known: str) -> None:
        """UsageError for other arguments, and for numbers that are none."""
        for key, value in self.arguments.items():
            if key not in known:
                expected = (
                    " or ".join(f"`{one}`" for one in known) if known else f"`{self.spec.partition('?')[0]}` alone"
                )
                raise UsageError(self.where, f"argument {key!r}", expected, meant(key, list(known)) or "leave it out.")
            if key in _NUMBERS and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UsageError(self.where, f"{key}={value!r}", "a positive whole number", f"{key}=224")

    @property
    def classes(self) -> Mapping[str, int] | None:
        """Numbers of the network's classes by their words, where it names them."""
        return getattr(self.transform, "classes", None)

    def number(self, key: str) -> int | None:
        """A number among the arguments."""
        value = self.arguments.get(key)
        return value if isinstance(value, int) else None

    def word(self, key: str) -> str | None:
        """A name among the arguments."""
        value = self.arguments.get(key)
        return None if value is None else str(value)

    def prepare_image(self) -> Transform:
        """`size` (ImageNet's way at that size), else as the model's weights were trained, else ImageNet's at 224."""
        size, given = self.number("size"), self.transform
        if given is not None and size is None and not isinstance(given, TextReader):
            return given
        return named.imagenet_transform(size or 224)

    def prepare_text(self) -> TextReader:
        """`tokenizer`, else that of the model's folder; with the next tokens as labels where the model predicts them,
        or `label=next` asks for them. UsageError where there is no tokenizer.
        """
        name, length, given = self.word("tokenizer"), self.number("length"), self.transform
        if name is not None:
            tokens = tokens_of(name, length, self.base, self.where)
            return Following(tokens) if isinstance(given, Following) or self.word("label") == _NEXT else tokens
        if not isinstance(given, TextReader):
            raise UsageError(
                self.where, "texts, and no tokenizer", "the one that the network was trained with",
                "?tokenizer=FOLDER (as transformers saves one), or ?tokenizer=WORDS.txt (a word in each line).",
            )  # fmt: skip
        given = given if length is None else resized(given, length)
        return Following(given) if self.word("label") == _NEXT and not isinstance(given, Following) else given

    def allow_next(self) -> None:
        """UsageError for a `label` that is not `next`."""
        if self.word("label") not in (None, _NEXT):
            raise UsageError(self.where, f"label={self.word('label')}", "label=next", "name the column `label`.")


def _imagefolder(asked: Asked) -> Any:
    asked.allow("size", "limit")
    limit = asked.number("limit")
    more: dict[str, Any] = {} if limit is None else {"limit": limit}
    return named.image_folder(asked.path, asked.prepare_image(), classes=asked.classes, **more)


def _npz(asked: Asked) -> Any:
    asked.allow()
    return tables.npz(asked.path)


def _csv(asked: Asked) -> Any:
    asked.allow("size")
    return tables.pictures(asked.path, asked.prepare_image(), asked.classes)


def _text(asked: Asked) -> Any:
    asked.allow("tokenizer", "length", "label")
    asked.allow_next()
    return tables.texts(asked.path, asked.prepare_text(), asked.classes)


def _hfdata(asked: Asked) -> Any:
    asked.allow(*("text", "image", "label", "split", "config", "tokenizer", "length", "size"))
    columns = {kind: asked.word(kind) for kind in ("text", "image", "label")}
    columns["label"] = None if columns["label"] == _NEXT else columns["label"]
    place = str(asked.path) if asked.path.is_dir() else asked.place
    found = hub_data.read(asked.where, place, asked.word("config"), asked.word("split"))
    return hub_data.parts(asked.where, found, columns, asked.prepare_text, asked.prepare_image, asked.classes)


def _webdataset(asked: Asked) -> Any:
    asked.allow("tokenizer", "length", "size", "label")
    asked.allow_next()
    found = shards.read(asked.where, asked.path, asked.prepare_text, asked.prepare_image, asked.classes)
    if asked.word("label") == _NEXT and not found.predicts:
        raise UsageError(
            asked.where, "label=next, and no texts", "texts (.txt), whose tokens follow each other", "leave it out."
        )
    return found


SCHEMES: Mapping[str, Callable[[Asked], Any]] = {
    "imagefolder": _imagefolder,
    "npz": _npz,
    "csv": _csv,
    "text": _text,
    "hfdata": _hfdata,
    "webdataset": _webdataset,
}
FORMS = "imagefolder:DIR, npz:FILE, csv:FILE, text:FILE, hfdata:NAME_OR_FOLDER, webdataset:FILES"

"""`manifest.json`: how to rebuild a network from its source, checked before anything is done with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from compressor.computed import Kind
from compressor.errors import SourceError
from compressor.records import SCHEMA_VERSION

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"

_MAX_BYTES = 64 * 1024**2

Dims = Annotated[list[Annotated[int, Field(ge=0, le=2**40)]], Field(max_length=8)]
Name = Annotated[str, Field(min_length=1, max_length=1000)]
Width = Annotated[int, Field(ge=0, le=2**40)]
Attribute = Literal[
    "in_channels",
    "out_channels",
    "groups",
    "in_features",
    "out_features",
    "num_features",
    "num_channels",
    "num_groups",
    "num_parameters",
    "normalized_shape",
    "num_embeddings",
    "embedding_dim",
    "embed_dim",
    "kdim",
    "vdim",
    "num_heads",
    "head_dim",
    "input_size",
    "hidden_size",
    "hidden_dim",
    "head_hidden_size",
    "nf",
    "nx",
]
"""Integers of layers that say how wide they are (`nf`, `nx`: the transposed linear layer of transformers)."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Change(_Strict):
    """A tensor whose shape differs from the source's."""

    before: Dims
    after: Dims


class Added(_Strict):
    """A tensor that the source has not (a bias, for a layer that had none)."""

    shape: Dims
    kind: Literal["parameter", "buffer"]


class AttributeChange(_Strict):
    """A layer's integer, or integers, that differ from the source's."""

    before: Width | Dims
    after: Width | Dims


class Widths(_Strict):
    """All that differs in shape between the source's network and the compressed one, by name."""

    changed: dict[Name, Change] = {}
    added: dict[Name, Added] = {}
    removed: list[Name] = []
    attributes: dict[str, dict[Attribute, AttributeChange]] = {}

    @property
    def empty(self) -> bool:
        """True if the network is as wide as its source."""
        return not (self.changed or self.added or self.removed or self.attributes)


class Weights(_Strict):
    """The file with the numbers; its name is fixed, so that no manifest can point elsewhere."""

    file: Literal["model.safetensors"]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class Manifest(_Strict):
    """What `manifest.json` holds.

    `attention` lists the attention modules of the source that are written as `DenseAttention` before anything is
    resized, `recurrent` the recurrent layers that are written as `Rolled`, and `plain` the layers that compute their
    weights there and are plain ones of a kind here. `tied` maps a name to the stored name of the same tensor;
    `transient` lists buffers that are no part of the state dict but differ from the source's, and are therefore stored
    too.
    """

    schema_version: int
    source: dict[str, JsonValue]
    weights: Weights
    widths: Widths
    attention: Annotated[list[Name], Field(max_length=10_000)] = []
    recurrent: Annotated[list[Name], Field(max_length=10_000)] = []
    plain: Annotated[dict[Name, Kind], Field(max_length=10_000)] = {}
    tied: dict[Name, Name] = {}
    transient: list[Name] = []


def parse_manifest(content: bytes | str | Mapping[str, Any], where: str = "manifest") -> Manifest:
    """A checked Manifest; SourceError with the place of the first fault."""
    try:
        if isinstance(content, Mapping):
            manifest = Manifest.model_validate(dict(content))
        else:
            manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise SourceError(
            where,
            f"'{place}': {first['msg']} ({error.error_count()} fault(s) in all)",
            "a manifest as `compressor compress` writes it",
            "get the bundle again from where it was made; a manifest is not meant to be edited.",
        ) from None
    if manifest.schema_version != SCHEMA_VERSION:
        raise SourceError(
            where,
            f"schema_version {manifest.schema_version}",
            f"schema_version {SCHEMA_VERSION}",
            "use the version of compressor that wrote this bundle, or a newer one.",
        )
    return manifest


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a bundle folder; SourceError where there is none, or a faulty one."""
    path = Path(folder) / MANIFEST
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise SourceError(
                f"'{path}'", f"{path.stat().st_size} bytes", "a manifest of some kilobytes", "check the path."
            )
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(
            f"bundle '{folder}'",
            f"{MANIFEST}: {error.strerror or error}",
            f"a folder with {MANIFEST} and {WEIGHTS}",
            "name a folder that `compressor compress` has finished; one that it has not needs --resume.",
        ) from None
    return parse_manifest(content, f"'{path}'")

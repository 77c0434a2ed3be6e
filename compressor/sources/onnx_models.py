"""`onnx:FILE`: the network of an ONNX file, rebuilt in torch and proven to answer as the file does."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from compressor.errors import SourceError
from compressor.foreign.convert import convert, refuse_difference
from compressor.foreign.files import read
from compressor.foreign.given import GivenFile
from compressor.foreign.measured import Measured, measure
from compressor.sources.built import Built, spelled
from compressor.sources.checkpoint import file_sha256
from compressor.sources.factories import Argument

_MOST = 2**26
"""Numbers in one sample at most."""


def load(spec: str, name: str, given: dict[str, Argument], pretrained: bool, base: Path) -> Built:
    """The network in the file `name`, for samples of the shape in it, or of `?input=3,224,224` where it is open.

    Whoever judges it asks the file itself (`answers`). Raises SourceError for a file that cannot be read or reads
    files elsewhere, and, with the operator's name, for one that cannot be rebuilt or then answers differently.
    """
    where = f"model {spec!r}"
    path = (base / Path(name).expanduser()).resolve()
    if not pretrained:
        raise SourceError(where, "a checkpoint", "the weights in the ONNX file", "leave --checkpoint out.")
    if set(given) - {"input"}:
        raise SourceError(where, f"argument {min(set(given) - {'input'})!r}", "`input`", "for example ?input=3,224,224")
    file, measured = _measured(where, path, given)
    network, named = convert(measured, where)
    refuse_difference(network, named, measured, file, where)
    shapes = list(measured.inputs.values())
    return Built(
        network,
        str(path),
        dict(given),
        f"onnx:{path}{spelled(given)}",
        sha256=file_sha256(path),
        input_shape=shapes[0] if len(shapes) == 1 else None,
        answers=GivenFile(path, torch.get_num_threads()),
    )


def empty(place: str, arguments: dict[str, Argument]) -> nn.Module:
    """The network of a file that is known to be the one meant, as it was rebuilt before. SourceError."""
    where = f"model 'onnx:{place}'"
    return convert(_measured(where, Path(place), arguments)[1], where)[0]


def _measured(where: str, path: Path, given: dict[str, Argument]) -> tuple[GivenFile, Measured]:
    file = GivenFile(path)
    return file, measure(read(path), file, _sample(where, file, given.get("input")), where)


def _sample(where: str, file: GivenFile, asked: Argument) -> dict[str, tuple[int, ...]]:
    """One sample's shape for every input; SourceError where the file leaves it open and nothing was said."""
    known = {name: tuple(shape[1:]) for name, shape in file.shapes.items()}
    if asked is None and file.length is not None:
        known = {name: (file.length,) if len(s) == 1 and not _fixed(s[0]) else s for name, s in known.items()}
    if asked is not None:
        try:
            sizes = tuple(int(part) for part in str(asked).split(","))
        except ValueError:
            sizes = ()
        fits = all(
            len(sizes) == len(shape) and all(not _fixed(b) or a == b for a, b in zip(sizes, shape, strict=True))
            for shape in known.values()
        )
        if not fits or min(sizes, default=0) < 1:
            raise SourceError(
                where,
                f"input={asked!r}",
                f"one shape that all inputs can have: {list(known.values())}",
                "for example ?input=3,224,224, or ?input=128 for tokens",
            )
        known = dict.fromkeys(known, sizes)
    for name, shape in known.items():
        if not all(_fixed(size) for size in shape):
            raise SourceError(
                where,
                f"input '{name}' of open shape {shape}",
                "one sample's shape",
                "give it: ?input=3,224,224, or ?input=128 for tokens",
            )
        if math.prod(shape) > _MOST:
            raise SourceError(
                where, f"input '{name}' of shape {shape}", f"at most {_MOST:,} numbers", "give a smaller one."
            )
    return known


def _fixed(size: object) -> bool:
    return isinstance(size, int) and size > 0

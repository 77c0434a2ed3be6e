"""What a library's loader gives back, whichever library it is."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from compressor.errors import SourceError
from compressor.sources.factories import Argument

MOST_PARAMETERS = 2**30
"""Of a library's network that a bundle names (torchvision's largest one has 0.65 billion)."""
MOST_MODULES = 30_000
"""Modules and parameters, counted one by one (the deepest networks of timm and torchvision have some thousands)."""


@dataclass(frozen=True, slots=True)
class Built:
    """A network, what a rebuild of it needs, and what is known about its inputs."""

    model: nn.Module
    place: str
    arguments: Mapping[str, Argument]
    spec: str
    """Names the same network from any directory."""
    sha256: str | None = None
    input_shape: tuple[int, ...] | None = None
    vocabulary: int | None = None
    """Of a network that reads token numbers: how many there are."""
    transform: Callable[[Any], Any] | None = None
    trained: bool = True
    answers: Callable[[Any], Any] | None = None
    """Inputs -> what the given file itself answers, where that is not the network."""


def needed(package: str, extra: str, where: str) -> ModuleType:
    """The imported package; SourceError that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise SourceError(
            where, f"no package {package!r} ({error})", f"{package} in this environment",
            f'pip install "compressor[{extra}]"',
        ) from None  # fmt: skip


def bounded(build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` makes; ValueError for too many parameters or modules, before memory is taken for them.

    They are counted while they are made, as some arguments (a depth) would take hours to be built at all.
    """
    with suppress(NotImplementedError), _counted(), torch.device("meta"):  # some builders compute widths with tensors
        build()
    with _counted():
        return build()


@contextmanager
def _counted() -> Iterator[None]:
    size, modules = 0, 0

    def count(_: nn.Module, __: str, part: Any) -> None:
        nonlocal size, modules
        size, modules = size + (part.numel() if isinstance(part, nn.Parameter) else 0), modules + 1
        if size > MOST_PARAMETERS or modules > MOST_MODULES:
            raise ValueError(f"more than {MOST_PARAMETERS:,} parameters, or {MOST_MODULES:,} modules")

    hooks = [register_module_parameter_registration_hook(count), register_module_module_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def spelled(arguments: Mapping[str, Argument]) -> str:
    """`?name=value&...`, or nothing."""
    pairs = "&".join(f"{key}={value}" for key, value in arguments.items())
    return f"?{pairs}" if pairs else ""


def short(error: Exception) -> str:
    """Type and words of a library's error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:240]}"

"""Finds units a trained network does not need, folds them into what remains, and judges the smaller network.

The names below are loaded when first used, so that importing the package stays cheap.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.api import Result, analyze, compress, load, verify
    from compressor.errors import CompressorError, DataError, ModelError, SourceError, UsageError
    from compressor.frontier.calls import frontier
    from compressor.records import Finding, Plan, Verdict

_HOMES = {
    "compress": "compressor.api",
    "analyze": "compressor.api",
    "frontier": "compressor.frontier.calls",
    "verify": "compressor.api",
    "load": "compressor.api",
    "Result": "compressor.api",
    "Finding": "compressor.records",
    "Plan": "compressor.records",
    "Verdict": "compressor.records",
    "CompressorError": "compressor.errors",
    "DataError": "compressor.errors",
    "ModelError": "compressor.errors",
    "SourceError": "compressor.errors",
    "UsageError": "compressor.errors",
}
__all__ = [
    "CompressorError", "DataError", "Finding", "ModelError", "Plan", "Result", "SourceError", "UsageError", "Verdict",
    "analyze", "compress", "frontier", "load", "verify",
]  # fmt: skip


class _CallableFolder(ModuleType):
    """`compressor.verify` names a folder and a public call: importing the first must not hide the second."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module(_HOMES[name]), name)(*args, **kwargs)


for _folder in ("verify", "frontier"):
    importlib.import_module(f"compressor.{_folder}").__class__ = _CallableFolder


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'compressor' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

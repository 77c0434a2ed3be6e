"""Specs that name a Python callable: `path/file.py:factory?width=2` or `package.module:factory`."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from compressor.errors import CompressorError, SourceError, UsageError

Argument = int | float | bool | str | None


@dataclass(frozen=True, slots=True)
class Factory:
    """A callable by name: what a manifest needs to find it again, and to see that it is still the same."""

    place: str
    """Absolute path of a Python file, or a dotted module name."""
    name: str
    sha256: str | None
    """Of the file's bytes; None for an installed package."""

    @property
    def is_file(self) -> bool:
        """Whether `place` is a file (and not a package's module)."""
        return self.sha256 is not None

    def load(self) -> Callable[..., Any]:
        """Imports and returns the callable; SourceError if it is missing, broken or not callable."""
        module = _module_of_file(Path(self.place)) if self.is_file else _module_of_package(self.place)
        found = getattr(module, self.name, None)
        if callable(found):
            return found
        names = [word for word, thing in vars(module).items() if callable(thing) and word[0] != "_"]
        raise SourceError(
            self.place,
            f"no callable {self.name!r}",
            f"one of {', '.join(sorted(names)[:8]) or 'its functions'}",
            meant(self.name, names) or f"define `def {self.name}():` there.",
        )

    def call(self, arguments: Mapping[str, Argument]) -> Any:
        """What the callable returns for these arguments; SourceError with the words of its own errors."""
        function = self.load()
        try:
            with _importable(self):
                return function(**arguments)
        except CompressorError:
            raise
        except Exception as error:
            given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            raise SourceError(
                f"{self.place}:{self.name}({given})",
                f"{type(error).__name__}: {error}",
                "a factory that returns when called with these arguments",
                "call it once by hand; arguments are given as `?name=value`.",
            ) from error


def split_query(spec: str) -> tuple[str, dict[str, Argument]]:
    """`name?width=2&deep=True` -> (`name`, {"width": 2, "deep": True}); values are literals or words."""
    head, mark, query = spec.partition("?")
    arguments: dict[str, Argument] = {}
    for part in query.split("&") if mark else []:
        key, equals, text = part.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(
                f"spec {spec!r}", f"argument {part!r}", "`name=value` pairs joined by `&`", f"{head}?width=2"
            )
        arguments[key] = _literal(text)
    return head, arguments


def find_factory(head: str, base: Path | None = None) -> Factory | None:
    """The factory that `path/file.py:name` or `package.module:name` means; None if it has neither form.

    A relative path is looked up from `base` (default: the working directory). SourceError for a missing file.
    """
    place, colon, name = head.rpartition(":")
    if not colon or not name.isidentifier():
        return None
    if place.endswith(".py"):
        path = (base or Path.cwd()) / Path(place).expanduser()
        if not path.is_file():
            raise SourceError(
                f"factory {head!r}",
                f"no file {path}",
                "an existing Python file",
                "check the path; a recipe's paths are relative to the recipe.",
            )
        path = path.resolve()
        return Factory(str(path), name, hashlib.sha256(path.read_bytes()).hexdigest())
    if place and all(part.isidentifier() for part in place.split(".")):
        return Factory(place, name, None)
    return None


def meant(word: str, known: list[str]) -> str:
    """`did you mean 'x'?`, or nothing."""
    close = get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def _literal(text: str) -> Argument:
    if text.lower() in ("none", "true", "false"):
        return {"none": None, "true": True, "false": False}[text.lower()]
    if len(text) > 1000:  # a word; numbers are shorter
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, int | float | str) else text


def _module_of_file(path: Path) -> ModuleType:
    text = path.read_bytes()
    name = f"compressor_file_{hashlib.sha256(str(path).encode() + text).hexdigest()[:16]}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _search_path(path.parent):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise SourceError(
            str(path),
            f"{type(error).__name__}: {error}",
            "a Python file that can be imported",
            f"run `python {path.name}` and repair what it says.",
        ) from error
    return module


def _module_of_package(name: str) -> ModuleType:
    try:
        with _search_path(Path.cwd()):
            return importlib.import_module(name)
    except Exception as error:
        raise SourceError(
            f"module {name}",
            f"{type(error).__name__}: {error}",
            "an installed package's module (or one in the working directory)",
            "install it into this environment, or give `path/file.py:factory`.",
        ) from error


@contextmanager
def _importable(factory: Factory) -> Iterator[None]:
    """A file's factory may import its neighbours also when it is called."""
    with _search_path(Path(factory.place).parent if factory.is_file else Path.cwd()):
        yield


@contextmanager
def _search_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))

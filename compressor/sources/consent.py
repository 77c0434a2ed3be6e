"""Whose code may run: what the user named, and nothing that only a file names.

A manifest or a record says which Python callable builds a network. Whoever wrote that file chose it, so it runs only if
this user named the very same callable before (the same file by its sha256, the same arguments), or consents now.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from compressor.errors import SourceError, UsageError
from compressor.sources.factories import Argument, Factory, find_factory, split_query
from compressor.sources.network import cache_folder

_MOST = 1000
"""Callables that are remembered, the newest ones."""

_NO_CODE = ("torchvision", "timm", "hf", "onnx", "imagefolder", "npz", "csv", "text", "hfdata", "webdataset")
"""Schemes of specs that name no Python code of the user's."""

_named: set[str] = set()
_consent: ContextVar[Callable[[str], None] | None] = ContextVar("consent", default=None)


@contextmanager
def trusting(consented: bool, tell: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Inside, code that a manifest or record names may run if `consented`; `tell` gets what runs, with its sha256."""
    if not consented:
        yield
        return
    token = _consent.set(tell)
    try:
        yield
    finally:
        _consent.reset(token)


def named_by_user(factory: Factory, arguments: Mapping[str, Argument]) -> None:
    """Note, for this process, that the user asked for this callable."""
    _named.add(_key(factory, arguments))


def remember(factory: Factory | None, arguments: Mapping[str, Argument]) -> None:
    """Note it for later processes of this user, too; where the cache cannot be written, consent is asked for again."""
    if factory is None:
        return
    named_by_user(factory, arguments)
    known = [key for key in _remembered() if key != _key(factory, arguments)]
    text = json.dumps([*known, _key(factory, arguments)][-_MOST:])
    partial = _book().with_name(f"{_book().name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        _book().parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(_book())


def refuse_unknown_code(source: Mapping[str, Any], named_in: str) -> None:
    """SourceError if `source` (kind, place, name, arguments) is Python code that the user has not named.

    Nor consented to, see `trusting`. Sources of a known library (torchvision), and those without code of their own,
    pass. Nothing is imported here.
    """
    kind, place = source.get("kind"), Path(str(source.get("place")))
    if kind not in ("file", "package"):
        return
    if kind == "file" and not (
        place.is_file() and hashlib.sha256(place.read_bytes()).hexdigest() == source.get("sha256")
    ):
        return  # gone, or another file: `Source.rebuild` says so, and does not run it
    refuse_unknown_factory(f"{source.get('place')}:{source.get('name')}", source.get("arguments") or {}, named_in)


def refuse_unknown_factory(
    head: str, arguments: Mapping[str, Argument], named_in: str, base: Path | None = None
) -> None:
    """The same for a spec's head, `file.py:name` or `package.module:name`; other heads name no code."""
    factory = find_factory(head, base)
    if factory is None or _key(factory, arguments) in _named or _key(factory, arguments) in _remembered():
        return
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    mark = f"sha256 {factory.sha256}" if factory.sha256 else "an installed package, or one in the working directory"
    words = f"{factory.place}:{factory.name}({given[:200]}), {mark}"
    tell = _consent.get()
    if tell is None:
        raise SourceError(
            named_in,
            f"Python code to run that you have not named yourself: {words}",
            "torchvision, or code that you named on the command line before",
            "read that code; if you trust it, add --trust-source (trust_source=True), or load(DIR, factory=callable).",
        )
    tell(words)
    named_by_user(factory, arguments)


def refuse_unknown_spec(spec: str, named_in: str, base: Path | None = None) -> None:
    """The same for a whole MODEL or DATA spec that was read from a file. SourceError for a malformed one, too."""
    try:
        head, arguments = split_query(spec)
    except UsageError as error:
        raise SourceError(named_in, error.got, error.expected, "do not use it; get it again.") from None
    folder = (base or Path.cwd()) / Path(head).expanduser()
    if head.partition(":")[0] in _NO_CODE or (folder / "manifest.json").is_file():
        return
    refuse_unknown_factory(head, arguments, named_in, base)


def refuse_unknown_of_recipe(specs: Iterable[str], recipe: str, base: Path) -> None:
    """SourceError for Python code that a recipe names and that is not the user's own, by all that can be told.

    A recipe is run for the code beside it: files in its folder, the folder above or the working directory pass.
    A file elsewhere, or an installed package (`subprocess:getoutput`), could be put to any use by who wrote the recipe.
    """
    own = {base.resolve(), base.resolve().parent, Path.cwd().resolve()}
    for spec in specs:
        head = spec.partition("?")[0]
        if head.partition(":")[0] in _NO_CODE:
            continue
        factory = find_factory(head, base)
        if factory is not None and not (factory.is_file and Path(factory.place).parent in own):
            refuse_unknown_spec(spec, f"recipe {recipe}: '{head}'", base)


def _key(factory: Factory, arguments: Mapping[str, Argument]) -> str:
    given = sorted((name, repr(value)) for name, value in arguments.items())
    parts = [factory.place, factory.name, factory.sha256 or _origin(factory.place), given]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _origin(module: str) -> str | None:
    """Where a package would be imported from (a folder of that name elsewhere is other code). Imports nothing."""
    found = PathFinder.find_spec(module.partition(".")[0], [str(Path.cwd()), *sys.path])
    return None if found is None else found.origin


def _book() -> Path:
    return cache_folder() / "named_code.json"


def _remembered() -> list[str]:
    try:
        found = json.loads(_book().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [key for key in found if isinstance(key, str)] if isinstance(found, list) else []

"""A bundle: `model.safetensors` and `manifest.json`, from which the compressed network is rebuilt. No pickle.

The manifest says where the original's code comes from and which widths differ; the safetensors file holds
every number of the state dict in its own dtype. A tensor with several names is stored once, the other names
stand under `tied` in the manifest and are tied again on loading; tensors that merely share memory are stored
apart.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from compressor.computed import plain_names
from compressor.errors import ModelError, SourceError, UsageError
from compressor.export.files import replacing, to_json, write_json
from compressor.export.manifest import MANIFEST, WEIGHTS, Manifest, Weights, read_manifest
from compressor.export.widths import compare, different, rebuild, resized, tensors, with_forms
from compressor.records import SCHEMA_VERSION
from compressor.recurrent.known import rolled_names
from compressor.sources.accept import same_random_state
from compressor.sources.consent import refuse_unknown_code
from compressor.sources.models import Source
from compressor.units.heads import attentions

SourceLoader = Callable[[dict[str, Any]], nn.Module]
"""The `source` of a manifest -> the original's architecture, with any weights."""


def build_source(plain: dict[str, Any]) -> nn.Module:
    """The default SourceLoader: see `compressor.sources.models.Source`.

    SourceError for a faulty one, and for Python code that the user has neither named nor consented to.
    """
    known = {field.name for field in fields(Source)}
    try:
        if not plain.keys() <= known:
            raise ValueError(f"unknown: {', '.join(sorted(plain.keys() - known))}")
        source: Source = TypeAdapter(Source).validate_python(plain)
    except ValueError as error:  # pydantic's errors are such, too
        raise SourceError(
            "manifest, source",
            " ".join(str(error).split())[:300],
            "spec, kind, place, name, arguments and sha256",
            "call load(DIR, factory=callable) with the function that builds the original.",
        ) from None
    refuse_unknown_code(plain, "manifest, source")
    return source.rebuild()


def save_bundle(
    folder: str | Path,
    small: nn.Module,
    original: nn.Module,
    source: Mapping[str, Any],
    source_loader: SourceLoader = build_source,
) -> Manifest:
    """Write both files of a bundle, each atomically; returns the manifest. The models stay as they are.

    `source` is plain JSON data from which `source_loader` makes `original`'s architecture again. Where it is
    a bundle itself, the new one is written relative to that bundle's own source and needs its folder no more.
    Raises ModelError if `small` cannot be rebuilt from `original` by widths alone, UsageError if nothing can
    be written there.
    """
    folder = Path(folder)
    if source.get("kind") == "bundle":
        first = read_manifest(str(source.get("place")))
        source, original = first.source, source_loader(dict(first.source))
    stored, tied, transient = _contents(small, original)
    known = set(attentions(original))
    attention = [name for name in attentions(small) if name not in known]
    recurrent = [name for name in rolled_names(small) if name not in rolled_names(original)]
    plain = plain_names(original, small)
    original = with_forms(original, attention, recurrent, plain)
    widths = compare(original, small)
    left = compare(resized(original, widths), small)
    if not left.empty:
        raise ModelError(
            "the compressed network",
            f"a network that its widths do not rebuild ({left.model_dump(exclude_defaults=True)})",
            "one that differs from its original in widths only",
            "save it yourself with torch.save, and report this.",
        )
    with replacing(folder / WEIGHTS) as partial:
        try:
            save_file(stored, partial, metadata={"format": "pt"})
        except SafetensorError as error:
            raise UsageError(
                f"writing '{folder / WEIGHTS}'",
                str(error),
                "a folder with enough space",
                "make space and try again.",
            ) from None
        weights = Weights(file=WEIGHTS, sha256=_sha256(partial), bytes=partial.stat().st_size)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        source=json.loads(to_json(source)),
        weights=weights,
        widths=widths,
        attention=attention,
        recurrent=recurrent,
        plain=plain,
        tied=tied,
        transient=transient,
    )
    write_json(folder / MANIFEST, manifest.model_dump())
    return manifest


def load_bundle(
    folder: str | Path,
    factory: Callable[..., nn.Module] | None = None,
    source_loader: SourceLoader = build_source,
) -> nn.Module:
    """The compressed network of a bundle, in eval mode on the CPU, every tensor as it was saved.

    The original's architecture comes from `factory` if given (called with the source's arguments, as in
    `file.py:net?width=2`, if it takes them), else from `source_loader(manifest.source)`. Raises SourceError
    for a missing or damaged file, a manifest that does not fit its tensors, and a source that makes another
    network; all before memory is taken.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    path = folder / WEIGHTS
    _check_file(path, manifest.weights)
    header = _header(path)
    _check_shapes(manifest, {name: entry[0] for name, entry in header.items()}, path)
    with same_random_state():  # the weights that it draws are replaced
        original = source_loader(dict(manifest.source)) if factory is None else _call(factory, manifest.source)
    if not isinstance(original, nn.Module):
        raise SourceError(
            f"the factory for '{folder}'",
            f"a {type(original).__name__}",
            "an nn.Module",
            "return the network.",
        )
    module = rebuild(original, manifest)
    _check_names(module, manifest, header, path)
    _assign(module, manifest, path)
    return module.eval()


def _call(factory: Callable[..., nn.Module], source: Mapping[str, Any]) -> nn.Module:
    arguments = source.get("arguments")
    if isinstance(arguments, dict) and arguments:
        try:
            inspect.signature(factory).bind(**arguments)
        except (TypeError, ValueError):
            return factory()
        return factory(**arguments)
    return factory()


def _contents(small: nn.Module, original: nn.Module) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """What goes into the file by name; the further names of tensors; buffers outside the state dict."""
    state = small.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"state '{name}'", f"a {type(value).__name__}", "tensors only", "bundles hold no other state."
            )
    old = tensors(original)
    transient = [
        name
        for name, value in sorted(small.named_buffers(remove_duplicate=False))
        if name not in state and not (name in old and _equal(value, old[name]))
    ]
    state.update({name: small.get_buffer(name) for name in transient})
    first: dict[tuple[Any, ...], str] = {}
    stored: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, value in state.items():
        view = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and view in first:
            tied[name] = first[view]
            continue
        first[view] = name
        stored[name] = value.detach().to("cpu", copy=True).contiguous()  # a copy shares no memory with another
    return stored, tied, transient


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.cpu(), other.cpu())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _damaged(path: Path, got: str, expected: str) -> SourceError:
    return SourceError(
        f"'{path}'",
        got,
        expected,
        "get the bundle again, or make it again with `compressor compress --resume`.",
    )


def _check_file(path: Path, weights: Weights) -> None:
    try:
        size = path.stat().st_size
        if size != weights.bytes:
            raise _damaged(path, f"{size} bytes", f"the {weights.bytes} bytes of its manifest")
        digest = _sha256(path)
    except OSError as error:
        raise _damaged(path, error.strerror or str(error), "the weights of the bundle") from None
    if digest != weights.sha256:
        raise _damaged(path, f"sha256 {digest[:12]}...", f"sha256 {weights.sha256[:12]}... of its manifest")


def _header(path: Path) -> dict[str, tuple[list[int], bool]]:
    """Shape, and whether the numbers are floating, of each tensor of the file; none is read."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no dict)
            return {
                name: (list(part.get_shape()), part.get_dtype().startswith(("F", "BF", "C")))
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error), "a safetensors file") from None


def _check_shapes(manifest: Manifest, shapes: dict[str, list[int]], path: Path) -> None:
    """The manifest speaks of the tensors in the file."""
    widths, known = manifest.widths, {**{name: name for name in shapes}, **manifest.tied}
    said = {name: change.after for name, change in widths.changed.items()}
    said.update({name: added.shape for name, added in widths.added.items()})
    for name, shape in said.items():
        got = shapes.get(known.get(name, ""))
        if got is not None and got != shape:
            raise _damaged(path, f"'{name}' of shape {got}", f"shape {shape}, as its manifest says")
    needed = [known.get(name, name) for name in [*widths.added, *manifest.transient]]
    for name in [*needed, *manifest.tied.values()]:
        if name not in shapes:
            raise _damaged(path, f"no tensor '{name}'", "every tensor that its manifest names")
    for name in [*widths.removed, *manifest.tied]:
        if name in shapes:
            raise _damaged(path, f"a tensor '{name}'", "none of that name, as its manifest says")


def _check_names(module: nn.Module, manifest: Manifest, header: dict[str, Any], path: Path) -> None:
    """Strict: the file's tensors are the network's, no more and no less, each of its shape and kind."""
    wanted: dict[str, Tensor] = dict(module.state_dict())
    buffers = dict(module.named_buffers(remove_duplicate=False))
    for name in manifest.transient:
        if name not in buffers or name in wanted:
            raise different(f"tensor '{name}'", "no buffer outside the state dict", "one of that name")
        wanted[name] = buffers[name]
    given = {**header, **{name: header[stored] for name, stored in manifest.tied.items()}}
    for title, names in (
        ("missing", wanted.keys() - given.keys()),
        ("unexpected", given.keys() - wanted.keys()),
    ):
        if names:
            raise different(f"tensors of '{path}'", f"{title}: {_some(names)}", "the tensors of the network")
    for name, tensor in wanted.items():
        got = (list(tensor.shape), tensor.is_floating_point() or tensor.is_complex())
        if given[name] != got:
            said = [f"shape {shape}, {'' if floats else 'not '}floating" for shape, floats in (got, given[name])]
            raise different(f"tensor '{name}'", said[0], f"{said[1]}, as in '{path}'")


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _assign(module: nn.Module, manifest: Manifest, path: Path) -> None:
    with safe_open(path, framework="pt") as file:  # cloned: the model must not depend on a mapped file
        found: dict[str, Tensor] = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name in set(manifest.tied.values()) & parameters.keys():
        found[name] = nn.Parameter(found[name], parameters[name].requires_grad)
    for name, stored in manifest.tied.items():
        found[name] = found[stored] if name in parameters else found[stored].detach()
    for name in manifest.transient:
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner)._buffers[leaf] = found.pop(name)
    try:
        module.load_state_dict(found, strict=True, assign=True)
    except RuntimeError as error:  # a module with a loading rule of its own
        raise different(f"tensors of '{path}'", str(error), "a network that takes them") from None

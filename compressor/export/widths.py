"""Widths: how a compressed network differs in shape from its original, and how to make one from the other."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compressor.attention.known import rewritten
from compressor.computed import copy_of, made_plain
from compressor.errors import ModelError, SourceError
from compressor.export.manifest import (
    Added,
    Attribute,
    AttributeChange,
    Change,
    Manifest,
    Widths,
    parse_manifest,
)
from compressor.recurrent.known import with_rolled

ATTRIBUTES: tuple[str, ...] = get_args(Attribute)


def compare(original: nn.Module, small: nn.Module) -> Widths:
    """All differences in shape between two networks of the same modules; neither is changed.

    Raises ModelError if modules came, went or changed their class, or if an integer that a bundle does not
    carry differs in a torch layer: such a network could not be rebuilt.
    """
    _same_modules(original, small)
    old, new = tensors(original), tensors(small)
    parameters = dict(small.named_parameters(remove_duplicate=False))
    return Widths(
        changed={
            name: Change(before=list(old[name].shape), after=list(new[name].shape))
            for name in sorted(old.keys() & new.keys())
            if old[name].shape != new[name].shape
        },
        added={
            name: Added(shape=list(new[name].shape), kind="parameter" if name in parameters else "buffer")
            for name in sorted(new.keys() - old.keys())
        },
        removed=sorted(old.keys() - new.keys()),
        attributes=_attributes(original, small),
    )


def rebuild(original: nn.Module, manifest: Manifest | Mapping[str, Any]) -> nn.Module:
    """A copy of `original` with the manifest's widths; resized tensors are zeros of the old dtype and device.

    Raises SourceError if `original` is not the network the manifest was made from (shapes or integers differ,
    names are missing), or if the result would be larger than added biases can explain.
    """
    if not isinstance(manifest, Manifest):
        manifest = parse_manifest(manifest)
    return resized(with_forms(original, manifest.attention, manifest.recurrent, manifest.plain), manifest.widths)


def with_forms(
    original: nn.Module, attention: Sequence[str], recurrent: Sequence[str], plain: Mapping[str, str]
) -> nn.Module:
    """A copy with these attention modules in dense form, these recurrent layers as `Rolled` and these layers that
    compute their weights as plain ones of a kind; the same object without names.

    Raises SourceError where one of them has no such form.
    """
    try:
        original = made_plain(copy_of(original), plain) if plain else original
    except (AttributeError, ValueError) as error:
        raise different("computed weights", str(error), "layers by these names that compute theirs") from None
    try:
        made = rewritten(copy.deepcopy(original), list(attention)) if attention else original
    except (AttributeError, ValueError) as error:
        raise different("attention", str(error), "attention modules by these names") from None
    try:
        return with_rolled(made, recurrent)
    except (AttributeError, ValueError) as error:
        raise different("recurrent layers", str(error), "recurrent layers by these names") from None


def resized(original: nn.Module, widths: Widths) -> nn.Module:
    """See `rebuild`."""
    _check(original, widths)
    module = copy_of(original)
    made: dict[int, Tensor] = {}  # one new tensor for one old one, so that tied tensors stay tied
    for name, change in widths.changed.items():
        _resize(module, name, change.after, made)
    for name, added in widths.added.items():
        owner, leaf = _owner(module, name)
        like = next((p for p in owner.parameters(recurse=False)), None)
        fresh = torch.zeros(added.shape) if like is None else like.detach().new_zeros(added.shape)
        if added.kind == "parameter":
            owner._parameters[leaf] = nn.Parameter(fresh)
        else:
            owner._buffers[leaf] = fresh
    for name in widths.removed:
        owner, leaf = _owner(module, name)
        (owner._parameters if leaf in owner._parameters else owner._buffers)[leaf] = None
    modules = dict(module.named_modules(remove_duplicate=False))
    for path, changes in widths.attributes.items():
        for attribute, change in changes.items():
            kind = type(getattr(modules[path], attribute))
            after = change.after if isinstance(change.after, int) else kind(change.after)
            setattr(modules[path], attribute, after)
    return module


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all their names, also buffers that are no part of the state dict."""
    found: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    found.update(module.named_buffers(remove_duplicate=False))
    return found


def different(what: str, got: str, expected: str) -> SourceError:
    """The error for a source that no longer makes the network of the manifest."""
    return SourceError(
        f"source of the bundle, {what}",
        got,
        expected,
        "use the code, the arguments and the library version that the bundle was made with.",
    )


def _same_modules(original: nn.Module, small: nn.Module) -> None:
    old, new = (dict(one.named_modules(remove_duplicate=False)) for one in (original, small))
    for name in sorted(old.keys() | new.keys()):
        if _kind(old.get(name)) != _kind(new.get(name)):
            got, expected = (_class_name(found.get(name)) for found in (new, old))
            raise ModelError(
                f"module '{name}'",
                got,
                expected,
                "save only networks made of the same modules as their original.",
            )


def _kind(module: nn.Module | None) -> object:
    """What the same modules have in common: the class, or of torch.fx graphs, each of a class of its own, the code."""
    return module.code if isinstance(module, GraphModule) else None if module is None else type(module)


def _class_name(module: nn.Module | None) -> str:
    return "no such module" if module is None else f"a {type(module).__name__}"


def _attributes(original: nn.Module, small: nn.Module) -> dict[str, dict[Attribute, AttributeChange]]:
    found: dict[str, dict[Attribute, AttributeChange]] = {}
    modules = dict(small.named_modules(remove_duplicate=False))
    for path, old in original.named_modules(remove_duplicate=False):
        for name, value in vars(old).items():
            before, after = _integers(value), _integers(vars(modules[path]).get(name))
            if before is None or after is None or before == after:
                continue
            if name in ATTRIBUTES:
                found.setdefault(path, {})[cast(Attribute, name)] = AttributeChange(before=before, after=after)
            elif type(old).__module__.startswith("torch.nn.") and not name.startswith("_"):
                raise ModelError(
                    f"module '{path}'",
                    f"{name} = {after}",
                    f"{name} = {before}",
                    "leave this value unchanged.",
                )
    return found


def _integers(value: object) -> int | list[int] | None:
    if isinstance(value, (tuple, list)) and value and all(type(item) is int for item in value):
        return list(value)
    return value if type(value) is int else None


def _check(original: nn.Module, widths: Widths) -> None:
    """Everything that can be wrong, found before any memory is taken."""
    present = tensors(original)
    for name, change in widths.changed.items():
        _expect(name, present.get(name), change.before)
    for name in widths.removed:
        if name not in present:
            raise different(f"tensor '{name}'", "no such tensor", "a tensor that the compressed network has not")
    for name in widths.added:
        owner, leaf = _owner(original, name)
        slots = {**owner._parameters, **owner._buffers}
        if leaf not in slots or slots[leaf] is not None:
            raise different(f"tensor '{name}'", "no free place for it", "a layer without it, such as bias=None")
    modules = dict(original.named_modules(remove_duplicate=False))
    for path, changes in widths.attributes.items():
        for attribute, change in changes.items():
            got = _integers(vars(modules[path]).get(attribute)) if path in modules else None
            if got != change.before or type(change.before) is not type(change.after):
                raise different(f"module '{path}'", f"{attribute} = {got}", f"{attribute} = {change.before}")
    new = sum(math.prod(c.after) for c in widths.changed.values())
    new += sum(math.prod(a.shape) for a in widths.added.values())
    old = sum(tensor.numel() for tensor in present.values())
    if new > 2 * old:  # a bias is never larger than its weight, and nothing else grows
        raise SourceError(
            "manifest, widths",
            f"tensors of {new} numbers",
            f"a network no larger than its original ({old} numbers) and biases",
            "do not use this bundle; get it again from where it was made.",
        )


def _expect(name: str, tensor: Tensor | None, shape: list[int]) -> None:
    if tensor is None:
        raise different(f"tensor '{name}'", "no such tensor", f"shape {shape}")
    if list(tensor.shape) != shape:
        raise different(f"tensor '{name}'", f"shape {list(tensor.shape)}", f"shape {shape}")


def _owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that owns a tensor, and the tensor's own name; found in the tree of modules only."""
    *path, leaf = name.split(".")
    module: nn.Module | None = root
    for part in path:
        module = module._modules.get(part) if module is not None else None
    if module is None:
        raise different(f"tensor '{name}'", "no module of that name", "a tensor of the network")
    return module, leaf


def _resize(root: nn.Module, name: str, shape: list[int], made: dict[int, Tensor]) -> None:
    owner, leaf = _owner(root, name)
    place: dict[str, Any] = owner._parameters if leaf in owner._parameters else owner._buffers
    old: Tensor = place[leaf]
    if any(old is new for new in made.values()):
        return  # a shared module, met under its other name
    if id(old) not in made:
        fresh = old.detach().new_zeros(shape)
        made[id(old)] = nn.Parameter(fresh, old.requires_grad) if isinstance(old, nn.Parameter) else fresh
    place[leaf] = made[id(old)]

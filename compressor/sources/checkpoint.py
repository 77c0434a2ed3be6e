"""Checkpoints: safetensors or `torch.save` files -> named tensors -> a model, all of them or none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from compressor.errors import SourceError
from compressor.sources.pickles import damaged, first_of, read_torch

_WRAPPERS = (
    *("model_ema", "state_dict_ema", "ema_state_dict", "ema"),
    *("state_dict", "model_state_dict", "model", "net", "network", "weights"),
)
"""Where training scripts put the state dict; averaged weights first: they are what gets evaluated."""

_COUNTER = "num_batches_tracked"
_PREFIXES = ("module.", "_orig_mod.", "model.")


class State(dict[str, Tensor]):
    """A checkpoint's tensors by name; `note` says which set of weights that is, where the file holds several."""

    note: str | None = None


def load_state(path: str | Path) -> State:
    """A checkpoint's tensors by name, unwrapped and without `module.` / `_orig_mod.` / `model.` prefixes.

    Raises SourceError for a missing, truncated or foreign file, for a pickle that holds code (which is not
    run) and for a whole pickled module.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no such file"
        raise SourceError(f"checkpoint {path}", kind, "a .safetensors, .pt, .pth or .bin file", "check the path.")
    loaded = _read_safetensors(path) if _looks_like_safetensors(path) else read_torch(path)
    tensors, others = _unwrap(loaded, path)
    state = State(_without_prefixes(tensors, path))
    if others:
        state.note = (
            f"The checkpoint {path.name} holds several sets of weights: {others[0]!r} was taken, not "
            f"{first_of([repr(name) for name in others[1:]])}. To take another, save it in a file of its own."
        )
    return state


def apply_state(model: nn.Module, state: Mapping[str, Tensor], where: str = "checkpoint") -> None:
    """Loads every weight of `model` from `state`, all or nothing.

    A common prefix is added or removed only if then every name matches. Raises SourceError that names
    missing, unexpected and wrong-shape keys, or weights that are not finite; the model is then as it was.
    """
    own = model.state_dict()
    state = _fitted_names(dict(state), list(own))
    missing = [key for key in own if key not in state and not _may_miss(key, own, state)]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and isinstance(own[key], Tensor) and state[key].shape != own[key].shape
    ]
    problems = [("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes)]
    if any(keys for _, keys in problems):
        raise SourceError(
            where,
            "; ".join(f"{len(keys)} {kind}: {first_of(keys)}" for kind, keys in problems if keys),
            f"exactly the {len(own)} weights of {type(model).__name__}",
            "build the network that this checkpoint was saved from (factory arguments: `?width=...`).",
        )
    broken = [key for key, value in state.items() if value.is_floating_point() and not _finite(value)]
    if broken:
        raise SourceError(
            where,
            f"{len(broken)} weights with NaN or infinite values: {first_of(broken)}",
            "finite weights",
            "use an earlier checkpoint; this training run diverged.",
        )
    model.load_state_dict(state, strict=False)


def file_sha256(path: Path) -> str:
    """sha256 of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def refuse_changed(path: Path, sha256: object, expected: str, next_step: str) -> None:
    """SourceError if the file is gone, or is another one than that of this sha256."""
    there = path.is_file()
    if not there or file_sha256(path) != sha256:
        got = "a file that has changed since" if there else "no such file"
        raise SourceError(str(path), got, expected, next_step)


def weights_sha256(model: nn.Module) -> str:
    """sha256 of every parameter and buffer: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _looks_like_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    return path.suffix == ".safetensors" or (len(head) == 9 and head[8:9] == b"{" and head[:2] != b"PK")


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise damaged(path, str(error)) from error


def _unwrap(loaded: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Follows the usual wrapper keys down to the dict of tensors; also the key that was followed and those beside it
    that lead to as much, if there are any."""
    choice: list[str] = []
    for _ in range(4):
        if not isinstance(loaded, Mapping):
            break
        tensors = {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
        if tensors and len(tensors) == sum(not str(key).endswith("_extra_state") for key in loaded):
            return tensors, choice
        inner = next((key for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            break
        choice = choice or _sets(loaded, inner)
        loaded = loaded[inner]
    keys = first_of([str(key) for key in loaded]) if isinstance(loaded, Mapping) else ""
    raise SourceError(
        f"checkpoint {path}",
        f"a {type(loaded).__name__}{f' with keys {keys}' if keys else ''}",
        f"a state dict (names -> tensors), or one under {', '.join(map(repr, _WRAPPERS[4:7]))}, ...",
        "save model.state_dict() by itself.",
    )


def _sets(loaded: Mapping[Any, Any], taken: str) -> list[str]:
    """The key `taken` and those of other sets of weights (half as many tensors, or more); nothing where it is alone."""
    least = max(1, _tensors(loaded[taken]) / 2)
    others = [str(key) for key, value in loaded.items() if key != taken and _tensors(value) >= least]
    return [taken, *others] if others else []


def _tensors(value: Any, depth: int = 3) -> int:
    """How many tensors lie in a dict, or under its usual wrapper keys (files can hold dicts that hold themselves)."""
    if not isinstance(value, Mapping) or not depth:
        return 0
    own = sum(isinstance(one, Tensor) for one in value.values())
    return own or max((_tensors(value[key], depth - 1) for key in _WRAPPERS if key in value), default=0)


def _without_prefixes(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    if not state:
        raise SourceError(f"checkpoint {path}", "0 tensors", "a state dict", "save model.state_dict().")
    averaged = {key for key in state if key == "n_averaged"}  # AveragedModel counts its updates
    names = [key for key in state if key not in averaged]
    for _ in range(4):
        prefix = next((one for one in _PREFIXES if names and all(key.startswith(one) for key in names)), None)
        if prefix is None:
            return state
        state = {key.removeprefix(prefix): value for key, value in state.items() if key not in averaged}
        names, averaged = list(state), set()
    return state


def _fitted_names(state: dict[str, Tensor], own: Sequence[str]) -> dict[str, Tensor]:
    """`state` under the model's names, if the common prefixes explain the whole difference; else as it is."""
    theirs, ours = _common_prefix(list(state)), _common_prefix(own)
    renamed = {ours + key[len(theirs) :]: value for key, value in state.items()}
    return renamed if _weights(renamed) == _weights(own) else state


def _common_prefix(names: Sequence[str]) -> str:
    """The leading `a.b.` that all names share."""
    length = 0
    for level in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(level)) > 1:
            break
        length += len(level[0]) + 1
    return names[0][:length] if names else ""


def _weights(names: Iterable[str]) -> set[str]:
    return {name for name in names if not name.endswith(_COUNTER)}


def _may_miss(key: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    """Counters of old checkpoints, and the second name of a tied weight (safetensors keeps only one)."""
    if key.endswith(_COUNTER):
        return True
    twins = [name for name in own if name != key and _same_memory(own[name], own[key])]
    return any(name in state for name in twins)


def _same_memory(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape:
        return False
    return one.numel() > 0 and one.data_ptr() == other.data_ptr() and one.stride() == other.stride()


def _finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())

"""What a network answers: its tensors by name, and which of them is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_leaves

from compressor.errors import ModelError


class Judged(NamedTuple):
    """The tensor that is judged, in words which it is, and whether its classes were last and were moved."""

    part: Tensor
    words: str
    moved: bool = False


def judged_part(answer: Any) -> Judged:
    """What is judged of an answer: `logits` of a dict or record, else the first floating tensor.

    Scores of classes have them in dimension 1 (see `classes_second`). Raises ModelError where there is none.
    """
    if isinstance(answer, Tensor):
        return Judged(answer, "the output")
    kind, items = type(answer).__name__, _items(answer)
    named = _named(items)
    name = primary({name: tensor.is_floating_point() for name, tensor in named.items()}) if named else ""
    if name == "logits":
        found = classes_second(name, named[name])
        moved = found is not named[name]
        words = f"'logits' of the output ({kind}){', classes in its last dimension' if moved else ''}"
        return Judged(found, words, moved)
    if not named or not named[name].is_floating_point():
        raise ModelError(
            "output of the network",
            f"a {kind} without a floating tensor",
            "a tensor of scores, or a tuple, dict or record with one",
            "return the scores; name them 'logits' where there are several tensors",
        )
    place = f"'{name}'" if items[0][0] else f"tensor {list(named).index(name)}"
    return Judged(named[name], f"{place} of the output ({kind}), its first floating tensor")


def classes_second(name: str, answer: Tensor) -> Tensor:
    """An answer with its classes in dimension 1: `logits` of three dimensions are (n, positions, classes), as those of
    transformers that answer at every token.
    """
    return answer.movedim(-1, 1) if name == "logits" and answer.ndim == 3 else answer


def as_answered(part: Tensor, moved: bool) -> Tensor:
    """What `judged_part` gave, in the order of dimensions that the network answered in."""
    return part.movedim(1, -1) if moved else part


def named_outputs(outputs: Any) -> dict[str, Tensor]:
    """Every tensor of an output by name: its key or field, where there is none `output`, `output_1`, ..."""
    found = _named(_items(outputs))
    if not found:
        raise ModelError(
            "output of the network", f"a {type(outputs).__name__} without a tensor", "a tensor", "return one."
        )
    return found


def primary(outputs: Mapping[str, bool]) -> str:
    """The name of the output that is judged: `logits`, else the first that floats (a True value)."""
    if "logits" in outputs:
        return "logits"
    return next((name for name, floats in outputs.items() if floats), next(iter(outputs)))


def _named(items: list[tuple[str, Any]]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in items:
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor):
                name = key or (f"output_{len(found)}" if found else "output")
                found[name if name not in found else f"{name}_{len(found)}"] = leaf
    return found


def _items(outputs: Any) -> list[tuple[str, Any]]:
    """What an output consists of, by name (`""` where there is none)."""
    if isinstance(outputs, Mapping):
        return [(str(key), value) for key, value in outputs.items()]
    if is_dataclass(outputs) and not isinstance(outputs, type):
        return [(field.name, getattr(outputs, field.name)) for field in fields(outputs)]
    names = getattr(outputs, "_fields", None)  # of a named tuple
    if isinstance(outputs, tuple) and names is not None:
        return list(zip(names, outputs, strict=True))
    logits = getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return [("logits", logits)]
    return [("", outputs)]

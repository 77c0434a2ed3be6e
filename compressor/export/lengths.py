"""Networks that read tokens: whether a file takes texts of other lengths than those it was made with."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch

from compressor.export.inputs import Inputs, leaves, mapped
from compressor.foreign.files import LENGTH


def tokens_of(inputs: Inputs) -> int | None:
    """How many tokens each sample has: whole numbers (n, tokens), with nothing beside them but more of that kind and
    one number for each sample; None for other inputs."""
    given = leaves(inputs)
    wide = [leaf for leaf in given if leaf.dim() > 1]
    counts = {leaf.shape[1] for leaf in wide}
    plain = all(leaf.dim() == 2 and not (leaf.is_floating_point() or leaf.is_complex()) for leaf in wide)
    return counts.pop() if plain and len(counts) == 1 and max(counts) > 1 else None


def cut_short(inputs: Inputs) -> Inputs:
    """The first half of the tokens of each sample."""
    count = tokens_of(inputs) or 0
    return mapped(lambda leaf: leaf[:, : max(1, count // 2)] if leaf.dim() > 1 else leaf, inputs)


def free_axes(leaf: torch.Tensor, batch: object, length: object | None) -> dict[int, object]:
    """Axes of an input whose size is left open."""
    return {0: batch} if length is None or leaf.dim() < 2 else {0: batch, 1: length}


def note_length(file: Path, count: int) -> None:
    """Write into the file how many tokens its inputs had, for whoever times it."""
    model = onnx.load(str(file), load_external_data=False)
    onnx.helper.set_model_props(model, {LENGTH: str(count)})
    onnx.save(model, str(file))

"""Operators of ONNX with weights or windows: convolutions, products, norms, pooling, resizing."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional

from compressor.foreign.building import Building
from compressor.foreign.operators import rule


def windows(at: Building, node: onnx.NodeProto, given: dict[str, Any], kernel: list[int]) -> tuple[Any, list[int], Any]:
    """Strides, dilations and paddings `[begin..., end...]` of a convolution or pool."""
    rank = len(kernel)
    strides, dilations = given.get("strides", [1] * rank), given.get("dilations", [1] * rank)
    kind = given.get("auto_pad", "NOTSET")
    if kind in ("NOTSET", ""):
        return strides, dilations, list(given.get("pads", [0] * 2 * rank))
    if kind == "VALID":
        return strides, dilations, [0] * 2 * rank
    sizes = at.shape(node.input[0])[2:]
    spans = [dilation * (k - 1) + 1 for dilation, k in zip(dilations, kernel, strict=True)]
    total = [max(0, (-(-n // s) - 1) * s + span - n) for n, s, span in zip(sizes, strides, spans, strict=True)]
    less, more = [n // 2 for n in total], [n - n // 2 for n in total]
    return strides, dilations, less + more if kind == "SAME_UPPER" else more + less


def padded(
    at: Building, x: Any, pads: list[int], value: float = 0.0, most: list[int] | None = None
) -> tuple[Any, list[int]]:
    """`x` and the symmetric padding that is left to do: a border that is not symmetric, or wider than `most`, is put on
    first."""
    half = len(pads) // 2
    if pads[:half] == pads[half:] and all(pad <= top for pad, top in zip(pads, most or pads[:half], strict=False)):
        return x, pads[:half]
    ordered = [pads[place + side] for place in reversed(range(half)) for side in (0, half)]
    return at.call(functional.pad, x, ordered, mode="constant", value=value), [0] * half


@rule("Conv")
def conv(at: Building, node: onnx.NodeProto, given: dict[str, Any]) -> Any:
    """Convolutions over one to three axes."""
    weight = at.parameter(node.input[1], node)
    kernel = list(weight.shape[2:])
    kinds = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    if len(kernel) not in kinds:
        raise at.refuse(node, "one to three axes")
    strides, dilations, pads = windows(at, node, given, kernel)
    x, rest = padded(at, at.value(node.input[0]), pads)
    groups, biased = given.get("group", 1), len(node.input) > 2 and bool(node.input[2])
    layer = kinds[len(kernel)](
        weight.shape[1] * groups, weight.shape[0], tuple(kernel), tuple(strides), tuple(rest), tuple(dilations), groups,
        bias=biased, device="meta",
    )  # fmt: skip
    layer.weight = weight
    layer.bias = at.parameter(node.input[2], node) if biased else None
    return at.layer(layer, node.input[1], x)


@rule("ConvTranspose")
def conv_transpose(at: Building, node: onnx.NodeProto, given: dict[str, Any]) -> Any:
    """Transposed convolutions with symmetric padding."""
    weight = at.parameter(node.input[1], node)
    kernel = list(weight.shape[2:])
    rank = len(kernel)
    kinds = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
    pads = list(given.get("pads", [0] * 2 * rank))
    if rank not in kinds or given.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or pads[:rank] != pads[rank:]:
        raise at.refuse(node, "symmetric padding, over one to three axes")
    strides, dilations = given.get("strides", [1] * rank), given.get("dilations", [1] * rank)
    sizes = zip(at.shape(node.input[0])[2:], at.shape(node.output[0])[2:], strides, strict=True)
    spans = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilations, kernel, pads, strict=False)]
    extra = [after - (before - 1) * s - span for (before, after, s), span in zip(sizes, spans, strict=True)]
    if any(not 0 <= more < max(s, d) for more, s, d in zip(extra, strides, dilations, strict=True)):
        raise at.refuse(node, "an output that is at most a stride larger than what the windows reach, and no smaller")
    groups, biased = given.get("group", 1), len(node.input) > 2 and bool(node.input[2])
    layer = kinds[rank](
        weight.shape[0], weight.shape[1] * groups, tuple(kernel), tuple(strides), tuple(pads[:rank]), tuple(extra),
        groups, biased, tuple(dilations), device="meta",
    )  # fmt: skip
    layer.weight = weight
    layer.bias = at.parameter(node.input[2], node) if biased else None
    return at.layer(layer, node.input[1], at.value(node.input[0]))


@rule("Gemm", "MatMul")
def product(at: Building, node: onnx.NodeProto, given: dict[str, Any]) -> Any:
    """A linear layer where the second factor is a constant matrix."""
    x, second = node.input[0], node.input[1]
    constant = second in at.measured.static and len(at.shape(second)) == 2 and x not in at.measured.static
    if node.op_type == "MatMul" and not constant:
        return at.call(torch.matmul, at.value(x), at.value(second))
    if not constant or given.get("transA") or given.get("alpha", 1.0) != 1 or given.get("beta", 1.0) != 1:
        raise at.refuse(node, "a constant matrix, and no factors")
    weight = at.parameter(second, node, turn=not given.get("transB"))
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = weight
    added = node.input[2] if len(node.input) > 2 else ""
    if added and at.shape(added) == (weight.shape[0],):
        layer.bias, added = at.parameter(added, node), ""
    answer = at.layer(layer, second, at.value(x))
    return at.call(operator.add, answer, at.value(added)) if added else answer


@rule("BatchNormalization")
def batch_norm(at: Building, node: onnx.NodeProto, given: dict[str, Any]) -> Any:
    """With the statistics of the file."""
    names, rank = node.input[1:5], len(at.shape(node.input[0]))
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    if given.get("training_mode") or rank not in kinds:
        raise at.refuse(node, "a norm in eval mode, of two to five axes")
    layer = kinds[rank](at.shape(names[0])[0], eps=given.get("epsilon", 1e-5))
    layer.weight, layer.bias = at.parameter(names[0], node), at.parameter(names[1], node)
    layer.running_mean, layer.running_var = (torch.from_numpy(np.array(at.static(n, node))) for n in names[2:])
    return at.layer(layer, names[0], at.value(node.input[0]))


@rule("LayerNormalization", "InstanceNormalization", "GroupNormalization")
def norm(at: Building, node: onnx.NodeProto, given: dict[str, Any]) -> Any:
    """Norms that take their statistics from each sample."""
    x, size, eps = at.value(node.input[0]), at.shape(node.input[0]), given.get("epsilon", 1e-5)
    weight = at.parameter(node.input[1], node)
    biased = len(node.input) > 2 and bool(node.input[2])
    if node.op_type == "LayerNormalization":
        axis = given.get("axis", -1) % len(size)
        if tuple(weight.shape) != size[axis:] or any(node.output[1:]):
            raise at.refuse(node, "one weight for each entry, and one output")
        layer: Any = nn.LayerNorm(list(size[axis:]), eps=eps, bias=biased)
    else:
        groups = size[1] if node.op_type == "InstanceNormalization" else given["num_groups"]
        if weight.shape != (size[1],):
            raise at.refuse(node, "one weight for each channel")
        layer = nn.GroupNorm(groups, size[1], eps=eps)
    layer.weight = weight
    if biased:
        layer.bias = at.parameter(node.input[2], node)
    return at.layer(layer, node.input[1], x)


@rule("MaxPool", "AveragePool")
def pool(at: Building, node: onnx.NodeProto, given: dict[str, Any]) -> Any:
    """Windows over one to three axes."""
    kernel = list(given["kernel_shape"])
    rank, largest = len(kernel), node.op_type == "MaxPool"
    if rank > 3 or any(node.output[1:]):
        raise at.refuse(node, "one to three axes, and one output")
    strides, dilations, pads = windows(at, node, given, kernel)
    half = [(dilation * (k - 1) + 1) // 2 for dilation, k in zip(dilations, kernel, strict=True)]  # torch takes no more
    even = pads[:rank] == pads[rank:] and all(pad <= top for pad, top in zip(pads, half, strict=False))
    counted = bool(given.get("count_include_pad", 0))
    if (not largest and not even and not counted) or (not largest and set(dilations) != {1}):
        raise at.refuse(node, "a symmetric border of at most half a window, and windows without gaps")
    x, rest = padded(at, at.value(node.input[0]), pads, float("-inf") if largest else 0.0, half)
    ceil = bool(given.get("ceil_mode", 0))
    sizes: Any = (tuple(kernel), tuple(strides), tuple(rest))
    if largest:
        kinds: Any = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
        return at.call(kinds[rank], x, *sizes, tuple(dilations), ceil)
    kinds = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
    return at.call(kinds[rank], x, *sizes, ceil, counted)


@rule("GlobalAveragePool", "GlobalMaxPool")
def whole_pool(at: Building, node: onnx.NodeProto, _: dict[str, Any]) -> Any:
    """Over all positions."""
    axes = tuple(range(2, len(at.shape(node.input[0]))))
    function = torch.mean if node.op_type == "GlobalAveragePool" else torch.amax
    return at.call(function, at.value(node.input[0]), dim=axes, keepdim=True)


@rule("Resize", "Upsample")
def resize(at: Building, node: onnx.NodeProto, given: dict[str, Any]) -> Any:
    """To the size that was seen: nearest by whole factors, or linear / cubic as torch does it."""
    before, after = at.shape(node.input[0]), at.shape(node.output[0])
    mode, frame = given.get("mode", "nearest"), given.get("coordinate_transformation_mode", "half_pixel")
    frame = "asymmetric" if node.op_type == "Upsample" or at.measured.opset < 11 else frame
    rank, sizes = len(before) - 2, [int(size) for size in after[2:]]
    names = {("nearest", rank): "nearest", ("linear", 1): "linear", ("linear", 2): "bilinear",
             ("linear", 3): "trilinear", ("cubic", 2): "bicubic"}  # fmt: skip
    if before[:2] != after[:2] or (mode, rank) not in names:
        raise at.refuse(node, "nearest, linear or cubic over the positions only")
    x = at.value(node.input[0])
    if mode == "nearest":
        if any(new % old for old, new in zip(before[2:], sizes, strict=True)):
            raise at.refuse(node, "whole factors")
        return at.call(functional.interpolate, x, size=sizes, mode="nearest")
    if frame not in ("half_pixel", "pytorch_half_pixel", "align_corners") or given.get("antialias"):
        raise at.refuse(node, "half_pixel or align_corners, without antialias")
    return at.call(
        functional.interpolate, x, size=sizes, mode=names[mode, rank], align_corners=frame == "align_corners"
    )


@rule("DepthToSpace")
def depth_to_space(at: Building, node: onnx.NodeProto, given: dict[str, Any]) -> Any:
    """Pixel shuffle."""
    if given.get("mode", "DCR") != "CRD":
        raise at.refuse(node, "mode CRD")
    return at.call(functional.pixel_shuffle, at.value(node.input[0]), given["blocksize"])

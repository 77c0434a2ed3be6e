"""Group norms of ONNX files come back as one layer, whose groups can go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_samples as samples
import pytest
import torch
from onnx import helper
from torch import nn

from compressor.foreign.convert import convert, refuse_difference
from compressor.foreign.files import read
from compressor.foreign.given import GivenFile
from compressor.foreign.measured import measure
from compressor.units.check import checked
from compressor.units.trace import trace

make, f32 = helper.make_node, np.float32
NUMBERS: dict[str, Any] = {
    "w": np.linspace(-1, 1, 8 * 3 * 9, dtype=f32).reshape(8, 3, 3, 3),
    "v": np.linspace(-1, 1, 16, dtype=f32).reshape(2, 8),
    "to": np.array([0, 4, -1], np.int64), "ones": np.ones(4, f32), "zeros": np.zeros(4, f32),
    "scale": np.linspace(0.5, 1.5, 8, dtype=f32).reshape(8, 1, 1),
    "shift": np.linspace(-1, 1, 8, dtype=f32).reshape(1, 8, 1, 1),
}  # fmt: skip


def rebuilt(path: Path, *affine: Any, **numbers: Any) -> nn.Module:
    """A convolution, a group norm of four groups written out, what comes after it, and a linear layer on means."""
    last = affine[-1].output[0] if affine else "n"
    nodes = [
        make("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), make("Reshape", ["c", "to"], ["g"]),
        make("InstanceNormalization", ["g", "ones", "zeros"], ["i"], epsilon=1e-3), make("Shape", ["c"], ["s"]),
        make("Reshape", ["i", "s"], ["n"]), *affine, make("Relu", [last], ["r"]),
        make("GlobalAveragePool", ["r"], ["p"]), make("Flatten", ["p"], ["f"]),
        make("Gemm", ["f", "v"], ["y"], transB=1),
    ]  # fmt: skip
    given = [samples.numpy_helper.from_array(value, name) for name, value in (NUMBERS | numbers).items()]
    samples.save(path, nodes, given, ["n", 3, 6, 6], ["y"])
    file = GivenFile(path)
    found = measure(read(path), file, {"x": (3, 6, 6)}, "here")
    network, named = convert(found, "here")
    refuse_difference(network, named, found, file, "here")
    return network


def test_scale_and_shift_are_its_weights_and_its_groups_are_units(tmp_path: Path) -> None:
    network = rebuilt(tmp_path / "a.onnx", make("Mul", ["n", "scale"], ["m"]), make("Add", ["shift", "m"], ["a"]))
    (norm,) = (module for module in network.children() if isinstance(module, nn.GroupNorm))
    assert (norm.num_groups, norm.num_channels, round(norm.eps, 6)) == (4, 8, 1e-3)
    assert torch.equal(norm.weight, torch.from_numpy(NUMBERS["scale"].reshape(-1)))
    assert torch.equal(norm.bias, torch.from_numpy(NUMBERS["shift"].reshape(-1)))
    images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    graph = checked(network, trace(network, images), images[:2])
    assert [len(group.units) for group in graph.groups if group.frozen is None] == [4]


def test_what_comes_after_it_may_be_anything(tmp_path: Path) -> None:
    network = rebuilt(tmp_path / "a.onnx", make("Mul", ["n", "n"], ["m"]))
    assert any(isinstance(module, nn.GroupNorm) for module in network.children())


@pytest.mark.parametrize("numbers", [{"ones": np.full(4, 2, f32)}, {"zeros": np.ones(4, f32)}])
def test_an_instance_norm_with_weights_of_its_own_stays_one(tmp_path: Path, numbers: dict[str, Any]) -> None:
    (norm,) = (m for m in rebuilt(tmp_path / "a.onnx", **numbers).children() if isinstance(m, nn.GroupNorm))
    assert (norm.num_groups, norm.num_channels) == (4, 4)

"""Layer times are measured on the layer that the network has: shapes, widths, and times that grow with the work."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressor.export.onnx import export_onnx
from compressor.export.timetable import measured_table, shape_of
from compressor.surgery.landing import landings
from compressor.units.program import record
from compressor.units.trace import trace


class Mixed(nn.Module):
    """One layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(64, 64, 3, padding=2, dilation=2, groups=64)
        self.up = nn.ConvTranspose2d(64, 48, 3, stride=2, output_padding=1)
        self.hidden = nn.Linear(48 * 4, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(F.relu(self.deep(F.relu(self.first(x)))))
        return self.head(F.relu(self.hidden(F.adaptive_avg_pool2d(x, 2).flatten(1))))


def shapes(model: nn.Module, inputs: torch.Tensor, scale: float = 1.0) -> dict[str, Any]:
    spots = landings(record(model, inputs))
    free = {(f"{spot.module}.weight", axis) for spot in spots for axis in (0, 1)}
    return {spot.module: shape_of(spot, scale, free) for spot in spots}


def test_each_kind_runs_as_the_network_runs_it() -> None:
    model, inputs = Mixed().eval(), torch.randn(4, 3, 12, 12)
    outputs: dict[str, tuple[int, ...]] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, out: outputs.__setitem__(name, tuple(out.shape))

    for name, module in model.named_children():
        module.register_forward_hook(keep(name))
    model(inputs)
    found = shapes(Mixed().eval(), inputs)
    assert list(found) == ["first", "deep", "up", "hidden", "head"]
    for name, shape in found.items():
        assert tuple(model.get_parameter(f"{name}.weight").shape) == shape.size
        session = onnxruntime.InferenceSession(shape.network(*shape.size[:2]), providers=["CPUExecutionProvider"])
        entered = session.get_inputs()[0].shape
        got = session.run(None, {"input": np.zeros(entered, dtype=np.float32)})[0]
        assert np.asarray(got).shape == outputs[name]
        assert shape.entering == math.prod(entered)


def test_narrower_layers_and_larger_batches() -> None:
    found = shapes(Mixed().eval(), torch.randn(4, 3, 12, 12), scale=8.0)
    assert [shape.outer for shape in found.values()] == [32] * 5
    for name, widths, channels in (("first", (16, 3), 3), ("deep", (16, 1), 16), ("up", (16, 32), 16)):
        model = onnx.load_from_string(found[name].network(*widths))
        assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][:2] == [32, channels]
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        feed = {"input": np.zeros(session.get_inputs()[0].shape, dtype=np.float32)}
        assert np.asarray(session.run(None, feed)[0]).shape[:2] == (32, 32 if name == "up" else 16)
    assert [attribute.i for attribute in onnx.load_from_string(found["deep"].network(16, 1)).graph.node[0].attribute
            if attribute.name == "group"] == [16]  # fmt: skip


def test_times_grow_with_the_work(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 64, 10)).eval()
    inputs = torch.randn(2, 3, 16, 16)
    graph, spots = trace(model, inputs), landings(record(model, inputs))
    file = export_onnx(model, inputs, tmp_path / "model.onnx")
    feed = {file.inputs[0]: np.zeros((8, 3, 16, 16), dtype=np.float32)}
    done: list[float] = []
    found = measured_table(file.path, feed, spots, 2, graph, block=16, seconds=1.0, report=done.append)
    first, second, last = found.layers
    assert first.widths == ((16, 32, 64), (3,))
    assert second.widths == ((16, 32, 64), (16, 32, 64))
    assert last.widths[0] == (10,)
    assert last.widths[1][-1] == 4096
    assert second.micros[-1, -1] > 3 * second.micros[0, 0] > 0
    assert second.entering == 8 * 64 * 16 * 16
    assert 0 < found.rest < sum(layer.micros[-1, -1] for layer in found.layers)
    assert found.points == 3 + 9 + len(last.widths[1])
    assert done == sorted(done)
    assert done[-1] == 1.0
    plain = found.as_dict()
    assert plain["batch"] == 8
    assert plain["layers"][1]["micros"] == second.micros.tolist()


@pytest.mark.parametrize("groups", [1, 4])
def test_a_layer_in_which_nothing_may_go_has_one_point(groups: int) -> None:
    model = nn.Sequential(nn.Conv1d(8, 16, 3, groups=groups), nn.Flatten(), nn.Linear(16 * 6, 3)).eval()
    spots = landings(record(model, torch.randn(2, 8, 8)))
    shape = shape_of(spots[0], 1.0, set())
    assert shape.free == (False, False)
    assert shape.channels(*shape.size[:2]) == 8

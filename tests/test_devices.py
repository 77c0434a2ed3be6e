"""No CPU tensor meets one of an accelerator: whole stages on fake tensors that say they are on a GPU; then on a GPU."""

from __future__ import annotations

import copy
import gc
import json
import os
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from compressor.algebra import elimination
from compressor.observe import observe, passes, readers, watchers
from compressor.planning.allocation import Allocator
from compressor.planning.paths import find_path
from compressor.sources.samples import Batch, as_samples
from compressor.stages import Workshop, working_copy
from compressor.surgery import lanes, refit
from compressor.surgery.landing import landings
from compressor.surgery.operate import operate
from compressor.units.cut import cut
from compressor.units.graph import clusters
from compressor.units.program import record
from compressor.units.sizes import Sizes
from compressor.units.trace import trace

NETWORKS, CEILINGS = ("convs", "concat", "depthwise"), (4700, 30)


def on_fake_gpu(model: nn.Module) -> nn.Module:
    """The model, its tensors replaced by some on a GPU that is not there; to be called in the mode."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty_like(parameter, device="cuda"))
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cuda")
    return model


def fake_gradients(_likelihood: Tensor, outputs: list[Tensor], **_options: Any) -> list[Tensor]:
    """The engine needs a real driver; gradients are like the outputs they belong to."""
    return [torch.empty_like(out) for out in outputs]


def no_costs(values: Tensor) -> np.ndarray:
    """Fakes have no values to compare; they come from the device."""
    assert values.device.type == "cuda"
    return np.zeros(len(values))


def whole_stages(mode: FakeTensorMode, name: str, ceiling: int) -> list[Any]:
    """Observe, paths, fold and refit; returns everything that was made."""
    readers.MAX_REGRESSORS = ceiling
    model, x = planted.small(name, count=8)
    model, x = model.float(), x.float()
    graph = trace(model, x[:2])
    program = record(model, x)
    spots = {spot.module: spot for spot in landings(program)}
    kept = {g.name: tuple(range(len(g.units) - 2)) for g in graph.groups if g.frozen is None and len(g.units) > 2}
    twin = record(cut(model, graph, kept), x)
    refit.record = lambda *_: twin  # type: ignore[assignment]
    moved = copy.deepcopy(model)
    with mode:
        on_fake_gpu(moved)
        inputs = torch.empty_like(x, device="cuda")
        seen = observe(moved, graph, lambda: [Batch(torch.arange(8), inputs, None)], 8)
        assert all(tap.moments.gram.device.type == tap.curvature.device.type == "cuda" for tap in seen.taps.values())
        intercepts = {name: spot.intercept for name, spot in spots.items()}
        for cluster in clusters(graph):
            path = find_path(moved, graph, cluster, seen, intercepts)
            assert len(path.order) == sum(len(g.units) - 1 for g in cluster)
        small = operate(moved, graph, seen, kept, spots, 1e-3)
        run = refit.Refit(moved, small, graph, kept, [inputs, inputs], 1e-3, program=program, resident=1)
        run.run()
        assert all(p.device.type == "cuda" for p in small.parameters())
    return [model, moved, program, twin, seen, run]


def _child(_rank: int, report: str) -> None:
    """Runs all stages in a process that ends without tidying up: torch crashes where fakes of a GPU are freed."""
    gc.disable()
    torch.set_num_threads(1)
    torch.autograd.grad = fake_gradients  # type: ignore[assignment]
    watchers.get_gradient_edge = lambda out: out.detach()  # type: ignore[assignment]
    elimination._numbers, elimination.PENDING = no_costs, 3
    passes.memory_of = passes.free_of = lambda _device: 1e12
    lanes.in_file = lambda values: values.cpu()  # fakes cannot be written into files
    refit.Refit._differs = lambda *_: True  # type: ignore[method-assign]
    mode, alive, found = FakeTensorMode(allow_non_fake_inputs=True), [], {}
    for name in NETWORKS:
        for ceiling in CEILINGS:
            try:
                alive.append(whole_stages(mode, name, ceiling))
                found[f"{name} {ceiling}"] = "fine"
            except Exception:  # noqa: BLE001  (reported as the outcome)
                found[f"{name} {ceiling}"] = traceback.format_exc()[-600:]
    try:
        with mode:
            torch.gather(torch.zeros(2, 3, device="cuda"), 1, torch.zeros(2, 1, dtype=torch.long))
    except RuntimeError as error:
        found["a mix"] = str(error)
    Path(report).write_text(json.dumps(found))
    os._exit(0)


def test_stages_mix_no_devices(tmp_path: Path) -> None:
    report = tmp_path / "found.json"
    torch.multiprocessing.spawn(_child, (str(report),), nprocs=1)
    found = json.loads(report.read_text())
    assert "same device" in found.pop("a mix")  # the fakes do catch one
    assert found == {f"{name} {ceiling}": "fine" for name in NETWORKS for ceiling in CEILINGS}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", planted.SMALL)
def test_the_plan_on_a_gpu_is_that_of_the_cpu(name: str) -> None:
    model, x = planted.small(name, count=400)
    samples = as_samples((x, torch.zeros(len(x), dtype=torch.long)))
    found = []
    for device in ("cpu", "cuda"):
        work = working_copy(model, torch.device(device))
        shop = Workshop.open(work, trace(model, x[:2]), samples, 0)
        shop.measure()
        plan = Allocator(shop.graph, shop.paths("params"), Sizes(work, shop.graph)).plan("params", 0.6)
        found.append((plan, shop.build(plan).cpu()(x).detach()))
    assert found[0][0].kept == found[1][0].kept
    assert float((found[0][1] - found[1][1]).norm() / found[0][1].norm()) < 1e-5

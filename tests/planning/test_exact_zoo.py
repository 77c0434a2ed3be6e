"""Exact mode on torchvision networks with planted clones: every surplus unit goes, and the function stays."""

from __future__ import annotations

import planted_zoo
import pytest
import torch

from compressor.surgery.exact import exact_compress, moved
from compressor.units.trace import trace

FAST = ("resnet18",)
CASES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in planted_zoo.ZOO]


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_every_clone_of_the_zoo_goes(name: str, dtype: torch.dtype) -> None:
    lean, images = planted_zoo.lean(name, dtype)
    wide = planted_zoo.widened(name, lean, images)
    small, plan = exact_compress(wide.model, trace(wide.model, images), images, effort=0.0)
    assert {fold.group: len(fold.dropped) for fold in plan.folds} == wide.surplus
    assert plan.taken_back == ()
    assert sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in lean.parameters())
    fresh = torch.randn(8, *images.shape[1:], generator=torch.Generator().manual_seed(5)).to(dtype)
    with torch.no_grad():
        before, after = wide.model(fresh), small(fresh)
    assert float(before.std(0).mean()) > 1e-3
    assert moved([before], [after]) < (1e-10 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) for n in planted_zoo.ZOO])
def test_lean_networks_of_the_zoo_stay_whole(name: str) -> None:
    lean, images = planted_zoo.lean(name, torch.float32, count=8)
    small, plan = exact_compress(lean, trace(lean, images), images, effort=0.0)
    assert plan.removed == 0
    with torch.no_grad():
        assert torch.equal(small(images), lean(images))

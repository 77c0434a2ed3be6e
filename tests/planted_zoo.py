"""torchvision networks with units split into clones, for exact mode to find."""

from __future__ import annotations

from dataclasses import dataclass

import planted
import torch
import torchvision
from torch import Tensor, nn

from compressor.surgery.landing import landings
from compressor.units.trace import recorded_pair, trace

SHORT = {"aux_logits": False, "init_weights": False}


@dataclass(frozen=True)
class Entry:
    """How a network is built here: input size, whether clones may be scaled (ReLU networks), and its options."""

    size: int
    scaled: bool = False
    options: tuple[tuple[str, object], ...] = ()


ZOO = {
    "resnet18": Entry(32, scaled=True),
    "densenet121": Entry(32),
    "googlenet": Entry(32, scaled=True, options=tuple(SHORT.items())),
    "inception_v3": Entry(80, scaled=True, options=tuple(SHORT.items())),
    "mobilenet_v3_small": Entry(32),
    "efficientnet_b0": Entry(32),
    "convnext_tiny": Entry(32),
    "vit_b_16": Entry(32, options=(("image_size", 32),)),
}


def lean(name: str, dtype: torch.dtype, count: int = 32, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network with random weights and signal at its outputs, and calibration images."""
    entry = ZOO[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(torchvision.models, name)(weights=None, **dict(entry.options))
        images = torch.randn(count, 3, entry.size, entry.size)
        planted.awake(model, images[:16], seed)
    return model.to(dtype).eval(), images.to(dtype)


def widened(name: str, model: nn.Module, images: Tensor, seed: int = 0) -> planted.Planted:
    """Units of random groups split into two to four clones each."""
    graph = trace(model, images)
    norms = None
    if ZOO[name].scaled:
        norms = {spot.module: spot.norm for spot in landings(recorded_pair(model, images)) if spot.norm}
    return planted.split(model, graph, planted.choose(graph, seed), seed, norms)

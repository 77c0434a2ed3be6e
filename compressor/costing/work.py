"""What the stages of a run have to do for a network: rows, regressors, outputs. Numbers, nothing is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from torch.fx import Node

from compressor.observe import TapReader, blocks_of
from compressor.surgery.landing import Landing
from compressor.units.graph import Tap, UnitGraph


@dataclass(frozen=True)
class TapWork:
    """One consumer. `rows` and `positions` are counted for one sample: rows of regressors that are summed, and
    positions at which the loss's curvature is. `block` is how many regressors a unit has here; 0 where no unit may go.
    """

    name: str
    regressors: int
    outputs: int
    rows: float
    positions: float
    block: int


@dataclass(frozen=True)
class Work:
    """A network and a run: `forward` and `backward` are seconds for one sample, `macs` its multiply-accumulates."""

    name: str
    taps: tuple[TapWork, ...]
    params: int
    macs: float
    batch: int
    samples: int
    judged: int
    activations: float
    """Bytes that one sample's activations take in a lock-step run of both networks."""
    forward: float
    backward: float
    unit: str = "image"
    """What a sample is called."""


def taps_of(model: nn.Module, graph: UnitGraph, spots: Sequence[Landing], recorded: int, samples: int) -> list[TapWork]:
    """The work at each consumer of `model`, of which `recorded` samples ran through `spots`."""
    by_name = {spot.module: spot for spot in spots}
    live = {unit for group in graph.groups if group.frozen is None for unit in group.units.tolist()}
    found = []
    for tap in graph.taps:
        module = model.get_submodule(tap.module)
        reader = TapReader(tap, module, samples, 0)
        positions = _positions(by_name[tap.module], tap, recorded)
        rows = min(positions, reader.rows_per_sample) if positions > 1 else 1.0
        kernel = math.prod(np.shape(module.weight)[2:])  # type: ignore[arg-type]
        blocks = blocks_of(tap, reader.per_kernel, kernel)
        going = [len(block) for unit, block in blocks.items() if unit in live]
        block = max(going, default=0)
        found.append(TapWork(tap.module, reader.size, reader.outputs, rows, positions, block))
    return found


def _positions(spot: Landing, tap: Tap, recorded: int) -> float:
    """Where the consumer writes, for one sample: positions of a feature map, or tokens."""
    node: Node = spot.node
    shape = node.meta["val"].shape
    return math.prod(shape[2:]) if tap.kind != "linear" else math.prod(shape[:-1]) / recorded


LLAMA_7B = {"layers": 32, "hidden": 4096, "inner": 11008, "params": 6_738_415_616}
"""Touvron et al. 2023, arXiv:2302.13971, table 2, and the published checkpoint's parameters."""
TOKENS = 2048
LLM = "llm-7b-mlps"
"""What `llm_mlps` is called on the command line."""


def llm_mlps(samples: int, judged: int, flops: float) -> Work:
    """The gated MLPs of a 7B language model: their hidden units alone are measured and cut; a sample is TOKENS of text.

    `flops` (a second) is the rate at which the whole model is run: 2 for each parameter and token forward, and as many
    backward to the activations.
    """
    size, inner = LLAMA_7B["hidden"], LLAMA_7B["inner"]
    wanted = max(20_000, 12 * inner) / samples
    taps = tuple(
        TapWork(f"layers.{place}.mlp.down_proj", inner, size, min(TOKENS, wanted), TOKENS, 1)
        for place in range(LLAMA_7B["layers"])
    )
    macs = LLAMA_7B["params"] * TOKENS
    activations = 2 * 4 * TOKENS * (4 * size + 3 * inner)
    seconds = 2 * macs / flops
    sizes = (LLAMA_7B["params"], macs, 1, samples, judged, activations, seconds, seconds)
    return Work("MLPs of a 7B language model", taps, *sizes, unit="text")

"""The lossy stage before the units are found: residual streams behind norms become narrower by a rotation.

The network that comes out has plain layers of smaller widths, refitted to the original's pre-activations; everything
that follows works on it, compared with the original.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.algebra.subspace import Reader, positive, shared_basis
from compressor.observe import Likelihood, Statistics, from_first, half, observe
from compressor.records import Plan
from compressor.sources.samples import Samples
from compressor.stages import (
    Report,
    Workshop,
    batch_size,
    find_units,
    first_inputs,
    in_bases,
    on_cpu,
    shard,
)
from compressor.surgery.refit import Reference
from compressor.surgery.rotate import folded, refusal, turned, writing
from compressor.units import fetched
from compressor.units.graph import Tap, UnitGraph
from compressor.units.modes import home_of
from compressor.units.sizes import size_of
from compressor.units.streams import Stream, find_streams
from compressor.units.trace import recorded_pair

LEAST = 2
"""Features that a stream keeps at least: a norm of one gives a constant, or its sign."""


@dataclass(frozen=True)
class Rotation:
    """What the stage made of a network: `model`, its `graph`, and what they are compared with and refitted to."""

    model: nn.Module
    graph: UnitGraph
    before: nn.Module
    """The network as it came in."""
    size: dict[str, int]
    """Its parameters and multiply-accumulates."""
    reference: Reference | None
    """None where nothing was turned."""
    told: dict[str, Any]
    """For the record."""


def rotate(
    work: nn.Module, graph: UnitGraph, samples: Samples, share: float, block: Callable[[], int], seed: int,
    likelihood: Likelihood, report: Report, memory: float | None = None, room: float = math.inf,
) -> Rotation:  # fmt: skip
    """Streams of `work` (on its device, attention in dense form; `graph` are its units) cut to `share` of their width.

    Widths are rounded up to multiples of `block()`. What cannot be turned stays, with a reason. `work` is not changed.
    """
    size = size_of(work, graph, {})
    here, inputs = on_cpu(work), first_inputs(work, samples)
    streams, refused = find_streams(here, recorded_pair(here, inputs))
    usable: list[Stream] = []
    for stream in streams:
        why = refusal(work, stream, inputs)
        usable += [stream] if why is None else []
        refused |= {} if why is None else {stream.name: why}
    step = from_first(block) if usable else 1
    widths = {s.name: min(s.width, max(LEAST, step * math.ceil(share * s.width / step))) for s in usable}
    told: dict[str, Any] = {"share": share, "streams": [], "refused": refused}
    narrow = [stream for stream in usable if widths[stream.name] < stream.width]
    told["refused"] |= {s.name: f"{s.width} features are no more than a block" for s in usable if s not in narrow}
    if not narrow:
        return Rotation(work, graph, work, size, None, told)
    before = in_bases(work, graph, samples, seed, likelihood, memory, room)
    plain = folded(before, narrow).requires_grad_(True)
    fetched.place(plain, home_of(work), room)
    seen = _measured(plain, graph, narrow, samples, seed, likelihood, report, memory)
    made, turns = plain, {}
    for stream in narrow:
        readers = _readers(plain, stream, seen)
        width, centred = widths[stream.name], stream.centred
        basis = from_first(lambda s=stream, r=readers, k=width - centred: shared_basis(r, s.width, k, s.centred).cpu())
        made = turned(made, stream, basis, width)
        turns |= {layer: writing(basis, width, centred) for layer in stream.layers}
        fetched.place(made, home_of(work), room)
        told["streams"].append(_told(stream, width, basis, readers, seen))
    reference = Reference(plain, turns)
    shop = Workshop.open(made, find_units(made, samples, seed), samples, seed, likelihood, memory, reference)
    small = shop.build(Plan({}), report).requires_grad_(True)
    return Rotation(small, shop.graph, before, size, reference, told)


def _measured(
    plain: nn.Module, graph: UnitGraph, streams: list[Stream], samples: Samples, seed: int, likelihood: Likelihood,
    report: Report, memory: float | None,
) -> Statistics:  # fmt: skip
    """Second moments of what every norm gives, and the curvature at whoever reads it."""
    report("rotate", 0.0)
    taps: list[Tap] = []
    for stream in streams:
        for read in stream.reads:
            taps.append(Tap(read.module, "linear", np.full(stream.width * len(read.norms), -1), True))
    size = batch_size(samples)
    done = [0]

    def step(count: int) -> None:
        done[0] += count
        report("rotate", min(1.0, done[0] / len(samples)))

    batches = lambda: shard(plain, samples, size)  # noqa: E731
    return observe(
        plain, graph, batches, len(samples), taps=taps, seed=seed, likelihood=likelihood, progress=step,
        budget_bytes=half(memory),
    )  # fmt: skip


def _readers(plain: nn.Module, stream: Stream, seen: Statistics) -> list[Reader]:
    """Who reads the stream, those of the same norms as one."""
    found: dict[tuple[str, ...], Reader] = {}
    for read in stream.reads:
        tap = seen.taps[read.module]
        moments, mean = positive(_wide(tap.moments.covariance())), _wide(tap.moments.mean())
        layer: Any = plain.get_submodule(read.module)
        if layer.bias is None:  # nothing gives back a mean that is lost
            moments, mean = moments + torch.outer(mean, mean), torch.zeros_like(mean)
        weight = layer.weight.detach().to(moments)
        felt = weight.T @ (tap.curvature.to(moments) / max(tap.samples, 1)) @ weight
        known = found.get(read.norms)
        found[read.norms] = Reader(moments, mean, felt if known is None else known.weight + felt)
    return list(found.values())


def _wide(matrix: Tensor) -> Tensor:
    """In double precision, on a device that has it."""
    return matrix.cpu().double() if matrix.device.type == "mps" else matrix.double()


def _told(stream: Stream, width: int, basis: Tensor, readers: list[Reader], seen: Statistics) -> dict[str, Any]:
    kept: dict[str, float] = {}
    for read in stream.reads:
        moments = _wide(seen.taps[read.module].moments.covariance())
        for place, norm in enumerate(read.norms):
            part = slice(place * stream.width, (place + 1) * stream.width)
            own, q = moments[part, part], basis.to(moments)
            kept.setdefault(norm, float((q * (own @ q)).sum() / own.trace().clamp_min(1e-300)))
    lost = sum(float(reader.lost(basis.to(reader.moments))) for reader in readers)
    return {
        "name": stream.name,
        "before": stream.width,
        "after": width,
        "kept_variance": {norm: round(kept[norm], 6) for norm in stream.norms if norm in kept},
        "predicted_loss": max(0.0, lost / 2),
    }

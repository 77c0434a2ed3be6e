"""One hooked pass over the data: second moments of what every consumer reads, and the loss's curvature at its outputs.

The curvature is the Fisher of the model's own predictions: labels are sampled from the model's output (see `likelihood`
for outputs that are numbers) with noise keyed by sample id, so neither batch size nor number of processes changes it,
and no true labels are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils._pytree import tree_map

from compressor.algebra.moments import wide
from compressor.observe.likelihood import CLASSES, Likelihood
from compressor.observe.memory import FREE_SHARE, MEMORY_SHARE, free_of, memory_of, overflowing
from compressor.observe.processes import connected, in_step, least, processes
from compressor.observe.readers import TapReader
from compressor.observe.statistics import Statistics, set_aside
from compressor.observe.watchers import FIRST, PairWatcher, Watcher, watching
from compressor.units.graph import Tap, UnitGraph
from compressor.units.modes import home_of
from compressor.units.outputs import judged_part
from compressor.units.program import forward


def observe(
    model: nn.Module,
    graph: UnitGraph,
    batches: Callable[[], Iterable[Any]],
    samples: int,
    *,
    taps: Sequence[Tap] | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    budget_bytes: float | None = None,
    autocast: torch.dtype | None = None,
    likelihood: Likelihood = CLASSES,
) -> Statistics:
    """Statistics of all (or the given) taps over `batches()` (objects with `ids`, `inputs`) on the model's device.

    One pass, unless the sums take more than `budget_bytes` (by default a quarter of the device's memory, and at most
    half of what is free): then several, with the same result; what is done waits outside the device, or in a file.
    Activations that the way back needs may take as much, and the rest of them waits in files. In a
    process group `batches` gives this process's share, `samples` counts all, and every process returns the sums of all.
    `autocast` (bfloat16) runs the forward pass in that precision, `likelihood` says what answers mean. The model's
    mode, hooks and grad flags are as before, also after an exception.
    """
    chosen = graph.taps if taps is None else taps
    readers = {
        tap.module: TapReader(tap, model.get_submodule(tap.module), samples, seed + i) for i, tap in enumerate(chosen)
    }
    device = home_of(model)
    if budget_bytes is None:
        budget_bytes = min(MEMORY_SHARE * memory_of(device), FREE_SHARE * free_of(device))
    parts = passes(readers, least(budget_bytes, device))
    result = Statistics(passes=len(parts))
    for i, part in enumerate(parts):
        watchers = {name: Watcher(reader) for name, reader in part.items()}
        step = None if progress is None else _scaled(progress, i, len(parts), samples)
        wanted = graph.pairings if i == 0 and taps is None else ()
        pairs = {pairing.module: PairWatcher(len(pairing.units), device) for pairing in wanted}
        _begin(model, watchers, batches, device, autocast)
        with in_step(), watching(model, watchers, pairs), torch.enable_grad():
            likely = partial(likelihood.sampled, key=seed + 7919)
            seen, in_files = _one_pass(
                model, watchers, batches, likely, budget_bytes, step, autocast, list(pairs.values())
            )
        _agree(watchers.values(), device)
        found = Statistics({n: w.statistics for n, w in watchers.items() if w.statistics is not None}, seen)
        found.pairs = {name: watcher.statistics for name, watcher in pairs.items()}
        for one in found.taps.values():
            one.samples = seen
        found = found.all_reduced()
        result.samples, result.in_files = found.samples, max(in_files, result.in_files)
        result.pairs.update(found.pairs)
        result.taps.update(found.taps if len(parts) == 1 else {n: set_aside(s) for n, s in found.taps.items()})
    return result


def passes(readers: dict[str, TapReader], budget: float) -> list[dict[str, TapReader]]:
    """Taps in their order, split where the sums of a pass would exceed the budget (a tap alone may)."""
    parts: list[dict[str, TapReader]] = [{}]
    for name, reader in readers.items():
        if parts[-1] and sum(r.bytes for r in parts[-1].values()) + reader.bytes > budget:
            parts.append({})
        parts[-1][name] = reader
    return parts


def _one_pass(
    model: nn.Module,
    watchers: dict[str, Watcher],
    batches: Callable[[], Iterable[Any]],
    likely: Callable[[Tensor, Tensor], Tensor],
    budget: float,
    progress: Callable[[int], None] | None,
    autocast: torch.dtype | None,
    pairs: Sequence[PairWatcher] = (),
) -> tuple[int, int]:
    """Samples seen, and the most bytes of activations that were in files at a time."""
    seen = in_files = 0
    for batch in batches():
        with overflowing(model, budget) as room:
            likelihood = likely(_forward(model, watchers, batch, autocast), batch.ids)
        _gradients(likelihood, [*watchers.values(), *pairs])
        seen, in_files = seen + len(batch.ids), max(in_files, room.in_files)
        if progress is not None:
            progress(len(batch.ids))
    return seen, in_files


def _forward(model: nn.Module, watchers: dict[str, Watcher], batch: Any, autocast: torch.dtype | None) -> Tensor:
    for watcher in watchers.values():
        watcher.ids = batch.ids
    kind = home_of(model).type
    with torch.autocast(kind, dtype=autocast, enabled=autocast is not None):
        return judged_part(forward(model, batch.inputs))[0]


def _gradients(likelihood: Tensor, watchers: Sequence[Watcher | PairWatcher]) -> None:
    """Gradients at the watched outputs only: the engine skips those of the weights."""
    edges = [(watcher, edge) for watcher in watchers for edge in watcher.edges]
    for watcher in watchers:
        watcher.edges = []
    if edges:
        gradients = torch.autograd.grad(likelihood, [edge for _, edge in edges], allow_unused=True)
        for (watcher, _), gradient in zip(edges, gradients, strict=True):
            watcher.curve(gradient)


def _begin(
    model: nn.Module,
    watchers: dict[str, Watcher],
    batches: Callable[[], Iterable[Any]],
    device: torch.device,
    autocast: torch.dtype | None,
) -> None:
    """In a process group, start from the first samples' shifts, as one process does: its rounding, hence its plan."""
    if processes()[1] == 1:
        return
    with in_step(), watching(model, watchers), torch.no_grad():
        batch = next(iter(batches()), None) if processes()[0] == 0 else None
        if batch is not None:
            first = tree_map(lambda leaf: leaf[:FIRST], batch.inputs)
            for watcher in watchers.values():
                watcher.adding = False
            _forward(model, watchers, replace(batch, ids=batch.ids[:FIRST], inputs=first), autocast)
    for watcher in watchers.values():
        watcher.adding = True
    _agree(watchers.values(), device)


def _agree(watchers: Iterable[Watcher], device: torch.device) -> None:
    """In a process group, the sums of every process relative to one shift: the mean of those that there are."""
    if processes()[1] == 1:
        return
    for watcher in watchers:
        own = watcher.statistics
        message = torch.zeros(watcher.reader.size + 1, dtype=wide(device), device=device)
        if own is not None:
            message[:-1], message[-1] = own.moments.shift, 1
        with connected():
            distributed.all_reduce(message)
        if not bool(message[-1]):  # nobody has seen this tap so far
            continue
        shift = message[:-1] / message[-1]
        if own is None:
            watcher.start(shift)
        else:
            own.moments.rebase(shift)


def _scaled(progress: Callable[[int], None], part: int, parts: int, samples: int) -> Callable[[int], None]:
    """Progress over several passes, in samples of one pass."""
    done = [part * samples]

    def step(count: int) -> None:
        before, done[0] = done[0], done[0] + count
        progress(done[0] // parts - before // parts)

    return step

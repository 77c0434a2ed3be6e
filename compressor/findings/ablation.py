"""Are units found removable really removable? A sample of them is ablated, one at a time, and the loss
measured.

Ablated means what removal with a folded mean does: at every tap the unit's entries become zero, and the mean
of what they contributed is added to the consumer's output as a constant.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from compressor.observe import CLASSES, Likelihood
from compressor.records import Finding
from compressor.sources.samples import Samples, batches
from compressor.units.graph import Tap, UnitGraph
from compressor.units.modes import evaluating, floating
from compressor.units.outputs import judged_part
from compressor.units.program import forward

BATCH = 128


@dataclass(frozen=True, slots=True)
class Ablation:
    """Predicted and measured loss in nats per sample (and position of a map) of taking units out, and the share of
    equal argmaxes (of outputs that are numbers: of their variance that stays)."""

    units: tuple[int, ...]
    kind: str
    predicted: float
    measured: float
    agreement: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well predicted losses agree with measured ones.

    `tried`: ablations of single units. `rank_correlation` is Spearman's over them (None with fewer than
    three, or where one side is constant); `median_ratio` that of measured over predicted loss (None where no
    prediction is positive); `confirmed` the share of the `removable` units tried whose measured loss is at
    most `below` nats (None if there were none). `together`: *all* units found removable ablated at once,
    against the sum of their predictions (None if there are none): losses need not add up where units are
    alike.
    """

    tried: tuple[Ablation, ...]
    samples: int
    below: float
    removable: int
    confirmed: float | None
    rank_correlation: float | None
    median_ratio: float | None
    together: Ablation | None

    def as_dict(self) -> dict[str, Any]:
        """The JSON form; of the units ablated together only their number is written."""
        plain = asdict(self) | {"tried": [asdict(one) for one in self.tried]}
        if self.together is not None:
            plain |= {"together": asdict(self.together) | {"units": len(self.together.units)}}
        return plain


def confirm_removable(
    model: nn.Module,
    graph: UnitGraph,
    findings: Sequence[Finding],
    samples: Samples,
    predicted: Mapping[int, float] | Sequence[float] | Tensor,
    sample: int = 24,
    seed: int = 0,
    below: float | None = None,
    most: int = 256,
    likelihood: Likelihood = CLASSES,
) -> Agreement:
    """Ablate a seeded sample of units one at a time: removable ones, and a third needed ones (more where few
    are removable); then all removable ones together.

    The loss is that of `likelihood` (for classes the mean KL(original || ablated), at every position) in nats over at
    most `most` of `samples` (evenly spaced), `predicted[unit]` its prediction, `below` what a removable unit may lose
    (the largest predicted loss of a removable unit if not given). The model is run in eval mode on its own device, once
    per unit tried; its modes and hooks are as before afterwards.
    """
    if len(samples) > most:
        samples = samples.take(np.arange(most) * len(samples) // most)
    spare = [f for f in findings if f.kind == "removable"]
    trials = [[f] for f in _chosen(findings, sample, seed)] + ([spare] if spare else [])
    units = np.array([f.unit for trial in trials for f in trial], dtype=np.int64)
    tried: list[Ablation] = []
    with torch.no_grad(), evaluating(model):
        taps = [t for t in graph.taps if np.isin(t.units, units).any()]
        whole, means = reference(model, samples, taps, likelihood)
        for trial in trials:
            out = tuple(f.unit for f in trial)
            with ablated(model, graph.taps, out, means):
                outputs = answers(model, samples, likelihood)
            expected = sum(float(predicted[unit]) for unit in out)
            tried.append(Ablation(out, trial[0].kind, expected, *likelihood.apart(whole, outputs)))
    if below is None:
        below = max((float(predicted[f.unit]) for f in spare), default=0.0)
    together = tried.pop() if spare else None
    return _compared(tried, len(samples), below, together)


def _chosen(findings: Sequence[Finding], sample: int, seed: int) -> list[Finding]:
    """Up to two thirds removable units, the rest needed ones, in the order of the findings."""
    generator = np.random.default_rng(seed)
    found = {kind: [i for i, f in enumerate(findings) if f.kind == kind] for kind in ("removable", "needed")}
    wanted = min(len(found["removable"]), max(math.ceil(sample * 2 / 3), sample - len(found["needed"])))
    counts = {"removable": wanted, "needed": min(len(found["needed"]), sample - wanted)}
    picked = [generator.choice(found[kind], counts[kind], replace=False) for kind in found if counts[kind]]
    return [findings[i] for i in sorted(np.concatenate(picked).tolist())] if picked else []


def _compared(tried: list[Ablation], samples: int, below: float, together: Ablation | None) -> Agreement:
    spare = [one for one in tried if one.kind == "removable"]
    predicted, measured = [one.predicted for one in tried], [one.measured for one in tried]
    ratios = [m / p for m, p in zip(measured, predicted, strict=True) if p > 0]
    ranked = len(set(predicted)) > 1 and len(set(measured)) > 1 and len(tried) > 2
    return Agreement(
        tried=tuple(tried),
        samples=samples,
        below=below,
        removable=len(spare),
        confirmed=sum(one.measured <= below for one in spare) / len(spare) if spare else None,
        rank_correlation=float(spearmanr(predicted, measured)[0]) if ranked else None,  # type: ignore[arg-type]
        median_ratio=float(np.median(ratios)) if ratios else None,
        together=together,
    )


@contextmanager
def ablated(model: nn.Module, taps: Sequence[Tap], units: Sequence[int], means: Mapping[str, Tensor]) -> Iterator[None]:
    """Hooks that take units out at the taps that read them and add their mean contribution; always removed.

    `means[module]` (1, ...) is the mean over samples of the tap's input.
    """
    with ExitStack() as stack:
        for tap in taps:
            read = np.flatnonzero(np.isin(tap.units, units))
            if not len(read):
                continue
            module = model.get_submodule(tap.module)
            axis = -1 if tap.kind == "linear" else 1
            entries = torch.from_numpy(read).to(means[tap.module].device)
            offset = _mean_contribution(module, means[tap.module], entries, axis)
            before = module.register_forward_pre_hook(_without(entries, axis))
            stack.callback(before.remove)
            after = module.register_forward_hook(_plus(offset))
            stack.callback(after.remove)
        yield


def _mean_contribution(module: nn.Module, mean: Tensor, entries: Tensor, axis: int) -> Tensor:
    """What the entries add to each output on average over samples and positions, shaped to be added."""
    nothing = torch.zeros_like(mean)
    alone = nothing.index_copy(axis, entries, mean.index_select(axis, entries))
    contribution = module(alone) - module(nothing)
    positions = [d for d in range(contribution.dim()) if d != axis % contribution.dim()]
    return contribution.mean(positions, keepdim=True)


def _without(entries: Tensor, axis: int) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].index_fill(axis, entries, 0.0), *args[1:])

    return hook


def _plus(offset: Tensor) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + offset.reshape(offset.shape[-output.dim() :])

    return hook


def reference(
    model: nn.Module, samples: Samples, taps: Sequence[Tap], likelihood: Likelihood
) -> tuple[Tensor, dict[str, Tensor]]:
    """Answers of the model as it is, and the mean input (1, ...) of each tap."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            part = args[0].sum(0, keepdim=True)
            sums[name] = sums[name] + part if name in sums else part
            counts[name] = counts.get(name, 0) + len(args[0])

        return hook

    with ExitStack() as stack:
        for tap in taps:
            handle = model.get_submodule(tap.module).register_forward_pre_hook(watch(tap.module))
            stack.callback(handle.remove)
        outputs = answers(model, samples, likelihood)
    return outputs, {name: sums[name] / counts[name] for name in sums}


def answers(model: nn.Module, samples: Samples, likelihood: Likelihood) -> Tensor:
    """(N, K) or (N, K, P), as the likelihood reads them."""
    anything = next(iter(model.parameters()))
    parts = []
    for batch in batches(samples, BATCH, anything.device, floating(model)):
        parts.append(likelihood.read(judged_part(forward(model, batch.inputs))[0]))
    return torch.cat(parts)

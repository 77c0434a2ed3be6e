"""Torch-Pruning's importances as methods of a comparison (needs the extra `peers`).

One step, no fine-tuning, the classifier's outputs kept, and whatever writes units that our graph freezes (cutting
attention or a residual stream behind layer norms breaks the network); the pruning ratio is found by bisection so that
the size asked for is met from below; then batch norms are estimated again on the calibration data, which never hurt a
peer. Two of its importances are mended so that it is not judged by a slip: the Hessian keeps the mean over all samples
(1.6 keeps the last one), and Taylor and Hessian gradients are those of labels that the network itself predicts.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch_pruning as tp
from norms import recalibrated
from torch import nn
from torch.nn import functional as F

from compressor.comparison.task import Build, Task
from compressor.errors import UsageError
from compressor.sources.samples import batches
from compressor.stages import find_units

_STEPS, _HESSIAN_SAMPLES = 14, 500
Scores = Callable[[nn.Module], Any]


def prune(task: Task, importance: str = "lamp", scope: str = "global") -> Build:
    """`importance` as Torch-Pruning names it; `scope` is global, local (a uniform ratio) or isomorphic."""
    scored = copy.deepcopy(task.model).eval()
    make = _importance(importance, scored, task)
    whole = task.size(task.model)
    keep = {_last_layer(scored, task.example), *_frozen(task)}

    def build(share: float) -> nn.Module:
        low, high, best = 0.0, 1.0, None
        for _ in range(_STEPS):
            ratio = (low + high) / 2
            small = _pruned(scored, make(), task, ratio, scope, keep)
            if task.size(small) > share * whole:
                low = ratio
            else:
                high, best = ratio, small
        if best is None:
            raise UsageError(f"{importance}/{scope}", f"no ratio reaches {share:.1%}", "a size it reaches", "go up.")
        return recalibrated(best, task.data.calibrate)

    return build


def _frozen(task: Task) -> set[str]:
    """Layers that write units which may not be cut."""
    graph = find_units(task.model, task.data.calibrate, task.seed)
    return {name for group in graph.groups if group.frozen is not None for name in group.producers}


def _pruned(
    scored: nn.Module, importance: Any, task: Task, ratio: float, scope: str, keep: Collection[str]
) -> nn.Module:
    small = copy.deepcopy(scored)
    for mine, theirs in zip(small.parameters(), scored.parameters(), strict=True):
        mine.grad = None if theirs.grad is None else theirs.grad.clone()  # deepcopy drops gradients
    ignored = [module for name, module in small.named_modules() if name in keep]
    random.seed(task.seed)
    torch.manual_seed(task.seed)
    pruner = tp.pruner.BasePruner(
        small, task.example, importance=importance, pruning_ratio=ratio, max_pruning_ratio=1.0, ignored_layers=ignored,
        global_pruning=scope in ("global", "isomorphic"), isomorphic=scope == "isomorphic",
        in_channel_groups={}, out_channel_groups={}, num_heads={},
    )  # fmt: skip
    pruner.step()
    for parameter in small.parameters():
        parameter.grad = None
    return small


def _last_layer(model: nn.Module, example: Any) -> str:
    """Name of the layer that runs last: the classifier."""
    names = {module: name for name, module in model.named_modules()}
    ran: list[str] = []
    hooks = [
        module.register_forward_hook(lambda module, _i, _o: ran.append(names[module]))
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return ran[-1]


def _importance(name: str, scored: nn.Module, task: Task) -> Callable[[], Any]:
    """A maker of the importance; what needs gradients leaves them on `scored`."""
    simple: dict[str, Callable[[], Any]] = {
        "lamp": lambda: tp.importance.LAMPImportance(p=2),
        "magnitude_l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
        "magnitude_l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "fpgm": lambda: tp.importance.FPGMImportance(p=2),
        "bnscale": lambda: tp.importance.BNScaleImportance(),
        "random": lambda: tp.importance.RandomImportance(),
    }
    if name in simple:
        return simple[name]
    if name == "taylor":
        _mean_gradient(scored, task)
        return lambda: tp.importance.GroupTaylorImportance()
    if name == "hessian":
        _mean_square_gradients(scored, task)
        return lambda: tp.importance.GroupHessianImportance()  # without sums of its own it reads the gradients
    raise UsageError("importance", name, f"{', '.join([*simple, 'taylor', 'hessian'])}", "choose one.")


def _mean_gradient(scored: nn.Module, task: Task) -> None:
    scored.zero_grad()
    for batch in batches(task.data.calibrate, 250):
        output = scored(batch.inputs)
        F.cross_entropy(output, output.argmax(1), reduction="sum").backward()
    for parameter in scored.parameters():
        if parameter.grad is not None:
            parameter.grad /= len(task.data.calibrate)


def _mean_square_gradients(scored: nn.Module, task: Task) -> None:
    """Leave the mean over samples of squared gradients, with labels drawn from the network, in `grad`."""
    generator = torch.Generator().manual_seed(task.seed)
    count = min(_HESSIAN_SAMPLES, len(task.data.calibrate))
    totals = [torch.zeros_like(parameter) for parameter in scored.parameters()]
    for batch in batches(task.data.calibrate.take(range(count)), 1):
        scored.zero_grad()
        output = scored(batch.inputs)
        label = torch.multinomial(output.detach().softmax(1), 1, generator=generator)[:, 0]
        F.cross_entropy(output, label).backward()
        for parameter, total in zip(scored.parameters(), totals, strict=True):
            if parameter.grad is not None:
                total += parameter.grad**2 / count
    for parameter, total in zip(scored.parameters(), totals, strict=True):
        parameter.grad = total

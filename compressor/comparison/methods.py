"""Methods that come with the package: ours, and a narrow network trained from scratch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from compressor.comparison.task import Build, Method, Task
from compressor.errors import UsageError
from compressor.planning.allocation import Allocator
from compressor.sources.factories import find_factory, split_query
from compressor.stages import Workshop, find_units, opened_model, working_copy
from compressor.training.loop import train

_STEPS = 12


def ours(task: Task) -> Build:
    """The product's own path: statistics, paths, allocation, folds and lock-step refit; widths are not aligned."""
    calibrate = task.data.calibrate
    work = opened_model(working_copy(task.model, torch.device("cpu")), calibrate)
    shop = Workshop.open(work, find_units(work, calibrate, task.seed), calibrate, task.seed)
    shop.measure()
    allocator = Allocator(shop.graph, shop.paths(task.measure), shop.sizes)

    def build(share: float) -> nn.Module:
        plan = allocator.plan(task.measure, share)
        small = shop.build(plan)
        shop.certify(small, plan)
        return small

    return build


def small_from_scratch(task: Task) -> Build:
    """The same architecture, narrower, trained from scratch with the same recipe: what training small gives."""
    if task.make is None or task.train is None or task.data.train is None:
        raise UsageError(
            "method 'small_from_scratch'", "no factory with `width`, no training section or no training part",
            "all three", "leave the method out, or train the network by the recipe.",
        )  # fmt: skip
    make, options, samples = task.make, task.train, task.data.train

    def build(share: float) -> nn.Module:
        torch.manual_seed(task.seed)
        narrow = make(width_for(task, share))
        return train(narrow, samples, replace(options, seed=task.seed))[0]

    return build


def width_for(task: Task, share: float) -> float:
    """The largest width factor whose network has at most `share` of the task's size, by bisection."""
    assert task.make is not None
    target = share * task.size(task.model)
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if task.size(task.make(middle)) > target:
            high = middle
        else:
            low = middle
    return low


BUILT_IN: dict[str, Method] = {"ours": ours, "small_from_scratch": small_from_scratch}


def find_method(spec: str, base: Path) -> Method:
    """A built-in by name, or `path/file.py:function?argument=...`, called as `function(task, argument=...)`.

    Raises UsageError for a spec that is neither, SourceError for a file that cannot be loaded.
    """
    if spec in BUILT_IN:
        return BUILT_IN[spec]
    head, arguments = split_query(spec)
    factory = find_factory(head, base)
    if factory is None:
        raise UsageError(
            f"recipe: compare.methods '{spec}'", "neither a built-in method nor a function",
            f"{', '.join(BUILT_IN)}, or path/file.py:function", "name a function that takes a Task.",
        )  # fmt: skip
    function = factory.load()
    return lambda task: function(task, **arguments)

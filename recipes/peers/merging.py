"""Model folding and neuron merging, from their papers, as methods of a comparison.

Folding (Wang et al., "Forget the Data and Fine-Tuning! Just Fold the Network to Compress", ICLR 2025): k-means on each
group's rows [w, b] with batch norms folded in, every cluster becomes its mean, what read its members reads their sum.
Neuron merging (Kim et al., NeurIPS 2020): units of small norm are given up, and what read them reads the most similar
unit that stays, scaled. Both keep the same share of every group, as their codes do. `repair` sets mean and deviation of
every unit back to its members' (REPAIR, Jordan et al., ICLR 2023), which needs the calibration data.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from norms import FeatureNorm, recalibrated
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from compressor.comparison.task import Build, Task
from compressor.errors import UsageError
from compressor.sources.samples import Samples, batches
from compressor.stages import find_units
from compressor.units.cut import cut, keep_mask
from compressor.units.graph import Group, UnitGraph
from compressor.units.program import forward
from compressor.units.sizes import Sizes

Merge = dict[str, np.ndarray]
"""Group name -> (U, K) matrix: dropped units as multiples of kept ones."""


def fold(task: Task, repair: bool = True) -> Build:
    """Model folding at one share for all groups."""
    return _merging(task, repair, _clustered)


def neuron_merging(task: Task, repair: bool = True, threshold: float = 0.1) -> Build:
    """Neuron merging at one share for all groups.

    A unit that goes is added to the nearest that stays where the cosine of their weights is `threshold` or more: 0.1 in
    its authors' commands for convolutions, 0.45 in those for an MLP.
    """
    return _merging(task, repair, partial(_absorbed, threshold=threshold))


def _merging(task: Task, repair: bool, merge: Any) -> Build:
    model = fused(task.model, task.example)
    graph = find_units(model, task.data.calibrate, task.seed)
    live = [group for group in graph.groups if group.frozen is None]
    rows = {group.name: _rows(model, graph, group) for group in live}
    sizes = Sizes(model, graph)
    names = sorted({name for group in live for name in group.producers})
    spread = _spreads(model, names, task.data.calibrate)
    target_of = task.size(task.model)

    def build(share: float) -> nn.Module:
        low, high = 0.0, 1.0
        for _ in range(30):
            ratio = (low + high) / 2
            first = {g.name: tuple(range(max(1, round(ratio * len(g.units))))) for g in live}
            if sizes.total(task.measure, keep_mask(graph, first)) > share * target_of:
                high = ratio
            else:
                low = ratio
        if low == 0.0:
            raise UsageError("uniform ratio", f"{share:.1%}", "a share that a unit per group reaches", "go up.")
        kept, merged, means = {}, copy.deepcopy(model), {}
        for group in live:
            count = max(1, round(low * len(group.units)))
            if count < len(group.units):
                stay, average, total = merge(rows[group.name], count, task.seed)
                kept[group.name], means[group.name] = tuple(int(unit) for unit in stay), average
                _apply(merged, graph, group, stay, average, total)
        small = cut(merged, graph, kept)
        return _repaired(small, live, means, spread, task.data.calibrate) if repair else small

    return build


def _clustered(rows: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Units that stay, (U, K) weights of the mean that each becomes, (U, K) weights of what readers add up."""
    labels = KMeans(count, n_init=1, random_state=seed).fit_predict(rows)  # pyright: ignore[reportArgumentType]
    stay = np.array([int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)])
    member = labels[:, None] == labels[stay][None, :]
    order = np.argsort(stay)
    stay, member = stay[order], member[:, order].astype(float)
    return stay, member / member.sum(0), member


def _absorbed(rows: np.ndarray, count: int, _seed: int, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    norms = np.linalg.norm(rows, axis=1)
    stay = np.sort(np.argsort(-np.abs(rows).sum(1))[:count])
    unit = rows / np.maximum(norms, 1e-12)[:, None]
    similar = unit @ unit[stay].T
    total = np.zeros((len(rows), count))
    for place in np.setdiff1d(np.arange(len(rows)), stay):
        nearest = int(similar[place].argmax())
        if similar[place, nearest] >= threshold:
            total[place, nearest] = norms[place] / max(norms[stay[nearest]], 1e-12)
    alone = np.zeros_like(total)
    alone[stay, np.arange(count)] = 1.0
    return stay, alone, total + alone


def _apply(
    model: nn.Module, graph: UnitGraph, group: Group, stay: np.ndarray, average: np.ndarray, total: np.ndarray
) -> None:
    """Writers and carriers of the units that stay become means, readers sums; other units are left as they were."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    place = {int(unit): i for i, unit in enumerate(group.units)}
    for axis in graph.axes:
        owned = [(entry, place[int(u)]) for entry, u in enumerate(axis.units) if int(u) in place]
        if not owned:
            continue
        weights = torch.from_numpy(total if axis.role == "consumes" else average)
        with torch.no_grad():
            line = tensors[axis.tensor].transpose(0, axis.axis)
            old = line.detach().clone().double()
            copies: dict[int, list[int]] = {}
            for entry, unit in owned:
                copies.setdefault(unit, []).append(entry)
            entries = torch.tensor([copies[unit] for unit in range(len(place))])  # (U, entries of a unit)
            mixed = torch.tensordot(weights.T, old[entries], 1)  # (K, entries, ...)
            line[entries[torch.from_numpy(stay)].flatten()] = mixed.flatten(0, 1).to(line.dtype)


def _rows(model: nn.Module, graph: UnitGraph, group: Group) -> np.ndarray:
    """(U, D) everything that writes each unit: weights and biases of all producers and carriers."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    place = {int(unit): i for i, unit in enumerate(group.units)}
    parts = []
    for axis in graph.axes:
        entries = [entry for entry, u in enumerate(axis.units) if int(u) in place]
        if axis.role == "consumes" or len(entries) != len(place):
            continue
        order = np.argsort([place[int(axis.units[entry])] for entry in entries])
        line = tensors[axis.tensor].detach().transpose(0, axis.axis)[np.array(entries)[order]]
        parts.append(line.reshape(len(place), -1).double().numpy())
    return np.concatenate(parts, 1)


def fused(model: nn.Module, example: Any) -> nn.Module:
    """A copy in which every batch norm that directly follows a convolution or linear layer is folded into it."""
    copied = copy.deepcopy(model).eval()
    names = {module: name for name, module in copied.named_modules()}
    wrote: dict[int, nn.Module] = {}
    pairs: list[tuple[nn.Module, nn.Module]] = []
    kept: list[Any] = []

    def see(module: nn.Module, inputs: Any, output: Any) -> None:
        kept.append((inputs, output))  # so that no id is given twice
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and id(inputs[0]) in wrote:
            pairs.append((wrote[id(inputs[0])], module))
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            wrote[id(output)] = module

    hooks = [module.register_forward_hook(see) for module in copied.modules()]
    with torch.no_grad():
        forward(copied, example)
    for hook in hooks:
        hook.remove()
    for layer, norm in pairs:
        fuse: Any = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        copied.set_submodule(names[layer], fuse(layer, norm))
        copied.set_submodule(names[norm], nn.Identity())
    return copied


def _spreads(model: nn.Module, names: list[str], samples: Samples) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and deviation of every output channel of these layers over the samples."""
    sums: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Any:
        def see(module: nn.Module, _inputs: Any, output: Tensor) -> None:
            last = isinstance(module, nn.Linear)
            flat = (output.flatten(0, -2).T if last else output.transpose(0, 1).flatten(1)).double()
            new = [torch.tensor(float(flat.shape[1])), flat.sum(1), (flat**2).sum(1)]
            sums[name] = [a + b for a, b in zip(sums[name], new, strict=True)] if name in sums else new

        return model.get_submodule(name).register_forward_hook(see)

    hooks = [watch(name) for name in names]
    with torch.no_grad():
        for batch in batches(samples, 250):
            forward(model, batch.inputs)
    for hook in hooks:
        hook.remove()
    return {name: (s / n, (q / n - (s / n) ** 2).clamp(min=0).sqrt()) for name, (n, s, q) in sums.items()}


def _repaired(
    small: nn.Module, live: list[Group], means: Merge, spread: Mapping[str, tuple[Tensor, Tensor]], samples: Samples
) -> nn.Module:
    """A batch norm behind every layer that writes units, set to the members' means and deviations."""
    for group in live:
        for name in group.producers:
            layer = small.get_submodule(name)
            mean, deviation = spread[name]
            if group.name in means and len(mean) == len(means[group.name]):
                weights = torch.from_numpy(means[group.name]).T
                mean, deviation = weights @ mean, weights @ deviation
            norm = (FeatureNorm if isinstance(layer, nn.Linear) else nn.BatchNorm2d)(len(mean))
            with torch.no_grad():
                norm.weight.copy_(deviation)
                norm.bias.copy_(mean)
            small.set_submodule(name, nn.Sequential(layer, norm))
    small = recalibrated(small, samples)
    return fused(small, samples.batch(torch.arange(2))[0])  # so that it is not charged for the added norms


__all__ = ["fold", "neuron_merging"]

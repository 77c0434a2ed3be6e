"""Outputs of a network (or any callable) over samples, checked, and how right each of them is.

Letters: n samples, C classes, P positions (of a segmentation map or a text; absent for plain classification).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from compressor.algebra.answers import chunk_of, counted, hits
from compressor.computed import copy_of
from compressor.errors import CompressorError, DataError, ModelError
from compressor.observe import FREE_SHARE, empty_in_file, free_of, memory_of
from compressor.sources.samples import runs
from compressor.sources.trees import first_not_finite, map_leaves
from compressor.units.outputs import as_answered, judged_part
from compressor.units.program import forward

FIRST = 32
"""Samples of the first batch at most: how large answers are shows how many fit at a time."""
SHARE_AT_ONCE, NETWORKS = 1 / 64, 4
"""Part of the memory that one batch's answers may take, and how many networks' answers share what is free of it."""
NO_SIGNAL_ROUNDINGS = 8.0
"""Outputs that vary over the samples by fewer roundings than this (of their dtype) carry no signal."""


class SamplesLike(Protocol):
    """What is needed of data: see `compressor.sources.samples.Samples`."""

    def __len__(self) -> int: ...

    def batch(self, ids: Tensor, /) -> tuple[Any, Tensor | None]:
        """Inputs and labels of these samples."""
        ...


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a network answered: `logits` (n, ...) on the CPU, in float32 or float64, and the samples' labels.

    `judged` says in words which part of the network's answer it is; `dtype` is that part's own dtype;
    `batch_size` the largest one that fitted into memory; `moved` says that the network answered with classes last.
    """

    logits: Tensor
    labels: Tensor | None
    judged: str
    dtype: torch.dtype
    batch_size: int = 0
    moved: bool = False

    @property
    def answers(self) -> Tensor:
        """(n, ...) in the order of dimensions that the network answered in, for scores of one's own."""
        return as_answered(self.logits, self.moved)


def outputs_of(
    network: nn.Module | Callable[[Any], Any],
    samples: SamplesLike,
    *,
    name: str = "original",
    batch_size: int = 256,
    device: str | torch.device | None = None,
    check: bool = True,
    seed: int = 0,
) -> Outputs:
    """Run a module (eval mode, no gradients) or a callable `inputs -> output` over all samples, in order.

    Tuples of inputs are handed to a module by position, dicts by keyword; a callable gets the whole tree.
    Floating inputs take the module's dtype. The module runs where it is, or as a copy on `device`; its modes
    and the random state (`seed` is what it sees) come back as they were. A batch that does not fit into memory is
    halved, down to one.

    With `check` (for the original) ModelError for outputs that are not finite or the same for all samples.
    Always: DataError for no samples and for NaN in the inputs, ModelError where the network does not run.
    """
    if not len(samples):
        raise DataError(f"data for the {name} network", "no samples", "at least one", "check the path and split")
    call, device, dtype = _callable(network, device)
    kept: _Kept | None = None
    labels: list[Tensor] = []
    judged, moved, start, most = "", False, 0, max(1, batch_size)
    size = min(most, FIRST)
    with _undisturbed(network, device, seed):
        while start < len(samples):
            _, stop = next(runs(len(samples) - start, size))
            ids = torch.arange(start, start + stop)
            inputs, truth = samples.batch(ids)
            _refuse_nan(inputs, start)
            try:
                answer = call(map_leaves(lambda leaf: _moved(leaf, device, dtype), inputs))
                of_file = getattr(network, "judged", None) == "logits"  # an ONNX file gives this output alone
                part, judged, moved = judged_part({"logits": answer} if of_file else answer)
                part = part.detach().cpu()
            except Exception as error:  # whatever the user's forward raises is reported as such
                if out_of_memory(error) and len(ids) > 1:
                    size = most = len(ids) // 2
                    continue
                if isinstance(error, CompressorError):
                    raise
                raise _does_not_run(name, error, len(ids), inputs) from error
            _check_shape(part, len(ids), name)
            if kept is None:
                kept = _Kept(part, len(samples))
                size = min(most, kept.at_once)
            kept.put(start, part, name)
            labels += [] if truth is None else [torch.as_tensor(truth).detach().cpu()]
            start += len(ids)
    assert kept is not None
    found = Outputs(kept.rows, torch.cat(labels) if labels else None, judged, kept.dtype, size, moved)
    if check:
        check_signal(found, name)
    return found


class _Kept:
    """Room for the answers of all samples like those of the first batch: in memory, or where they would take too much
    of it (a language model answers a score for every word at every place) in a file."""

    def __init__(self, first: Tensor, count: int) -> None:
        self.dtype = first.dtype
        wide = torch.float64 if first.dtype == torch.float64 else torch.float32
        shape = (count, *first.shape[1:])
        each, here = math.prod(shape[1:]) * wide.itemsize, torch.device("cpu")
        self.at_once = max(1, int(SHARE_AT_ONCE * memory_of(here) / max(each, 1)))  # not of what is free: see `replay`
        in_memory = count * each <= FREE_SHARE * free_of(here) / NETWORKS
        self.rows = torch.empty(shape, dtype=wide) if in_memory else empty_in_file(math.prod(shape), wide).view(shape)

    def put(self, start: int, part: Tensor, name: str) -> None:
        """The answers of the next batch. ModelError where they are of another shape than the first one's."""
        if part.shape[1:] != self.rows.shape[1:]:
            raise ModelError(
                f"output of the {name} network", f"shape {tuple(part.shape[1:])} for a sample, and "
                f"{tuple(self.rows.shape[1:])} for an earlier one", "one shape for all samples",
                "pad or resize the inputs to one size",
            )  # fmt: skip
        self.rows[start : start + len(part)] = part


def check_signal(found: Outputs, name: str = "original") -> None:
    """ModelError for outputs that are not finite, or (two samples and more) the same for all samples."""
    parts = found.logits.split(chunk_of(found.logits))
    bad = torch.cat([~torch.isfinite(part).reshape(len(part), -1).all(1) for part in parts])
    if bool(bad.any()):
        raise ModelError(
            f"output of the {name} network, sample {int(bad.nonzero()[0])}",
            f"NaN or infinity (in {int(bad.sum())} of {len(bad)} samples)",
            "finite numbers",
            "check the checkpoint and the preprocessing of the data",
        )
    highest, lowest = found.logits.amax(0), found.logits.amin(0)
    spread = (highest - lowest).max()
    rounding = torch.finfo(found.dtype).eps * float(torch.maximum(highest.abs(), lowest.abs()).max())
    if len(found.logits) > 1 and float(spread) <= NO_SIGNAL_ROUNDINGS * rounding:
        raise ModelError(
            f"output of the {name} network",
            f"the same output for all {len(found.logits)} samples",
            "an output that depends on the input",
            "check that the trained weights were loaded (--checkpoint) and that the data is not blank",
        )


def checked_labels(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels (n,) or (n, P) as int64 that fit the scores; DataError names the first bad sample and value.

    Positions of maps and texts may be left out (`answers.counted`), but not all of a sample.
    """
    return fitting_labels(labels, logits.shape)


def fitting_labels(labels: Tensor, shape: Sequence[int], where: str = "labels of the judged data") -> Tensor:
    """The same for outputs of that shape, (n, C, ...); `where` is for messages."""
    classes, positions = (shape[1] if len(shape) > 1 and shape[1] > 1 else 2), math.prod(shape[2:])
    expected = (shape[0],) if positions == 1 else (shape[0], positions)
    flat = labels.flatten(1) if labels.ndim > 1 else labels
    flat = flat.squeeze(1) if flat.ndim == 2 and flat.shape[1] == 1 else flat
    if tuple(flat.shape) != expected:
        raise DataError(
            where,
            f"shape {tuple(labels.shape)} for outputs of shape {tuple(shape)}",
            f"one class number per {'sample' if len(expected) == 1 else 'sample and position'}",
            "give class numbers (not one-hot vectors), or a model that answers one score per class: (n, classes, ...), "
            "or a dict with 'logits' of (n, positions, classes)",
        )
    if labels.is_floating_point() or labels.is_complex():
        raise DataError(
            f"{where}, sample 0",
            f"{labels.reshape(-1)[0].item()} ({labels.dtype})",
            "integer class numbers",
            "convert the labels, or judge agreement with the original instead of accuracy",
        )
    flat = flat.to(torch.int64)
    counts = counted(flat, classes)
    bad = ((flat < 0) | (flat >= classes)) & counts
    if bool(bad.any()):
        sample = int(bad.reshape(len(bad), -1).any(1).nonzero()[0])
        raise DataError(
            f"{where}, sample {sample}",
            f"label {int(flat[sample][bad[sample]].reshape(-1)[0])}",
            f"0 to {classes - 1} (the network has {classes} outputs)",
            "check that data and model belong together, and that labels count from 0",
        )
    empty = ~counts.reshape(len(counts), -1).any(1)
    if bool(empty.any()):
        raise DataError(
            f"{where}, sample {int(empty.nonzero()[0])}", "no position that counts",
            "at least one label that is not left out", "leave such samples out of the data",
        )  # fmt: skip
    return flat


def accuracy(found: Outputs, labels: Tensor | None = None) -> float:
    """Percent of right answers; labels default to those that came along. DataError without labels."""
    truth = found.labels if labels is None else labels
    if truth is None:
        raise DataError("data to measure accuracy on", "no labels", "a label for every sample", "give labelled data")
    return 100 * float(hits(found.logits, checked_labels(truth, found.logits)).mean())


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, numpy or onnxruntime means that memory did not suffice."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    signs = (
        "out of memory",
        "can't allocate memory",
        "failed to allocate memory",
        "bad_alloc",
        "alloc_failed",
    )
    return any(sign in text for sign in signs)


def _callable(
    network: Any, device: str | torch.device | None
) -> tuple[Callable[[Any], Any], torch.device, torch.dtype | None]:
    """How to call it, where its inputs go, and the dtype of floating inputs (None: as they are)."""
    if not isinstance(network, nn.Module):
        return network, torch.device(device or "cpu"), None
    state = [*network.parameters(), *network.buffers()]
    place = torch.device(device) if device is not None else state[0].device if state else torch.device("cpu")
    if device is not None and any(not _is_at(tensor, place) for tensor in state):
        network = copy_of(network).to(place).eval()
    dtype = next((tensor.dtype for tensor in state if tensor.is_floating_point()), None)
    return partial(forward, network), place, dtype


def _is_at(tensor: Tensor, place: torch.device) -> bool:
    return tensor.device.type == place.type and place.index in (None, tensor.device.index)


@contextmanager
def _undisturbed(network: Any, device: torch.device, seed: int) -> Iterator[None]:
    """Eval mode, no gradients, a fixed random state; afterwards modes and random state are as before."""
    modes = [(module, module.training) for module in network.modules()] if isinstance(network, nn.Module) else []
    devices = [device] if device.type == "cuda" else []
    try:
        for module, _ in modes:
            module.training = False
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch the other GPUs too
            if devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _moved(leaf: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    return leaf.to(device, dtype if leaf.is_floating_point() and dtype is not None else leaf.dtype)


def _refuse_nan(inputs: Any, start: int) -> None:
    bad = first_not_finite(inputs)
    if bad is not None:
        raise DataError(
            f"judged data, sample {start + bad}",
            "NaN or infinite values in the input",
            "finite numbers",
            "repair or remove this sample",
        )


def _check_shape(part: Tensor, count: int, name: str) -> None:
    if part.ndim == 0 or len(part) != count or not part.numel() or not part.is_floating_point():
        raise ModelError(
            f"output of the {name} network",
            f"{part.dtype} of shape {tuple(part.shape)} for {count} samples",
            f"floating scores in {count} rows, one per sample",
            "return scores (not class numbers) with the samples first",
        )


def _does_not_run(name: str, error: Exception, count: int, inputs: Any) -> ModelError:
    shapes = [tuple(leaf.shape[1:]) for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    memory = " (not even a single sample fits into memory)" if out_of_memory(error) else ""
    where = f"forward pass of the {name} network on {count} samples of shape {', '.join(map(str, shapes))}"
    got = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{memory}"
    if isinstance(error, TypeError) and isinstance(inputs, dict) and "argument" in str(error):
        names = ", ".join(map(str, inputs))
        inside = ", ".join(f"{key!r}: {key}" for key in inputs)
        expected = f"a forward that takes {names} by keyword, as dicts are handed over"
        wrap = f"`def forward(self, {names}): return self.network({{{inside}}})`"
        return ModelError(where, got, expected, f"wrap a network that takes one dict: {wrap}.")
    return ModelError(
        where, got, "a network that runs on this data", "check that the data has the network's channels and size"
    )

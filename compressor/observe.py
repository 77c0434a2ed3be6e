"""One hooked pass over the data: second moments of what every consumer reads, and the loss's curvature at its outputs.

The curvature is the Fisher of the model's own predictions: labels are sampled from the model's output with noise keyed
by sample id, so neither batch size nor number of processes changes it, and no true labels are needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compressor.algebra.moments import Moments, wide
from compressor.algebra.patches import conv_patches, keyed_hash, output_rows, sampled_positions
from compressor.units.graph import Tap, UnitGraph
from compressor.units.program import call_arguments

MAX_REGRESSORS = 4700
"""Above this many regressors (channels x kernel) a convolution is observed per channel instead of per kernel tap."""
ROWS_PER_REGRESSOR = 12
MIN_ROWS = 20_000


@dataclass
class TapStatistics:
    """What was measured at one tap. `per_kernel`: regressors are (entry, kernel tap) pairs, else entries alone."""

    moments: Moments
    curvature: Tensor
    """(O, O) sum over samples of Σ_positions g gᵀ, g the gradient of the log-likelihood at the consumer's output."""
    per_kernel: bool
    samples: int = 0

    def __add__(self, other: TapStatistics) -> TapStatistics:
        return TapStatistics(
            self.moments + other.moments,
            self.curvature + other.curvature,
            self.per_kernel,
            self.samples + other.samples,
        )


@dataclass
class Statistics:
    """All taps by module name. Statistics of disjoint data add up."""

    taps: dict[str, TapStatistics] = field(default_factory=dict)
    samples: int = 0


class TapReader:
    """Turns the input (and output) of one consumer into rows of regressors (and targets)."""

    def __init__(self, tap: Tap, module: nn.Module, samples: int, key: int) -> None:
        self.tap, self.module, self.key = tap, module, key
        self.conv = tap.kind == "conv"
        weight: Any = module.weight
        self.kernel = tuple(int(k) for k in weight.shape[2:])
        size = len(tap.units) * math.prod(self.kernel)
        self.per_kernel = self.conv and size <= MAX_REGRESSORS
        self.size = size if self.per_kernel or not self.conv else len(tap.units)
        if tap.kind == "conv_transpose":
            self.size = len(tap.units)
        self.rows_per_sample = math.ceil(max(MIN_ROWS, ROWS_PER_REGRESSOR * self.size) / max(samples, 1))

    def _spatial(self, name: str) -> tuple[int, ...]:
        value = getattr(self.module, name)
        if name == "padding" and isinstance(value, str):
            pads: Any = self.module
            return tuple(p for p in reversed(pads._reversed_padding_repeated_twice[::2]))
        return tuple(value)

    def picked(self, ids: Tensor, x: Tensor, y: Tensor) -> Tensor | None:
        """(N, P) positions sampled for these samples: of the output map if per kernel tap, else of the input's rows."""
        if self.per_kernel:
            return sampled_positions(ids, math.prod(y.shape[2:]), self.rows_per_sample, self.key)
        if self.tap.kind == "linear":
            inner = math.prod(x.shape[1:-1])
            if inner <= 1:
                return None
            return sampled_positions(ids, inner, self.rows_per_sample, self.key)
        return sampled_positions(ids, math.prod(x.shape[2:]), self.rows_per_sample, self.key)

    def rows(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """(R, D) regressors at the sampled positions."""
        if self.per_kernel:
            return conv_patches(
                x,
                self.kernel,
                self._spatial("stride"),
                self._spatial("padding"),
                self._spatial("dilation"),
                self._require(positions),
            )
        if self.tap.kind == "linear":
            if positions is None:
                return x.reshape(-1, x.shape[-1])
            flat = x.reshape(len(x), -1, x.shape[-1])
            return torch.gather(flat, 1, positions[:, :, None].expand(-1, -1, flat.shape[2])).flatten(0, 1)
        return output_rows(x, self._require(positions))

    @staticmethod
    def _require(positions: Tensor | None) -> Tensor:
        if positions is None:
            raise RuntimeError("a convolution's rows need sampled positions")
        return positions


def blocks_of(tap: Tap, per_kernel: bool, kernel: int) -> dict[int, list[int]]:
    """Unit number -> its regressors at this tap."""
    width = kernel if per_kernel else 1
    found: dict[int, list[int]] = {}
    for entry, unit in enumerate(tap.units.tolist()):
        if unit >= 0:
            found.setdefault(unit, []).extend(range(entry * width, (entry + 1) * width))
    return found


class _Watcher:
    """Hooks of one tap for one pass."""

    def __init__(self, reader: TapReader, total: int) -> None:
        self.reader, self.total = reader, total
        self.ids: Tensor | None = None
        self.statistics: TapStatistics | None = None
        self.outputs: list[Tensor] = []

    def forward(self, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        x = args[0].detach()
        ids = self.ids
        if ids is None or len(ids) != len(x):
            ids = torch.arange(len(x), device=x.device)  # batch folded into another dimension: key by row instead
        rows = self.reader.rows(
            x.float() if x.dtype in (torch.float16, torch.bfloat16) else x, self.reader.picked(ids, x, out)
        )
        if self.statistics is None:
            outputs = out.shape[-1] if self.reader.tap.kind == "linear" else out.shape[1]
            curvature = torch.zeros(outputs, outputs, dtype=wide(x.device), device=x.device)
            self.statistics = TapStatistics(Moments.empty(rows.mean(0)), curvature, self.reader.per_kernel)
        self.statistics.moments.add(rows)
        if out.requires_grad:
            self.outputs.append(out)

    def curve(self, gradient: Tensor) -> None:
        if self.statistics is None:
            return
        g = gradient.detach().float() if gradient.dtype in (torch.float16, torch.bfloat16) else gradient.detach()
        g = g.reshape(-1, g.shape[-1]) if self.reader.tap.kind == "linear" else g.transpose(0, 1).flatten(1).T
        self.statistics.curvature += g.T @ g


@contextmanager
def watching(model: nn.Module, watchers: dict[str, _Watcher]) -> Iterator[None]:
    """Hooks are placed on the consumers and always removed."""
    with ExitStack() as stack:
        for name, watcher in watchers.items():
            handle = model.get_submodule(name).register_forward_hook(watcher.forward)
            stack.callback(handle.remove)
        yield


def first_output(out: Any) -> Tensor:
    """The tensor that is judged: `logits` if the output has it, else the first tensor."""
    if isinstance(out, Tensor):
        return out
    if hasattr(out, "logits"):
        return out.logits
    values: Iterable[Any] = out.values() if isinstance(out, dict) else out
    if isinstance(out, dict) and "logits" in out:
        return out["logits"]
    return first_output(next(v for v in values if isinstance(v, (Tensor, dict, tuple, list))))


def sampled_log_likelihood(output: Tensor, ids: Tensor, key: int) -> Tensor:
    """Sum over samples of log p(label), labels drawn from the model's own softmax with noise keyed by sample id."""
    logits = output.float().flatten(2).mean(2) if output.dim() > 2 else output.float()
    classes = logits.shape[1]
    cells = ids[:, None] * classes + torch.arange(classes, device=ids.device)[None, :]
    uniform = (keyed_hash(cells, key) >> 9).double().to(wide(ids.device)) / float(1 << 53)
    gumbel = -torch.log(-torch.log(uniform.clamp(1e-12, 1 - 1e-12)))
    labels = (logits.detach() + gumbel.to(logits.dtype)).argmax(1)
    return torch.log_softmax(logits, 1).gather(1, labels[:, None]).sum()


def observe(
    model: nn.Module,
    graph: UnitGraph,
    batches: Callable[[], Iterable[Any]],
    samples: int,
    *,
    taps: Sequence[Tap] | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Statistics:
    """Statistics of all (or the given) taps in one pass over `batches()` (objects with `ids`, `inputs`).

    The model must be in eval mode on the batches' device; its parameters' grad flags are restored.
    """
    chosen = graph.taps if taps is None else taps
    watchers = {
        tap.module: _Watcher(TapReader(tap, model.get_submodule(tap.module), samples, seed + i), samples)
        for i, tap in enumerate(chosen)
    }
    seen = 0
    with watching(model, watchers), torch.enable_grad():
        for batch in batches():
            for watcher in watchers.values():
                watcher.ids = batch.ids
            args, kwargs = call_arguments(batch.inputs)
            output = first_output(model(*args, **kwargs))
            _gradients(sampled_log_likelihood(output, batch.ids, seed + 7919), list(watchers.values()))
            seen += len(batch.ids)
            if progress is not None:
                progress(len(batch.ids))
    result = Statistics(samples=seen)
    for name, watcher in watchers.items():
        if watcher.statistics is not None:
            watcher.statistics.samples = seen
            result.taps[name] = watcher.statistics
    return result


def _gradients(likelihood: Tensor, watchers: list[_Watcher]) -> None:
    """Gradients at the watched outputs only: the engine skips those of the weights."""
    outputs = [(watcher, out) for watcher in watchers for out in watcher.outputs]
    if outputs:
        gradients = torch.autograd.grad(likelihood, [out for _, out in outputs], allow_unused=True)
        for (watcher, _), gradient in zip(outputs, gradients, strict=True):
            if gradient is not None:
                watcher.curve(gradient)
    for watcher in watchers:
        watcher.outputs.clear()

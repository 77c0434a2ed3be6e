"""Parity: does an ONNX file compute what the network computes? Only a comparison with signal counts.

Two constant outputs agree whatever the weights are. So the reference's output must vary over the inputs;
where it does not, the inputs are perturbed, and where that does not help either, nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.export.inputs import Inputs, as_float, leaves, mapped
from compressor.export.session import OnnxModel
from compressor.units.modes import in_precision
from compressor.units.outputs import classes_second, judged_part
from compressor.units.program import copied, forward

TOLERANCE = 1e-3
"""Largest error relative to the spread over inputs at which a file is called the same network."""

BATCH_SIZES = (1, 2, 5)

_NO_SIGNAL = 1e-5
"""Spread over inputs, relative to the output's size, below which float32 rounding could hide any fault."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far an ONNX file is from its network on the same inputs.

    `relative_error` is the largest error over the spread (standard deviation over inputs, root mean square
    over outputs); `agreement` the percentage of equal argmaxes, None where there are no classes. Without signal
    both errors are None and nothing is claimed. `rounding` is torch's own float32 error on the same scale.
    """

    signal: bool
    max_abs_error: float | None
    relative_error: float | None
    agreement: float | None
    spread: float
    samples: int
    batch_sizes: tuple[int, ...]
    perturbed: bool
    reference: str
    rounding: float | None = None

    @property
    def holds(self) -> bool:
        """True if there was signal and the error is small, or no more than float32 explains."""
        if not self.signal or self.relative_error is None:
            return False
        return self.relative_error <= max(TOLERANCE, 4 * (self.rounding or 0.0))

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {**asdict(self), "batch_sizes": list(self.batch_sizes), "holds": self.holds}


def parity(
    path: str | Path, model: nn.Module, inputs: Inputs, threads: int = 1, limit: int = 64, seed: int = 0
) -> Parity:
    """Compare a file's judged output with the network's in float64, at batch sizes 1, 2, 5 and then up to 32.

    At most `limit` rows of `inputs` are used; fewer than 8 are filled up with perturbed ones. The model is
    copied, not changed. Raises ModelError if the file does not run at every batch size or gives other shapes.
    """
    session = OnnxModel(path, threads)
    network, reference = _reference(model, inputs)
    dtype = torch.float64 if reference == "float64" else torch.float32
    given = as_float(mapped(lambda leaf: leaf.detach()[:limit].cpu(), inputs), torch.float32)
    last = Parity(False, None, None, None, 0.0, 0, BATCH_SIZES, False, reference)
    for rows, perturbed in _attempts(given, seed):
        expected = torch.cat([run(network, as_float(part, dtype)).double() for part in _parts(rows)])
        spread, signal = _signal(expected)
        last = replace(last, signal=signal, spread=spread, samples=len(expected), perturbed=perturbed)
        if signal:
            got = torch.cat([_answer(session, part) for part in _parts(rows)])
            return _compared(last, got, expected, model, rows)
    return last


def bare_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy for exporting: CPU, eval mode, one precision, without the caller's hooks.

    Hooks of torch.nn.utils stay, since they compute weights.
    """
    twin = whole_copy(model, dtype)
    for module in twin.modules():
        for hooks in hook_tables(module):
            for key in [key for key, hook in hooks.items() if not _computes_weights(hook)]:
                del hooks[key]
    return twin


def whole_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy for comparing: CPU, eval mode, one precision, with the caller's hooks, which may change answers."""
    return in_precision(copied(model).cpu(), dtype)


def hook_tables(module: nn.Module) -> list[dict[int, Any]]:
    """The dictionaries in which a module keeps its forward and backward hooks."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [vars(module)[name] for name in names if vars(module).get(name)]


def count_hooks(model: nn.Module) -> int:
    """How many hooks `bare_copy` leaves away."""
    tables = [table for module in model.modules() for table in hook_tables(module)]
    return sum(not _computes_weights(hook) for table in tables for hook in table.values())


def run(network: nn.Module, inputs: Inputs) -> Tensor:
    """The judged output of a batch, without gradients; ModelError if its rows are not the batch's."""
    with torch.no_grad():
        found = judged_part(forward(network, inputs))[0]
    rows = leaves(inputs)[0].shape[0]
    if found.ndim == 0 or found.shape[0] != rows:
        raise ModelError(
            "output of the network",
            f"shape {tuple(found.shape)} for {rows} inputs",
            f"{rows} rows, one for each input",
            "return a tensor with the samples first.",
        )
    return found


def _computes_weights(hook: Any) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils")


def _reference(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, str]:
    """The network in float64, or in float32 where it has precisions written into its code."""
    network = whole_copy(model, torch.float64)
    first = as_float(mapped(lambda leaf: leaf.detach()[:1].cpu(), inputs), torch.float64)
    try:
        run(network, first)
    except (RuntimeError, TypeError):
        return whole_copy(model, torch.float32), "float32"
    return network, "float64"


def _attempts(given: Inputs, seed: int) -> Iterator[tuple[Inputs, bool]]:
    """Inputs to compare on: as given (filled up to all batch sizes), perturbed, perturbed strongly."""
    generator = torch.Generator().manual_seed(seed)
    least = sum(BATCH_SIZES)
    count = leaves(given)[0].shape[0]

    def perturbed(leaf: Tensor, scale: float) -> Tensor:
        repeated = torch.cat([leaf] * -(-max(count, least) // count))[: max(count, least)]
        if leaf.is_floating_point():
            size = float(leaf.std()) if leaf.numel() > 1 else 0.0
            noise = torch.randn(repeated.shape, generator=generator)
            return repeated + scale * (size or 1.0) * noise
        low, high = int(leaf.min()), int(leaf.max())
        return torch.randint(low, high + 1, repeated.shape, generator=generator).to(leaf.dtype)

    def filled(leaf: Tensor) -> Tensor:
        return torch.cat([leaf, perturbed(leaf, 0.5)[count:]])

    yield mapped(filled, given), False
    for scale in (1.0, 10.0):
        yield mapped(lambda leaf, scale=scale: perturbed(leaf, scale), given), True


def _parts(rows: Inputs) -> Iterator[Inputs]:
    count = leaves(rows)[0].shape[0]
    start = 0
    for size in [*BATCH_SIZES, *[32] * count]:
        if start >= count:
            return
        yield mapped(lambda leaf, low=start, high=start + size: leaf[low:high], rows)
        start += size


def _signal(expected: Tensor) -> tuple[float, bool]:
    spread = float((expected - expected.mean(0)).square().mean().sqrt())
    size = float(expected.abs().max())
    return spread, size < float("inf") and size > 1e-30 and spread > _NO_SIGNAL * size


def _answer(session: OnnxModel, part: Inputs) -> Tensor:
    rows = leaves(part)[0].shape[0]
    try:
        return classes_second(session.judged, session(part)).double()
    except Exception as error:  # noqa: BLE001 (onnxruntime's errors have no common class but this)
        raise ModelError(
            f"'{session.path}' at batch size {rows}",
            " ".join(str(error).split())[:300],
            "a file that runs at every batch size",
            "check the network for sizes written into its code (view, reshape, expand).",
        ) from None


def _compared(blank: Parity, got: Tensor, expected: Tensor, model: nn.Module, rows: Inputs) -> Parity:
    if got.shape != expected.shape:
        raise ModelError(
            "the exported file",
            f"outputs of shape {tuple(got.shape)}",
            f"{tuple(expected.shape)}",
            "report this; the network itself is fine.",
        )
    error = float((got - expected).abs().nan_to_num(nan=float("inf")).max())
    relative = error / blank.spread
    rounding = None
    if relative > TOLERANCE:
        network = whole_copy(model, torch.float32)
        own = torch.cat([run(network, part).double() for part in _parts(rows)])
        rounding = float((own - expected).abs().max()) / blank.spread
    return replace(
        blank,
        max_abs_error=error,
        relative_error=relative,
        agreement=_agreement(got, expected),
        rounding=rounding,
    )


def _agreement(got: Tensor, expected: Tensor) -> float | None:
    """Percentage of equal argmaxes over classes, (N, C, ...); None where there is one score."""
    if expected.ndim < 2 or expected.shape[1] < 2:
        return None
    return 100 * float((got.argmax(1) == expected.argmax(1)).double().mean())

"""A network as one ONNX file: dynamic batch, checked, compared with the network, then put in place.

The newer exporter (torch.export) is tried first; where it fails, or makes a file that is not the network,
the older one (TorchScript) is tried, and the report says so. Folding of norms is left to the runtime.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from compressor.errors import CompressorError, ModelError, UsageError
from compressor.export.files import move, scratch_folder
from compressor.export.inputs import Inputs, as_float, leaves, mapped
from compressor.export.lengths import cut_short, free_axes, note_length, tokens_of
from compressor.export.parity import Parity, bare_copy, count_hooks, parity, run, whole_copy
from compressor.export.session import OnnxModel
from compressor.units.outputs import named_outputs
from compressor.units.program import call_arguments, forward

__all__ = ["OnnxModel", "OnnxReport", "Parity", "export_onnx", "parity"]

ONE_FILE_LIMIT = 2**31 - 2**26
"""Bytes of numbers up to which they go into the file itself; a protocol buffer holds 2 GB at most."""


@dataclass(frozen=True, slots=True)
class OnnxReport:
    """What was exported. `bytes` counts the file (with its data file, above 2 GB)."""

    path: Path
    opset: int
    nodes: int
    bytes: int
    exporter: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parity: Parity
    notes: tuple[str, ...] = ()

    @property
    def max_abs_error(self) -> float | None:
        """Largest difference from the network in float64; None without signal."""
        return self.parity.max_abs_error

    @property
    def relative_error(self) -> float | None:
        """The same, relative to the output's spread over inputs."""
        return self.parity.relative_error

    @property
    def agreement(self) -> float | None:
        """Percentage of equal argmaxes."""
        return self.parity.agreement

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: everything flat but the details of the comparison."""
        return {
            "path": self.path.name,
            "opset": self.opset,
            "nodes": self.nodes,
            "bytes": self.bytes,
            "exporter": self.exporter,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "max_abs_error": self.max_abs_error,
            "relative_error": self.relative_error,
            "agreement": self.agreement,
            "parity": self.parity.as_dict(),
            "notes": list(self.notes),
        }


def export_onnx(
    model: nn.Module, example_inputs: Inputs, path: str | Path, opset: int | None = None, threads: int = 1
) -> OnnxReport:
    """Write `model` as ONNX in float32 with a dynamic batch, compared with it at several batch sizes. Of tokens any
    number is taken where the network does so, compared at half of them as well.

    `example_inputs` are real inputs, as many as should be compared (at most 64 are). The file appears whole
    or not at all, and the model is left as it is. Raises ModelError if neither exporter makes a file that is
    the network; a comparison without signal is no error here, but `report.parity.signal` is False.
    """
    path = Path(path)
    names = _input_names(example_inputs)
    example = as_float(mapped(_two_rows, example_inputs), torch.float32)
    twin, notes = _exported_copy(model, example)
    network, outputs = _flat(twin, example)
    with scratch_folder(path.parent) as scratch:
        for way in _ways(network, example):
            draft = scratch / str(len(notes)) / path.name
            draft.parent.mkdir()
            try:
                _export(way, network, example, names, outputs, draft, opset)
                found = _compared(way, draft, model, example_inputs, threads)
            except Exception as error:  # noqa: BLE001 (exporters raise anything; all reasons are told)
                what = f"inputs of {tokens_of(example)} tokens only" if way.open_length else way.exporter
                notes.append(f"{what}: {_short(error)}")
                continue
            return _publish(draft, path, way.exporter, found, tuple(notes))
    raise ModelError(
        "export to ONNX",
        "; ".join(notes),
        "a network that one of torch's exporters takes",
        "see the reasons above.",
    )


@dataclass(frozen=True, slots=True)
class _Way:
    """How a file is made."""

    exporter: str
    open_length: bool = False
    """Texts may have any number of tokens."""


def _ways(network: nn.Module, example: Inputs) -> list[_Way]:
    """What is tried, in this order: with an open number of tokens where the network runs on other numbers, too."""
    ways = [_Way("dynamo"), _Way("torchscript")]
    if tokens_of(example) is None:
        return ways
    try:
        with torch.no_grad():
            network(*leaves(cut_short(example)))
    except Exception:  # noqa: BLE001 (whatever a network raises that takes one length)
        return ways
    return [_Way("dynamo", open_length=True), *ways]


def _compared(way: _Way, draft: Path, model: nn.Module, inputs: Inputs, threads: int) -> Parity:
    """The file's outputs beside the network's. ModelError where they differ, or the file is not valid."""
    _check(draft)
    found = parity(draft, model, inputs, threads)
    others = [parity(draft, model, cut_short(inputs), threads, limit=8)] if way.open_length else []
    for one in (found, *others):
        if one.signal and not one.holds:
            raise ModelError(
                f"the file of the {way.exporter} exporter",
                f"a relative error of {one.relative_error:.2g}",
                "the same outputs as the network's",
                "report this; the network itself is fine.",
            )
    if way.open_length:
        note_length(draft, tokens_of(inputs) or 0)
    return found


def _exported_copy(model: nn.Module, example: Inputs) -> tuple[nn.Module, list[str]]:
    """The network without the caller's hooks, unless they change what it answers; and what is to be said of them."""
    bare, hooks = bare_copy(model, torch.float32), count_hooks(model)
    if not hooks:
        return bare, []
    whole = whole_copy(model, torch.float32)
    if _same_answers(bare, whole, example):
        return bare, [f"{hooks} hook(s) of the network are no part of the file: its answers are the same without them"]
    return whole, [f"{hooks} hook(s) of the network change its answers: they are part of the file"]


def _same_answers(bare: nn.Module, whole: nn.Module, example: Inputs) -> bool:
    try:
        return torch.equal(run(bare, example), run(whole, example))
    except Exception:  # noqa: BLE001 (without hooks it need not run; `_flat` tells where it does not run with them)
        return False


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """The exporters print, warn and log; all of that is as before afterwards."""
    disabled = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


class _Flat(nn.Module):
    """Tensors in by position, all output tensors out as one tuple: what both exporters understand."""

    def __init__(self, network: nn.Module, keywords: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.keywords = network, keywords

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.keywords, tensors, strict=True)) if self.keywords else {}
        outputs = self.network(**named) if named else self.network(*tensors)
        return tuple(named_outputs(outputs).values())


def _flat(network: nn.Module, example: Inputs) -> tuple[nn.Module, list[str]]:
    """The network as it is exported, and its outputs' names: itself, where it maps a tensor to a tensor."""
    try:
        with torch.no_grad():
            outputs = forward(network, example)
    except Exception as error:  # whatever it raises: as it is exported it need not run
        raise ModelError(
            "export to ONNX",
            _short(error),
            "a network that runs in float32 on the CPU",
            "use the bundle instead.",
        ) from error
    if isinstance(example, Tensor) and isinstance(outputs, Tensor):
        return network, ["output"]
    _, keywords = call_arguments(example)
    return _Flat(network, tuple(keywords)).eval(), list(named_outputs(outputs))


def _input_names(inputs: Inputs) -> list[str]:
    given = leaves(inputs)
    if any(leaf.ndim == 0 or leaf.shape[0] < 1 for leaf in given):
        raise UsageError(
            "example inputs",
            "a tensor without samples",
            "samples along the first axis",
            "give at least one sample.",
        )
    if isinstance(inputs, dict):
        return list(inputs)
    return ["input" if place == 0 else f"input_{place}" for place in range(len(given))]


def _two_rows(leaf: Tensor) -> Tensor:
    """Two rows: exporters take a batch of one for a fixed size."""
    return (leaf if leaf.shape[0] > 1 else torch.cat([leaf, leaf]))[:2].detach().cpu().clone()


def _export(
    way: _Way,
    network: nn.Module,
    example: Inputs,
    names: list[str],
    outputs: list[str],
    draft: Path,
    opset: int | None,
) -> None:
    tensors = tuple(leaves(example))
    size = sum(t.numel() * t.element_size() for t in [*network.parameters(), *network.buffers()])
    common: dict[str, Any] = {
        "input_names": names,
        "output_names": outputs,
        "opset_version": opset,
        "verbose": False,
    }
    with silenced(), torch.random.fork_rng(devices=[]), torch.no_grad():
        if way.exporter == "dynamo":
            batch, length = torch.export.Dim("batch"), torch.export.Dim("length") if way.open_length else None
            shapes: Any = tuple(free_axes(tensor, batch, length) for tensor in tensors)
            torch.onnx.export(
                network,
                tensors,
                str(draft),
                dynamo=True,
                dynamic_shapes=(shapes,) if isinstance(network, _Flat) else shapes,
                external_data=size > ONE_FILE_LIMIT,
                **common,
            )
        else:
            axes = {name: {0: "batch"} for name in [*names, *outputs]}
            torch.onnx.export(network, tensors, str(draft), dynamo=False, dynamic_axes=axes, **common)


def _check(draft: Path) -> None:
    """The file is valid ONNX, and its batch is not fixed."""
    onnx.checker.check_model(str(draft), full_check=True)
    for entry in onnx.load(str(draft), load_external_data=False).graph.input:
        if not entry.type.tensor_type.shape.dim[0].dim_param:
            raise ModelError(
                f"input '{entry.name}' of the exported file",
                "a fixed batch size",
                "a dynamic one",
                "check the network for sizes written into its code (view, reshape, expand).",
            )


def _publish(draft: Path, path: Path, exporter: str, found: Parity, notes: tuple[str, ...]) -> OnnxReport:
    """Move the checked file to its place, its data file (above 2 GB) before it."""
    model = onnx.load(str(draft), load_external_data=False)
    files = sorted(draft.parent.iterdir(), key=lambda file: file == draft)
    size = sum(file.stat().st_size for file in files)
    for file in files:
        move(file, path.parent / file.name)
    if not found.signal:
        notes = (*notes, "no signal: the output does not vary over inputs, so nothing could be compared")
    return OnnxReport(
        path=path,
        opset=next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        nodes=len(model.graph.node),
        bytes=size,
        exporter=exporter,
        inputs=tuple(entry.name for entry in model.graph.input),
        outputs=tuple(entry.name for entry in model.graph.output),
        parity=found,
        notes=notes,
    )


def _short(error: Exception) -> str:
    if isinstance(error, CompressorError):
        return str(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) < 300 else text[:297] + '...'}"

"""The networks of one rung: the trained one, the same before training, and one that can only memorise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from compressor.capacity.nulls import RANDOM_LABELS
from compressor.capacity.settings import Setting
from compressor.errors import CompressorError
from compressor.sources.data import Data
from compressor.sources.samples import Samples
from compressor.stages import Report
from compressor.studies import Wanted, network, save_weights
from compressor.training.loop import Progress, accuracy, train
from compressor.training.targets import refuse_targets
from compressor.units.modes import home_of

NETWORKS = "networks"


@dataclass(frozen=True)
class Memorised:
    """A network of the same width, initial weights and training, on permuted labels."""

    model: nn.Module
    data: Data
    """The study's data with the labels that it was trained on."""


@dataclass(frozen=True)
class Networks:
    """`memorised` is None where the recipe does not ask for it, nothing is trained, or labels are random anyway."""

    trained: nn.Module
    untrained: nn.Module
    memorised: Memorised | None
    about: dict[str, Any]


def networks_of(
    setting: Setting, width: float, seed: int, data: Data, base: Path, folder: Path, report: Report
) -> Networks:
    """Train what is not in `folder/networks` yet. Raises what loading and training raise."""
    kept = folder / NETWORKS
    wanted = setting.wanted(width, seed, kept)
    fresh = wanted.initial(base)
    for samples in (data.train, data.judge):
        if samples is not None:
            refuse_targets(fresh, samples, home_of(fresh))
    if _rates(setting, wanted):
        _best_of(setting, wanted, fresh, data.train, data.tune, report)
    model, weights = network(wanted, base, data.train, report, _snapshooter(setting, width, seed, folder))
    about: dict[str, Any] = {"weights": weights, "params": sum(weight.numel() for weight in model.parameters())}
    memorised = None
    if setting.memorises and wanted.checkpoint is None and wanted.options is not None and data.train is not None:
        memorised = _memorised(setting, setting.memorising(width, seed, kept), fresh, data, base, report)
    return Networks(model, fresh, memorised, about)


def snapshot_file(setting: Setting, width: float, seed: int, folder: Path, share: float) -> Path:
    """Where the weights at a share of the training lie."""
    return folder / NETWORKS / f"{setting.rung(width, seed)}-at{share:g}.safetensors"


def _memorised(setting: Setting, wanted: Wanted, fresh: nn.Module, data: Data, base: Path, report: Report) -> Memorised:
    samples = setting.permuted(data.train, wanted.seed)
    if _rates(setting, wanted):
        _best_of(setting, wanted, fresh, samples, samples, report)
    model, _ = network(wanted, base, samples, lambda _stage, done: report(RANDOM_LABELS, done))
    return Memorised(model, replace(data, train=samples))


def _rates(setting: Setting, wanted: Wanted) -> Sequence[float]:
    """The learning rates that are still to be tried."""
    ready = wanted.checkpoint is not None or wanted.options is None or wanted.kept.is_file()
    return () if ready else setting.ladder.learning_rates


def _best_of(
    setting: Setting, wanted: Wanted, fresh: nn.Module, samples: Samples | None, judge: Samples, report: Report
) -> None:
    """Train at every learning rate; the weights that do best on `judge` are kept (of equals, the first)."""
    rates = setting.ladder.learning_rates
    assert wanted.options is not None
    assert samples is not None
    best: tuple[float, nn.Module] | None = None
    for place, lr in enumerate(rates):
        report(f"train at {lr:g}", place / len(rates))
        try:
            made = train(fresh, samples, replace(wanted.options, lr=lr * setting.section.scale))[0]
        except CompressorError:  # it diverged: not the best
            continue
        value = accuracy(made, judge)
        if best is None or value > best[0]:
            best = value, made
    if best is None:
        raise CompressorError(
            f"network {wanted.kept.stem}", "training diverged at every learning rate", "one that converges",
            "add smaller ones to capacity.learning_rates.",
        )  # fmt: skip
    save_weights(best[1], wanted.kept)


def _snapshooter(setting: Setting, width: float, seed: int, folder: Path) -> Any:
    """Keeps the weights at the shares of the training that the recipe names."""
    left = sorted(setting.ladder.snapshots)

    def watch(progress: Progress) -> None:
        while left and progress.done >= left[0]:
            save_weights(progress.model, snapshot_file(setting, width, seed, folder, left.pop(0)))

    return watch if left else None

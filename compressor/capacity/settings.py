"""One way to train a ladder, made ready: the recipe with a setting's changes on top, its data, and what marks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compressor.capacity.classes import relabelled, with_classes
from compressor.capacity.nulls import permuted_labels, random_labels
from compressor.errors import DataError, UsageError
from compressor.recipe import Recipe
from compressor.sections import CapacitySection, SettingSection, TrainSection
from compressor.sources.data import Data, load_data
from compressor.sources.samples import Samples
from compressor.sources.trees import named_leaves
from compressor.studies import Wanted, weights_file
from compressor.training.initial import initialise
from compressor.training.loop import TrainOptions


@dataclass(frozen=True)
class Setting:
    """A named setting of a capacity recipe."""

    name: str
    recipe: Recipe
    section: SettingSection
    ladder: CapacitySection
    train: TrainSection | None

    def data(self, base: Path, seed: int, load: Callable[[str, Path], Data] | None = None) -> Data:
        """Its data, with as many samples and such labels as it says; random labels are drawn by `seed`.

        `load` may remember what it has read.

        Raises DataError where it asks for more training samples than there are, and for labels that are no classes.
        """
        spec = self.recipe.spec_of(data=self.section.data_args)[1]
        found = with_classes(load_data(spec, base=base) if load is None else load(spec, base))
        if self.ladder.test_samples is not None:
            judge = found.judge.take(range(min(len(found.judge), self.ladder.test_samples)))
            found = replace(found, judge=judge)
        if found.train is None:
            return found
        train, count = found.train, self.section.train_samples or self.ladder.train_samples
        if count is not None:
            if count > len(train):
                raise DataError(f"setting '{self.name}'", f"{len(train)} training samples", f"{count}", "ask for fewer")
            train = train.take(range(count))
        if self.section.labels == "random":
            train = relabelled(train, lambda labels: random_labels(labels, seed))
        return replace(found, train=train)

    def wanted(self, width: float, seed: int, folder: Path) -> Wanted:
        """The network of one rung, and where it lies."""
        value = int(width) if float(width).is_integer() else width
        spec = self.recipe.spec_of(model={**self.section.model_args, "width": value})[0]
        how = self.section.initialisation
        checkpoint = weights_file(self.recipe, setting=self.name, width=value, seed=seed)
        kept = folder / f"{self.rung(width, seed)}.safetensors"
        prepare = None if how is None else lambda model: initialise(model, how, seed)
        return Wanted(spec, seed, kept, checkpoint, self.options(seed), prepare)

    @property
    def memorises(self) -> bool:
        """Whether a network trained on permuted labels stands beside each one, as a null."""
        return self.ladder.random_labels and self.section.labels == "true"

    def permuted(self, samples: Samples | None, seed: int) -> Samples:
        """Training samples with their labels permuted by `seed`. Raises DataError where there are no labels."""
        assert samples is not None
        return relabelled(samples, lambda labels: permuted_labels(labels, seed))

    def memorising(self, width: float, seed: int, folder: Path) -> Wanted:
        """The network of a rung to be trained on permuted labels: the same before training, with a file of its own."""
        return replace(
            self.wanted(width, seed, folder), kept=folder / f"{self.rung(width, seed)}-random-labels.safetensors"
        )

    def rung(self, width: float, seed: int) -> str:
        """The name of a rung's files."""
        return f"{self.name}-w{width:g}-s{seed}"

    def options(self, seed: int) -> TrainOptions | None:
        """How its networks are trained; None where they are only taken."""
        if self.train is None:
            return None
        plain, factor = self.train.options(), self.section.scale
        return replace(plain, seed=seed, lr=plain.lr * factor, batch=max(1, round(plain.batch * factor)))

    def traits(self, data: Data) -> dict[str, Any]:
        """What claims compare settings by: two settings that differ in one trait alone are a contrast."""
        train = self.train
        inputs, _ = data.judge.batch([0])
        return {
            "labels": self.section.labels,
            "initialisation": self.section.initialisation or "own",
            "train_samples": None if data.train is None else len(data.train),
            "scale": self.section.scale,
            "regulariser": None if train is None else _regulariser(train, self.section),
            "optimizer": None if train is None else (train.optimizer, train.schedule, train.lr),
            "epochs": None if train is None else train.epochs,
            "model": {k: v for k, v in self.section.model_args.items() if k not in _INPUT and k != "dropout"},
            "dimension": sum(leaf[0].numel() for _, leaf in named_leaves(inputs)),
            "data": {k: v for k, v in self.section.data_args.items() if k not in _INPUT},
        }


_INPUT = ("dimension", "samples")
"""Arguments that say only how large inputs are, or how many there are: traits of their own."""


def settings_of(recipe: Recipe) -> list[Setting]:
    """All settings of a recipe's ladder. Raises UsageError for keys of `train` that are none."""
    assert recipe.capacity is not None
    return [
        Setting(name, recipe, section, recipe.capacity, _training(recipe, name, section))
        for name, section in recipe.capacity.settings.items()
    ]


def _training(recipe: Recipe, name: str, section: SettingSection) -> TrainSection | None:
    if recipe.train is None:
        return None
    try:
        return TrainSection.model_validate({**recipe.train.model_dump(), **section.train})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in problem["loc"])
        known = ", ".join(TrainSection.model_fields)
        raise UsageError(
            f"recipe: capacity.settings.{name}.train.{place}",
            problem["msg"],
            f"keys of `train`: {known}",
            "correct it.",
        ) from None


def _regulariser(train: TrainSection, section: SettingSection) -> tuple[Any, ...]:
    """Weight decay, label smoothing, augmentation, dropout."""
    return train.weight_decay, train.label_smoothing, train.flip, train.shift, section.model_args.get("dropout", 0)

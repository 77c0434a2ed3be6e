"""The sections of a recipe: how to train, compress, compare and measure ladders; unknown keys are refused."""

from __future__ import annotations

import itertools
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from compressor.training.initial import Initialisation
from compressor.training.loop import TrainOptions
from compressor.training.schedules import Optimizer, Schedule

Share = Annotated[float, Field(gt=0, lt=1)]
OWN_METHODS = ("ours", "small_from_scratch")
"""Methods of a comparison that come with the package."""


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_yes_as_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's `yes` is true, and true would quietly count as 1."""
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and field.annotation is not bool:
            raise ValueError("a number or text, not yes / no")
        return value


def _different(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """A seed given twice is one network counted twice: intervals over seeds would be too narrow."""
    if len(set(seeds)) < len(seeds):
        raise ValueError("seeds that differ")
    return seeds


Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(_different)]


class TrainSection(Section):
    """How to train the network before it is compressed; used where no checkpoint is given."""

    epochs: int = Field(default=10, ge=1)
    batch: int = Field(default=128, ge=1)
    lr: float = Field(default=0.1, gt=0, description="peak of the schedule")
    optimizer: Optimizer = "sgd"
    schedule: Schedule = "one_cycle"
    weight_decay: float = Field(default=5e-4, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    flip: bool = Field(default=False, description="mirror half of the images")
    shift: int = Field(default=0, ge=0, description="move images by up to this many pixels")
    bf16: bool = Field(default=False, description="bfloat16 autocast")
    seed: int = Field(default=0, ge=0)

    def options(self) -> TrainOptions:
        """The same for the training loop."""
        return TrainOptions(**self.model_dump())


class CompressSection(Section):
    """The options of `compressor compress`, by the names of its flags."""

    max_drop: float = Field(default=0.5, ge=0, lt=100, description="allowed loss of accuracy in percentage points")
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    keep: str | None = Field(default=None, pattern=r"^(params|macs|latency)=0?\.\d+$", description="params=0.35")
    exact: bool = False
    align: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    recover: str | None = Field(
        default=None, pattern=r"^\d+(\.\d+)?(ep|min)$|^\d+st$", description="8ep, 5min or 400st"
    )
    unlabelled: str | None = Field(default=None, description="DATA whose inputs recovery trains on too")
    metric: str | None = Field(default=None, description="file.py:function that scores each answer, higher is better")
    metric_range: tuple[float, float] = Field(default=(0.0, 1.0), description="lowest and highest score")
    latency_table: str | None = Field(default=None, description="for keep: latency=0.4, measured elsewhere")
    memory: str | None = Field(
        default=None, pattern=r"^\d+(\.\d+)? ?[KMGT]?i?B$", description="8GB: what sums and activations may take"
    )
    rotate: Share | None = Field(default=None, description="share of their width that streams behind norms keep")
    precision: tuple[Literal["fp16", "int8"], ...] = Field(default=(), description="variants of the ONNX file")
    device: str = "auto"
    seed: int = Field(default=0, ge=0, lt=2**32)


class CompareSection(Section):
    """Methods side by side on the recipe's network; drop, confidence and recovery are those of `compress`."""

    methods: dict[str, str] = Field(description="name -> ours, small_from_scratch, or path/file.py:function?argument=1")
    sizes: tuple[Share, ...] = Field(min_length=1, description="shares that each method is asked to keep")
    measure: Literal["params", "macs"] = "params"
    seeds: Seeds = Field(default=(0, 1, 2), min_length=1)
    only: dict[str, tuple[Share, ...]] = Field(default={}, description="name -> the sizes that it alone is asked for")
    stop_at: float = Field(
        default=3.0, gt=0, description="points lost (more than max_drop) at which a method is asked for no smaller size"
    )

    def sizes_of(self, method: str) -> tuple[Share, ...]:
        """The sizes that one method is asked for."""
        return self.only.get(method, self.sizes)

    @field_validator("methods")
    @classmethod
    def _names_of_files(cls, methods: dict[str, str]) -> dict[str, str]:
        if not methods or any(not re.fullmatch(r"[A-Za-z0-9_.+-]+", name) for name in methods):
            raise ValueError("one method or more, their names of letters, digits, _, ., + and -")
        for name, spec in methods.items():  # ratios are of `ours` and of peers: every other name is a peer's
            if name != spec and (own := {name, spec} & set(OWN_METHODS)):
                raise ValueError(
                    f"`{min(own)}: {min(own)}`: these names are those of the built-in methods, and no others"
                )
        return methods

    @field_validator("sizes", "only")
    @classmethod
    def _sizes_of_their_own(cls, value: Any) -> Any:
        """Cells lie in files that are named by four decimals of the size."""
        for sizes in value.values() if isinstance(value, dict) else (value,):
            if len({f"{size:.4f}" for size in sizes}) < len(set(sizes)) or not sizes:
                raise ValueError("one size or more, which differ in their first four decimals")
        return value

    @model_validator(mode="after")
    def _only_of_methods(self) -> CompareSection:
        for name in self.only:
            if name not in self.methods:
                raise ValueError(f"in `only` names of methods ({', '.join(self.methods)}), not {name!r}")
        return self


Arguments = dict[str, int | float | bool | str | None]


class SettingSection(Section):
    """One way to train a ladder, by what is different from the recipe's own."""

    labels: Literal["true", "random"] = "true"
    initialisation: Initialisation | None = Field(default=None, description="how weights are drawn; else the model's")
    train_samples: int | None = Field(default=None, ge=2, description="the first so many training samples")
    scale: float = Field(default=1.0, gt=0, description="factor of learning rate and batch size")
    train: dict[str, int | float | bool | str] = Field(default={}, description="keys of `train` that differ")
    model_args: Arguments = {}
    data_args: Arguments = {}


class RaySection(Section):
    """Ray, the optional extra: a cluster that runs already, or a number of workers to start here (or both)."""

    address: str | None = Field(
        default=None, min_length=1, description="of a cluster: auto, HOST:PORT or ray://HOST:PORT"
    )
    workers: int | None = Field(default=None, ge=1, description="tasks at a time; on this machine without an address")

    @model_validator(mode="after")
    def _one_of_them(self) -> RaySection:
        if self.address is None and self.workers is None:
            raise ValueError("an address, or a number of workers")
        return self


class CapacitySection(Section):
    """A ladder of networks of growing `width`, measured beside its nulls."""

    widths: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=2, description="rising values of `width`")
    seeds: Seeds = Field(default=(0, 1, 2), min_length=1)
    settings: dict[str, SettingSection] = Field(default={"base": SettingSection()}, min_length=1)
    train_samples: int | None = Field(default=None, ge=2, description="the first so many training samples")
    test_samples: int | None = Field(default=None, ge=10, description="the first so many test samples; else all")
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(), description="each is tried; the best one on the tune part stays"
    )
    layers: tuple[str, ...] = Field(default=(), description="modules to measure; else the model's `taps`, or its units")
    orders: int = Field(default=3, ge=1, description="random orders of ablation")
    ablation_samples: int | None = Field(
        default=None, ge=10, description="the first so many test samples are asked of ablated networks; else all"
    )
    by_layer: bool = Field(default=False, description="ablate every layer alone too")
    chunks: int = Field(default=100, ge=1, description="random chunks of each size")
    regressions: int = Field(default=40, ge=1, description="of these, how many are regressed on")
    chunk_samples: int = Field(default=10_000, ge=10, description="training samples that chunks are asked for")
    max_rows: int = Field(default=50_000, ge=100, description="rows of activations per layer")
    snapshots: tuple[Share, ...] = Field(default=(), description="shares of the training at which to measure too")
    random_labels: bool = Field(
        default=False,
        description="beside each network one of the same width trained on permuted labels (twice the cost)",
    )
    effective: bool = Field(default=False, description="ask the compressor how many units are needed")
    workers: int = Field(default=1, ge=1, description="processes that measure rungs side by side on this machine")
    ray: RaySection | None = Field(default=None, description="measure rungs as tasks of Ray instead")

    @field_validator("widths")
    @classmethod
    def _rising(cls, widths: tuple[float, ...]) -> tuple[float, ...]:
        if any(second <= first for first, second in itertools.pairwise(widths)):
            raise ValueError("widths that rise")
        if len({f"{width:g}" for width in widths}) < len(widths):  # their rungs would share one file
            raise ValueError("widths that differ in their first 6 digits")
        return widths

    @field_validator("settings")
    @classmethod
    def _names_of_files(cls, settings: dict[str, SettingSection]) -> dict[str, SettingSection]:
        if any(not re.fullmatch(r"[A-Za-z0-9_.]+", name) for name in settings):
            raise ValueError("names of letters, digits, _ and .")
        return settings

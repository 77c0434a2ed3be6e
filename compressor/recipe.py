"""Recipes: YAML files that say everything about one run, and are checked before it starts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from compressor.errors import UsageError
from compressor.sections import CompareSection, Section, Seeds, Share
from compressor.sources.consent import refuse_unknown_of_recipe
from compressor.sources.factories import meant
from compressor.training.initial import Initialisation
from compressor.training.loop import TrainOptions
from compressor.training.schedules import Optimizer, Schedule

SIZE_LIMIT, DEPTH_LIMIT = 200_000, 12
"""Bytes of a recipe, and levels of its nesting, at most."""

_FOLDERS = (Path(__file__).parent / "_recipes", Path(__file__).parent.parent / "recipes")
"""Where shipped recipes lie: in the wheel, and in the source tree."""


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


class Recipe(Section):
    """One run: a network, its data, optionally its training, and how to compress it."""

    description: str = ""
    model: str = Field(description="MODEL, as on the command line; paths are relative to the recipe")
    model_args: dict[str, int | float | bool | str | None] = Field(default={}, description="the factory's arguments")
    checkpoint: str | None = Field(default=None, description="weights; without them the network is trained")
    input: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(default=None, description="a sample's shape")
    data: str = Field(description="DATA, as on the command line")
    data_args: dict[str, int | float | bool | str | None] = Field(default={}, description="the factory's arguments")
    train: TrainSection | None = None
    compress: CompressSection = CompressSection()
    compare: CompareSection | None = Field(default=None, description="compare methods instead of compressing once")
    capacity: CapacitySection | None = Field(default=None, description="measure a ladder of widths instead")
    out: str | None = Field(default=None, description="output folder, relative to the working directory")

    def spec_of(self, *, model: Arguments | None = None, data: Arguments | None = None) -> tuple[str, str]:
        """MODEL and DATA in the form of the command line, with these arguments on top of the recipe's."""
        return (
            _with_query(self.model, {**self.model_args, **(model or {})}),
            _with_query(self.data, {**self.data_args, **(data or {})}),
        )

    def specs(self) -> Iterator[str]:
        """Everything in it that can name Python code, with its arguments."""
        settings = () if self.capacity is None else self.capacity.settings.values()
        for setting in (SettingSection(), *settings):
            yield from self.spec_of(model=setting.model_args, data=setting.data_args)
        yield from [spec for spec in (self.compress.unlabelled, self.compress.metric) if spec is not None]
        yield from [] if self.compare is None else self.compare.methods.values()

    @property
    def model_spec(self) -> str:
        """`model` with `model_args` in the form of the command line."""
        return _with_query(self.model, self.model_args)

    @property
    def data_spec(self) -> str:
        """`data` with `data_args` in the form of the command line."""
        return _with_query(self.data, self.data_args)


def load_recipe(name_or_path: str | Path) -> tuple[Recipe, Path]:
    """The recipe in a file, or the shipped one of that name, and the folder its paths are relative to.

    Raises UsageError that names the key for anything that is not as the schema says, and SourceError for code that is
    neither the user's own nor trusted (`refuse_unknown_of_recipe`); recipes of the package are trusted.
    """
    path = _find(str(name_or_path))
    size = path.stat().st_size
    if size > SIZE_LIMIT:
        raise UsageError(f"recipe {path}", f"{size} bytes", f"at most {SIZE_LIMIT}", "give a recipe.")
    recipe = parse_recipe(path.read_bytes(), str(path))
    if path not in {shipped.resolve() for shipped in shipped_recipes().values()}:
        refuse_unknown_of_recipe(recipe.specs(), str(path), path.parent)
    return recipe, path.parent


def parse_recipe(text: str | bytes, where: str) -> Recipe:
    """The recipe in a YAML text; `where` names it in messages. UsageError for anything wrong."""
    try:
        content = yaml.load(text, Loader=_PlainLoader)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        words = " ".join(str(error).split())[:200]
        raise UsageError(f"recipe {where}", words, "YAML", "repair the line named.") from error
    if not isinstance(content, Mapping):
        raise UsageError(
            f"recipe {where}", f"a {type(content).__name__}", "keys and values", "begin with `model: ...`."
        )
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise _refused(error, where) from error


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by the name under which they can be run."""
    found: dict[str, Path] = {}
    for folder in _FOLDERS:
        for path in sorted(folder.rglob("*.yaml")) if folder.is_dir() else []:
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return found


def recipe_schema() -> dict[str, Any]:
    """JSON schema of a recipe, for editors."""
    return Recipe.model_json_schema()


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without aliases (a few of them can unfold to gigabytes), deep nesting and repeated keys."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        line = self.peek_event().start_mark.line + 1
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"an alias (*name) in line {line}")
        if self.depth >= DEPTH_LIMIT:
            raise yaml.YAMLError(f"a recursion of more than {DEPTH_LIMIT} levels in line {line}")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"the key {key.value[:80]!r} more than once (line {line})")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _find(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        return path.resolve()
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    raise UsageError(
        f"recipe {name!r}",
        "a folder" if path.is_dir() else "no such file or name",
        f"a YAML file, or one of {', '.join(shipped)}",
        meant(name, list(shipped)) or "check the path.",
    )


def _refused(error: ValidationError, where: str) -> UsageError:
    """The first problem, in our words."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(step) for step in problem["loc"])
    more = f" (and {error.error_count() - 1} more problems)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        known = _keys_at(problem["loc"][:-1])
        hint = meant(str(problem["loc"][-1]), known) or "leave it out."
        return UsageError(f"recipe {where}: {place}", f"an unknown key{more}", f"one of {', '.join(known)}", hint)
    if problem["type"] == "missing":
        return UsageError(f"recipe {where}: {place}", f"nothing{more}", "a value", f"add `{place}: ...`.")
    try:
        got = f"{problem['input']!r}"[:80]
    except ValueError:  # Python writes no number of thousands of digits
        got = "a number of thousands of digits"
    return UsageError(
        f"recipe {where}: {place}",
        f"{got}{more}",
        _expected(problem["msg"]),
        "change it in the recipe.",
    )


def _expected(words: str) -> str:
    return words.removeprefix("Input should be ").removeprefix("Value error, ")


def _keys_at(steps: tuple[int | str, ...]) -> list[str]:
    sections: dict[tuple[int | str, ...], type[BaseModel]] = {
        (): Recipe,
        ("train",): TrainSection,
        ("compress",): CompressSection,
        ("compare",): CompareSection,
        ("capacity",): CapacitySection,
        ("capacity", "ray"): RaySection,
    }
    if len(steps) == 3 and steps[:2] == ("capacity", "settings"):
        return list(SettingSection.model_fields)
    return list(sections[steps].model_fields) if steps in sections else []


def _with_query(spec: str, arguments: Mapping[str, Any]) -> str:
    pairs = "&".join(f"{key}={value}" for key, value in arguments.items())
    return f"{spec}{'&' if '?' in spec else '?'}{pairs}" if pairs else spec


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The whole recipe with every default filled in, for the record; without the kinds of study that it is not."""
    return recipe.model_dump(mode="json", exclude={"capacity"} if recipe.capacity is None else None)

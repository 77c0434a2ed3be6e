"""Recipes: YAML files that say everything about one run, and are checked before it starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, ValidationError

from compressor.errors import UsageError
from compressor.sections import (
    Arguments,
    CapacitySection,
    CompareSection,
    CompressSection,
    RaySection,
    Section,
    SettingSection,
    TrainSection,
)
from compressor.sources.consent import refuse_unknown_of_recipe
from compressor.sources.factories import meant

SIZE_LIMIT, DEPTH_LIMIT = 200_000, 12
"""Bytes of a recipe, and levels of its nesting, at most."""

_FOLDERS = (Path(__file__).parent / "_recipes", Path(__file__).parent.parent / "recipes")
"""Where shipped recipes lie: in the wheel, and in the source tree."""


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

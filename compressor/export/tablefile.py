"""A width -> time table as a file: measured on one machine, planned by on another.

The file is plain JSON, bounded, and checked twice: on reading (schema), and against the network that it is used for.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from compressor.errors import SourceError, UsageError
from compressor.export.files import write_json
from compressor.export.timetable import Shape, Timetable, widths_of
from compressor.planning.timing import falling

SCHEMA = 1
_MOST_BYTES, _MOST_LAYERS, _MOST_POINTS = 64 * 1024**2, 100_000, 4096

Micros = Annotated[float, Field(ge=0, le=1e15)]
Width = Annotated[int, Field(ge=1, le=2**31)]
Widths = Annotated[list[Width], Field(min_length=1, max_length=_MOST_POINTS)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class LayerRow(_Part):
    """One layer: `micros[i][j]` where `widths[0][i]` and `widths[1][j]` entries of its weight stay."""

    weight: Annotated[str, Field(min_length=1, max_length=1000)]
    widths: Annotated[list[Widths], Field(min_length=2, max_length=2)]
    micros: Annotated[list[Annotated[list[Micros], Field(min_length=1)]], Field(min_length=1)]
    reads: Annotated[int, Field(ge=0, le=1)]
    entering: Annotated[float, Field(ge=0, le=1e18)]

    @model_validator(mode="after")
    def _fitting(self) -> LayerRow:
        for axis in self.widths:
            if any(later <= earlier for earlier, later in itertools.pairwise(axis)):
                raise ValueError(f"widths of {self.weight!r:.100} that rise")
        rows, columns = (len(axis) for axis in self.widths)
        if len(self.micros) != rows or any(len(row) != columns for row in self.micros):
            raise ValueError(f"{rows} x {columns} times of {self.weight!r:.100}")
        return self


class TableRow(_Part):
    """All layers, and `rest`, the microseconds of everything else in one call of `batch` samples."""

    layers: Annotated[list[LayerRow], Field(min_length=1, max_length=_MOST_LAYERS)]
    rest: Micros
    batch: Annotated[int, Field(ge=1, le=2**24)]
    threads: Annotated[int, Field(ge=1, le=4096)]
    block: Annotated[int, Field(ge=1, le=1024)]
    points: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0)]


class TableFile(_Part):
    """What a file of `compressor timetable` holds."""

    schema_version: Literal[1]
    kind: Literal["timetable"]
    model: str
    table: TableRow
    machine: dict[str, JsonValue]
    versions: dict[str, JsonValue]


def refuse_other_file(path: Path) -> None:
    """UsageError where a table would replace what is no table (a checkpoint, a folder); asked before measuring."""
    if not path.exists():
        return
    try:
        read_table(path)
    except SourceError:
        got = "a folder" if path.is_dir() else "a file that is no latency table"
        raise UsageError("--out", f"{got}: '{path}'", "a new file, or an earlier table", "name another.") from None


def write_table(path: str | Path, table: Timetable, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write the file atomically and return its content; `about` has `model`, `machine` and `versions`.

    UsageError where it cannot be written.
    """
    content = {"schema_version": SCHEMA, "kind": "timetable", **about, "table": table.as_dict()}
    write_json(path, content)
    return content


def read_table(path: str | Path) -> Timetable:
    """The table in a file. SourceError where it cannot be read, or is not as the schema says."""
    where = f"latency table '{path}'"
    try:
        if Path(path).stat().st_size > _MOST_BYTES:
            raise SourceError(where, "a huge file", f"at most {_MOST_BYTES:,} bytes", "give a latency table.")
        content = json.loads(Path(path).read_bytes())
        found = TableFile.model_validate(content).table
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(step) for step in problem["loc"])
        words = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        raise SourceError(f"{where}: {place or 'top level'}", "another value", words, _AGAIN) from None
    except (OSError, ValueError, RecursionError) as error:
        words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)[:200]
        raise SourceError(where, words, "a JSON file as `compressor timetable` writes it", _AGAIN) from None
    plain = found.model_dump()
    table = Timetable.from_dict(plain)
    for layer in table.layers:
        layer.micros[:] = falling(layer.micros)
    return table


_AGAIN = "measure it again with `compressor timetable MODEL --out FILE` on the target machine."


def refuse_other_network(path: str | Path, table: Timetable, layers: Sequence[tuple[str, Shape]]) -> None:
    """SourceError where a table is not of these layers, in this order, at their full widths and at narrower ones.

    `layers` are weights' names and how the runtime sees the layers.
    """
    for place in range(max(len(layers), len(table.layers))):
        name = layers[place][0] if place < len(layers) else None
        given = table.layers[place] if place < len(table.layers) else None
        if name is None or given is None or given.weight != name:
            got = "no such layer" if given is None else f"'{given.weight:.100}'"
            raise _other(path, f"layer {place}", got, "no more layers" if name is None else f"'{name}'")
        shape = layers[place][1]
        for full, narrower, there in zip(shape.size[:2], widths_of(shape, table.block), given.widths, strict=True):
            if there[-1] != full:
                raise _other(path, f"'{name}'", f"a width of {there[-1]}", str(full))
            if len(there) == 1 < len(narrower):
                raise _other(path, f"'{name}'", "times of its full width only", "times of narrower ones")


def _other(path: str | Path, where: str, got: str, expected: str) -> SourceError:
    return SourceError(f"latency table '{path}', {where}", got, expected, "measure the table of this very network.")

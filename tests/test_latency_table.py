"""A width -> time table measured on one machine and planned by on another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import Terminal

from compressor import clock as clocks
from compressor.errors import SourceError, UsageError
from compressor.export.block import Block
from compressor.export.tablefile import read_table
from compressor.options import Options, Sizes, refuse_unread_table

BLOCK = Block(2, {}, {}, 1, 0, 0.0)


@pytest.fixture
def table(home: Path, monkeypatch: pytest.MonkeyPatch, terminal: Terminal) -> dict[str, Any]:
    """What `compressor timetable` wrote for the little project's network, into table.json."""
    monkeypatch.setattr("compressor.analysis.measured_block", lambda *_: BLOCK)
    given = ["net.py:net", "--input", "6", "--out", "table.json", "--batch", "4", "--seconds", "0.2", "--json"]
    assert terminal("timetable", *given) == 0
    written: dict[str, Any] = json.loads((home / "table.json").read_text())
    assert terminal.json() == written
    return written


def test_a_table_replaces_tables_only(table: dict[str, Any], home: Path, terminal: Terminal) -> None:
    given = ["timetable", "net.py:net", "--input", "6", "--batch", "4", "--seconds", "0.2", "--out"]
    (home / "best.pt").write_bytes(b"weights")
    (home / "folder").mkdir()
    for name, words in (("best.pt", "a file that is no latency table"), ("folder", "a folder")):
        assert terminal(*given, name) == 2
        assert words in terminal.err
    assert (home / "best.pt").read_bytes() == b"weights"
    assert terminal(*given, "table.json") == 0


def test_the_table_decides_and_nothing_is_timed(
    table: dict[str, Any], home: Path, monkeypatch: pytest.MonkeyPatch, terminal: Terminal, no_onnx: None, no_page: None
) -> None:
    """On a machine where only the first layer's outputs take time, only they go."""
    assert [layer["weight"] for layer in table["table"]["layers"]] == ["0.weight", "2.weight", "4.weight"]
    assert [layer["widths"][0][-1] for layer in table["table"]["layers"]] == [10, 10, 4]
    assert table["table"]["batch"] == 4
    for place, layer in enumerate(table["table"]["layers"]):
        rows, columns = layer["widths"]
        layer["micros"] = [[100.0 * width / rows[-1] if place == 0 else 1e-3 for _ in columns] for width in rows]
    table["table"]["rest"] = 0.0
    (home / "other.json").write_text(json.dumps(table))
    for name in ("measured_table", "measured_block", "compare_latency"):
        monkeypatch.setattr(clocks, name, None)
    asked = ["net.py:net", "--data", "net.py:parts", "--max-drop", "60", "--keep", "latency=0.6"]
    code = terminal("compress", *asked, "--latency-table", "other.json", "--out", "out", "--json")
    assert code in (0, 4), terminal.err
    record = terminal.json()
    kept = {group["name"]: len(group["kept"]) for group in record["groups"]}
    assert kept["0"] <= 6
    told = record["latency"]
    assert told["measured"] is None
    assert told["given"] == "other.json"
    assert told["predicted"] <= 0.6
    assert told["predicted"] == pytest.approx(kept["0"] / 10, abs=1e-3)
    assert record["align"] == {"block": 2, "why": "that of the given latency table"}
    (home / "other.json").unlink()  # a replay takes the plan of the record
    assert terminal("replay", "out", "--json") == 0
    assert terminal.json()["same"]


def test_a_table_of_another_network(table: dict[str, Any], home: Path, terminal: Terminal) -> None:
    asked = ["--data", "net.py:parts", "--keep", "latency=0.6", "--latency-table", "table.json", "--out", "out"]
    assert terminal("compress", "net.py:net?width=12", *asked) == 3
    assert "latency table 'table.json', '0.weight': got a width of 10; expected 12" in terminal.err


Change = Callable[[dict[str, Any]], Any]
HOSTILE: dict[str, Change] = {
    "no times": lambda t: t["table"]["layers"][0].update(micros=[]),
    "too few times": lambda t: t["table"]["layers"][0]["micros"].pop(),
    "less than no time": lambda t: t["table"]["layers"][0]["micros"][0].__setitem__(0, -1.0),
    "falling widths": lambda t: t["table"]["layers"][0]["widths"][0].reverse(),
    "text": lambda t: t["table"].update(rest="1"),
    "no number": lambda t: t["table"].update(rest=float("nan")),
    "endless": lambda t: t["table"]["layers"][1].update(entering=float("inf")),
    "a block of none": lambda t: t["table"].update(block=0),
    "yes": lambda t: t["table"].update(batch=True),
    "unknown key": lambda t: t["table"].update(__class__="os.system"),
    "another version": lambda t: t.update(schema_version=2),
    "another kind": lambda t: t.update(kind="record"),
    "no layers": lambda t: t["table"].update(layers=[]),
    "a third axis": lambda t: t["table"]["layers"][0]["widths"].append([1]),
}
ROW = {"weight": "0.weight", "widths": [[2, 4], [3]], "micros": [[1.0], [2.0]], "reads": 1, "entering": 3.0}


def good() -> dict[str, Any]:
    table = {"layers": [ROW, ROW], "rest": 1.0, "batch": 1, "threads": 1, "block": 2, "points": 2, "seconds": 0.0}
    whole = {"schema_version": 1, "kind": "timetable", "model": "m", "table": table, "machine": {}, "versions": {}}
    return json.loads(json.dumps(whole))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_table_is_refused(name: str, tmp_path: Path) -> None:
    content = good()
    HOSTILE[name](content)
    (tmp_path / "table.json").write_text(json.dumps(content))
    with pytest.raises(SourceError, match="latency table"):
        read_table(tmp_path / "table.json")


@pytest.mark.parametrize("text", ["", "[" * 100_000, "{}", "\ud800".encode("utf-8", "surrogatepass"), "1" * 10_000])
def test_what_is_no_table_is_refused(text: str | bytes, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SourceError, match="latency table"):
        read_table(tmp_path / "table.json")
    with pytest.raises(SourceError, match="No such file"):
        read_table(tmp_path / "none.json")


def test_times_that_only_noise_explains_are_taken_out(tmp_path: Path) -> None:
    content = good()
    content["table"]["layers"][0]["micros"] = [[5.0], [2.0]]
    (tmp_path / "table.json").write_text(json.dumps(content))
    assert read_table(tmp_path / "table.json").layers[0].micros.tolist() == [[2.0], [2.0]]


def test_a_table_that_nothing_reads() -> None:
    for keep in (None, ("params", 0.5)):
        with pytest.raises(UsageError, match="--latency-table"):
            refuse_unread_table(Options(keep=keep, latency_table="table.json"))
    refuse_unread_table(Options(keep=("latency", 0.5), latency_table="table.json"))
    with pytest.raises(UsageError, match="--measure latency"):
        refuse_unread_table(Options(latency_table="table.json"), Sizes("params", (0.5,)))

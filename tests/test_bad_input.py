"""Wrong input: one message with where, got, expected and next step, the right exit code, nothing half-written."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from runs import Terminal, results

MODEL = "net.py:net"
DATA = "net.py:data"


def refused(terminal: Terminal, code: int, *arguments: object, out: str = "out", words: tuple[str, ...] = ()) -> None:
    """The command ends with this code, a message of four parts with these words, and no files."""
    assert terminal(*arguments) == code, terminal.err
    assert terminal.out == ""
    assert terminal.err.startswith("error: ")
    for part in (": got ", "; expected ", ". Next: "):
        assert part in terminal.err
    for word in words:
        assert word in terminal.err
    assert "Traceback" not in terminal.err
    assert results(Path(out)) == []


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("net.py:missing", 3, ("no callable 'missing'",)),
        ("gone.py:net", 3, ("no file", "gone.py")),
        ("net.py:raises", 3, ("net.py:raises", "RuntimeError: no licence for this network")),
        ("net.py:no_module", 3, ("a int from the factory", "torch.nn.Module")),
        ("net.py:infinite", 3, ("2.weight", "NaN or infinite")),
        ("net.py:constant", 3, ("the same output for all",)),
        ("net.py:net?wide=3", 3, ("wide",)),
        ("torchvision:resnet9", 3, ("no such name",)),
        ("hf:no/such/folder?weights=none", 3, ("hf:no/such/folder",)),
        ("nothing.of.that:name", 3, ("nothing.of.that",)),
        ("net.py", 2, ("net.py:factory",)),
        (".", 3, ("a folder without manifest.json",)),
    ],
)
def test_models(home: Path, terminal: Terminal, model: str, code: int, words: tuple[str, ...]) -> None:
    refused(terminal, code, "compress", model, "--data", DATA, "--out", "out", words=words)


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        ("net.py:empty", 3, ("0 samples",)),
        ("net.py:wide", 3, ("(7,)", "the network's channels")),
        ("net.py:bad_labels", 3, ("label 4", "0..3")),
        ("net.py:nan", 3, ("NaN or infinite values in the input",)),
        ("net.py:overlap", 3, ("also in the judge data",)),
        ("net.py:raising_data", 3, ("net.py:raising_data", "KeyError", "images")),
        ("net.py:no_data", 3, ("a int",)),
        ("net.py:data?count=2", 3, ("2 samples",)),
        ("mnist", 3, ("nothing of that name",)),
        ("imagefolder:nowhere", 3, ("nowhere",)),
        ("digits?size=3", 2, ("arguments for digits",)),
    ],
)
def test_data(home: Path, terminal: Terminal, data: str, code: int, words: tuple[str, ...]) -> None:
    refused(terminal, code, "compress", MODEL, "--data", data, "--out", "out", words=words)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--keep", "params=0.0001", "--align", "1"), ("keep a unit",)),
        (("--keep", "2"), ("params=SHARE",)),
        (("--keep", "macs=abc"), ("macs=abc",)),
        (("--keep", "params=nan"), ("params=nan",)),
        (("--keep", "seconds=0.4"), ("latency=SHARE",)),
        (("--max-drop", "-1"), ("--max-drop",)),
        (("--max-drop", "nan"), ("--max-drop",)),
        (("--max-drop", "much"), ("--max-drop", "number")),
        (("--confidence", "1.5"), ("--confidence",)),
        (("--align", "0"), ("--align",)),
        (("--align", "half"), ("--align",)),
        (("--device", "tpu"), ("--device", "'tpu'")),
        (("--seed", "-3"), ("--seed",)),
        (("--exact", "--keep", "params=0.5"), ("--exact with --keep",)),
        (("--resume", "--force"), ("--resume and --force",)),
        (("--no-such-flag",), ("--no-such-flag",)),
    ],
)
def test_flags(home: Path, terminal: Terminal, flags: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(terminal, 2, "compress", MODEL, "--data", DATA, "--out", "out", *flags, words=words)


def test_what_typer_refuses(home: Path, terminal: Terminal) -> None:
    refused(terminal, 2, "compress", MODEL, words=("--data", "compressor compress --help"))
    refused(terminal, 2, "squash", words=("squash",))
    refused(terminal, 2, "export", "nowhere", "--format", "tflite", words=("tflite",))


class Touch:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, ("ran",))


def _states(folder: Path) -> dict[str, tuple[str, ...]]:
    """Checkpoint files, and the words that refuse them."""
    import net  # pyright: ignore[reportMissingImports]

    good = net.net().state_dict()
    missing = {key: value for key, value in good.items() if key != "2.bias"}
    extra = {**good, "6.weight": torch.zeros(2)}
    shaped = {**good, "4.weight": torch.zeros(4, 9)}
    broken = {**good, "0.weight": torch.full((10, 6), float("nan"))}
    for name, content in {"missing": missing, "extra": extra, "shaped": shaped, "broken": broken}.items():
        torch.save(content, folder / f"{name}.pt")
    torch.save(good, folder / "whole.pt")
    (folder / "cut.pt").write_bytes((folder / "whole.pt").read_bytes()[:700])
    (folder / "text.pt").write_text("not a checkpoint")
    (folder / "cut.safetensors").write_bytes(b"\x40\x00\x00\x00\x00\x00\x00\x00{")
    (folder / "code.pt").write_bytes(pickle.dumps({"state_dict": good, "extra": Touch()}))
    torch.save(net.net(), folder / "module.pt")
    return {
        "nowhere.pt": ("no such file",),
        "missing.pt": ("1 missing", "2.bias"),
        "extra.pt": ("1 unexpected", "6.weight"),
        "shaped.pt": ("1 wrong shape", "4.weight", "(4, 9) instead of (4, 10)"),
        "broken.pt": ("NaN or infinite", "0.weight"),
        "cut.pt": ("cut.pt",),
        "text.pt": ("text.pt",),
        "cut.safetensors": ("cut.safetensors",),
        "code.pt": ("code.pt",),
        "module.pt": ("module.pt",),
        ".": ("a folder",),
    }


def test_checkpoints(home: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(home))
    for name, words in _states(home).items():
        refused(terminal, 3, "compress", MODEL, "--checkpoint", name, "--data", DATA, "--out", "out", words=words)
        assert not (home / "ran").exists(), f"code in {name} was run"


def test_output_folders(home: Path, terminal: Terminal) -> None:
    (home / "full").mkdir()
    (home / "full" / "notes.txt").write_text("mine")
    asked = ("compress", MODEL, "--data", DATA, "--out")
    assert terminal(*asked, "full") == 2
    assert "notes.txt" in terminal.err
    assert results(home / "full") == ["notes.txt"]
    (home / "file").write_text("mine")
    assert terminal(*asked, "file") == 2
    assert terminal(*asked, "file/below") == 2
    assert (home / "file").read_text() == "mine"
    (home / "full" / "model.safetensors").write_text("mine too")
    assert terminal(*asked, "full", "--resume") == 2
    assert (home / "full" / "model.safetensors").read_text() == "mine too"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder(home: Path, terminal: Terminal) -> None:
    (home / "locked").mkdir(mode=0o500)
    assert terminal("compress", MODEL, "--data", DATA, "--out", "locked/out") == 2


@pytest.mark.parametrize("command", [("compress", "--data", DATA), ("analyze", "--data", DATA), ("timetable",)])
def test_output_without_a_name(home: Path, terminal: Terminal, command: tuple[str, ...]) -> None:
    before = sorted(home.iterdir())
    assert terminal(command[0], MODEL, *command[1:], "--out", "") == 2
    assert "--out: got an empty name" in terminal.err
    assert sorted(path for path in home.iterdir() if path.name != "cache") == [p for p in before if p.name != "cache"]


def test_place_where_no_folder_can_be(home: Path, terminal: Terminal) -> None:
    assert terminal("compress", MODEL, "--data", DATA, "--out", "/proc/nowhere/out") == 2
    assert "Traceback" not in terminal.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("verify", "nowhere", "--data", DATA), 3),
        (("verify", ".", "--data", DATA), 3),
        (("export", "nowhere"), 3),
        (("bench", "nowhere.onnx", "net.py"), 3),
        (("bench", "nowhere.onnx"), 2),
        (("frontier", MODEL, "--data", DATA, "--out", "out", "--sizes", "0.5", "--points", "3"), 2),
        (("inspect", MODEL), 2),
        (("inspect", MODEL, "--input", "6,x"), 2),
        (("inspect", MODEL, "--input", "7"), 3),
        (("analyze", "net.py:raises", "--data", DATA, "--out", "out"), 3),
        (("run", "nowhere.yaml"), 2),
        (("verify", "n" * 300, "--data", DATA), 3),
        (("compress", "n" * 300 + ".py:net", "--data", DATA, "--out", "out"), 3),
        (("compress", MODEL, "--data", DATA, "--out", "n" * 300), 2),
    ],
)
def test_other_commands(home: Path, terminal: Terminal, arguments: tuple[str, ...], code: int) -> None:
    refused(terminal, code, *arguments)


@pytest.mark.parametrize("text", ["", "model: [", "model: a\nmodel: b", "modle: a", "model: net.py:net\ndata: 3\nx: 1"])
def test_recipes(home: Path, terminal: Terminal, text: str) -> None:
    (home / "r.yaml").write_text(text)
    refused(terminal, 2, "run", "r.yaml", "--out", "out")


def test_errors_as_json(home: Path, terminal: Terminal) -> None:
    assert terminal("compress", "net.py:raises", "--data", DATA, "--out", "out", "--json") == 3
    error = terminal.json()["error"]
    assert sorted(error) == ["exit_code", "expected", "got", "kind", "next", "where"]
    assert (error["kind"], error["exit_code"]) == ("SourceError", 3)
    assert "no licence" in error["got"]
    assert terminal("compress", "--json") == 2
    assert terminal.json()["error"]["kind"] == "UsageError"


def test_a_fault_of_ours_is_no_failed_verdict(home: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object, **__: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("compressor.request.load_data", fault)
    assert terminal("compress", MODEL, "--data", DATA, "--out", "out", "--json") == 70
    assert terminal.json()["error"]["kind"] == "Fault"
    assert "Traceback" in terminal.err
    assert results(home / "out") == []

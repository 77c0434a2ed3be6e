"""The commands from end to end: exit codes, JSON, and what they leave."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Terminal, project, results

import compressor
from compressor import cli
from compressor.errors import SourceError

FILES = ["manifest.json", "model.onnx", "model.safetensors", "record.json", "report.html", "request.txt"]
ASKED = ("--align", "1", "--max-drop", "3")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with bundles of one network: `small` from a checkpoint, by the command line, with an ONNX file."""
    with pytest.MonkeyPatch.context() as patch:
        folder = project(tmp_path_factory.mktemp("bundles"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr("compressor.deliver.LATENCY_SECONDS", 0.1)
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        import net  # pyright: ignore[reportMissingImports]

        torch.save(net.net().state_dict(), "weights.pt")
        with pytest.raises(SystemExit) as ended:
            cli.main(["compress", "net.py:net?seed=7", "--checkpoint", "weights.pt", "--data", "net.py:data", "--out",
                      "small", "--keep", "params=0.8", "--max-drop", "30", "--align", "1"])  # fmt: skip
        assert ended.value.code == 0
        yield folder


@pytest.fixture
def small(bundles: Path, home: Path) -> Path:
    """A copy of the bundle that a test may damage, in another working directory."""
    return Path(shutil.copytree(bundles / "small", home / "copy"))


def record(folder: Path) -> Any:
    return json.loads((folder / "record.json").read_text())


def test_a_whole_run(bundles: Path) -> None:
    found = record(bundles / "small")
    assert results(bundles / "small") == FILES
    assert found["verdict"]["value"] == "passed"
    assert found["verdict"]["details"]["judged"] == "the output"
    assert found["compressed"]["params"] <= 0.8 * found["original"]["params"]
    assert found["onnx"]["agreement"] == 100
    assert found["onnx"]["latency_ratio"] > 0
    stages = {name: taken for name, taken in found["seconds"].items() if name != "total"}
    assert found["seconds"]["total"] >= max(stages.values())
    assert found["onnx_verdict"]["value"] == "passed"
    assert found["options"]["checkpoint"] == str((bundles / "weights.pt").resolve())
    assert found["data"]["described"]["input_shape"] == [6]
    assert sorted(found["files"]) == ["manifest.json", "model.onnx", "model.safetensors"]
    assert found["command"].startswith("compressor compress 'net.py:net?seed=7' --checkpoint weights.pt")
    assert found["judge_uses"] == 1
    assert len({(bundles / "small" / name).stat().st_mode for name in [*FILES, "../net.py"]}) == 1


def test_verify_from_another_folder(bundles: Path, small: Path, terminal: Terminal) -> None:
    assert terminal("verify", small, "--data", bundles / "net.py:data", "--json") == 0
    found = terminal.json()
    said = record(small)["verdict"]
    assert said["details"].pop("selected") is True
    assert found["verdict"] == said
    assert found["onnx_verdict"]["value"] == "passed"
    assert found["same_judge_data"] is True
    assert found["files_unchanged"] == ["manifest.json", "model.onnx", "model.safetensors"]
    assert terminal("verify", small, "--data", bundles / "net.py:data") == 0
    assert "The samples that judged the run, once more" in terminal.out
    assert "Unchanged since the run: manifest.json, model.onnx, model.safetensors" in terminal.out
    assert terminal("verify", small, "--data", "net.py:data?count=12") == 4
    assert "UNDECIDED" in terminal.out
    assert "Not the samples that judged the run" in terminal.out


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "manifest.json"])
def test_verify_refuses_other_files(bundles: Path, small: Path, terminal: Terminal, name: str) -> None:
    content = bytearray((small / name).read_bytes())
    content[-3] ^= 1
    (small / name).write_bytes(content)
    assert terminal("verify", small, "--data", "net.py:data") == 3
    assert name in terminal.err
    assert "sha256" in terminal.err
    (small / name).unlink()
    assert terminal("verify", small, "--data", "net.py:data") == 3
    assert f"{name}': got no such file; expected the file that was judged" in " ".join(terminal.err.split())


def test_verify_of_a_file_names_its_folder(bundles: Path, small: Path, terminal: Terminal) -> None:
    assert terminal("verify", small / "model.onnx", "--data", "net.py:data") == 3
    assert f"got a file; expected a folder that `compressor compress` wrote. Next: name its folder, '{small}'" in (
        " ".join(terminal.err.split())
    )


def test_verify_refuses_another_checkpoint(small: Path, home: Path, terminal: Terminal) -> None:
    torch.save({"0.weight": torch.zeros(1)}, home / "other.pt")
    assert terminal("verify", small, "--data", "net.py:data", "--checkpoint", "other.pt") == 3
    assert "as when it was compressed" in terminal.err


def test_verify_says_where_to_name_an_original_that_moved(small: Path, terminal: Terminal) -> None:
    found = record(small)
    found["options"]["checkpoint"] = str(small / "moved.pt")
    (small / "record.json").write_text(json.dumps(found))
    assert terminal("verify", small, "--data", "net.py:data") == 3
    assert "moved.pt: got no such file" in " ".join(terminal.err.split())
    assert "--checkpoint FILE" in terminal.err


@pytest.mark.parametrize("trusted", [(), ("--trust-source",)])
def test_verify_does_not_run_code_that_changed(
    bundles: Path, small: Path, terminal: Terminal, tmp_path: Path, trusted: tuple[str, ...]
) -> None:
    net = bundles / "net.py"
    before = net.read_text()
    net.write_text(f"{before}\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    try:
        assert terminal("verify", small, "--data", "net.py:data", *trusted) == 3
        assert "got a file that has changed since" in " ".join(terminal.err.split())
        made = sys.modules["net"].net  # as it was when it was imported
        with pytest.raises(SourceError, match="changed since"):  # the original's code would run, too
            compressor.verify(small, torch.zeros(4, 6), factory=made, trust_source=bool(trusted))
        assert not (tmp_path / "ran").exists()
    finally:
        net.write_text(before)


def test_export_again(bundles: Path, small: Path, terminal: Terminal) -> None:
    (small / "model.onnx").unlink()
    assert terminal("export", small, "--format", "onnx", "--json") == 0
    assert terminal.json()["agreement"] == 100
    assert terminal("verify", small, "--data", bundles / "net.py:data", "--json") == 0
    assert terminal.json()["onnx_verdict"]["value"] == "passed"


def test_a_file_that_is_exported_anew_has_no_verdict(small: Path, terminal: Terminal) -> None:
    before = record(small)
    assert terminal("export", small, "--json") == 0
    told = ("onnx", "onnx_verdict", "files", "warnings")
    assert [record(small)[part] for part in told] == [before[part] for part in told]  # the same file, bit by bit
    (small / "record.json").write_text(json.dumps({**before, "files": {**before["files"], "model.onnx": "0" * 64}}))
    assert terminal("export", small, "--json") == 0
    after = record(small)
    assert (after["onnx_verdict"], after["onnx"]["latency_ratio"], after["files"]) == (None, None, before["files"])
    assert any("not judged" in text for text in after["warnings"])


def test_bench_bundles(bundles: Path, small: Path, terminal: Terminal) -> None:
    assert terminal("bench", bundles / "small", small / "model.onnx", "--seconds", "0.1", "--json") == 0
    assert [file["ratio"] > 0 for file in terminal.json()["files"]] == [True, True]
    (small / "model.onnx").unlink()
    assert terminal("bench", bundles / "small", small) == 3


def test_bench_of_one_bundle_times_its_original(
    bundles: Path, small: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    export = compressor.deliver.export_onnx
    monkeypatch.setattr(
        "compressor.deliver.export_onnx", lambda model, *rest: (made.append(model), export(model, *rest))[1]
    )
    assert terminal("bench", small, "--seconds", "0.1", "--json") == 0
    assert [file["path"] for file in terminal.json()["files"]] == ["original.onnx", "model.onnx"]
    assert sum(p.numel() for p in made[0].parameters()) == record(small)["original"]["params"]
    assert terminal("bench", small, "--checkpoint", "nowhere.pt") == 3
    assert terminal("bench", small, small, "--checkpoint", bundles / "weights.pt") == 2
    assert terminal("bench", small / "model.onnx") == 2
    (small / "model.onnx").unlink()
    assert terminal("bench", small) == 3
    assert "compressor export" in terminal.err


def test_a_folder_of_bundles_is_told_from_none(bundles: Path, terminal: Terminal) -> None:
    assert terminal("bench", bundles) == 3
    assert f"name one of the 1 in it, for example '{bundles / 'small'}'" in terminal.err


def test_load(bundles: Path, small: Path) -> None:
    model = compressor.load(small)
    assert isinstance(model, torch.nn.Sequential)
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == record(small)["compressed"]["params"]


@pytest.mark.usefixtures("no_page")
def test_compress_a_bundle(bundles: Path, small: Path, terminal: Terminal, no_onnx: None) -> None:
    asked = ("compress", small, "--data", "net.py:data", "--keep", "params=0.9", "--max-drop", "50", "--align", "1")
    assert terminal(*asked, "--out", small, "--force") == 2
    assert "read from" in terminal.err
    assert results(small) == FILES
    assert terminal(*asked, "--out", "smaller") == 0
    shutil.rmtree(small)
    model = compressor.load("smaller")
    assert sum(p.numel() for p in model.parameters()) == record(Path("smaller"))["compressed"]["params"]


@pytest.mark.usefixtures("no_page")
def test_json_is_all_there_is(home: Path, terminal: Terminal) -> None:
    asked = ("compress", "net.py:net", "--data", "net.py:data", "--out", "out", "--keep", "params=0.9", *ASKED)
    code = terminal(*asked, "--json")
    assert terminal.json() == record(home / "out")
    assert terminal.err == ""
    assert terminal(*asked, "--json", "--resume") == code
    assert terminal.json() == record(home / "out")
    assert terminal(*asked, "--resume") == code
    assert terminal.err == ""


def test_a_failed_verdict(home: Path, terminal: Terminal, no_onnx: None) -> None:
    asked = ("compress", "net.py:net", "--data", "net.py:data", "--keep", "params=0.15", "--align", "1", "--out")
    assert terminal(*asked, "failed") == 1
    assert results(home / "failed") == ["record.json", "report.html", "request.txt"]
    found = record(home / "failed")
    assert found["verdict"]["value"] == "failed"
    assert found["warnings"][-1].startswith("The verdict failed")
    assert terminal.out.upper().startswith("FAILED")
    page = (home / "failed" / "report.html").read_text().lower()
    assert 0 < page.index("failed", page.index("<body")) < page.index("group", page.index("<body"))
    assert terminal("verify", "failed", "--data", "net.py:data") == 3
    assert "nothing was exported" in terminal.err
    assert terminal(*asked, "kept", "--keep-failed") == 1
    assert "model.safetensors" in results(home / "kept")
    assert terminal("verify", "kept", "--data", "net.py:data") == 1


@pytest.mark.usefixtures("no_page")
def test_an_undecided_verdict(home: Path, terminal: Terminal, no_onnx: None) -> None:
    asked = ("compress", "net.py:net", "--data", "net.py:few", "--keep", "params=0.9", "--align", "1", "--out", "out")
    assert terminal(*asked) == 4
    assert "model.safetensors" in results(home / "out")
    found = record(home / "out")
    assert found["verdict"]["value"] == "undecided"
    assert any("'undecided' at best" in warning for warning in found["warnings"])


@pytest.mark.parametrize(
    ("model", "flags"), [("net.py:lean", ()), ("net.py:lean", ("--exact",)), ("net.py:net", ("--exact",)),
                         ("net.py:one_unit", ("--exact",))],
)  # fmt: skip
def test_nothing_to_do(
    home: Path, terminal: Terminal, no_onnx: None, model: str, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert terminal("compress", model, "--data", "net.py:data", "--out", "out", "--align", "1", *flags, "--json") == 0
    found = terminal.json()
    assert found["nothing_to_do"]
    assert found["compressed"] == found["original"]
    assert found["nothing_to_do"].split(":")[0][:20] in (home / "out" / "report.html").read_text()
    monkeypatch.syspath_prepend(str(home))
    from compressor.sources.models import load_model

    original = load_model(model).model.state_dict()
    kept = compressor.load(home / "out").state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in original.items())


@pytest.mark.usefixtures("no_page")
def test_a_layer_with_one_unit(home: Path, terminal: Terminal, no_onnx: None) -> None:
    assert terminal("compress", "net.py:one_unit", "--data", "net.py:data", "--out", "out", "--align", "1") in (0, 1, 4)
    assert record(home / "out")["compressed"]["params"] == 15
    assert terminal("analyze", "net.py:one_unit", "--data", "net.py:data", "--out", "found") == 0
    assert results(home / "found") == ["record.json", "report.html", "request.txt"]
    assert terminal("verify", "found", "--data", "net.py:data") == 3
    assert "an analysis, which makes no network" in terminal.err


@pytest.mark.usefixtures("no_page")
def test_exact_needs_no_labels(home: Path, terminal: Terminal) -> None:
    asked = ("compress", "net.py:copies", "--data", "net.py:unlabelled", "--exact", "--out", "out", "--json")
    assert terminal(*asked) == 0
    found = terminal.json()
    assert found["verdict"]["metric"] == "outputs"
    assert found["verdict"]["value"] == "passed"
    assert found["align"]["block"] == 1
    widths = {group["name"]: len(group["kept"]) for group in found["groups"]}
    assert sorted(widths.values()) == [4, 6, 12]
    assert found["onnx_verdict"]["value"] == "passed"
    assert terminal("verify", "out", "--data", "net.py:unlabelled", "--json") == 0
    assert terminal.json()["verdict"]["metric"] == "outputs"


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(
    home: Path, terminal: Terminal, no_onnx: None, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    from compressor import jobs

    asked = ("compress", "net.py:net", "--data", "net.py:data", "--out", "out", "--keep", "params=0.9", *ASKED)
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "finished", lambda *_, **__: os.kill(os.getpid(), number))
        assert terminal(*asked) == 128 + number
    assert "--resume" in terminal.err
    assert "Traceback" not in terminal.err
    assert signal.getsignal(number) is before
    assert results(home / "out") == ["request.txt"]
    assert terminal(*asked, "--resume") in (0, 1, 4)
    assert "record.json" in results(home / "out")


def test_inspect_and_doctor(home: Path, terminal: Terminal) -> None:
    assert terminal("inspect", "net.py:net", "--input", "6", "--json") == 0
    assert terminal.json()["layers"] == {"seen": 3, "covered": 3, "frozen": 0}
    assert terminal("inspect", "net.py:net", "--input", "6") == 0
    assert terminal("--help") == 0
    assert terminal("compress", "--help") == 0


def test_the_home_folder_is_known_wherever_a_folder_is_named(
    small: Path, home: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home))
    assert terminal("analyze", "net.py:net", "--data", "net.py:data", "--out", "~/found", "--json") == 0
    assert terminal.json() == record(home / "found")
    assert terminal("export", f"~/{small.name}", "--json") == 0
    compressor.load(f"~/{small.name}")
    assert not Path("~").exists()

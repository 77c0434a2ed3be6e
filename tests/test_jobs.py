"""Folders: resumed, replaced, killed in the middle; the same request gives the same files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import results

from compressor import deliver, jobs
from compressor.errors import DataError, ModelError, SourceError, UnwrittenPage, UsageError
from compressor.jobs import Job, from_recipe, run
from compressor.options import Options
from compressor.recipe import load_recipe
from compressor.training.budget import Budget

pytestmark = pytest.mark.usefixtures("no_page")
JOB = Job("net.py:net", "net.py:data", Options(5.0, keep=("params", 0.8), align=1), onnx=False)
FILES = ["manifest.json", "model.safetensors", "record.json", "report.html", "request.txt"]
RECIPE = """
model: net.py:net
data: net.py:trained
train: {epochs: 1, batch: 250, lr: 0.02}
compress: {max_drop: 5, keep: params=0.8, align: 1}
"""
TRAINED = """

def trained():
    return {"train": data(1000), "calibrate": inputs(400), "tune": take(400, 900), "judge": take(900, 1600)}
"""


def timeless(folder: Path) -> dict[str, Any]:
    """The record without times, and without the count of uses."""
    found = json.loads((folder / "record.json").read_text())
    for key in ("seconds", "created", "judge_uses", "command"):
        found.pop(key)
    return found


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_the_same_request_gives_the_same_bytes(home: Path) -> None:
    run(JOB, "one")
    run(JOB, "two")
    assert weights(home / "one") == weights(home / "two")
    assert timeless(home / "one") == timeless(home / "two")
    run(replace(JOB, options=replace(JOB.options, seed=1)), "three")
    assert timeless(home / "one") != timeless(home / "three")


def test_the_set_of_weights_that_was_taken_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(home))
    import net  # pyright: ignore[reportMissingImports]

    torch.save({"model": net.net(seed=1).state_dict(), "ema": net.net().state_dict()}, home / "both.pt")
    said: list[str] = []
    record = run(replace(JOB, checkpoint="both.pt"), "out", report=lambda stage, _done: said.append(stage))
    note = next(text for text in record.warnings if "'ema' was taken, not 'model'" in text)
    assert f"note: {note}" in said


def test_resume_of_a_finished_folder_computes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(JOB, "out", resume=True)  # a folder that is not there yet: as without
    assert results(home / "out") == FILES
    written = (home / "out" / "record.json").stat().st_mtime_ns
    monkeypatch.setattr(jobs, "finished", None)
    assert run(JOB, "out", resume=True) == first
    assert (home / "out" / "record.json").stat().st_mtime_ns == written


def test_resume_makes_lost_files_again(home: Path) -> None:
    run(JOB, "out")
    before = weights(home / "out")
    (home / "out" / "model.safetensors").write_bytes(before[:-2])
    run(JOB, "out", resume=True)
    assert weights(home / "out") == before


def test_resume_of_an_empty_folder(home: Path) -> None:
    (home / "out").mkdir()
    run(JOB, "out", resume=True)
    assert results(home / "out") == FILES


@pytest.mark.parametrize("change", [{"model": "net.py:net?width=9"}, {"keep_failed": True}, {"options": Options(6.0)}])
def test_another_request_is_not_resumed(home: Path, change: dict[str, Any]) -> None:
    run(JOB, "out")
    before = timeless(home / "out")
    with pytest.raises(UsageError, match="another request"):
        run(replace(JOB, **change), "out", resume=True)
    assert timeless(home / "out") == before
    assert results(home / "out") == FILES


def test_the_request_of_an_earlier_version_is_known(home: Path) -> None:
    run(JOB, "out")
    (home / "out" / "request.txt").write_text(JOB.fingerprint + "\n")  # without the command
    before = timeless(home / "out")
    run(JOB, "out", resume=True)
    assert timeless(home / "out") == before


def test_changed_files_are_another_request(home: Path) -> None:
    run(JOB, "out")
    with (home / "net.py").open("a") as file:
        file.write("\n# changed\n")
    with pytest.raises(UsageError, match="another request"):
        run(JOB, "out", resume=True)


def test_data_that_changed_beside_the_named_file_is_not_resumed(home: Path) -> None:
    """A factory reads another file: the file that is named is the same."""
    (home / "table.py").write_text("import torch\n\n\ndef data():\n    return torch.load('table.pt')\n")
    torch.save(torch.randn(900, 6, generator=torch.Generator().manual_seed(1)), home / "table.pt")
    job = replace(JOB, data="table.py:data")
    first = run(job, "out")
    assert run(job, "out", resume=True) == first
    before = timeless(home / "out")
    torch.save(torch.randn(900, 6, generator=torch.Generator().manual_seed(2)), home / "table.pt")
    with pytest.raises(UsageError, match="other samples than those of the finished run"):
        run(job, "out", resume=True)
    assert timeless(home / "out") == before


def test_unlabelled_data_that_changed_is_not_resumed(home: Path) -> None:
    (home / "more.py").write_text("import torch\n\n\ndef more():\n    return torch.load('more.pt')\n")
    torch.save(torch.rand(90, 6, generator=torch.Generator().manual_seed(1)), home / "more.pt")
    options = replace(JOB.options, recover=Budget(2, "st"))
    job = replace(JOB, options=options, unlabelled="more.py:more")
    first = run(job, "out")
    assert first.data.marks["unlabelled"] is not None
    assert run(job, "out", resume=True) == first
    torch.save(torch.rand(90, 6, generator=torch.Generator().manual_seed(2)), home / "more.pt")
    with pytest.raises(UsageError, match=r"more\.py:more.*other samples than those of the finished run \(unlabelled\)"):
        run(job, "out", resume=True)


def test_force_replaces_results_only(home: Path) -> None:
    run(JOB, "out")
    (home / "out" / "notes.txt").write_text("mine")
    other = replace(JOB, options=replace(JOB.options, keep=("params", 0.9)))
    run(other, "out", force=True)
    assert results(home / "out") == sorted([*FILES, "notes.txt"])
    assert timeless(home / "out")["options"]["keep"] == "params=0.9"
    with pytest.raises(UsageError, match="in it"):
        run(other, "out")


def test_force_with_bad_data_leaves_the_old_result(home: Path) -> None:
    run(JOB, "out")
    before = timeless(home / "out")
    with pytest.raises(DataError):
        run(replace(JOB, data="net.py:nan"), "out", force=True)
    with pytest.raises(SourceError):
        run(replace(JOB, model="net.py:raises"), "out", force=True)
    assert timeless(home / "out") == before
    run(JOB, "out", resume=True)


def test_an_error_after_the_start_leaves_nothing(home: Path) -> None:
    with pytest.raises(ModelError):
        run(replace(JOB, model="net.py:constant"), "out")
    assert not (home / "out").exists()


def test_a_fault_of_ours_leaves_nothing_either(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object, **__: object) -> None:
        raise ZeroDivisionError("ours")

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "finished", fault)
        for _ in range(2):  # the second try needs no flag
            with pytest.raises(ZeroDivisionError):
                run(JOB, "out")
    assert not (home / "out").exists()


def full(*_: object) -> None:
    raise UsageError("writing a file", "no space left", "space", "make some.")


def test_a_failed_save_leaves_no_network(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("compressor.deliver.write_json", full)
        with pytest.raises(UsageError):
            run(JOB, "out")
    assert not (home / "out").exists()


def test_no_space_for_the_page_loses_nothing_else(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("compressor.deliver.write_html", full)
        with pytest.raises(UsageError, match=r"report.html.*no space left.*--resume"):
            run(JOB, "out")
    assert results(home / "out") == [name for name in FILES if name != "report.html"]
    made = weights(home / "out"), timeless(home / "out")
    monkeypatch.setattr("compressor.jobs.write_html", lambda _, path: path.write_text("a page"))
    run(JOB, "out", resume=True)
    assert results(home / "out") == FILES
    assert made == (weights(home / "out"), timeless(home / "out"))


def test_the_page_gives_way_to_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tight(path: Path, _: object) -> None:
        if (tmp_path / "page").exists():
            full()
        path.write_text("a record")

    monkeypatch.setattr(deliver, "write_json", tight)
    with pytest.raises(UnwrittenPage):
        deliver.write_both(lambda path: path.write_text("a page"), tmp_path / "page", {}, tmp_path / "record")  # type: ignore[arg-type, return-value]
    assert [path.name for path in tmp_path.iterdir()] == ["record"]


def recipe(home: Path) -> Job:
    with (home / "net.py").open("a") as file:
        file.write(TRAINED)
    (home / "r.yaml").write_text(RECIPE)
    content, base = load_recipe(home / "r.yaml")
    return replace(jobs.from_recipe(content, base, None), onnx=False)


def test_a_trained_network_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = recipe(home)
    run(job, "whole")
    assert results(home / "whole") == sorted([*FILES, "original.safetensors"])

    def stop(*_: object, **__: object) -> None:
        raise DataError("here", "nothing", "something", "go on.")

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "finished", stop)
        with pytest.raises(DataError):
            run(job, "out")
    assert results(home / "out") == ["original.safetensors", "request.txt"]
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "train", None)
        run(job, "out", resume=True)
    assert timeless(home / "out") == timeless(home / "whole")
    assert weights(home / "out") == weights(home / "whole")


def test_killed_then_resumed(home: Path) -> None:
    job = recipe(home)
    run(job, "whole")
    code = (
        "import dataclasses, sys; from compressor import jobs; from compressor.recipe import load_recipe; "
        "content, base = load_recipe('r.yaml'); "
        "jobs.run(dataclasses.replace(jobs.from_recipe(content, base, None), onnx=False), 'out')"
    )
    package = Path(jobs.__file__).parent.parent
    process = subprocess.Popen([sys.executable, "-c", code], cwd=home, env={**os.environ, "PYTHONPATH": str(package)})
    try:
        ends = time.monotonic() + 120
        while not (home / "out" / "original.safetensors").exists() and time.monotonic() < ends:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert "record.json" not in results(home / "out")
    assert "model.safetensors" not in results(home / "out")
    with pytest.raises(UsageError, match="--resume"):
        run(job, "out")
    run(job, "out", resume=True)
    assert timeless(home / "out") == timeless(home / "whole")
    assert weights(home / "out") == weights(home / "whole")


def test_verify_after_a_recipe(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compressor.sources.data import load_data
    from compressor.verification import verify_bundle

    job = recipe(home)
    record = run(job, "out")
    judge = load_data("net.py:trained", base=home).judge
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    found = verify_bundle(home / "out", judge)
    assert record.verdict is not None
    assert found.verdict.difference == record.verdict.difference
    assert found.same_data
    (home / "out" / "original.safetensors").write_bytes(b"no")
    with pytest.raises(SourceError, match=r"original\.safetensors"):
        verify_bundle(home / "out", judge)


REGRESSION = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 2))

def rows():
    x = torch.randn(900, 4, generator=torch.Generator().manual_seed(0))
    part = lambda a, b: (x[a:b], torch.stack([50 + 9 * x[a:b, 0], 0.1 * x[a:b, 1] * x[a:b, 2]], 1))
    return {"train": part(0, 500), "calibrate": part(500, 600), "tune": part(600, 650), "judge": part(650, 900)}

def near(outputs, targets):
    return 1 - ((outputs - targets).abs() / torch.tensor([20, 0.6])).mean(1).clamp(max=1)
"""


def test_a_recipe_with_a_metric_trains_and_judges_a_regression(tmp_path):
    (tmp_path / "task.py").write_text(REGRESSION)
    (tmp_path / "r.yaml").write_text(
        "model: task.py:net\ndata: task.py:rows\ntrain: {epochs: 8, batch: 25, lr: 0.02, optimizer: adamw}\n"
        "compress: {keep: params=0.8, align: 1, max_drop: 5, metric: task.py:near, metric_range: [0, 1]}\n"
    )
    record = run(from_recipe(*load_recipe(tmp_path / "r.yaml"), None), tmp_path / "out")
    assert record.verdict is not None
    assert record.verdict.metric.endswith("task.py:near")
    assert record.verdict.original > 60  # it learnt: its answers start 50 from the targets
    assert record.compressed.params < record.original.params
    (tmp_path / "r.yaml").write_text("model: task.py:net\ndata: task.py:rows\ncompress: {metric: gone.near}\n")
    with pytest.raises(UsageError, match="--metric"):
        run(from_recipe(*load_recipe(tmp_path / "r.yaml"), None), tmp_path / "other")

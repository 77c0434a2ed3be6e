"""A record run again: the same bits, or where they differ."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import Terminal

import compressor
from compressor.errors import SourceError, UsageError
from compressor.jobs import Job, from_recipe, run
from compressor.options import Options
from compressor.recipe import load_recipe
from compressor.replay import differences, job_of, replay
from compressor.training.budget import Budget

pytestmark = pytest.mark.usefixtures("no_page")
JOB = Job("net.py:net", "net.py:data", Options(5.0, keep=("params", 0.8)))
RECIPE = """
model: net.py:net
data: net.py:trained
train: {epochs: 1, batch: 250, lr: 0.02}
compress: {max_drop: 5, keep: params=0.8}
"""
TRAINED = """

def trained():
    return {"train": data(1000), "calibrate": inputs(400), "tune": take(400, 900), "judge": take(900, 1600)}
"""


def changed(path: Path, **changes: object) -> Path:
    record = json.loads(path.read_text())
    for place, value in changes.items():
        *steps, last = place.split("__")
        part = record
        for step in steps:
            part = part[step]
        part[last] = value
    path.write_text(json.dumps(record))
    return path


def test_a_run_with_its_exported_file_comes_out_the_same(home: Path) -> None:
    run(JOB, "one")
    found = replay("one")
    assert found.differences == ()
    assert found.same
    assert found.network_same


def test_a_recipe_that_trains_comes_out_the_same_from_another_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch, no_onnx: None
) -> None:
    (home / "net.py").write_text((home / "net.py").read_text() + TRAINED)
    (home / "recipe.yaml").write_text(RECIPE)
    content, base = load_recipe("recipe.yaml")
    run(from_recipe(content, base, None), "one")
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    found = replay(home / "one" / "record.json", "kept")
    assert found.same
    assert (Path("kept") / "model.safetensors").read_bytes() == (home / "one" / "model.safetensors").read_bytes()


def test_a_recovery_of_some_minutes_comes_out_the_same(home: Path, no_onnx: None) -> None:
    (home / "more.py").write_text("import net\n\ndef more():\n    return net.inputs(300, 7)\n")
    options = replace(JOB.options, recover=Budget(0.02, "min"), align=1)
    record = run(replace(JOB, options=options, unlabelled="more.py:more"), "one")
    assert record.recover is not None
    assert record.recover.steps > 1
    job = job_of(record.model_dump(mode="json"))
    assert job.options.recover == Budget(record.recover.steps, "st")
    assert job.unlabelled == "more.py:more"
    assert replay("one").differences == ()


def test_what_differs_is_named(home: Path, no_onnx: None, terminal: Terminal) -> None:
    run(JOB, "one")
    path = changed(home / "one" / "record.json", verdict__compressed=12.5, files={"model.safetensors": "0" * 64})
    found = replay(path)
    assert not found.same
    assert not found.network_same
    assert any(line.startswith("verdict.compressed: 12.5 then") for line in found.differences)
    assert terminal("replay", path) == 1


def test_the_command_says_same(home: Path, no_onnx: None, terminal: Terminal) -> None:
    run(JOB, "one")
    assert terminal("replay", "one") == 0
    assert "The same" in terminal.out


def test_threads_are_those_of_the_record_and_come_back(home: Path, no_onnx: None) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(JOB, "one")
        torch.set_num_threads(2)
        assert replay("one").same
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_network_whose_code_has_changed_is_refused(home: Path, no_onnx: None) -> None:
    run(JOB, "one")
    (home / "net.py").write_text((home / "net.py").read_text() + "\n# another\n")
    with pytest.raises(SourceError, match="has changed since"):
        replay("one")


def test_a_run_on_objects_cannot_be_found_again(tmp_path: Path, no_onnx: None) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    inputs = torch.randn(300, 6)
    compressor.compress(model, (inputs, model(inputs).argmax(1)), keep="params=0.9", align=1).save(tmp_path / "made")
    with pytest.raises(UsageError, match="objects"):
        replay(tmp_path / "made")


def test_differences_leave_out_what_is_of_the_moment() -> None:
    old = {"seconds": {"a": 1.0}, "onnx": {"latency": 1, "opset": 20}, "rows": [1, {"b": 2}]}
    new = {"seconds": {"a": 2.0}, "onnx": {"latency": 3, "opset": 21}, "rows": [1, {"b": 3}]}
    assert differences(old, new) == ["onnx.opset: 20 then, 21 now", "rows[1].b: 2 then, 3 now"]
    assert differences({"rows": [1]}, {"rows": [1, 2]}) == ["rows: [1] then, [1, 2] now"]

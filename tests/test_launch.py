"""Several processes on the command line: one result, one voice, one end."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import Terminal, project, results

import compressor
from compressor import cli
from compressor.errors import UsageError
from compressor.launch import backend, launched

NET = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 10))
    with torch.no_grad():
        made[9].bias.sub_(made.eval()(digits()).mean(0))  # all classes occur
    return made


def digits():
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().images[:, None] / 16, dtype=torch.float32)
"""
MORE = """

import os


def only_here():
    if os.environ["RANK"] == "1":
        raise KeyError("no images on this machine")
    return data()


def other():
    x = inputs(400, seed=int(os.environ["RANK"]))
    return x, labelled(x)


def trained():
    return {"train": data(500), "calibrate": inputs(400), "tune": take(400, 900), "judge": take(900, 1600)}
"""
RECIPE = """
model: net.py:net
data: net.py:trained
train: {epochs: 1, batch: 250, lr: 0.02}
compress: {max_drop: 30, keep: params=0.9, align: 1}
"""
ASKED = ("--keep", "params=0.8", "--max-drop", "30", "--align", "1")
RECOVERED = ("--recover", "30st")


def kept(folder: Path) -> dict[str, list[int]]:
    return {g["name"]: g["kept"] for g in json.loads((folder / "record.json").read_text())["groups"]}


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_torchrun_gives_what_one_process_gives(count: int, home: Path, terminal: Terminal) -> None:
    (home / "digits.py").write_text(NET)
    asked = ["compress", "digits.py:net", "--data", "digits.py:digits", "--keep", "params=0.4", "--max-drop", "0.01",
             "--align", "1", "--out"]  # fmt: skip
    assert terminal(*asked, "alone") == 1  # agreement is lost, so nothing is exported, which takes most of the time
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={count}",
        "-m",
        "compressor",
    ]
    path = str(Path(compressor.__file__).parent.parent)
    given = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}  # unset, torchrun says that it sets it to 1
    done = subprocess.run([*run, *asked, "both"], env=given, capture_output=True, text=True, timeout=300)
    assert "record.json" in results(home / "both"), done.stderr
    assert results(home / "both") == results(home / "alone")
    assert done.returncode == 1
    assert done.stdout.count("FAILED: ") == 1
    assert done.stderr.startswith(("W", "E")), "only torchrun's own words"
    assert kept(home / "both") == kept(home / "alone")
    assert json.loads((home / "both" / "record.json").read_text())["processes"] == count


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """(exit code, standard output, standard error) of each command in each of two processes, and their folder."""
    folder = project(tmp_path_factory.mktemp("two"))
    with (folder / "net.py").open("a") as file:
        file.write(MORE)
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "used").mkdir()
    (folder / "used" / "mine.txt").write_text("mine")
    context = multiprocessing.get_context("spawn")
    ports = [free_port() for _ in COMMANDS]
    started = [context.Process(target=_process, args=(rank, ports, folder), daemon=True) for rank in (0, 1)]
    for process in started:
        process.start()
    for process in started:
        process.join(300)  # an exchange that waits for nobody would take a day
    assert [process.exitcode for process in started] == [0, 9]
    found = {name: [json.loads((folder / f"{name}.{rank}").read_text()) for rank in (0, 1)] for name in COMMANDS[:-1]}
    found[COMMANDS[-1]] = [json.loads((folder / f"{COMMANDS[-1]}.0").read_text())]
    return {"folder": folder, **found}


COMMANDS = ["recipe", "recover", "inspect", "no_data", "in_use", "only_here", "other", "constant", "boom", "gone"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _process(rank: int, ports: list[int], folder: Path) -> None:
    """All commands one after the other, as `torchrun` would start this process for each of them."""
    from compressor import deliver, stages

    os.chdir(folder)
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    deliver._export = lambda *_: None
    deliver.write_html = lambda _, path: path.write_text("a page")

    def fail(*_: object) -> None:
        raise ZeroDivisionError("boom")

    paths = stages.Workshop.paths
    for name, port in zip(COMMANDS, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        if rank == 1:
            stages.Workshop.paths = {"boom": fail, "gone": lambda *_: os._exit(9)}.get(name, paths)  # type: ignore
        _command(name, folder / f"{name}.{rank}")
        (folder / f"threads.{name}.{rank}").write_text("".join(thread for thread in threads() if "gloo" in thread))


def threads() -> list[str]:
    """Names of this process's threads, those of C++ too; none where there is no /proc."""
    found = []
    for task in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # it has just ended
            found.append(task.read_text())
    return found


def _command(name: str, answer: Path) -> None:
    data = name if name in ("only_here", "other") else "nowhere" if name == "no_data" else "data"
    arguments = ["compress", f"net.py:{'constant' if name == 'constant' else 'net'}", "--data", f"net.py:{data}",
                 "--out", "used" if name == "in_use" else f"out_{name}", *ASKED]  # fmt: skip
    if name == "inspect":
        arguments = ["inspect", "net.py:net", "--input", "6"]
    if name == "recover":
        arguments += RECOVERED
    if name == "recipe":
        arguments = ["run", "recipe.yaml", "--out", "out_recipe"]
    texts = [answer.with_suffix(f"{answer.suffix}.{stream}") for stream in ("out", "err")]
    code = None
    with (
        texts[0].open("w") as out,
        texts[1].open("w") as err,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main(arguments)
        except SystemExit as ended:
            code = ended.code
    answer.write_text(json.dumps([code, *(text.read_text() for text in texts)]))


def test_a_recipe_trains_once_and_the_first_process_speaks(answers: dict[str, Any]) -> None:
    first, second = answers["recipe"]
    assert first[0] in (0, 4)
    assert first[1].startswith(("PASSED", "UNDECIDED"))
    assert second == [0, "", ""]
    assert {"original.safetensors", "model.safetensors"} < set(results(answers["folder"] / "out_recipe"))


@pytest.mark.usefixtures("no_page", "no_onnx")
def test_recovery_is_shared(answers: dict[str, Any], terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(answers["folder"])
    asked = ("compress", "net.py:net", "--data", "net.py:data", *ASKED, *RECOVERED, "--out", "alone")
    assert answers["recover"][0][0] == terminal(*asked)
    said, said_alone = (" ".join(text.split()) for text in (answers["recover"][0][1], terminal.out))
    assert "in 2 processes" in said
    assert "30 steps, " in said_alone
    assert "processes" not in said_alone
    assert answers["recover"][1] == [0, "", ""]
    found, alone = (
        {**json.loads((answers["folder"] / name / "record.json").read_text())["recover"], "seconds": 0}
        for name in ("out_recover", "alone")
    )
    for about in (found, alone):
        about["checks"] = [value for _, value in about["checks"]]
        about["pilots"] = [pilot["distance"] for pilot in about["pilots"]]
    rounding = {"before": 1e-2, "pilots": 1e-2, "after": 1e-2, "checks": 3e-2}  # grows while the rate is high
    distances = {key: pytest.approx(alone.pop(key), rel=most) for key, most in rounding.items()}
    assert found == {**alone, **distances}
    assert kept(answers["folder"] / "out_recover") == kept(answers["folder"] / "alone")


def test_no_thread_of_the_group_is_left(answers: dict[str, Any]) -> None:
    """One that still held a tensor when the interpreter went aborted the process, once in many runs."""
    left = {path.name: path.read_text() for path in answers["folder"].glob("threads.*")}
    assert "threads.recipe.1" in left
    assert not any(names for name, names in left.items() if "gone" not in name)


def test_commands_that_are_not_shared(answers: dict[str, Any]) -> None:
    first, second = answers["inspect"]
    assert first[0] == 0
    assert "3 of 3 layers covered" in first[1]
    assert second == [0, "", ""]


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("no_data", 3, "nowhere"),
        ("in_use", 2, "a folder with mine.txt in it"),
        ("only_here", 3, "process 1: "),
        ("other", 3, "the same in every process"),
        ("constant", 3, "the same output for all"),
        ("gone", 3, "one that no longer answers"),
    ],
)
def test_an_error_anywhere_ends_all(answers: dict[str, Any], name: str, code: int, words: str) -> None:
    first, *others = answers[name]
    assert first[:2] == [code, ""]
    assert first[2].startswith("error: ")
    assert words in first[2]
    assert "Traceback" not in first[2]
    assert others in ([], [[0, "", ""]])
    assert not (answers["folder"] / f"out_{name}").exists()
    assert results(answers["folder"] / "used") == ["mine.txt"]


def test_a_fault_elsewhere_is_shown_whole(answers: dict[str, Any]) -> None:
    first, second = answers["boom"]
    assert first[0] == cli.FAULT
    assert "ZeroDivisionError: boom" in first[2]
    assert second == [0, "", ""]


def test_an_environment_without_a_meeting_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UsageError, match="torchrun"), launched("compress"):
        raise AssertionError("not reached")


def test_each_process_has_a_device_or_all_use_gloo() -> None:
    assert [backend(0, 2), backend(1, 2), backend(2, 2)] == ["gloo", "gloo", "cpu:gloo,cuda:nccl"]

"""Whole runs on a device that is not the CPU: no tensor of one meets one of the other; what comes out is the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import loading
import pytest

pytestmark = pytest.mark.skipif(loading.compiler() is None, reason="no C++ compiler to build the device with")
CASES = (
    "attention", "a turned stream", "exact", "recovery", "half precision", "a mapping", "a search", "files", "numbers",
)  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the runs said, from a process of their own: a device type stays in the process that registered it."""
    folder = tmp_path_factory.mktemp("device")
    script, library, report = (
        Path(__file__).with_name("runs_on_devices.py"),
        loading.build(folder),
        folder / "found.json",
    )
    done = subprocess.run(
        [sys.executable, str(script), str(library), str(report)], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(report.read_text())


def test_the_device_refuses_a_mix(found: dict[str, Any]) -> None:
    assert "same device" in found["a mix"]
    assert set(found) == {*CASES, "a mix", "larger"}


def test_a_network_that_is_larger_than_the_device(found: dict[str, Any]) -> None:
    about = found["larger"]
    cpu, device = about["cpu"], about["device"]
    assert (device["size"], device["verdict"]) == (cpu["size"], cpu["verdict"])
    assert device["kinds"] == ["Parameter"]
    assert cpu["fetched"] == 0
    assert device["fetched"] > 0.8 * about["bytes"]
    assert device["most bytes"] < 1.3 * about["free"] < 1.5 * about["bytes"]  # the two networks are 1.7 times that


def test_fetched_weights_learn_as_others_do(found: dict[str, Any]) -> None:
    about = found["larger"]["steps"]
    assert about["fetched with inf"] == about["copied with inf"] == 0
    (part,) = {about[name] for name in about if name.startswith(("fetched with 2", "copied with 2"))}
    assert part > 0.6 * found["larger"]["bytes"]
    assert all(about[name] == ["cpu, Tensor"] for name in about if name.startswith("home"))
    assert about["apart"] < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_that_of_the_cpu(found: dict[str, Any], name: str) -> None:
    here, there = found[name]["cpu"], found[name][loading.NAME]
    assert isinstance(here, dict), here
    assert isinstance(there, dict), there
    assert there["worked on"] == loading.NAME
    assert there["home"] == ("cpu" if name == "exact" else loading.NAME)
    assert (there["size"], there["verdict"]) == (here["size"], here["verdict"])

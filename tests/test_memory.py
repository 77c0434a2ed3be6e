"""`--memory`: more passes and files instead of more memory, and the same plan."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Terminal
from torch import Tensor, nn

import compressor
from compressor.errors import CompressorError, UsageError
from compressor.jobs import from_recipe
from compressor.observe import free_of, in_file, memory, memory_of
from compressor.options import Options, parse_memory
from compressor.recipe import parse_recipe
from compressor.report.record import validate
from compressor.report.words import memory_sentence

CPU = torch.device("cpu")


def network() -> nn.Module:
    """Convolutions and layers whose sums take more than a megabyte."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(256, 160), nn.ReLU(), nn.Linear(160, 160), nn.ReLU(), nn.Linear(160, 5),
        ).eval()  # fmt: skip
    with torch.no_grad():
        made[9].bias.sub_(made(images(300, 9)).mean(0))  # type: ignore[union-attr]
    return made


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


def compressed(**more: Any) -> Any:
    parts = images(500, 0), images(150, 1), images(300, 2)
    return compressor.compress(network(), *parts, keep="params=0.5", max_drop=90, align=1, **more)


def test_little_memory_gives_the_same_plan() -> None:
    plenty, little = compressed(memory=4e9), compressed(memory="1MB")
    used, about = plenty.record["memory"], little.record["memory"]
    assert (used["passes"], used["refit_in_files"], used["batch"]) == (1, 0, 250)
    assert about["passes"] > 2
    assert about["batch"] < 100
    assert about["refit_samples"] == pytest.approx(used["refit_samples"], abs=250)
    assert about["refit_in_files"] > 0.5 * about["refit_samples"]
    kept = [[group["kept"] for group in result.record["groups"]] for result in (plenty, little)]
    assert kept[0] == kept[1] != [[]] * len(kept[0])
    fresh = images(300, 3)
    with torch.no_grad():
        moved = (plenty.model(fresh) - little.model(fresh)).norm() / (plenty.model(fresh) - network()(fresh)).norm()
    assert moved < 0.2  # the fits read other rows
    assert memory_sentence(validate(plenty.record)) is None
    assert (memory_sentence(validate(little.record)) or "").startswith(
        f"Memory of 1.00 MB: statistics in {about['passes']} readings of the data; {about['refit_in_files']:,} of the"
    )


@pytest.mark.usefixtures("no_page", "no_onnx")
def test_the_command_line_and_the_recipe(home: Path, terminal: Terminal) -> None:
    asked = ("compress", "net.py:net", "--data", "net.py:data", "--keep", "params=0.8", "--align", "1",
             "--max-drop", "60", "--json", "--out", "out")  # fmt: skip
    assert terminal(*asked, "--memory", "2GB") == 0
    record = json.loads((home / "out" / "record.json").read_text())
    assert record["options"]["memory"] == record["memory"]["allowed"] == 2e9
    assert terminal(*asked, "--memory", "much") == 2
    assert "for example 8GB" in terminal.err
    assert terminal("analyze", "net.py:net", "--data", "net.py:data", "--out", "found", "--memory", "3GB") == 0
    assert json.loads((home / "found" / "record.json").read_text())["memory"]["passes"] == 1
    text = "model: net.py:net\ndata: net.py:data\ncompress: {memory: 1.5GiB}\n"
    assert from_recipe(parse_recipe(text, "here"), home, None).options.memory == 1.5 * 2**30
    with pytest.raises(UsageError, match=r"compress\.memory"):
        parse_recipe(text.replace("1.5GiB", "lots"), "here")


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GB", 8e9), ("500 MB", 5e8), ("1.5TB", 1.5e12), ("64MiB", 2**26), (3e6, 3e6), ("2000000B", 2e6), (None, None)],
)
def test_sizes(text: Any, count: float | None) -> None:
    assert parse_memory(text) == count


@pytest.mark.parametrize("text", ["", "8", "8gb", "-1GB", "GB", "8 G B", "1e9", True])
def test_what_is_no_size(text: Any) -> None:
    with pytest.raises(UsageError, match="8GB"):
        parse_memory(text)


@pytest.mark.parametrize("count", [0.0, 1e5, float("inf"), float("nan"), -1.0])
def test_sizes_out_of_bounds(count: float) -> None:
    with pytest.raises(UsageError, match="at least 1MB"):
        Options(memory=count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_what_waits_in_a_file_is_the_same(dtype: torch.dtype) -> None:
    x = (100 * torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))).to(dtype)
    for given in (x, x.to(memory_format=torch.channels_last), x.transpose(0, 3), x[:1].expand(3, 4, 5, 6), x[:0]):
        stored = in_file(given)
        assert torch.equal(stored, given)
        assert stored.dtype == dtype
        if given.numel() == x.numel() and 0 not in given.stride():
            assert stored.stride() == given.stride()
        if given.numel():
            name = stored.untyped_storage().filename
            assert name is not None
            assert not Path(name).exists()
            assert in_file(stored[1:]).data_ptr() == stored[1:].data_ptr()


TAKEN = """
import torch
from compressor.observe.memory import in_file

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * float(next(line.split()[1] for line in lines if line.startswith("RssAnon")))

torch.ones(16_000_000)
before = anonymous()
stored = in_file(torch.ones(16_000_000))
assert float(stored[-1]) == 1.0
print(anonymous() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells")
def test_what_waits_in_a_file_takes_no_memory() -> None:
    """In a process of its own: what an allocator with a history gives back is another matter."""
    said = subprocess.run([sys.executable, "-c", TAKEN], capture_output=True, text=True, check=True, timeout=120)
    assert float(said.stdout) < 16e6


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(memory.os, "posix_fallocate", full, raising=False)
    with pytest.raises(CompressorError, match=r"No space left.*TMPDIR"):
        in_file(torch.ones(3))


def test_a_container_and_what_is_free_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    whole = memory_of(CPU)
    assert free_of(CPU) == whole > 1e8
    (tmp_path / "meminfo").write_text("MemTotal:    999 kB\nMemAvailable:     1000 kB\n")
    assert free_of(CPU) == 1024e3
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_of(CPU) == whole
    (tmp_path / "memory.max").write_text("512000\n")
    assert memory_of(CPU) == free_of(CPU) == 512e3


@pytest.mark.parametrize("budget", [0.0, 1e9])
def test_what_nobody_asks_a_gradient_of_is_let_go(budget: float) -> None:
    layer = nn.Linear(4, 4)
    with memory.overflowing(layer, budget):
        out = torch.exp(layer(torch.ones(2, 4)))  # keeps its own output for the way back
    known = weakref.ref(out)
    del out
    assert known() is None

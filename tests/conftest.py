"""Modules that several test folders share live beside this file and are imported by their plain names."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch comes: two test processes share two cores (see addopts)
sys.path.insert(0, str(Path(__file__).parent))

from runs import Terminal, project


@pytest.fixture
def terminal(capfd: pytest.CaptureFixture[str]) -> Terminal:
    """The command line, called in this process."""
    return Terminal(capfd)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a small project in it, a cache of its own, and short timings."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("compressor.deliver.LATENCY_SECONDS", 0.1)
    monkeypatch.chdir(project(tmp_path))
    return tmp_path


@pytest.fixture
def no_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles without an ONNX file: it takes most of a small run's time."""
    monkeypatch.setattr("compressor.deliver._export", lambda *_: None)


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report without pictures, which take seconds to draw."""
    monkeypatch.setattr("compressor.deliver.write_html", lambda _, path: path.write_text("a page"))

"""`compress`, `save`, `load` and `verify` from Python, on networks handed over as objects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import compressor
from compressor.api import Result
from compressor.errors import DataError, SourceError, UsageError
from compressor.report.record import read_record


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4)).eval()


def inputs(count: int = 600, seed: int = 0) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def result() -> Result:
    return compressor.compress(network(), inputs(), keep="params=0.6", max_drop=50, align=1)


def test_save_and_load_with_a_factory(result: Result, tmp_path: Path) -> None:
    result.save(tmp_path / "out", onnx=False)
    again = compressor.load(tmp_path / "out", factory=network)
    x = inputs(20, 5)
    assert torch.equal(again(x), result.model(x))
    with pytest.raises(SourceError, match=r"handed over in Python.*factory=callable"):
        compressor.load(tmp_path / "out")
    assert result.record["source"]["kind"] == "object"
    assert sorted(result.record["files"]) == ["manifest.json", "model.safetensors"]


def test_verify_with_the_original(result: Result, tmp_path: Path) -> None:
    result.save(tmp_path / "out", onnx=False)
    data = result.data.judge
    found = compressor.verify(tmp_path / "out", data, factory=network, original=network())
    assert result.verdict is not None
    assert found.difference == result.verdict.difference
    assert found.interval == result.verdict.interval
    with pytest.raises(SourceError, match="original=model"):
        compressor.verify(tmp_path / "out", data, factory=network)


def test_saving_twice_says_things_once(result: Result, tmp_path: Path) -> None:
    result.save(tmp_path / "one", onnx=False)
    first = list(result.record["warnings"])
    (tmp_path / "one" / "model.onnx").write_bytes(b"of an earlier run")
    result.save(tmp_path / "one", onnx=False)
    assert result.record["warnings"] == first
    assert not (tmp_path / "one" / "model.onnx").exists()
    written = read_record(tmp_path / "one" / "record.json").model_dump(mode="json")
    assert written["files"] == result.record["files"]


def test_a_place_that_cannot_be(result: Result, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError):
        result.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "wrong",
    [{"keep": "params"}, {"keep": 0.5}, {"keep": ("width", 0.5)}, {"align": 0}, {"align": 1.5}, {"device": "gpu"},
     {"max_drop": 0}, {"confidence": 0.2}, {"seed": -1}, {"seed": 0.5}, {"exact": True, "keep": "macs=0.5"}],
)  # fmt: skip
def test_options_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        compressor.compress(network(), inputs(), **wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("data", [3, "text", None, {}, [], inputs(0), (inputs(3), torch.zeros(4))])
def test_data_that_cannot_be(data: object) -> None:
    with pytest.raises(DataError):
        compressor.compress(network(), data)


def test_layers_that_were_measured_on_too_few_samples_are_warned_of():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 60), torch.nn.ReLU(), torch.nn.Linear(60, 3)).eval()
        rows = torch.randn(700, 8)
    for count, expected in ((300, True), (700, False)):
        record = compressor.compress(model, rows[:count], keep="params=0.7", align=1, max_drop=50).record
        said = [text for text in record["warnings"] if "60 inputs on" in text]
        assert bool(said) is expected

"""`compress`, `save`, `load` and `verify` from Python, on networks handed over as objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils import prune

import compressor
from compressor.api import Result
from compressor.errors import DataError, ModelError, SourceError, UsageError
from compressor.export.block import Block
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


@pytest.mark.parametrize(("keep", "block"), [("params=0.6", 8), ("params=0.3", 4), (None, 8)])
def test_blocks_that_save_time_do_not_stand_in_the_way_of_a_size(
    monkeypatch: pytest.MonkeyPatch, keep: str | None, block: int
) -> None:
    measured = Block(16, {}, {}, 1, 0, 0.0)
    monkeypatch.setattr("compressor.workbench.measured_block", lambda *_, **__: measured)
    asked = compressor.compress(network(), inputs(), keep=keep, max_drop=50)
    assert asked.record["align"]["block"] == block
    assert "blocks of 16" in asked.record["align"]["why"]
    whole, small = (asked.record[name]["params"] for name in ("original", "compressed"))
    assert small < whole
    assert keep is None or small <= float(keep.partition("=")[2]) * whole


def test_a_result_is_shown_in_a_line(result: Result) -> None:
    assert repr(result).startswith(f"<Result: {str(result.record['verdict']['value']).upper()}")
    assert len(repr(result)) < 400
    assert str(result.outcome.size["params"]) in repr(result.outcome)
    assert len(repr(result.outcome)) < 300


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


def within(module: Any) -> nn.Module:
    return nn.Sequential(module)


FORMS = {
    "lazy": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.LazyLinear(4)), "lazy layers .*'2'.*run it once"),
    "scripted": (lambda: torch.jit.script(network()), "ScriptModule.*Python module that it was made from, or an ONNX"),
    "traced inside": (lambda: within(torch.jit.trace(network(), inputs(2))), "ScriptModule. in '0'"),
    "parallel": (lambda: nn.DataParallel(network()), r"DataParallel.*model\.module"),
    "compiled": (lambda: torch.compile(network()), r"give `model\._orig_mod`, or compile the result"),
    "compiled inside": (lambda: within(torch.compile(network())), r"in '0'.*model\.0\._orig_mod"),
    "weight norm of another layer": (
        lambda: nn.Sequential(torch.nn.utils.weight_norm(nn.Bilinear(6, 6, 8)), nn.ReLU(), nn.Linear(8, 4)),
        "remove_weight_norm.*'0'",
    ),
    "pruned, of another layer": (
        lambda: nn.Sequential(prune.l1_unstructured(nn.BatchNorm1d(6), "weight", 2), nn.ReLU(), nn.Linear(6, 4)),
        r"prune\.remove\(model\.get_submodule\('0'\), 'weight'\)",
    ),
}
"""Networks in a form that cannot be worked with, and what is said of them."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_networks_that_cannot_be(form: str) -> None:
    make, words = FORMS[form]
    with pytest.raises(ModelError, match=words):
        compressor.compress(make(), inputs())


def test_graphs_of_fx_are_saved_and_loaded(tmp_path: Path) -> None:
    def traced() -> nn.Module:
        return nn.Sequential(torch.fx.symbolic_trace(network()))

    made = compressor.compress(traced(), inputs(), keep="params=0.6", max_drop=50, align=1)
    made.save(tmp_path / "out", onnx=False)
    again = compressor.load(tmp_path / "out", factory=traced)
    assert torch.equal(again(inputs(20, 5)), made.model(inputs(20, 5)))
    with pytest.raises(SourceError):
        compressor.load(
            tmp_path / "out", factory=lambda: within(torch.fx.symbolic_trace(nn.Sequential(nn.Linear(6, 12))))
        )


class Complex(nn.Module):
    """Its first parameter is complex."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.randn(12, dtype=torch.cfloat, generator=torch.Generator().manual_seed(0)))
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)) * self.turn.abs())


def test_a_first_parameter_that_is_complex_does_not_decide_what_inputs_are(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = compressor.compress(Complex(), inputs(), keep="params=0.9", max_drop=50, align=1)
    made.save(tmp_path / "out", onnx=False)
    again = compressor.load(tmp_path / "out", factory=Complex)
    assert torch.equal(again(inputs(20, 5)), made.model(inputs(20, 5)))


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


def test_one_hot_labels_are_refused_before_any_work() -> None:
    x = inputs(60)
    with pytest.raises(DataError, match=r"calibrate data, labels: .*not one-hot"):
        compressor.compress(network(), (x, torch.eye(4, dtype=torch.int64)[torch.arange(60) % 4]), keep="params=0.6")

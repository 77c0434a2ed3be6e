"""The exported file in lower precision, from the command line to the verdict, on real handwriting."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import onnx
import pytest
import torch
from runs import Terminal, results
from safetensors.torch import save_file
from torch import nn

from compressor import cli
from compressor.errors import ModelError, UsageError
from compressor.export import precision
from compressor.export.onnx import export_onnx
from compressor.export.precision import file_name, parse_precisions, write_variant
from compressor.export.session import OnnxModel
from compressor.sources.data import load_data
from compressor.sources.samples import as_samples

NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 16, 10))
"""


def trained() -> nn.Module:
    torch.manual_seed(0)
    space: dict[str, object] = {}
    exec(NET, space)
    net: nn.Module = space["net"]()  # type: ignore[operator]
    samples = load_data("digits", seed=0).train
    assert samples is not None
    x, y = samples.batch(range(len(samples)))
    assert y is not None
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(12):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network of digits, compressed with both variants; `small` is the bundle."""
    home = tmp_path_factory.mktemp("variants")
    (home / "net.py").write_text(NET)
    save_file(trained().state_dict(), home / "net.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.setattr("compressor.deliver.LATENCY_SECONDS", 0.2)
        patch.chdir(home)
        given = "compress net.py:net --checkpoint net.safetensors --data digits --out small --keep params=0.7"
        with pytest.raises(SystemExit) as ended:
            cli.main([*given.split(), "--max-drop", "3", "--precision", "int8", "--precision", "fp16"])
    assert ended.value.code == 0
    return home


def test_both_variants_pass_and_stand_in_the_record(bundle: Path) -> None:
    record = json.loads((bundle / "small/record.json").read_text())
    variants = {one["precision"]: one for one in record["onnx"]["variants"]}
    assert list(variants) == ["fp16", "int8"]
    for name, share in (("fp16", 0.6), ("int8", 0.5)):
        one = variants[name]
        path = bundle / "small" / one["path"]
        assert one["verdict"]["value"] == "passed"
        assert one["verdict"]["samples"] == record["data"]["counts"]["judge"]
        assert one["verdict"]["original"] == record["verdict"]["original"]
        assert one["bytes"] == path.stat().st_size < share * record["onnx"]["original_bytes"]
        assert one["latency_interval"][0] <= one["latency_ratio"] <= one["latency_interval"][1]
        assert record["files"][one["path"]]
    assert len(record["onnx"]["latency"]["files"]) == 2
    assert variants["int8"]["calibrated_on"] == min(512, record["data"]["counts"]["calibrate"])
    kinds = {node.op_type for node in onnx.load(bundle / "small/model.int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert "model.int8.onnx" in (bundle / "small/report.html").read_text()


def test_variants_answer_like_the_network_on_its_own_inputs(bundle: Path) -> None:
    x, _ = load_data("digits", seed=0).judge.batch(range(200))
    files = {name: OnnxModel(bundle / "small" / name) for name in ("model.onnx", "model.fp16.onnx", "model.int8.onnx")}
    assert {file.signature[0][1] for file in files.values()} == {"tensor(float)"}
    expected = files["model.onnx"](x)
    spread = float((expected - expected.mean(0)).square().mean().sqrt())
    halved, whole = ((files[f"model.{name}.onnx"](x) - expected).abs().max() / spread for name in ("fp16", "int8"))
    assert 1e-6 < halved < 0.02
    assert 1e-3 < whole < 0.5


def test_verify_judges_variants_too(bundle: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle)
    assert terminal("verify", "small", "--data", "digits", "--json") == 0
    assert {name: one["value"] for name, one in terminal.json()["variants"].items()} == {
        "model.fp16.onnx": "passed", "model.int8.onnx": "passed",
    }  # fmt: skip


def test_export_in_another_precision_reports_a_failure(
    bundle: Path, tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A calibration that saw other inputs than those of use: ranges far too small."""
    monkeypatch.chdir(bundle)
    monkeypatch.setattr("compressor.deliver.LATENCY_SECONDS", 0.1)
    shutil.copytree(bundle / "small", tmp_path / "small")
    original = precision._Reader.__init__

    def misled(self: precision._Reader, source: Path, samples: object) -> None:
        original(self, source, samples)  # type: ignore[arg-type]
        self._feeds = ({name: 0.05 * value for name, value in one.items()} for one in self._feeds)

    monkeypatch.setattr(precision._Reader, "__init__", misled)
    assert terminal("export", tmp_path / "small", "--data", "digits", "--precision", "int8") == 1
    assert "FAILED: model.int8.failed.onnx" in terminal.out
    assert "model.int8.failed.onnx" in results(tmp_path / "small")
    assert "model.int8.onnx" not in results(tmp_path / "small")
    record = json.loads((tmp_path / "small/record.json").read_text())
    assert [one["path"] for one in record["onnx"]["variants"]] == ["model.fp16.onnx", "model.int8.failed.onnx"]
    assert any("'failed'" in text for text in record["warnings"])
    assert terminal("verify", tmp_path / "small", "--data", "digits", "--json") == 0
    assert list(terminal.json()["variants"]) == ["model.fp16.onnx"]


def test_export_in_one_precision_leaves_the_other(
    bundle: Path, tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle)
    monkeypatch.setattr("compressor.deliver.LATENCY_SECONDS", 0.1)
    shutil.copytree(bundle / "small", tmp_path / "small")
    before = json.loads((tmp_path / "small/record.json").read_text())
    assert terminal("export", tmp_path / "small", "--data", "digits", "--precision", "fp16") == 0
    after = json.loads((tmp_path / "small/record.json").read_text())
    assert after["files"] == before["files"]
    old, new = ({one["path"]: one for one in record["onnx"]["variants"]} for record in (before, after))
    assert old.keys() == new.keys()
    assert new["model.int8.onnx"]["verdict"] == old["model.int8.onnx"]["verdict"]
    assert new["model.int8.onnx"]["latency_ratio"] > 0
    assert terminal("verify", tmp_path / "small", "--data", "digits", "--json") == 0


def test_precisions_need_data_and_are_known(bundle: Path, terminal: Terminal) -> None:
    assert terminal("export", bundle / "small", "--precision", "int8") == 2
    assert terminal("export", bundle / "small", "--precision", "int4", "--data", "digits") == 2
    assert "fp16, int8" in terminal.err
    assert parse_precisions(["int8", "fp16", "int8"]) == ("fp16", "int8")
    with pytest.raises(UsageError):
        parse_precisions(("fp8",))


def test_whole_number_inputs_and_the_same_bytes_twice(tmp_path: Path) -> None:
    """A network of tokens, whose inputs no range is read of."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Embedding(50, 16), nn.LayerNorm(16), nn.Flatten(), nn.Linear(96, 32), nn.GELU(), nn.Linear(32, 5)
    )
    before = list(sys.path)
    tokens = torch.randint(50, (64, 6))
    source = export_onnx(net.eval(), tokens[:16], tmp_path / "model.onnx").path
    for name in ("fp16", "int8"):
        sizes = [write_variant(name, source, tmp_path / f"{turn}.onnx", as_samples(tokens)) for turn in "ab"]
        assert sizes[0] == sizes[1]
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
        close = (OnnxModel(tmp_path / "a.onnx")(tokens) - OnnxModel(source)(tokens)).abs().max()
        assert close < 0.1
    assert sys.path == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx", "model.onnx"]


def test_an_encoder_with_attention_in_both(tmp_path: Path) -> None:
    """onnxruntime 1.31 crashes on opening a file with a Gelu in half precision."""
    torch.manual_seed(2)
    layer = nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", batch_first=True, norm_first=True)
    net = nn.Sequential(nn.Linear(5, 16), layer, nn.Flatten(), nn.Linear(64, 3)).eval()
    inputs = torch.randn(64, 4, 5)
    source = export_onnx(net, inputs[:16], tmp_path / "model.onnx").path
    assert "Gelu" in {node.op_type for node in onnx.load(source).graph.node}
    expected = OnnxModel(source)(inputs)
    for name, far in (("fp16", 0.01), ("int8", 0.1)):
        write_variant(name, source, tmp_path / "variant.onnx", as_samples(inputs))
        assert (OnnxModel(tmp_path / "variant.onnx")(inputs) - expected).abs().max() < far * expected.std()
    left = onnx.load(tmp_path / "variant.onnx").graph
    made = {output: node.op_type for node in left.node for output in node.output}
    whole = [{made.get(name) for name in node.input} for node in left.node if node.op_type in ("MatMul", "Gemm")]
    assert sum("DequantizeLinear" not in sources for sources in whole) == 2  # attention's own two products


def test_a_file_on_which_the_runtime_crashes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = export_onnx(nn.Linear(4, 3), torch.randn(8, 4), tmp_path / "model.onnx").path
    monkeypatch.setattr(precision, "_RUN", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(ModelError, match="ended by signal 11"):
        write_variant("fp16", source, tmp_path / "variant.onnx", as_samples(torch.randn(8, 4)))
    assert results(tmp_path) == ["model.onnx"]


def test_a_file_that_the_converter_refuses(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    target = tmp_path / file_name("fp16")
    with pytest.raises(ModelError, match="fp16 variant"):
        write_variant("fp16", tmp_path / "model.onnx", target, as_samples(torch.randn(4, 3)))
    assert results(tmp_path) == ["model.onnx"]

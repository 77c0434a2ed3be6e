from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "foreign"))

import onnx_samples as samples
from runs import Terminal

import compressor
from compressor.errors import SourceError
from compressor.sources.models import Source, load_model


def test_its_network_and_its_own_answers(tmp_path: Path):
    samples.convnet(tmp_path / "a.onnx", 1)
    loaded = load_model("onnx:a.onnx", base=tmp_path)
    assert loaded.input_shape == (3, 12, 12)
    assert loaded.trained
    assert loaded.answers is not None
    images = torch.randn(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(loaded.model(images), loaded.answers(images), atol=1e-5)
    source = Source.from_dict(loaded.source.as_dict())
    assert source.rebuild().state_dict().keys() == loaded.model.state_dict().keys()
    samples.convnet(tmp_path / "a.onnx")
    with pytest.raises(SourceError, match="changed since"):
        source.rebuild()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", r"\?input=3,224,224"),
        ("?input=4,12,12", "input='4,12,12'"),
        ("?input=3,0,12", "input='3,0,12'"),
        ("?input=wide", "input='wide'"),
        ("?size=3", "'size'"),
        ("?input=3,99999999,9999999", "at most"),
    ],
)
def test_what_is_asked_must_fit(tmp_path: Path, query: str, words: str):
    samples.convnet(tmp_path / "a.onnx", size="s")
    with pytest.raises(SourceError, match=words):
        load_model(f"onnx:a.onnx{query}", base=tmp_path)


def test_no_file_and_no_checkpoint(tmp_path: Path):
    with pytest.raises(SourceError, match="no such file"):
        load_model("onnx:a.onnx", base=tmp_path)
    samples.convnet(tmp_path / "a.onnx")
    with pytest.raises(SourceError, match="leave --checkpoint out"):
        load_model("onnx:a.onnx", checkpoint="b.pt", base=tmp_path)


def test_exact_and_verify(home: Path, terminal: Terminal):
    """In goes a file with six copies, out comes one without them that answers the same; it loads and verifies."""
    samples.copies(home / "wide.onnx")
    words = ("compress", "onnx:wide.onnx", "--data", "net.py:unlabelled", "--out", "out", "--exact", "--json")
    assert terminal(*words) == 0, terminal.err
    record = terminal.json()
    assert [len(group["kept"]) for group in record["groups"] if group["units"] == 12 and len(group["kept"]) < 12] == [6]
    assert record["verdict"]["metric"] == "outputs"
    assert record["source"]["kind"] == "onnx"
    assert record["onnx"]["original_bytes"] == (home / "wide.onnx").stat().st_size  # the file's, not of another export
    assert [file["path"] for file in record["onnx"]["latency"]["files"]] == ["wide.onnx", "model.onnx"]
    small = compressor.load(home / "out")
    inputs = torch.randn(9, 6, generator=torch.Generator().manual_seed(3))
    given = load_model("onnx:wide.onnx", base=home)
    assert given.answers is not None
    with torch.no_grad():
        assert torch.allclose(small(inputs), given.answers(inputs), atol=1e-4)
    assert terminal("verify", "out", "--data", "net.py:unlabelled") == 0


def test_the_verdict_is_on_the_file(home: Path, terminal: Terminal, no_onnx: None, monkeypatch: pytest.MonkeyPatch):
    """A network that was rebuilt wrongly is refused by the data, whatever random inputs said."""
    samples.copies(home / "wide.onnx")
    right = load_model("onnx:wide.onnx", base=home)
    monkeypatch.setattr("compressor.sources.onnx_models.refuse_difference", lambda *_: None)
    words = ("compress", "onnx:wide.onnx", "--data", "net.py:unlabelled", "--out", "out", "--exact")
    with monkeypatch.context() as inside:
        inside.setattr("compressor.foreign.given.GivenFile.__call__", lambda self, x: -right.model(x).detach())
        assert terminal(*words) == 3
    assert "rebuilt from the given file" in terminal.err

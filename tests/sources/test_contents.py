from __future__ import annotations

from pathlib import Path

import pytest

from compressor.sources.contents import code, content

PARTS = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "pytorch_model.bin", "vocab.txt"]


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_a_saved_network_counts(tmp_path: Path, part: str) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    for name in PARTS:
        (folder / name).write_text("{}")
    before = content("hf:net?num_labels=3", tmp_path)
    assert before == content("hf:net", tmp_path)
    (folder / part).write_text('{"other": 1}')
    assert content("hf:net", tmp_path) != before


def test_files_are_found_behind_a_scheme_and_before_a_factory(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("x = 1")
    found = [content(spec, tmp_path) for spec in ("net.py:build?width=2", "onnx:net.py", "net.py")]
    assert found == [found[0]] * 3
    assert found[0] is not None
    assert content("digits", tmp_path) is None


def test_code_is_told_by_the_files_that_it_imports(tmp_path: Path) -> None:
    for name, text in (
        ("peer", "import math\nfrom near import one\n\ndef build():\n    import far\n"),
        ("near", "import peer\none = 1\n"),  # in a circle
        ("far", "two = 2\n"),
        ("other", "three = 3\n"),
    ):
        (tmp_path / f"{name}.py").write_text(text)
    first = code(tmp_path / "peer.py")
    (tmp_path / "other.py").write_text("three = 4\n")
    assert code(tmp_path / "peer.py") == first
    for name in ("near", "far", "peer"):
        file = tmp_path / f"{name}.py"
        before = file.read_text()
        file.write_text(before + "more = 1\n")
        assert code(tmp_path / "peer.py") != first
        file.write_text(before)
    assert code(tmp_path / "peer.py") == first
    (tmp_path / "peer.py").write_text("def (:\n")
    assert code(tmp_path / "peer.py") != first

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.analysis import inspect_model
from compressor.errors import SourceError
from compressor.sources.models import Source, load_model

transformers = pytest.importorskip("transformers")

BERT = (
    "hf:bert?weights=none&hidden_size=16&num_hidden_layers=1&num_attention_heads=2&intermediate_size=24&vocab_size=40"
)
VIT = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small trained classifier of images as `save_pretrained` writes it."""
    place = tmp_path_factory.mktemp("vit")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**VIT, num_labels=3))
    model.save_pretrained(place)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(place)
    return place


def test_a_folder_with_its_weights_and_preprocessing(folder: Path):
    loaded = load_model(f"hf:{folder.name}", base=folder.parent)
    assert loaded.trained
    assert type(loaded.model).__name__ == "ViTForImageClassification"
    assert loaded.input_shape == (3, 16, 16)
    assert loaded.model(torch.zeros(2, 3, 16, 16)).logits.shape == (2, 3)
    from PIL import Image

    assert loaded.transform is not None
    white = loaded.transform(Image.new("RGB", (30, 40), "white"))
    assert white.shape == (3, 16, 16)
    assert torch.allclose(white, torch.ones_like(white))


def test_a_manifest_rebuilds_it_without_the_folder(folder: Path):
    loaded = load_model(f"hf:{folder}")
    source = Source.from_dict(json.loads(json.dumps(loaded.source.as_dict())))
    moved = Source(source.spec, "hf", "/gone", arguments=source.arguments)
    rebuilt = moved.rebuild()
    rebuilt.load_state_dict(loaded.model.state_dict())
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(rebuilt(images).logits, loaded.model(images).logits)


def test_a_folder_without_weights_or_with_a_new_head(folder: Path, tmp_path: Path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(SourceError, match="weights=none"):
        load_model(f"hf:{tmp_path}")
    assert not load_model(f"hf:{tmp_path}?weights=none").trained
    other = load_model(f"hf:{folder}?auto=AutoModelForMaskedImageModeling")
    assert not other.trained  # its decoder was not in the file


def test_an_encoder_from_its_configuration():
    loaded = load_model(BERT, seed=3)
    assert loaded.vocabulary == 40
    assert not loaded.trained
    again = load_model(loaded.source.spec, seed=3)
    pairs = zip(loaded.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    found = inspect_model(BERT)
    assert found["input"] == [16]
    assert found["layers"]["covered"] > 0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("hf:bertt?weights=none", "did you mean 'bert'"),
        ("hf:bert?weights=none&auto=AutoModelForImageClassification", "AutoModelForImageClassification"),
        ("hf:bert?weights=none&auto=os", "'os'"),
        ("hf:bert?weights=none&auto=Trainer", "'Trainer'"),
        ("hf:bert?weights=none&hidden_size=5&num_attention_heads=2", "hidden"),
    ],
)
def test_refusals(monkeypatch: pytest.MonkeyPatch, spec: str, words: str):
    monkeypatch.setattr(pytest.importorskip("huggingface_hub").constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match=words):
        load_model(spec)


def test_code_and_kernels_of_a_hub_are_left_out(folder: Path, tmp_path: Path):
    """A folder from a stranger: it names kernels to fetch, and Python files beside it."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"attn_implementation": "someone/kernel", "_attn_implementation": "someone/kernel"}
    config["auto_map"] = {"AutoConfig": "code.C", "AutoModel": "code.M"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit\n")
    loaded = load_model(f"hf:{tmp_path}?weights=none")
    config_of: Any = loaded.model.config
    assert config_of._attn_implementation in ("sdpa", "eager")
    config["model_type"] = "strangers_own"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError):
        load_model(f"hf:{tmp_path}?weights=none")
    assert not (tmp_path / "ran").exists()


def _manifest(**arguments: Any) -> Source:
    return Source("hf:x", "hf", "x", arguments=arguments)


@pytest.mark.parametrize(
    ("config", "auto"),
    [
        (None, "BertModel"),
        ("{", "BertModel"),
        ('{"model_type": "bert"}', "AutoModel"),
        ('{"model_type": "bert"}', "ViTModel.from_pretrained"),
        ('{"model_type": "bert"}', "Trainer"),
        ('{"model_type": "nothing"}', "BertModel"),
        ('{"model_type": "bert", "vocab_size": 99999999999}', "BertModel"),
        ('{"model_type": "bert", "hidden_size": -3}', "BertModel"),
        ('{"model_type": "detr", "use_pretrained_backbone": true, "backbone": "resnet50"}', "DetrModel"),
        ("[" * 100_000, "BertModel"),
        ('"' + "x" * 2**21 + '"', "BertModel"),
    ],
)
def test_a_hostile_manifest(config: str | None, auto: str):
    with pytest.raises(SourceError):
        _manifest(config=config, auto=auto).rebuild()


def test_words_of_the_classes_come_with_the_preparation(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "named"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    config |= {"id2label": {"0": "tree", "1": "bird", "2": "stone"}, "label2id": {"tree": 0, "bird": 1, "stone": 2}}
    (copy / "config.json").write_text(json.dumps(config))
    assert getattr(load_model(f"hf:{copy}").transform, "classes", None) == {"tree": 0, "bird": 1, "stone": 2}
    plain = load_model(f"hf:{folder}").transform
    assert plain is not None
    assert getattr(plain, "classes", None) is None  # LABEL_0, LABEL_1, ... are no words

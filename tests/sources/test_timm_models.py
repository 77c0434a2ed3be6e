from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.errors import SourceError
from compressor.sources.built import needed
from compressor.sources.models import Source, load_model

timm = pytest.importorskip("timm")

SMALL = "timm:resnet18?weights=none&num_classes=5"


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


def test_untrained_with_its_data_configuration():
    loaded = load_model("timm:mobilenetv3_small_050?weights=none&num_classes=5")
    config = timm.data.resolve_model_data_config(loaded.model)
    assert loaded.input_shape == config["input_size"] == (3, 224, 224)
    assert not loaded.trained
    from PIL import Image

    image = Image.fromarray(np.full((300, 400, 3), 255, np.uint8))
    assert loaded.transform is not None
    prepared = loaded.transform(image)
    assert prepared.shape == (3, 224, 224)
    white = (1 - torch.tensor(config["mean"])) / torch.tensor(config["std"])
    assert torch.allclose(prepared[:, 100, 100], white, atol=1e-6)


def test_size_and_channels_change_the_input():
    loaded = load_model("timm:vit_tiny_patch16_224?weights=none&img_size=64&in_chans=1&num_classes=3&depth=1")
    assert loaded.input_shape == (1, 64, 64)
    assert loaded.model(torch.zeros(2, 1, 64, 64)).shape == (2, 3)


def test_a_manifest_rebuilds_it():
    loaded = load_model(SMALL)
    source = Source.from_dict(loaded.source.as_dict())
    assert source.kind == "timm"
    rebuilt = source.rebuild()
    rebuilt.load_state_dict(loaded.model.state_dict())
    again = load_model(source.spec)
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), again.model.parameters(), strict=True))


def test_weights_of_the_cache(monkeypatch: pytest.MonkeyPatch):
    """What timm's own loader finds is used, and a head of another size is said to be untrained."""
    trained = timm.create_model("resnet18", pretrained=False)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: trained.state_dict())
    monkeypatch.setattr("timm.models._builder.has_hf_hub", lambda *_, **__: True)
    loaded = load_model("timm:resnet18")
    assert loaded.trained
    assert torch.equal(loaded.model.fc.weight, trained.fc.weight)
    assert not load_model("timm:resnet18?num_classes=7").trained


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("timm:resnet181?weights=none", "did you mean 'resnet18"),
        ("timm:resnet18.best", "one of resnet18"),
        ("timm:resnet18?weights=best", "weights=none"),
        ("timm:resnet18?weights=none&checkpoint_path=/etc/passwd", "checkpoint_path"),
        ("timm:resnet18?pretrained_cfg=x", "pretrained_cfg"),
        ("timm:hf-hub:someone/network?weights=none", "no such name"),
        ("timm:local-dir:/tmp?weights=none", "no such name"),
        ("timm:resnet18?weights=none&wide=3", "wide"),
    ],
)
def test_refusals(spec: str, words: str):
    with pytest.raises(SourceError, match=words):
        load_model(spec)


def test_without_weights_at_hand(no_hub: None):
    with pytest.raises(SourceError) as caught:
        load_model("timm:resnet18")
    assert "weights=none" in caught.value.next_step
    assert "--checkpoint" in caught.value.next_step


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("resnet18", {"checkpoint_path": "/etc/passwd"}), ("hf-hub:a/b", {}), ("vit_tiny_patch16_224", {"depth": 10**5})],
)
def test_a_hostile_manifest(monkeypatch: pytest.MonkeyPatch, name: str, arguments: dict[str, str]):
    monkeypatch.setattr("compressor.sources.built.MOST_MODULES", 1000)
    with pytest.raises(SourceError):
        Source(f"timm:{name}", "timm", name, arguments=arguments).rebuild()


def test_a_missing_package_says_what_to_install():
    with pytest.raises(SourceError, match=r'pip install "compressor\[timm\]"'):
        needed("no_such_package", "timm", "model 'timm:x'")

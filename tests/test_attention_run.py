"""A transformer all the way: compressed with its heads and their dimensions, saved, and loaded from its own code."""

from __future__ import annotations

from pathlib import Path

import torch
from planted_attention import lively
from torch import nn
from torchvision.models import VisionTransformer

import compressor
from compressor.attention.dense import DenseAttention


def vit() -> nn.Module:
    torch.manual_seed(0)
    return lively(VisionTransformer(16, 8, 1, 4, 24, 24, num_classes=3)).float()


def test_a_transformer_is_compressed_saved_and_loaded(tmp_path: Path) -> None:
    model, images = vit(), torch.randn(240, 3, 16, 16)
    with torch.no_grad():
        labels = model(images).argmax(1)
    result = compressor.compress(model, (images, labels), keep="params=0.8", align=1)
    kept = {g["name"].rpartition(".")[2]: len(g["kept"]) for g in result.record["groups"] if "attention" in g["name"]}
    (attention,) = (m for m in result.model.modules() if isinstance(m, DenseAttention))
    assert len(attention.scale) == kept["heads"]
    assert attention.q.out_features == kept["heads"] * kept["q"]
    assert attention.v.out_features == kept["heads"] * kept["v"]
    assert kept["heads"] * (kept["q"] + kept["v"]) < 4 * 12
    assert sum(p.numel() for p in result.model.parameters()) == result.record["compressed"]["params"]
    result.save(tmp_path / "small", onnx=False)
    loaded = compressor.load(tmp_path / "small", factory=vit)
    with torch.no_grad():
        assert torch.equal(loaded(images[:8]), result.model(images[:8]))
    assert type(model.get_submodule("encoder.layers.encoder_layer_0.self_attention")) is nn.MultiheadAttention

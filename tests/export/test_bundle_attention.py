"""Bundles and ONNX files of networks whose attention became narrower than its own class can say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from planted_attention import lively
from torch import nn
from torchvision.models import VisionTransformer

from compressor.errors import SourceError
from compressor.export.bundle import load_bundle, save_bundle
from compressor.export.manifest import MANIFEST
from compressor.export.onnx import export_onnx
from compressor.export.session import OnnxModel
from compressor.units.cut import cut
from compressor.units.dense import in_dense_form
from compressor.units.trace import trace

NAME = "encoder.layers.encoder_layer_0.self_attention"
SOURCE = {"spec": "x", "kind": "object", "place": "x", "name": "vit", "arguments": {}, "sha256": None}


def vit() -> nn.Module:
    torch.manual_seed(0)
    return lively(VisionTransformer(16, 8, 1, 4, 24, 40, num_classes=5))


@pytest.fixture(scope="module")
def narrow() -> tuple[nn.Module, nn.Module]:
    """An original, and it with fewer heads and dimensions."""
    original, inputs = vit(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    dense = in_dense_form(original, inputs)
    kept = {f"{NAME}.heads": (1, 2, 3), f"{NAME}.q": (0, 1), f"{NAME}.v": (0, 1, 2, 5)}
    return original, cut(dense, trace(dense, inputs), kept).eval()


def test_a_bundle_with_narrow_attention_loads_from_the_originals_code(
    narrow: tuple[nn.Module, nn.Module], tmp_path: Path
) -> None:
    original, small = narrow
    manifest = save_bundle(tmp_path, small, original, SOURCE)
    assert manifest.attention == [NAME]
    loaded = load_bundle(tmp_path, factory=vit)
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(loaded(x), small(x))
    assert type(original.get_submodule(NAME)) is nn.MultiheadAttention


def test_a_manifest_that_names_another_module_is_refused(narrow: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    save_bundle(tmp_path, narrow[1], narrow[0], SOURCE)
    path = tmp_path / MANIFEST
    for name in ("encoder.ln", "encoder.nobody", ""):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"attention": [name]}))
        with pytest.raises(SourceError, match="attention"):
            load_bundle(tmp_path, factory=vit)


def test_the_onnx_file_of_narrow_attention_agrees_at_any_batch_size(
    narrow: tuple[nn.Module, nn.Module], tmp_path: Path
) -> None:
    small = narrow[1].float()
    made = export_onnx(small, torch.randn(4, 3, 16, 16), tmp_path / "model.onnx")
    assert made.parity.signal
    x = torch.randn(7, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(OnnxModel(made.path)(x), small(x), rtol=1e-4, atol=1e-4)

"""Small networks of transformers by name, in float64 with signal everywhere, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from planted_attention import lively
from torch import Tensor, nn

from compressor.export.bundle import load_bundle, save_bundle
from compressor.export.onnx import export_onnx
from compressor.surgery.exact import exact_compress
from compressor.units.dense import given_form, in_dense_form
from compressor.units.heads import attentions
from compressor.units.trace import trace

Build = Callable[[Any], nn.Module]
Inputs = dict[str, Tensor]

ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "decoder_start_token_id": 0}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
WORDS = {"vocab_size": 40, "max_position_embeddings": 32}
ONE_LAYER = {**WORDS, **SIZES, "num_hidden_layers": 1}
T5 = {"vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, **ENDS}
BART = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_attention_heads": 4, "decoder_ffn_dim": 48, **WORDS, **ENDS,
}  # fmt: skip
SOUND = {**BART, "num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 32}


def drawn(count: int, length: int, seed: int) -> Tensor:
    return torch.randint(2, 40, (count, length), generator=torch.Generator().manual_seed(seed))


def numbers(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def texts(count: int, length: int = 9) -> Inputs:
    """Token numbers, the last ones of every third text padding."""
    mask = torch.ones(count, length, dtype=torch.long)
    mask[::3, -3:] = 0
    return {"input_ids": drawn(count, length, 1), "attention_mask": mask}


def pairs(count: int) -> Inputs:
    """Texts, and what a decoder has said of them."""
    return {**texts(count), "decoder_input_ids": drawn(count, 7, 2)}


def heard(count: int) -> Inputs:
    return {"input_features": numbers(count, 8, 24), "decoder_input_ids": drawn(count, 7, 2)}


def beside(count: int) -> Inputs:
    return {**texts(count), "encoder_hidden_states": numbers(count, 6, 32)}


def pages(count: int) -> Inputs:
    corners = torch.randint(0, 30, (count, 9, 4), generator=torch.Generator().manual_seed(4))
    return {**texts(count), "bbox": corners.sort(dim=-1).values[..., [0, 1, 2, 3]]}


def images(count: int) -> Inputs:
    return {"pixel_values": numbers(count, 3, 32, 32)}


LINES = {**WORDS, **SIZES, **ENDS}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2], "num_heads": [4], "window_size": 4}
PAGE = {
    "coordinate_size": 4, "shape_size": 8, "rel_pos_bins": 8, "max_rel_pos": 16, "rel_2d_pos_bins": 8,
    "max_rel_2d_pos": 64, "max_2d_position_embeddings": 64, **WORDS, **SIZES, **ENDS,
}  # fmt: skip
NEO = {
    "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 4, "attention_types": [[["global", "local"], 1]],
    **WORDS, **ENDS,
}  # fmt: skip
POSITIONS = {
    "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "norm_rel_ebd": "layer_norm",
    **WORDS, **SIZES,
}  # fmt: skip


TWO_STREAMS: dict[str, tuple[Build, Callable[[int], Inputs]]] = {
    "T5": (lambda t: t.T5ForConditionalGeneration(t.T5Config(**T5)), pairs),
    "MT5": (lambda t: t.MT5ForConditionalGeneration(t.MT5Config(**T5)), pairs),
    "Bart": (lambda t: t.BartForConditionalGeneration(t.BartConfig(**BART)), pairs),
    "Marian": (lambda t: t.MarianMTModel(t.MarianConfig(**BART)), pairs),
    "Whisper": (lambda t: t.WhisperForConditionalGeneration(t.WhisperConfig(**SOUND)), heard),
    "Bert": (lambda t: t.BertModel(t.BertConfig(is_decoder=True, add_cross_attention=True, **ONE_LAYER)), beside),
}
"""Decoders that read an encoder. Of BERT the decoder alone, which reads what it is given."""


def network(name: str, dtype: torch.dtype = torch.float64) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return lively({**TWO_STREAMS, **ONE_STREAM}[name][0](transformers)).to(dtype)


def inputs_of(name: str, count: int, dtype: torch.dtype = torch.float64) -> Inputs:
    found = {**TWO_STREAMS, **ONE_STREAM}[name][1](count)
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in found.items()}


def answer(model: nn.Module, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        found = model(**inputs)
    return found.logits if hasattr(found, "logits") else found[0]


ONE_STREAM: dict[str, tuple[Build, Callable[[int], Inputs]]] = {
    "T5 encoder": (lambda t: t.T5EncoderModel(t.T5Config(**{**T5, "num_layers": 2})), texts),
    "MPNet": (lambda t: t.MPNetModel(t.MPNetConfig(**WORDS, **SIZES), add_pooling_layer=False), texts),
    "Beit": (
        lambda t: t.BeitModel(t.BeitConfig(image_size=32, patch_size=8, use_relative_position_bias=True, **SIZES)),
        images,
    ),
    "Beit, shared": (
        lambda t: t.BeitModel(
            t.BeitConfig(image_size=32, patch_size=8, use_shared_relative_position_bias=True, **SIZES)
        ),
        images,
    ),
    "Swin, v2": (lambda t: t.Swinv2Model(t.Swinv2Config(**SWIN)), images),
    "LayoutLMv3": (lambda t: t.LayoutLMv3Model(t.LayoutLMv3Config(visual_embed=False, **PAGE)), pages),
    "Swin": (lambda t: t.SwinModel(t.SwinConfig(**SWIN)), images),
    "ModernBert": (lambda t: t.ModernBertModel(t.ModernBertConfig(cls_token_id=0, sep_token_id=0, **LINES)), texts),
    "DebertaV2": (lambda t: t.DebertaV2Model(t.DebertaV2Config(share_att_key=True, **POSITIONS)), texts),
    "DebertaV2, layers apart": (lambda t: t.DebertaV2Model(t.DebertaV2Config(**POSITIONS)), texts),
    "Bloom": (lambda t: t.BloomForCausalLM(t.BloomConfig(vocab_size=40, hidden_size=32, n_layer=2, n_head=4)), texts),
    "Mpt": (lambda t: t.MptForCausalLM(t.MptConfig(vocab_size=40, d_model=32, n_layers=2, n_heads=4)), texts),
    "GPTNeo": (lambda t: t.GPTNeoForCausalLM(t.GPTNeoConfig(**NEO)), texts),
    "Gemma2": (lambda t: t.Gemma2ForCausalLM(t.Gemma2Config(num_key_value_heads=2, head_dim=8, **LINES)), texts),
    "RoFormer": (lambda t: t.RoFormerForCausalLM(t.RoFormerConfig(is_decoder=True, **WORDS, **SIZES)), texts),
}
"""Networks of one stream whose attention adds something to its logits, or makes something else of them."""
SPEAKING = ("Bloom", "Mpt", "GPTNeo", "Gemma2", "RoFormer")
"""Those that say what comes next, with a cache."""
ROUNDED: dict[str, float] = dict.fromkeys(("Bloom", "Mpt", "GPTNeo", "Gemma2", "ModernBert"), 1e-6)
"""Those that compute parts in float32 whatever their precision, and how close two of them come."""


def exported_and_loaded(build: Callable[[str, torch.dtype], nn.Module], kind: str, folder: Path) -> None:
    """An exact result of a network with a head to spare everywhere: its bundle and its ONNX file answer as it does."""
    wide, inputs = build(kind, torch.float32), inputs_of(kind, 24, torch.float32)
    opened = in_dense_form(wide, inputs)
    small, _ = exact_compress(opened, trace(opened, inputs), inputs, effort=0.0)
    save_bundle(folder, given_form(small, wide), wide, {"kind": "object"})
    loaded = load_bundle(folder, factory=lambda: build(kind, torch.float32)).eval()
    assert [len(a.scale) // a.shared for a in attentions(loaded).values()] == [
        len(a.scale) // a.shared - 1 for a in attentions(opened).values()
    ]
    gap = (answer(loaded, inputs) - answer(wide, inputs)).abs().max()
    assert float(gap) < 1e-4 * float(answer(wide, inputs).abs().max())
    made = export_onnx(loaded, inputs, folder / "model.onnx")
    assert (made.parity.holds, made.parity.signal) == (True, True)

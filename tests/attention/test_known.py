"""Vision transformers and text encoders of timm and transformers: planted surplus in their attention is all found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from planted_attention import lively, plant
from torch import Tensor, nn

from compressor.attention.known import attention_names, dense_form, plain_again, reader_of
from compressor.attention.timm_form import TimmAttention
from compressor.surgery.exact import exact_compress, moved
from compressor.units.dense import given_form, in_dense_form
from compressor.units.heads import attentions
from compressor.units.trace import trace

SIZES: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40}


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 16, 16, dtype=torch.float64)


def texts(count: int) -> dict[str, Tensor]:
    seen = torch.arange(6)[None, :] < torch.randint(3, 7, (count, 1))
    return {"input_ids": torch.randint(0, 50, (count, 6)), "attention_mask": seen.long()}


def timm_vit() -> nn.Module:
    timm = pytest.importorskip("timm")
    from timm.models.vision_transformer import VisionTransformer

    assert timm
    return VisionTransformer(16, 8, embed_dim=24, depth=1, num_heads=4, mlp_ratio=2, num_classes=5)


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=8, num_labels=5, **SIZES)
    return transformers.BertForSequenceClassification(config)


def distilbert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.DistilBertConfig(
        vocab_size=50, max_position_embeddings=8, num_labels=5, dim=24, n_layers=1, n_heads=4, hidden_dim=40
    )
    return transformers.DistilBertForSequenceClassification(config)


def hf_vit() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=16, patch_size=8, num_labels=5, **SIZES)
    )


def albert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.AlbertConfig(
        vocab_size=50, max_position_embeddings=8, embedding_size=8, num_labels=5, **SIZES
    )
    config.num_hidden_layers = 2  # the same layer twice
    return transformers.AlbertForSequenceClassification(config)


def mpnet() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.MPNetConfig(vocab_size=50, max_position_embeddings=12, num_labels=5, **SIZES)
    return transformers.MPNetForSequenceClassification(config)


def layoutlm() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LayoutLMConfig(vocab_size=50, max_position_embeddings=8, num_labels=5, **SIZES)
    return transformers.LayoutLMForSequenceClassification(config)


def clip_images() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=5, **SIZES)
    return First(transformers.CLIPVisionModelWithProjection(config))


def clip_texts() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.CLIPTextConfig(vocab_size=50, max_position_embeddings=8, projection_dim=5, **ends, **SIZES)
    return First(transformers.CLIPTextModelWithProjection(config))


def siglip() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.SiglipVisionConfig(image_size=16, patch_size=8, vision_use_head=False, **SIZES)
    return First(transformers.SiglipVisionModel(config))


def whisper() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    numbers = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    config = transformers.WhisperConfig(
        vocab_size=50, num_mel_bins=8, d_model=24, encoder_layers=1, encoder_attention_heads=4, encoder_ffn_dim=40,
        max_source_positions=6, num_labels=5, **numbers,
    )  # fmt: skip
    return transformers.WhisperForAudioClassification(config)


def wav2vec2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.Wav2Vec2Config(
        conv_dim=(8,), conv_stride=(8,), conv_kernel=(8,), num_feat_extract_layers=1, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=4, num_labels=5, classifier_proj_size=12, **SIZES,
    )  # fmt: skip
    return transformers.Wav2Vec2ForSequenceClassification(config)


class First(nn.Module):
    """The first output of a network, as a user would wrap it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: Tensor, **named: Tensor) -> Tensor:
        return self.network(*args, **named)[0]


def spectra(count: int) -> Tensor:
    return torch.randn(count, 8, 12, dtype=torch.float64)


def waves(count: int) -> Tensor:
    return torch.randn(count, 64, dtype=torch.float64)


def dinov2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(image_size=16, patch_size=8, num_labels=5, **SIZES)
    return transformers.Dinov2ForImageClassification(config)


FAMILY: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    "timm_vit": (timm_vit, images),
    "bert": (bert, texts),
    "distilbert": (distilbert, texts),
    "hf_vit": (hf_vit, images),
    "albert": (albert, texts),
    "mpnet": (mpnet, texts),
    "dinov2": (dinov2, images),
    "layoutlm": (layoutlm, texts),
    "clip_images": (clip_images, images),
    "clip_texts": (clip_texts, texts),
    "siglip": (siglip, images),
    "whisper": (whisper, spectra),
    "wav2vec2": (wav2vec2, waves),
}


def called(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return out if isinstance(out, Tensor) else out.logits


@pytest.mark.parametrize("name", FAMILY)
def test_planted_heads_values_and_queries_are_found_in(name: str) -> None:
    build, draw = FAMILY[name]
    torch.manual_seed(0)
    lean, inputs = lively(build()), draw(24)
    assert len(attention_names(lean)) == 1
    planted = in_dense_form(lean, inputs, normal=False)
    for place, attention in attentions(planted).items():
        reader = reader_of(planted, place)
        assert reader is not None
        plant(attention, reader)
    for parameter_name, table in planted.named_parameters():
        if "relative_attention_bias" in parameter_name:  # of heads, for all layers
            table.data[:, -1] = table.data[:, 0]
    wide = plain_again(planted, lean)  # as a user would bring it
    assert not attentions(wide)
    opened = in_dense_form(wide, inputs)
    small, plan = exact_compress(opened, trace(opened, inputs), inputs, effort=0.0)
    gone = {fold.group.rpartition(".")[2]: len(fold.dropped) for fold in plan.folds}
    assert gone == {"heads": 1, "q": 1, "v": 1}
    assert plan.taken_back == ()
    fresh = draw(8)
    assert moved([called(wide, fresh)], [called(small, fresh)]) < 1e-10


@pytest.mark.parametrize("name", FAMILY)
def test_untouched_attention_goes_back_into_its_class_in(name: str) -> None:
    build, draw = FAMILY[name]
    torch.manual_seed(1)
    lean, inputs = lively(build()), draw(4)
    opened = in_dense_form(lean, inputs)
    (attention,) = attentions(opened).values()
    with torch.no_grad():
        for parameter in attention.q.parameters():
            parameter.mul_(2)
        attention.k.weight.mul_(0.5)
    back = given_form(copy.deepcopy(opened), lean)
    assert [type(m) for m in back.modules()] == [type(m) for m in lean.modules()]
    torch.testing.assert_close(called(back, inputs), called(lean, inputs), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(called(opened, inputs), called(lean, inputs), rtol=1e-10, atol=1e-10)


def test_masks_and_training_of_timms_attention() -> None:
    timm_layers = pytest.importorskip("timm.layers")
    torch.manual_seed(0)
    whole = timm_layers.Attention(12, 3, qkv_bias=True).double().eval()
    dense, x = dense_form(whole), torch.randn(2, 5, 12, dtype=torch.float64)
    assert isinstance(dense, nn.Module)
    seen = torch.rand(5, 5) < 0.7
    seen.fill_diagonal_(True)
    for options in ({"attn_mask": seen}, {"attn_mask": torch.randn(2, 1, 5, 5).double()}, {"is_causal": True}):
        torch.testing.assert_close(dense(x, **options), whole(x, **options), rtol=1e-12, atol=1e-12)
    normed = timm_layers.Attention(12, 3, qk_norm=True, norm_layer=nn.LayerNorm)
    assert dense_form(normed) == "attention heads (timm Attention with norms inside)"


def test_what_reads_no_later_token_and_knows_no_cache_is_refused() -> None:
    model: Any = hf_vit()
    attention = next(module for module in model.modules() if type(module).__name__ == "ViTAttention")
    attention.is_causal = True
    assert dense_form(attention) == "attention heads (ViTAttention of a decoder)"


def test_distances_that_are_added_to_logits_are_refused() -> None:
    transformers = pytest.importorskip("transformers")
    attention = transformers.FalconModel(transformers.FalconConfig(alibi=True, vocab_size=50, **SIZES)).h[0]
    reason = "attention heads (FalconAttention with distances added to its logits)"
    assert dense_form(attention.self_attention) == reason


def test_what_timm_also_calls_attention_is_not_taken_for_it() -> None:
    former = pytest.importorskip("timm.models.efficientformer")
    model = nn.Sequential(
        former.Attention(dim=16, key_dim=4, num_heads=2, attn_ratio=4, resolution=3), nn.Linear(16, 4)
    )
    assert not isinstance(dense_form(model[0]), TimmAttention)
    inputs = torch.randn(2, 9, 16)
    graph = trace(in_dense_form(model.eval(), inputs), inputs)
    assert graph.layers == 3

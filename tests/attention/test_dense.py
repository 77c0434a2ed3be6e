"""Attention in dense form gives what the original gives, however it is called; what it cannot express is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from compressor.attention.known import attention_names, dense_form, plain_again, rewritten
from compressor.attention.torch_form import TorchAttention


def attention(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    made = nn.MultiheadAttention(12, 3, dtype=torch.float64, **options).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.4)
    return made


@pytest.mark.parametrize("options", [{"batch_first": True}, {}, {"bias": False}, {"kdim": 7, "vdim": 9}])
def test_the_dense_form_gives_the_same_outputs_and_weights(options: dict[str, Any]) -> None:
    whole = attention(**options)
    dense = dense_form(whole)
    assert isinstance(dense, TorchAttention)
    query = torch.randn(5, 4, 12, dtype=torch.float64)
    key = torch.randn(5, 4, options.get("kdim", 12), dtype=torch.float64)
    value = torch.randn(5, 4, options.get("vdim", 12), dtype=torch.float64)
    batch, length = (5, 4) if options.get("batch_first") else (4, 5)
    padding = torch.zeros(batch, length, dtype=torch.bool)
    padding[0, -1] = True
    later = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
    per_head = torch.randn(batch * 3, length, length, dtype=torch.float64)
    for masks in ({}, {"key_padding_mask": padding}, {"attn_mask": later}, {"attn_mask": per_head}):
        for extra in ({}, {"average_attn_weights": False}, {"need_weights": False}):
            before, weights = whole(query, key, value, **masks, **extra)
            after, theirs = dense(query, key, value, **masks, **extra)
            torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
            if weights is None:
                assert theirs is None
            else:
                torch.testing.assert_close(theirs, weights, rtol=1e-12, atol=1e-12)


def test_one_sample_without_a_batch_dimension() -> None:
    whole = attention()
    dense, x = dense_form(whole), torch.randn(5, 12, dtype=torch.float64)
    assert isinstance(dense, TorchAttention)
    for before, after in zip(whole(x, x, x), dense(x, x, x), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


def test_inside_torchs_own_encoder_layer() -> None:
    torch.manual_seed(0)
    whole = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, dtype=torch.float64).eval()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    with torch.no_grad():
        before = whole(x)
        after = rewritten(nn.Sequential(whole), ["0.self_attn"])(x)
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


def test_what_the_dense_form_cannot_express_is_refused_by_name() -> None:
    class Mine(nn.MultiheadAttention):
        pass

    listened = attention()
    listened.register_forward_hook(lambda *_: None)
    refused = {
        "added keys": attention(add_bias_kv=True),
        "with added keys": attention(add_zero_attn=True),
        "Mine": Mine(12, 3),
        "hooks": listened,
    }
    for word, module in refused.items():
        reason = dense_form(module)
        assert isinstance(reason, str)
        assert word in reason
        assert attention_names(nn.Sequential(module)) == []
    shared = attention()
    assert attention_names(nn.ModuleDict({"a": shared, "b": shared})) == []
    assert dense_form(nn.Linear(2, 2)) is None


def test_attention_that_kept_its_width_goes_back_into_its_class() -> None:
    original = nn.ModuleDict({"a": attention(), "b": attention()})
    small = rewritten(nn.ModuleDict({"a": attention(), "b": attention()}), ["a", "b"])
    changed = small.get_submodule("b")
    assert isinstance(changed, TorchAttention)
    with torch.no_grad():
        for parameter in changed.q.parameters():
            parameter.mul_(2)
        changed.k.weight.mul_(0.5)
    x = torch.randn(5, 2, 12, dtype=torch.float64)
    back = plain_again(small, original)
    for name, exact in (("a", True), ("b", False)):
        before, after = original.get_submodule(name), back.get_submodule(name)
        assert isinstance(before, nn.MultiheadAttention)
        assert type(after) is nn.MultiheadAttention
        assert torch.equal(after.in_proj_weight, before.in_proj_weight) == exact
        torch.testing.assert_close(after(x, x, x)[0], before(x, x, x)[0], rtol=1e-12, atol=1e-12)

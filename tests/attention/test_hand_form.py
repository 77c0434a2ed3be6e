"""Attention written by hand is known by what it computes; what computes anything else is not."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from planted_attention import lively, plant
from torch import Tensor, nn

import compressor
from compressor.attention.hand_form import HandAttention
from compressor.attention.known import dense_form, plain_again
from compressor.surgery.exact import exact_compress, moved
from compressor.units.check import checked
from compressor.units.dense import in_dense_form
from compressor.units.heads import attentions
from compressor.units.trace import trace


class Packed(nn.Module):
    """One layer for query, key and value, and torch's fused attention."""

    causal = False

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj, self.drop = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Dropout(0.1)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        n, t, e = x.shape
        return self.qkv(x).reshape(n, t, 3, self.num_heads, e // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.drop(self.proj(self.mix(*self.split(x)).transpose(1, 2).flatten(2)))


class Causal(Packed):
    causal = True


class ByHead(Packed):
    """The numbers of a head lie together."""

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        n, t, e = x.shape
        return self.qkv(x).view(n, t, self.num_heads, 3 * e // self.num_heads).transpose(1, 2).chunk(3, -1)


class Written(nn.Module):
    """Three layers, the softmax written out, keys first."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.key, self.query, self.value = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24)
        self.end = nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        pattern = (q @ k.transpose(-2, -1) / (24 / self.heads) ** 0.5).softmax(-1)
        return self.end((pattern @ v).transpose(1, 2).flatten(2))


class Cooler(Packed):
    """Another temperature."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=0.5)


class Windowed(Packed):
    """Every token sees its neighbours only, which short texts do not tell."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        places = torch.arange(q.shape[2])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=(places[:, None] - places[None, :]).abs() < 40)


class Skipping(Packed):
    """Tokens of zeros are not seen."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.split(x)
        seen = (x.abs().sum(-1) > 0)[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Channels(Packed):
    """Attention over the dimensions of a head."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v @ ((q.transpose(-2, -1) @ k) / (q.shape[-1] ** 0.5)).softmax(-1)


class Rearranged(nn.Module):
    """As vit-pytorch writes it: a norm inside, heads wider than the tokens together, the output in a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.scale = 4, 8**-0.5
        self.norm, self.attend, self.dropout = nn.LayerNorm(24), nn.Softmax(-1), nn.Dropout(0.1)
        self.to_qkv = nn.Linear(24, 96, bias=False)
        self.to_out = nn.Sequential(nn.Linear(32, 24), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.to_qkv(self.norm(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        pattern = self.dropout(self.attend(q @ k.transpose(-2, -1) * self.scale))
        return self.to_out((pattern @ v).transpose(1, 2).flatten(2))


class OutputFirst(Packed):
    """The output layer was made first, and a constant of the module's own is kept in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        proj, qkv = self.proj, self.qkv
        del self.proj, self.qkv
        self.proj, self.qkv = proj, qkv
        self.register_buffer("unused", torch.ones(3))


class Paired(Written):
    """As torchaudio writes it: values before queries, and a tuple comes back."""

    def __init__(self) -> None:
        super().__init__()
        value, query = self.value, self.query
        del self.query
        del self.value
        self.value, self.query = value, query

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(x), None


class OwnScale(Packed):
    """A temperature that the module says."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 0.3

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale)


KNOWN = (Packed, Causal, ByHead, Written, Rearranged, OutputFirst, Paired, OwnScale)
OTHER = (Cooler, Windowed, Skipping, Channels)


def first(answer: Tensor | tuple[Tensor, None]) -> Tensor:
    return answer[0] if isinstance(answer, tuple) else answer


@pytest.mark.parametrize("kind", KNOWN)
def test_known_by_what_it_computes(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module, x = kind().double().eval(), torch.randn(2, 9, 24, dtype=torch.float64)
    before = copy.deepcopy(module.state_dict())
    dense = dense_form(module)
    assert isinstance(dense, HandAttention)
    torch.testing.assert_close(first(dense(x)), first(module(x)), rtol=1e-12, atol=1e-12)
    assert type(dense(x)) is type(module(x))
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    dense.v.weight.data.add_(0.1)
    again = kind().double().eval()
    dense.fill(again)
    torch.testing.assert_close(first(dense(x)), first(again(x)), rtol=1e-12, atol=1e-12)
    with pytest.raises(compressor.CompressorError, match="further arguments"):
        dense(x, torch.ones(9, 9))


@pytest.mark.parametrize("kind", OTHER)
def test_what_computes_something_else_is_left_alone(kind: type[nn.Module]) -> None:
    assert dense_form(kind().eval()) is None


class Text(nn.Module):
    """A block of such attention and an MLP."""

    def __init__(self, kind: type[nn.Module] = Causal) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(5, 24), nn.LayerNorm(24), nn.LayerNorm(24)
        self.attention, self.head = kind(), nn.Linear(24, 3)
        self.mlp = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + first(self.attention(self.one(x)))
        return self.head((x + self.mlp(self.two(x))).mean(1))


def text(kind: type[nn.Module] = Causal) -> nn.Module:
    torch.manual_seed(0)
    return lively(Text(kind))


TOKENS = torch.randn(24, 7, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("kind", [Causal, ByHead, Rearranged, Paired])
def test_planted_heads_values_and_queries_go(kind: type[nn.Module]) -> None:
    lean = text(kind)
    first = in_dense_form(lean, TOKENS, normal=False)
    attention = attentions(first)["attention"]
    assert attention.out is not None
    plant(attention, attention.out)
    wide = plain_again(copy.deepcopy(first), lean)
    assert type(wide.get_submodule("attention")) is kind
    opened = in_dense_form(wide, TOKENS)
    small, plan = exact_compress(opened, checked(opened, trace(opened, TOKENS), TOKENS[:2]), TOKENS, effort=0.0)
    assert {fold.group: len(fold.dropped) for fold in plan.folds} == {
        f"attention.{leaf}": 1 for leaf in ("heads", "q", "v")
    }
    fresh = torch.randn(4, 9, 5, dtype=torch.float64)
    with torch.no_grad():
        assert moved([wide(fresh)], [small(fresh)]) < 1e-10


def test_a_lossy_run_is_saved_and_loaded(tmp_path: Path) -> None:
    model, x = text().float(), torch.randn(200, 7, 5)
    with torch.no_grad():
        labels = model(x).argmax(1)
    result = compressor.compress(model, (x, labels), keep="params=0.8", align=1)
    assert attentions(result.model)
    result.save(tmp_path / "small", onnx=False)
    loaded = compressor.load(tmp_path / "small", factory=lambda: text().float())
    with torch.no_grad():
        assert torch.equal(loaded(x[:8]), result.model(x[:8]))

"""What weights prove surplus inside attention is moved into zeros, and nothing else is touched."""

from __future__ import annotations

import pytest
import torch
from planted_attention import heads_of, plant
from torch import Tensor, nn

from compressor.attention.known import dense_form
from compressor.attention.normal import concentrate, ranked
from compressor.attention.torch_form import TorchAttention


def dense(dtype: torch.dtype = torch.float64, heads: int = 4) -> TorchAttention:
    torch.manual_seed(1)
    whole = nn.MultiheadAttention(24, heads, batch_first=True, dtype=dtype).eval()
    nn.init.normal_(whole.in_proj_bias)
    made = dense_form(whole)
    assert isinstance(made, TorchAttention)
    assert made.out is not None
    return made


def alive(attention: TorchAttention) -> tuple[Tensor, Tensor]:
    """(H, V) and (H, Q) bool: dimensions that are read."""
    assert attention.out is not None
    heads = len(attention.scale)
    values = attention.out.weight.detach().T.unflatten(0, (heads, -1)).abs().sum(2) > 0
    return values, heads_of(attention.k, heads)[0].abs().sum(2) > 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_planted_surplus_ends_in_zeros_and_the_function_stays(dtype: torch.dtype, tolerance: float) -> None:
    attention = dense(dtype)
    assert attention.out is not None
    plant(attention, attention.out)
    x = torch.randn(3, 7, 24, dtype=dtype)
    before = attention(x, x, x)[0].detach()
    assert concentrate(attention, attention.out)
    values, logits = alive(attention)
    assert values.sum(1).tolist() == [5, 5, 5, 0]  # of six: one is a combination, and the last head a copy
    assert logits.sum(1).tolist() == [5, 5, 5, 0]
    assert not values[:, 5].any()
    assert not logits[:, 5].any()
    torch.testing.assert_close(attention(x, x, x)[0], before, rtol=tolerance, atol=tolerance)


def test_lean_attention_is_not_touched() -> None:
    attention = dense()
    assert attention.out is not None
    before = {name: tensor.clone() for name, tensor in attention.state_dict().items()}
    assert not concentrate(attention, attention.out)
    assert all(torch.equal(tensor, before[name]) for name, tensor in attention.state_dict().items())


def test_heads_of_one_pattern_whose_values_differ_are_both_kept() -> None:
    attention = dense()
    assert attention.out is not None
    for layer in (attention.q, attention.k):
        weight, bias = heads_of(layer, 4)
        weight[3], bias[3] = weight[1], bias[1]
    assert not concentrate(attention, attention.out)
    (v, _), out = heads_of(attention.v, 4), attention.out.weight.data.T.unflatten(0, (4, -1))
    v[1, 2:], v[3, :3] = 0, 0  # two value dimensions and three: both fit into one head
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    before = attention(x, x, x)[0].detach()
    assert concentrate(attention, attention.out)
    assert alive(attention)[0].sum(1).tolist() == [6, 5, 6, 0]
    assert out.shape == (4, 6, 24)
    torch.testing.assert_close(attention(x, x, x)[0], before, rtol=1e-12, atol=1e-12)


def test_a_head_without_values_leaves_its_constant_in_the_bias() -> None:
    attention = dense()
    assert attention.out is not None
    heads_of(attention.v, 4)[0][2] = 0
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    before = attention(x, x, x)[0].detach()
    assert concentrate(attention, attention.out)
    assert alive(attention)[0].any(1).tolist() == [True, True, False, True]
    torch.testing.assert_close(attention(x, x, x)[0], before, rtol=1e-12, atol=1e-12)


def test_a_product_is_brought_to_its_rank_from_both_sides() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(6, 9, generator=generator).double(), torch.randn(6, 8, generator=generator).double()
    left[4, :-1], right[1] = left[0, :-1] + left[2, :-1], -2 * right[3]
    first, second, constant, rank = ranked(left, right, 1e-12)
    product = first.T @ second
    product[-1] += constant
    assert rank == 4
    assert not first[4:].any()
    assert not second[4:].any()
    torch.testing.assert_close(product, left.T @ right, rtol=1e-12, atol=1e-12)

"""Small transformers with surplus heads and dimensions planted into their attention, and the answer key."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressor.attention.dense import DenseAttention
from compressor.attention.head_norm import HeadNorm


def heads_of(layer: nn.Linear, heads: int) -> tuple[Tensor, Tensor]:
    """Views (H, D, E) and (H, D) of a layer's weight and bias, head by head; writing into them changes the layer, but
    for a bias that it does not have.
    """
    bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias.data
    return layer.weight.data.unflatten(0, (heads, -1)), bias.unflatten(0, (heads, -1))


def plant(attention: DenseAttention, reader: nn.Linear, seed: int = 0) -> None:
    """Make the last head's pattern and values those of the first, and in each head one value dimension, at another
    place in each, a combination of two others plus a constant, and one query dimension a multiple of another.
    """
    generator = torch.Generator().manual_seed(seed)
    heads = len(attention.scale)
    (q, qb), _, (v, vb) = (heads_of(layer, heads) for layer in (attention.q, attention.k, attention.v))
    for head in range(heads - 1):
        one, two, spare = ((head + shift) % v.shape[1] for shift in range(3))
        v[head, spare] = 2 * v[head, one] - v[head, two]
        vb[head, spare] = 2 * vb[head, one] - vb[head, two] + 0.3
        q[head, two], qb[head, two] = 3 * q[head, spare], 3 * qb[head, spare]
    for layer in (attention.q, attention.k, attention.v):
        weight, bias = heads_of(layer, heads)
        weight[-1], bias[-1] = weight[0], bias[0]
    reader.weight.data.add_(0.01 * torch.randn(reader.weight.shape, generator=generator).to(reader.weight))


def plant_shared(attention: DenseAttention) -> None:
    """The last key / value head and its query heads become the first's; in each one value is spare."""
    several = len(attention.scale) // attention.shared
    for rows in attention.v.parameters():
        heads = rows.data.unflatten(0, (several, -1))
        for head in range(several - 1):
            heads[head, head % 2] = 2 * heads[head, 2] - heads[head, 3]
    for layer in (attention.q, attention.k, attention.v, *(m for m in attention.children() if isinstance(m, HeadNorm))):
        for rows in layer.parameters():
            heads = rows.data.unflatten(0, (several, -1))
            heads[-1] = heads[0]


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 with random weights that give signal everywhere, also where they start as zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.double().named_parameters():
            if parameter.dim() == 1 or not bool(parameter.any()):
                near = 1.0 if "weight" in name and parameter.dim() == 1 else 0.0
                parameter.copy_(near + 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model.eval()

"""Norms of queries and keys that have other weights for each head, in a form whose heads can be cut."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class HeadNorm(nn.Module):
    """Layer norm of each head's dimensions, with `weight` (H, Q): a list of H norms without bias as one tensor."""

    def __init__(self, weight: Tensor, eps: float, like: Tensor) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(weight.detach().clone(), like.requires_grad), eps

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, T, Q) -> the same shape."""
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * self.weight[:, None]


def headwise(norm: Any) -> nn.Module | None:
    """`norm` as it is, or as `HeadNorm` where it is StableLM's list of norms."""
    if type(norm).__name__ != "StableLmLayerNormPerHead":
        return norm
    norms = list(norm.norms)
    if any(one.weight is None or one.bias is not None for one in norms):
        return norm  # its heads cannot be cut then, and the dry run says so
    return HeadNorm(torch.stack([one.weight for one in norms]), norms[0].eps, norms[0].weight)


def fill_norm(norm: nn.Module, plain: nn.Module) -> None:
    """Write the numbers of `norm` into the norm that it was made of."""
    if not isinstance(norm, HeadNorm):
        plain.load_state_dict(norm.state_dict())
        return
    with torch.no_grad():
        for one, weight in zip(plain.get_submodule("norms").children(), norm.weight, strict=True):
            one.get_parameter("weight").copy_(weight)

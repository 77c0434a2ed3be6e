"""What attention in windows (Swin, Liu et al. 2021; second version, Liu et al. 2022) has in common: a bias for each
relative position, and in the second version logits that are cosines.

Shape letters: W windows of all samples, A positions of a window, R relative positions, H heads, E features.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.attention.dense import DenseAttention, copied, copy_numbers, hooked, scales
from compressor.attention.fused import fill_fused

COSINE = "query and key dimensions compared by their cosine"
HOTTEST = math.log(100)
"""A head's logarithm of what its cosines are multiplied by counts up to here."""
STEEPEST = 16
"""Biases of the second version lie between 0 and this."""


@dataclass(frozen=True)
class Positions:
    """What the logits of a window are made of beside queries and keys."""

    index: Tensor
    """(A, A), or the same flat: the relative position of two positions."""
    window: tuple[int, int]
    table: Tensor | None = None
    """(R, H) biases, in the first version."""
    network: nn.Sequential | None = None
    """What gives them from coordinates, in the second version."""
    coordinates: Tensor | None = None
    """(..., 2), R in all."""
    temperature: Tensor | None = None
    """(H, 1, 1) logarithms of what cosines are multiplied by, in the second version."""


def positions_of(module: Any) -> Positions:
    """Read from a module of torchvision or timm, which call these things alike."""
    index, window = module.relative_position_index, tuple(module.window_size)
    if not hasattr(module, "cpb_mlp"):
        return Positions(index, window, module.relative_position_bias_table)
    return Positions(index, window, None, module.cpb_mlp, module.relative_coords_table, module.logit_scale)


def refusal(module: Any) -> str | None:
    """Why the layers of such a module are not followed, if they are not."""
    name, network = type(module).__name__, getattr(module, "cpb_mlp", nn.Sequential())
    last = [network[-1]] if isinstance(network, nn.Sequential) and len(network) else []
    kinds = {type(part) for part in (module.qkv, module.proj, *last)}
    if kinds != {nn.Linear} or type(network) is not nn.Sequential:
        return f"attention heads ({name} with layers of another kind)"
    if hooked(module, module.qkv, module.proj, *network.modules()):
        return f"attention heads ({name} with hooks)"
    return None


class WindowAttention(DenseAttention):
    """Attention between the positions of a window. A head's column of biases, or the row of the network that computes
    it, and its temperature belong to the head.
    """

    relative_position_bias_table: Tensor | None
    relative_position_index: Tensor
    relative_coords_table: Tensor
    cpb_mlp: nn.Sequential | None
    logit_scale: Tensor | None

    def __init__(self, *layers: Any, positions: Positions, out_dropout: float, **options: Any) -> None:
        super().__init__(*layers, **options)
        self.window, self.out_dropout = positions.window, out_dropout
        self.relative_position_bias_table, self.logit_scale = _own(positions.table), _own(positions.temperature)
        self.register_buffer("relative_position_index", positions.index.clone())
        self.cpb_mlp = copy.deepcopy(positions.network)
        if self.cpb_mlp is not None and positions.coordinates is not None:
            self.register_buffer("relative_coords_table", positions.coordinates.clone())
            self.by_head = (f"cpb_mlp.{len(self.cpb_mlp) - 1}.weight",)
        if self.logit_scale is not None:
            self.fixed = COSINE

    @classmethod
    def read(cls, module: Any, layers: list[nn.Linear], scale: float, **options: Any) -> WindowAttention:
        """From these layers of query, key and value, and the rest of `module`. Cosines have no other scale than their
        temperature.
        """
        positions = positions_of(module)
        factors = scales(scale if positions.temperature is None else 1.0, module.num_heads, module.qkv.weight)
        return cls(*layers, copied(module.proj), factors, positions=positions, **options)

    def fill(self, plain: Any) -> None:
        """Into a module that `read` took."""
        fill_fused(plain.qkv, self)
        copy_numbers(self.out, plain.proj)
        with torch.no_grad():
            for name in ("relative_position_bias_table", "logit_scale"):
                if getattr(self, name) is not None:
                    getattr(plain, name).copy_(getattr(self, name))
        if self.cpb_mlp is not None:
            plain.cpb_mlp.load_state_dict(self.cpb_mlp.state_dict())

    def per_head(self) -> Tensor:
        """(H, ·) the biases, and the temperatures."""
        table = self._table().T
        return table if self.logit_scale is None else torch.cat([table, self._heats(self.logit_scale)[:, 0]], 1)

    def inside(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """(W, A, E) -> the same; `mask` is added to the logits, broadcast to (W, H, A, A)."""
        q, k, v = self.projected(tokens, tokens, tokens)
        if self.logit_scale is not None:
            q, k = F.normalize(q, dim=-1) * self._heats(self.logit_scale), F.normalize(k, dim=-1)
        features, _ = self.mixed(q, k, v, self._biases(), mask)
        return F.dropout(features, self.out_dropout, self.training)

    @staticmethod
    def _heats(temperature: Tensor) -> Tensor:
        return temperature.clamp(max=HOTTEST).exp()

    def _biases(self) -> Tensor:
        """(1, H, A, A)."""
        area = self.window[0] * self.window[1]
        biases = self._table()[self.relative_position_index.view(-1)]
        return biases.view(area, area, -1).permute(2, 0, 1).contiguous().unsqueeze(0)

    def _table(self) -> Tensor:
        """(R, H)."""
        if self.cpb_mlp is None:
            assert self.relative_position_bias_table is not None
            return self.relative_position_bias_table
        return STEEPEST * torch.sigmoid(self.cpb_mlp(self.relative_coords_table).flatten(0, -2))


def _own(given: Tensor | None) -> nn.Parameter | None:
    """A parameter of these numbers, sharing nothing."""
    return None if given is None else nn.Parameter(given.detach().clone(), given.requires_grad)

"""torchvision's attention in shifted windows (Swin, Liu et al. 2021, and its second version) in dense form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.attention.dense import DenseAttention
from compressor.attention.fused import taken_apart
from compressor.attention.windows import WindowAttention, refusal

VERSIONS = ("ShiftedWindowAttention", "ShiftedWindowAttentionV2")


class SwinAttention(WindowAttention):
    """In the place of a torchvision `ShiftedWindowAttention` or `ShiftedWindowAttentionV2`, with its way of being
    called.
    """

    def __init__(self, *layers: Any, shift: tuple[int, int], **options: Any) -> None:
        super().__init__(*layers, **options)
        self.shift = shift

    @classmethod
    def of(cls, module: Any) -> DenseAttention | str | None:
        """Both versions; the second zeroes the bias of its keys in every forward pass, so that there is none here."""
        kind = type(module)
        if kind.__module__ != "torchvision.models.swin_transformer" or kind.__name__ not in VERSIONS:
            return None
        refused = refusal(module)
        if refused is not None:
            return refused
        bias = module.qkv.bias
        if bias is not None and kind.__name__ != VERSIONS[0]:
            queries, _, values = bias.chunk(3)
            bias = (queries, None, values)
        return cls.read(
            module,
            taken_apart(module.qkv.weight, bias, module.qkv.weight),
            (module.qkv.in_features // module.num_heads) ** -0.5,
            shift=tuple(module.shift_size),
            dropout=module.attention_dropout,
            out_dropout=module.dropout,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (N, height, width, E) -> the same shape."""
        height, width = x.shape[1:3]
        (rows, columns), shift = self.window, list(self.shift)
        x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        padded = x.shape[1:3]
        shift = [0 if window >= size else by for by, window, size in zip(shift, self.window, padded, strict=True)]
        if sum(shift) > 0:
            x = torch.roll(x, shifts=(-shift[0], -shift[1]), dims=(1, 2))
        tokens = self._windows(x)
        tokens = self.inside(tokens, self._apart(x, shift) if sum(shift) > 0 else None)
        x = tokens.view(-1, padded[0] // rows, padded[1] // columns, rows, columns, tokens.shape[-1])
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, *padded, tokens.shape[-1])
        if sum(shift) > 0:
            x = torch.roll(x, shifts=(shift[0], shift[1]), dims=(1, 2))
        return x[:, :height, :width, :].contiguous()

    def _windows(self, x: Tensor) -> Tensor:
        """(N, height, width, E) -> (N · windows, positions of a window, E)."""
        (rows, columns), (count, height, width, size) = self.window, x.shape
        x = x.view(count, height // rows, rows, width // columns, columns, size)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows * columns, size)

    def _apart(self, x: Tensor, shift: list[int]) -> Tensor:
        """(N · windows, 1, positions, positions): -100 between positions that were no neighbours before the shift."""
        regions = x.new_zeros(x.shape[1:3])
        count = 0
        for high in ((0, -self.window[0]), (-self.window[0], -shift[0]), (-shift[0], None)):
            for wide in ((0, -self.window[1]), (-self.window[1], -shift[1]), (-shift[1], None)):
                regions[high[0] : high[1], wide[0] : wide[1]] = count
                count += 1
        windows = self._windows(regions[None, :, :, None]).squeeze(-1)
        mask = windows.unsqueeze(1) - windows.unsqueeze(2)
        mask = mask.masked_fill(mask != 0, -100.0).masked_fill(mask == 0, 0.0)
        return mask.repeat(x.shape[0], 1, 1).unsqueeze(1)

"""torchvision's attention in shifted windows (Swin, Liu et al. 2021) in dense form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.attention.dense import DenseAttention, copied, copy_numbers, hooked, linear, scales


class SwinAttention(DenseAttention):
    """In the place of a torchvision `ShiftedWindowAttention`, with its way of being called.

    A head's column of the table of relative positions belongs to the head.
    """

    relative_position_index: Tensor

    def __init__(
        self,
        *layers: Any,
        table: Tensor,
        index: Tensor,
        window: tuple[int, int],
        shift: tuple[int, int],
        out_dropout: float,
        **options: Any,
    ) -> None:
        super().__init__(*layers, **options)
        self.window, self.shift, self.out_dropout = window, shift, out_dropout
        self.relative_position_bias_table = nn.Parameter(table.detach().clone(), table.requires_grad)
        self.register_buffer("relative_position_index", index.clone())

    @classmethod
    def of(cls, module: Any) -> DenseAttention | str | None:
        """`ShiftedWindowAttention` of the first version; the second norms queries and keys."""
        kind = type(module)
        if kind.__module__ != "torchvision.models.swin_transformer" or "ShiftedWindowAttention" not in kind.__name__:
            return None
        if kind.__name__ != "ShiftedWindowAttention":
            return f"attention heads ({kind.__name__}, with norms of queries and keys)"
        if not all(type(part) is nn.Linear for part in (module.qkv, module.proj)):
            return "attention heads (ShiftedWindowAttention with layers of another kind)"
        if hooked(module, module.qkv, module.proj):
            return "attention heads (ShiftedWindowAttention with hooks)"
        qkv: nn.Linear = module.qkv
        biases = [None] * 3 if qkv.bias is None else list(qkv.bias.chunk(3))
        layers = [linear(w, b, qkv.weight) for w, b in zip(qkv.weight.chunk(3), biases, strict=True)]
        size = qkv.in_features // module.num_heads
        return cls(
            *layers,
            copied(module.proj),
            scales(size**-0.5, module.num_heads, qkv.weight),
            dropout=module.attention_dropout,
            table=module.relative_position_bias_table,
            index=module.relative_position_index,
            window=tuple(module.window_size),
            shift=tuple(module.shift_size),
            out_dropout=module.dropout,
        )

    def fill(self, plain: Any) -> None:
        """Into a `ShiftedWindowAttention`."""
        layers = (self.q, self.k, self.v)
        with torch.no_grad():
            plain.qkv.weight.copy_(torch.cat([layer.weight for layer in layers]))
            if plain.qkv.bias is not None:
                plain.qkv.bias.copy_(torch.cat([layer.bias for layer in layers]))
            plain.relative_position_bias_table.copy_(self.relative_position_bias_table)
        copy_numbers(self.out, plain.proj)

    def per_head(self) -> Tensor:
        """(H, ·) the tables."""
        return self.relative_position_bias_table.T

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
        bias = self.relative_position_bias_table[self.relative_position_index]
        bias = bias.view(rows * columns, rows * columns, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        mask = self._apart(x, shift) if sum(shift) > 0 else None
        tokens, _ = self.mixed(*self.projected(tokens, tokens, tokens), bias, mask)
        tokens = F.dropout(tokens, self.out_dropout, self.training)
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

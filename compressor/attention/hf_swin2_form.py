"""Attention in windows of the second version of Hugging Face's Swin (Liu et al. 2022) in dense form."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from compressor.attention.dense import DenseAttention, copied, hooked, scales
from compressor.attention.lines import computes_as
from compressor.attention.windows import Positions, WindowAttention

LAYERS = ("query", "key", "value")
BIASES = "continuous_position_bias_mlp"


class HFSwin2Attention(WindowAttention):
    """In the place of a `Swinv2SelfAttention`, with its way of being called."""

    read_by = "output.dense"

    @classmethod
    def of(cls, module: Any) -> DenseAttention | str | None:
        """Attention that is computed by that class's lines."""
        kind = type(module)
        if not computes_as(kind, "swinv2", "Swinv2SelfAttention"):
            return None
        parts: list[Any] = [module.get_submodule(name) for name in LAYERS]
        network: Any = module.get_submodule(BIASES)
        if not all(type(part) is nn.Linear for part in (*parts, network[-1])) or hooked(module, *parts, network):
            return f"attention heads ({kind.__name__} with layers of another kind)"
        positions = Positions(
            module.relative_position_index, tuple(module.window_size), None, network, module.relative_coords_table,
            module.logit_scale,
        )  # fmt: skip
        scale = scales(1.0, module.num_attention_heads, parts[0].weight)
        options = {"positions": positions, "out_dropout": 0.0, "dropout": float(module.dropout.p)}
        return cls(*(copied(part) for part in parts), None, scale, **options)

    def fill(self, plain: Any) -> None:
        """Into a module of that class."""
        self.fill_layers(plain, LAYERS)
        assert self.cpb_mlp is not None
        assert self.logit_scale is not None
        plain.get_submodule(BIASES).load_state_dict(self.cpb_mlp.state_dict())
        plain.logit_scale.data.copy_(self.logit_scale)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_others: Any, **_named: Any
    ) -> tuple[Tensor]:
        """(features,) of the windows of all samples (N · windows, A, E). `attention_mask` (windows, A, A) is added to
        the logits twice, as the class does.
        """
        mask = attention_mask
        if mask is not None:
            samples = hidden_states.shape[0] // mask.shape[0]
            mask = (2 * mask)[None, :, None].expand(samples, -1, -1, -1, -1).flatten(0, 1)
        return (self.inside(hidden_states, mask),)

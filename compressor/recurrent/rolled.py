"""Recurrent layers of several widths, each run by torch's own layer of one width: what is delivered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compressor.recurrent.layers import Last, Recurrent, States
from compressor.recurrent.unrolled import Layer, Unrolled

KINDS: dict[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN_TANH": nn.RNN, "RNN_RELU": nn.RNN}
"""torch's layers by their `mode`."""


class OneWay(nn.Module):
    """One layer in one direction, run by torch's own."""

    def __init__(self, inner: nn.RNNBase, backward: bool) -> None:
        super().__init__()
        self.inner, self.backward = inner, backward

    @property
    def width(self) -> int:
        """Hidden units."""
        return self.inner.hidden_size

    def forward(self, x: Tensor) -> tuple[Tensor, States]:
        """(N, T, E) -> (N, T, H) and the last states, from states of zero."""
        out, last = self.inner(x.flip(1) if self.backward else x)
        states = tuple(state.squeeze(0) for state in (last if isinstance(last, tuple) else (last,)))
        return out.flip(1) if self.backward else out, states


class Rolled(Recurrent):
    """The layers as `OneWay`s."""

    def together(self, states: Sequence[Tensor]) -> Any:
        """A tensor as torch's where widths are the same."""
        return torch.stack(list(states)) if len({state.shape[-1] for state in states}) == 1 else Last(states)


def rolled(unrolled: Unrolled) -> Rolled:
    """The same function, of torch's layers."""
    layers = [OneWay(_inner(layer), layer.backward) for layer in unrolled.layers if isinstance(layer, Layer)]
    made = Rolled(layers, unrolled.mode, unrolled.directions, unrolled.batch_first, unrolled.dropout)
    return made.train(unrolled.training)


def numbers(layer: Layer) -> dict[str, Tensor]:
    """What torch's layer has for this one, by its names without layer and direction."""
    found = {"weight_ih": layer.x.weight.detach(), "weight_hh": layer.h.weight.detach()}
    second = [bias.detach() for bias in (layer.inner, layer.h.bias) if bias is not None]
    if layer.x.bias is not None or second:
        zeros = torch.zeros_like(layer.h.weight.detach()[:, 0])
        found["bias_ih"] = zeros if layer.x.bias is None else layer.x.bias.detach()
        found["bias_hh"] = sum(second[1:], second[0]) if second else zeros
    return found


def _inner(layer: Layer) -> nn.RNNBase:
    """torch's layer of one direction with these widths and numbers."""
    known, weight = numbers(layer), layer.x.weight
    more = {"nonlinearity": layer.mode[4:].lower()} if layer.mode.startswith("RNN") else {}
    made = KINDS[layer.mode](
        weight.shape[1],
        layer.width,
        bias="bias_ih" in known,
        batch_first=True,
        device="meta",
        dtype=weight.dtype,
        **more,
    ).to_empty(device=weight.device)
    fill(made, known, "_l0")
    return made.requires_grad_(weight.requires_grad)


def fill(plain: nn.Module, known: dict[str, Tensor], ending: str) -> None:
    """Write `numbers` into a layer of torch's, under names with this ending."""
    with torch.no_grad():
        for name, value in known.items():
            plain.get_parameter(f"{name}{ending}").copy_(value)

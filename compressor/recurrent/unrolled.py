"""Recurrent layers of torch as linear layers in a loop over the steps: what is worked on.

Shape letters: see `layers`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.recurrent.layers import Recurrent, States

MOST_STEPS = 1000
"""Steps of all layers and directions together: each is a dozen operations, all of which are followed."""


class Layer(nn.Module):
    """One layer in one direction: `x` reads the input (E -> G·H), `h` the state before (H -> G·H), and `inner` (G·H) is
    torch's second bias. A unit's gates lie H apart, as in torch.

    `inner` is added in every step and is no bias of `h`, which the first step has not: zeros in the place of its state
    would be other units than the later ones.
    """

    inner: nn.Parameter | None

    def __init__(self, mode: str, x: nn.Linear, h: nn.Linear, inner: nn.Parameter | None, backward: bool) -> None:
        super().__init__()
        self.mode, self.backward = mode, backward
        self.x, self.h = x, h
        self.register_parameter("inner", inner)

    @property
    def width(self) -> int:
        """Hidden units."""
        return self.h.in_features

    def forward(self, x: Tensor) -> tuple[Tensor, States]:
        """(N, T, E) -> (N, T, H) and the last states, from states of zero."""
        steps = self.x(x).unbind(1)
        states: States = ()
        found = []
        for gates in reversed(steps) if self.backward else steps:
            states = self._step(gates, states)
            found.append(states[0])
        return torch.stack(found[::-1] if self.backward else found, 1), states

    def _step(self, gates: Tensor, before: States) -> States:
        after = self.h(before[0]) if before else self.h.bias
        if self.inner is not None:
            after = self.inner if after is None else after + self.inner
        if self.mode == "GRU":
            return self._gru(gates, after, before)
        gates = gates if after is None else gates + after
        if self.mode != "LSTM":
            return (gates.tanh() if self.mode == "RNN_TANH" else gates.relu(),)
        enter, forget, fresh, leave = gates.chunk(4, -1)
        cell = enter.sigmoid() * fresh.tanh()
        cell = cell + forget.sigmoid() * before[1] if before else cell
        return leave.sigmoid() * cell.tanh(), cell

    def _gru(self, gates: Tensor, after: Tensor | None, before: States) -> States:
        reset, keep, fresh = gates.chunk(3, -1)
        if after is not None:
            more = after.chunk(3, -1)
            reset, keep = reset + more[0], keep + more[1]
            fresh = fresh + reset.sigmoid() * more[2]
        fresh, keep = fresh.tanh(), keep.sigmoid()
        new = fresh - keep * fresh
        return (new + keep * before[0],) if before else (new,)


class Unrolled(Recurrent):
    """The layers as `Layer`s. ModelError for more than MOST_STEPS."""

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """See `Recurrent`."""
        if isinstance(input, Tensor) and input.dim() == 3:
            steps = input.shape[int(self.batch_first)] * len(self.layers)
            if steps > MOST_STEPS:
                raise ModelError("recurrent layer", f"{steps} steps", f"at most {MOST_STEPS}", "leave it as it is.")
        return super().forward(input, hx)

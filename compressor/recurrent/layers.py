"""What stands in the place of torch's recurrent layers: layers in a row, each in one or two directions, of any widths.

Shape letters: N samples, T steps, E input features, H hidden units, G gates (LSTM 4, GRU 3, else 1), L layers times
directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn import functional as F

from compressor.errors import ModelError

States = tuple[Tensor, ...]
"""(h,) of each (N, H), with an LSTM's (h, c)."""


class Recurrent(nn.Module):
    """Called as an `nn.LSTM`, `nn.GRU` or `nn.RNN` is.

    Last states of several layers come as `Last`, which is indexed as torch's tensor (L, N, H) is. States to begin with
    must be zero: ModelError for others, whose widths are the original's.
    """

    layers: nn.ModuleList

    def __init__(
        self, layers: Sequence[nn.Module], mode: str, directions: int, batch_first: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.mode, self.directions, self.batch_first, self.dropout = mode, directions, batch_first, dropout

    @property
    def num_layers(self) -> int:
        """Layers in a row."""
        return len(self.layers) // self.directions

    @property
    def bidirectional(self) -> bool:
        """True if each layer reads both ways."""
        return self.directions == 2

    @property
    def hidden_size(self) -> int:
        """Hidden units of the last layer in its first direction: what its output begins with."""
        return self.layers[-self.directions].width  # type: ignore[return-value]

    def flatten_parameters(self) -> None:
        """Nothing to do; networks call it."""

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """(N, T, E), or (T, N, E) without `batch_first` -> (N, T, H of all directions), and the last states."""
        if not isinstance(input, Tensor) or input.dim() != 3:
            raise ModelError(
                "recurrent layer", f"a {type(input).__name__}", "a batch of sequences", "leave it as it is."
            )
        refuse_states(hx)
        x = input if self.batch_first else input.transpose(0, 1)
        last: list[States] = []
        for place in range(0, len(self.layers), self.directions):
            x = F.dropout(x, self.dropout, self.training) if place and self.dropout else x
            made = [layer(x) for layer in self.layers[place : place + self.directions]]
            x = torch.cat([out for out, _ in made], -1) if len(made) > 1 else made[0][0]
            last += [states for _, states in made]
        out = x if self.batch_first else x.transpose(0, 1)
        kinds = [self.together(kind) for kind in zip(*last, strict=True)]
        return out, tuple(kinds) if self.mode == "LSTM" else kinds[0]

    def together(self, states: Sequence[Tensor]) -> Any:
        """The last states of all layers as one."""
        return states[0].unsqueeze(0) if len(states) == 1 else Last(states)


class Last:
    """Last states of layers whose widths may differ: each is had by its index, at no operation of its own; whatever
    else a tensor (L, N, H) can do, these can where their widths are the same.
    """

    def __init__(self, states: Sequence[Tensor]) -> None:
        self._states = tuple(states)

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._states)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, int):
            return self._states[place]
        if isinstance(place, slice):
            return Last(self._states[place])
        if isinstance(place, tuple) and place and isinstance(place[0], int):
            return self._states[place[0]][place[1:]]
        return self.whole()[place]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.whole(), name)

    def whole(self) -> Tensor:
        """(L, N, H) all of them. ModelError where widths differ."""
        if len({state.shape[-1] for state in self._states}) > 1:
            widths = ", ".join(str(state.shape[-1]) for state in self._states)
            raise ModelError(
                "last states of a recurrent layer", f"widths {widths}", "layers of one width",
                "take the layer that is read by its index, as in h_n[-1].",
            )  # fmt: skip
        return torch.stack(self._states)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """torch's functions see the tensor."""
        del types
        plain = [[_whole(item) for item in a] if isinstance(a, (list, tuple)) else _whole(a) for a in args]
        return func(*plain, **{name: _whole(value) for name, value in (kwargs or {}).items()})


def _whole(value: Any) -> Any:
    return value.whole() if isinstance(value, Last) else value


def refuse_states(hx: Any) -> None:
    """ModelError for states to begin with that are not zero; not looked at while operations are recorded."""
    recorded = torch.compiler.is_exporting() or torch.jit.is_tracing() or get_proxy_mode() is not None  # pyright: ignore[reportPrivateImportUsage]
    if hx is None or recorded:
        return
    if any(bool(state.any()) for state in (hx if isinstance(hx, (tuple, list)) else [hx])):
        raise ModelError(
            "recurrent layer", "states to begin with that are not zero", "none, or zeros, as on the calibration data",
            "compress with data that begins so as well: the layer then stays as it is.",
        )  # fmt: skip

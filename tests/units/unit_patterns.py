"""Small planted networks, one per wiring pattern, with what must come of the group named `of`.

`says` is None where the group must be live (and exact under a cut), else the exact words of its refusal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Pattern:
    """One network: `build()` makes it, `inputs()` its example, `of` is the group in question."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    of: str
    says: str | None = None


PATTERNS: dict[str, Pattern] = {}


def image(channels: int = 3, size: int = 8) -> Callable[[], Any]:
    return lambda: torch.randn(2, channels, size, size)


def image_and_shift() -> Any:
    return torch.randn(2, 3, 8, 8), torch.randn(2, 8, 1, 1)


def pattern(of: str, says: str | None = None, inputs: Callable[[], Any] | None = None) -> Callable[[type], type]:
    def register(build: type) -> type:
        PATTERNS[build.__name__] = Pattern(build, inputs or image(), of, says)
        return build

    return register


class Net(nn.Module):
    """Two 3x3 convolutions `a`, `b`, and a linear head on pooled features; patterns override `middle`."""

    width, after = 8, 8

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, self.width, 3, padding=1)
        self.b = nn.Conv2d(self.after, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)
        self.parts()

    def parts(self) -> None:
        """Further layers."""

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.relu(self.b(self.middle(self.a(x)))).mean((2, 3)))

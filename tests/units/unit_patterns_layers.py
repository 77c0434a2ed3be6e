"""Patterns: layers, sums, concatenation, flattening, how models are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from unit_patterns import Net, image, pattern


@pattern("a")
class plain(Net):
    pass


@pattern("a")
class concat(Net):
    after = 14

    def parts(self) -> None:
        self.c = nn.Conv2d(3, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(torch.cat([self.a(x).relu(), self.c(x).tanh()], 1)).relu().mean((2, 3)))


@pattern("a")
class concat_twice(Net):
    after = 16

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([x.relu(), x.relu()], 1)


@pattern("a")
class residual(Net):
    def parts(self) -> None:
        self.c = nn.Conv2d(8, 8, 3, padding=1)
        self.n = nn.BatchNorm2d(8)

    def middle(self, x: Tensor) -> Tensor:
        return (x + self.n(self.c(x.relu()))).relu()


@pattern("a")
class flattened(Net):
    def parts(self) -> None:
        self.f = nn.Linear(8 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(F.max_pool2d(self.a(x).relu(), 2).flatten(1))


@pattern("a")
class flattened_channels_last(flattened):
    def forward(self, x: Tensor) -> Tensor:
        return self.f(F.max_pool2d(self.a(x).relu(), 2).permute(0, 2, 3, 1).flatten(1))


@pattern("a")
class channels_last_linear(Net):
    def parts(self) -> None:
        self.f = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.a(x).relu().permute(0, 2, 3, 1)).mean((1, 2))


@pattern("a")
class squeeze_excite(Net):
    def parts(self) -> None:
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        return x * self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))).sigmoid()


@pattern("a")
class depthwise(Net):
    def parts(self) -> None:
        self.d, self.n = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)

    def middle(self, x: Tensor) -> Tensor:
        return self.n(self.d(x.relu())).relu()


@pattern("a")
class depthwise_multiplier_two(Net):
    after = 16

    def parts(self) -> None:
        self.d = nn.Conv2d(8, 16, 3, padding=1, groups=8)

    def middle(self, x: Tensor) -> Tensor:
        return self.d(x.relu()).relu()


@pattern("a")
class grouped(Net):
    def parts(self) -> None:
        self.d = nn.Conv2d(8, 8, 3, padding=1, groups=4)

    def middle(self, x: Tensor) -> Tensor:
        return self.d(x.relu()).relu()


@pattern("a")
class grouped_gated(grouped):
    """The gate of every channel of a group goes with the group."""

    def parts(self) -> None:
        super().parts()
        self.down, self.up = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        x = self.d(x.relu()).relu()
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


@pattern("a")
class grouped_twice(grouped):
    """Groups of different sizes: what overlaps goes together."""

    def parts(self) -> None:
        super().parts()
        self.e = nn.Conv2d(8, 4, 3, padding=1, groups=2)

    after = 4

    def middle(self, x: Tensor) -> Tensor:
        return self.e(self.d(x.relu()).relu()).relu()


@pattern("a")
class grouped_transposed(grouped):
    def parts(self) -> None:
        self.d = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=4)


@pattern("a")
class grouped_after_concat(Net):
    """Four groups of one branch, five of another."""

    after = 9

    def parts(self) -> None:
        self.c, self.d = nn.Conv2d(3, 10, 1), nn.Conv2d(18, 9, 3, padding=1, groups=9)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.cat([self.a(x), self.c(x)], 1))
        return self.head(F.relu(self.b(self.d(x).relu())).mean((2, 3)))


@pattern("d", "written by a grouped convolution from channels that are no units", image(4))
class grouped_first(Net):
    def parts(self) -> None:
        self.a, self.d = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 8, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(self.a(self.d(x).relu()).relu())).mean((2, 3)))


@pattern("a")
class fewer_outputs_than_inputs_grouped(Net):
    after = 4

    def parts(self) -> None:
        self.d = nn.Conv2d(8, 4, 3, padding=1, groups=4)

    def middle(self, x: Tensor) -> Tensor:
        return self.d(x.relu()).relu()


@pattern("a")
class transposed(Net):
    def parts(self) -> None:
        self.a = nn.ConvTranspose2d(3, 8, 2, stride=2)
        self.b = nn.ConvTranspose2d(8, 6, 2, stride=2)


@pattern("a", inputs=lambda: torch.randn(2, 3, 16))
class one_dimensional(Net):
    def parts(self) -> None:
        self.a, self.n = nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8)
        self.t, self.b = nn.ConvTranspose1d(8, 5, 2), nn.Conv1d(5, 6, 3)
        self.f = nn.Linear(6 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.t(self.n(self.a(x)).relu()).relu()
        return self.f(F.adaptive_avg_pool1d(self.b(x), 4).flatten(1))


@pattern("a", inputs=lambda: torch.randn(2, 3, 4, 4, 4))
class three_dimensional(Net):
    def parts(self) -> None:
        self.a, self.n, self.b = nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.Conv3d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(F.max_pool3d(self.n(self.a(x)).relu(), 2)).mean((2, 3, 4)))


@pattern("a")
class layer_scale(Net):
    def parts(self) -> None:
        self.scale = nn.Parameter(torch.full((8, 1, 1), 1e-6))
        self.c = nn.Conv2d(8, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        return x + self.scale * self.c(x.relu())


@pattern("a")
class shared_module_twice(Net):
    def parts(self) -> None:
        self.c = nn.Conv2d(8, 8, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return self.c(self.c(x.relu()).relu()).relu()


@pattern("a")
class shared_on_two_branches(Net):
    def parts(self) -> None:
        self.c = nn.Conv2d(8, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        return self.c(x.relu()) * self.c(x.tanh())


@pattern("a")
class dict_output(Net):
    def forward(self, x: Tensor) -> Any:
        return {"logits": super().forward(x), "extra": (None, [x.mean()])}


@dataclass
class Answer:
    logits: Tensor


@pattern("a")
class dataclass_output(Net):
    def forward(self, x: Tensor) -> Any:
        return Answer(super().forward(x))


@pattern("a", inputs=lambda: {"x": torch.randn(2, 3, 8, 8), "scale": torch.rand(2, 1, 1, 1)})
class dict_input(Net):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(x)) * scale)).mean((2, 3)))


@pattern("a", inputs=lambda: (torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)))
class tuple_input(Net):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x + y)


@pattern("a")
class frozen_parameters(Net):
    def parts(self) -> None:
        self.a.requires_grad_(False)


@pattern("a")
class no_grad_inside(Net):
    def middle(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return x.relu()


@pattern("a")
class no_grad_trunk(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.b(self.a(x).relu()).relu().mean((2, 3))
        return self.head(x)


@pattern("b")
class pooled_in_channels_last_order(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu().to(memory_format=torch.channels_last)).relu()
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))

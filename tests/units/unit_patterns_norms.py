"""Patterns: norms, reductions, softmax, constants beside units."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from unit_patterns import Net, image_and_shift, pattern


@pattern("a", "norm mixes units (LayerNorm)")
class layer_norm(Net):
    def parts(self) -> None:
        self.n = nn.LayerNorm(8)

    def middle(self, x: Tensor) -> Tensor:
        return self.n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pattern("a")
class layer_norm_over_positions(Net):
    def parts(self) -> None:
        self.n = nn.LayerNorm([8, 8])

    def middle(self, x: Tensor) -> Tensor:
        return self.n(x).relu()


@pattern("a", "norm mixes units (GroupNorm)")
class group_norm_of_one_group(Net):
    def parts(self) -> None:
        self.n = nn.GroupNorm(1, 8)

    def middle(self, x: Tensor) -> Tensor:
        return self.n(x).relu()


@pattern("a")
class group_norm(Net):
    def parts(self) -> None:
        self.n = nn.GroupNorm(4, 8)

    def middle(self, x: Tensor) -> Tensor:
        return self.n(x).relu()


@pattern("a")
class group_norm_of_every_channel(Net):
    def parts(self) -> None:
        self.n = nn.GroupNorm(8, 8)

    def middle(self, x: Tensor) -> Tensor:
        return self.n(x).relu()


@pattern("a")
class group_norm_on_a_stream(Net):
    def parts(self) -> None:
        self.n, self.m = nn.GroupNorm(4, 8), nn.GroupNorm(2, 8)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return self.m(x + self.inner(self.n(x).relu())).relu()


@pattern("a", "normalised together with channels that are no units (GroupNorm)")
class group_norm_across_a_constant(Net):
    after = 9

    def parts(self) -> None:
        self.n = nn.GroupNorm(1 + 2, 9)

    def middle(self, x: Tensor) -> Tensor:
        return self.n(torch.cat([x, image_and_shift()[0][:, :1] * 0 + x.shape[2]], 1)).relu()


@pattern("a", "dry run")
class group_norm_by_hand_of_fixed_groups(Net):
    def middle(self, x: Tensor) -> Tensor:
        return F.group_norm(x, 4).relu()


@pattern("a")
class instance_norm(Net):
    def parts(self) -> None:
        self.n = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)

    def middle(self, x: Tensor) -> Tensor:
        return self.n(x).relu()


@pattern("a")
class instance_norm_of_the_moment(Net):
    def parts(self) -> None:
        self.n = nn.InstanceNorm2d(8, affine=True)

    def middle(self, x: Tensor) -> Tensor:
        return self.n(x).relu()


@pattern("a")
class batch_norm_without_statistics(Net):
    def parts(self) -> None:
        self.n = nn.BatchNorm2d(8, track_running_stats=False)

    def middle(self, x: Tensor) -> Tensor:
        return self.n(x).relu()


@pattern("a")
class functional_batch_norm(Net):
    def parts(self) -> None:
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("variance", torch.rand(8) + 0.5)

    def middle(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.variance).relu()


@pattern("up", "norm mixes units (`mean` is taken over them)", lambda: torch.randn(2, 5, 6))
class rms_norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.n, self.down = nn.Linear(6, 8), nn.RMSNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.n(self.up(x)))


@pattern("up", "norm mixes units (`mean` is taken over them)", lambda: torch.randn(2, 5, 6))
class rms_norm_by_hand(rms_norm):
    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.down(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.n.weight)


@pattern("a", "norm mixes units (`linalg_vector_norm` is taken over them)")
class normalize(Net):
    def middle(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


@pattern("a", "norm mixes units (`linalg_vector_norm` is taken over them)")
class cosine(Net):
    def parts(self) -> None:
        self.c = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.cosine_similarity(self.a(x), self.c(x), dim=1).mean((1, 2))


@pattern("a", "softmax over units")
class softmax(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x.softmax(1)


@pattern("a")
class softmax_over_positions(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x.flatten(2).softmax(-1).view_as(x)


@pattern("a", "norm mixes units (`mean` is taken over them)")
class mean_over_units(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


@pattern("a", "`max` is taken over units")
class maxout(Net):
    after = 8

    def middle(self, x: Tensor) -> Tensor:
        return x * x.max(1, keepdim=True)[0]


@pattern("a", "`topk` is taken over units")
class topk_of_units(Net):
    after = 4

    def middle(self, x: Tensor) -> Tensor:
        return x.topk(4, 1)[0]


@pattern("a")
class per_channel_buffer(Net):
    def parts(self) -> None:
        self.register_buffer("shift", torch.randn(1, 8, 1, 1))

    def middle(self, x: Tensor) -> Tensor:
        return (x + self.shift).relu()


@pattern("a", "`mul` pairs units with values that are no units")
class per_channel_constant(Net):
    def parts(self) -> None:
        self.scale = torch.rand(1, 8, 1, 1)

    def middle(self, x: Tensor) -> Tensor:
        return x.relu() * self.scale.to(x.dtype)


@pattern(
    "a",
    "`add` pairs units with values that are no units",
    image_and_shift,
)
class per_channel_input(Net):
    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return self.head(self.b((self.a(x) + shift).relu()).mean((2, 3)))


@pattern("a")
class zeros_in_the_same_shape(Net):
    def middle(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, torch.zeros_like(x)) + torch.zeros(x.shape, dtype=x.dtype)


@pattern("a")
class prelu(Net):
    def parts(self) -> None:
        self.p, self.q = nn.PReLU(8), nn.PReLU()

    def middle(self, x: Tensor) -> Tensor:
        return self.q(self.p(x) - 0.1)

"""Patterns: chunks, slices, shuffles, masks, resizing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from unit_patterns import Net, pattern


@pattern("a")
class glu_by_chunk(Net):
    after = 4

    def middle(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return left * right.sigmoid()


@pattern("a")
class glu_function(Net):
    after = 4

    def middle(self, x: Tensor) -> Tensor:
        return F.glu(x, 1)


@pattern("a")
class chunk_and_add(Net):
    after = 4

    def middle(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return left + right.relu()


@pattern("a")
class c2f(Net):
    after = 12

    def parts(self) -> None:
        self.c = nn.Conv2d(4, 4, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        parts = list(x.relu().chunk(2, 1))
        parts.append(self.c(parts[-1]))
        return torch.cat(parts, 1)


@pattern("a", "dry run: forward fails after the cut")
class split_with_constants(Net):
    after = 6

    def parts(self) -> None:
        self.c = nn.Conv2d(2, 6, 1)

    def middle(self, x: Tensor) -> Tensor:
        left, right = x.relu().split([2, 6], 1)
        return self.c(left) + right


@pattern("a", "dry run: forward fails after the cut")
class one_sided_slice(Net):
    after = 4

    def middle(self, x: Tensor) -> Tensor:
        return x.relu()[:, :4]


@pattern("a", "dry run: forward fails after the cut")
class two_sided_slice(Net):
    after = 4

    def middle(self, x: Tensor) -> Tensor:
        return x[:, 4:].relu() + x[:, :4].tanh()


@pattern("a", "dry run: forward fails after the cut")
class strided_slice(Net):
    after = 4

    def middle(self, x: Tensor) -> Tensor:
        return x[:, ::2].relu()


@pattern("a", "dry run: forward fails after the cut")
class index_select(Net):
    after = 4

    def parts(self) -> None:
        self.register_buffer("order", torch.tensor([6, 1, 3, 2]))

    def middle(self, x: Tensor) -> Tensor:
        return x.relu().index_select(1, self.order)


@pattern("a")
class flip(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x.relu() + x.flip(1).tanh()


@pattern("a")
class flip_before_conv(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x.relu().flip(1)


@pattern("a")
class channel_shuffle(Net):
    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.relu().view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


@pattern("a")
class channel_unshuffle(Net):
    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.relu().view(n, c // 2, 2, h, w).transpose(1, 2).reshape(n, c, h, w)


@pattern("a")
class channel_shuffle_layer(Net):
    def parts(self) -> None:
        self.shuffle = nn.ChannelShuffle(2)

    def middle(self, x: Tensor) -> Tensor:
        return self.shuffle(x.relu())


@pattern("a")
class shuffled_halves(Net):
    """A block of ShuffleNet: one half goes on, the other through a layer, then both are shuffled, and split again."""

    after = 4

    def parts(self) -> None:
        self.c = nn.Conv2d(4, 4, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        left, right = x.relu().chunk(2, 1)
        x = torch.cat([left, self.c(right)], 1)
        n, c, h, w = x.shape
        left, right = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w).chunk(2, 1)
        return left * right.sigmoid()


@pattern("a")
class pixel_shuffle_by_hand(Net):
    after = 4

    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, c // 2, 2, h, w).permute(0, 1, 3, 2, 4).reshape(n, c // 2, 2 * h, w)


@pattern("a", "dry run: forward fails after the cut")
class view_with_constants(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x.view(-1, 8, 8, 8).relu()


@pattern("a")
class broadcast_mask(Net):
    def parts(self) -> None:
        self.m = nn.Conv2d(8, 1, 1)

    def middle(self, x: Tensor) -> Tensor:
        return x.relu() * self.m(x).sigmoid()


@pattern("m", "`mul` broadcasts this unit over other units")
class broadcast_mask_unit(broadcast_mask):
    pass


@pattern("a")
class pixel_shuffle(Net):
    after = 2

    def middle(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, 2).relu()


@pattern("a")
class pixel_unshuffle(Net):
    after = 32

    def middle(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x.relu(), 2)


@pattern("a")
class unfolded_patches(Net):
    def parts(self) -> None:
        self.f = nn.Linear(8 * 4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(F.unfold(self.a(x).relu(), 2, stride=2, padding=1).transpose(1, 2)).mean(1)


@pattern("a")
class interpolate(Net):
    def middle(self, x: Tensor) -> Tensor:
        return F.interpolate(x.relu(), scale_factor=2, mode="bilinear") + F.interpolate(x, size=(16, 16))


@pattern("a", "`add` pairs units with values that are no units")
class padded_channels(Net):
    def parts(self) -> None:
        self.a, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        return F.pad(x.relu(), (0, 0, 0, 0, 2, 2)) + self.c(x.relu())


@pattern("a")
class circular_padding(Net):
    def parts(self) -> None:
        self.b = nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular")


@pattern("a", "dry run: ")
class units_moved_in_place(Net):
    def middle(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[:, :5] = x[:, 3:].relu()
        out[:, 5:] = x[:, :3].tanh()
        return out


@pattern("a")
class collected_in_place(Net):
    after = 14

    def parts(self) -> None:
        self.c = nn.Conv2d(3, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.a(x).relu(), self.c(x).relu()
        out = x.new_zeros(len(x), y.shape[1] + z.shape[1], 8, 8)
        out[:, : y.shape[1]] = y
        out[:, y.shape[1] :] = z
        return self.head(self.b(out).relu().mean((2, 3)))


@pattern("a", "`avg_pool3d` is taken over units")
class local_response_norm(Net):
    def middle(self, x: Tensor) -> Tensor:
        return F.local_response_norm(x, 3)

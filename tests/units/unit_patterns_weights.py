"""Patterns: weights used in other ways, recurrence, attention, tokens, control flow."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from unit_patterns import Net, pattern


@pattern("a", "weight is computed, not a parameter (functional weights)")
class weight_norm(Net):
    def parts(self) -> None:
        self.b = nn.utils.parametrizations.weight_norm(self.b)


@pattern("a", "functional weights (`table` is used outside its layer's forward)")
class raw_matrix(Net):
    def parts(self) -> None:
        self.table = nn.Parameter(torch.randn(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).relu().mean((2, 3)) @ self.table


@pattern("a", "functional weights (`c.weight` is used outside its layer's forward)")
class linear_function(Net):
    def parts(self) -> None:
        self.c = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.a(x).relu().mean((2, 3)), self.c.weight, self.c.bias)


@pattern("a", "functional weights (`table` is used outside its layer's forward)")
class einsum(Net):
    def parts(self) -> None:
        self.table = nn.Parameter(torch.randn(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,co->no", self.a(x).relu(), self.table)


@pattern("a", "tied weights (`c.weight`)")
class tied(Net):
    def parts(self) -> None:
        self.c, self.d = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.d.weight = self.c.weight

    def middle(self, x: Tensor) -> Tensor:
        return self.d(self.c(x.relu()).relu()).relu()


@pattern("a")
class module_under_two_names(Net):
    def parts(self) -> None:
        self.layers = nn.ModuleList([self.a, self.b])


@pattern("a")
class attention_pool(Net):
    def parts(self) -> None:
        self.score = nn.Linear(8, 1)

    def middle(self, x: Tensor) -> Tensor:
        tokens = x.relu().flatten(2).transpose(1, 2)
        weights = self.score(tokens).squeeze(-1).softmax(1)
        return torch.einsum("nt,ntc->nc", weights, tokens)[:, :, None, None].expand_as(x)


@pattern("a")
class running_maximum(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x.cummax(2).values


@pattern("a", "model output")
class two_outputs(Net):
    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        return self.b(x), x


@pattern("head", "model output")
class last_layer(Net):
    pass


@pattern("c", "no layer reads these units")
class unread(Net):
    def parts(self) -> None:
        self.c = nn.Conv2d(8, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        self.c(x)
        return x.relu()


@pattern("a", "a single unit")
class one_unit(Net):
    width = after = 1


@pattern("c", "no signal reaches the output")
class no_signal(Net):
    def parts(self) -> None:
        self.c, self.d = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        return x.relu() + 0.0 * self.d(self.c(x).relu())


@pattern("a")
class zero_head(Net):
    def parts(self) -> None:
        nn.init.zeros_(self.head.weight)


@pattern("a", "operation `_fft_r2c` is not followed")
class fourier(Net):
    def middle(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x, dim=-1).abs()


@pattern("up", "recurrent layer (LSTM)", lambda: torch.randn(2, 5, 6))
class lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.r, self.down = nn.Linear(6, 8), nn.LSTM(8, 7, batch_first=True), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.r(self.up(x))[0])


@pattern("up", "recurrent layer (GRU)", lambda: torch.randn(2, 5, 6))
class gru(lstm):
    def __init__(self) -> None:
        super().__init__()
        self.r = nn.GRU(8, 7, batch_first=True)


@pattern("up", "attention heads (MultiheadAttention)", lambda: torch.randn(2, 5, 6))
class multihead_attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.m, self.down = (
            nn.Linear(6, 8),
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x).relu()
        return self.down(x + self.m(x, x, x, need_weights=False)[0])


@pattern("fc", None, lambda: torch.randn(2, 5, 8))
class encoder_hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.fc, self.down = nn.Linear(8, 9), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.fc(self.block(x)).relu()).mean(1)


@pattern("block.linear1", None, lambda: torch.randn(2, 5, 8))
class encoder_mlp(encoder_hidden):
    pass


@pattern("q", "product of two activations over units (attention)", lambda: torch.randn(2, 5, 8))
class heads_by_hand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).flatten(2))


@pattern("q", "attention heads", lambda: torch.randn(2, 5, 8))
class heads_fused(heads_by_hand):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pattern("table", None, lambda: torch.randint(0, 11, (2, 5)))
class embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(11, 8), nn.Parameter(torch.randn(1, 5, 8))
        self.down = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down((self.table(x) + self.places).relu()).mean(1)


@pattern("up", None, lambda: torch.randn(2, 5, 6))
class class_token(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.up = nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(6, 8)
        self.mix, self.down = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.up(x)], 1)
        return self.down((x + self.mix(x.relu()))[:, 0])


@pattern("tokens.0", None, lambda: torch.randn(2, 5, 6))
class token_mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)
        self.tokens = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.down(x + self.tokens(x.transpose(1, 2)).transpose(1, 2)).mean(1)


@pattern("a", "units are written in place by position")
class written_in_place(Net):
    def middle(self, x: Tensor) -> Tensor:
        x = x.relu().clone()
        x[:, :2] = 0
        return x


@pattern("a")
class border_written_in_place(Net):
    def middle(self, x: Tensor) -> Tensor:
        x = x.relu().clone()
        x[:, :, 0] = 0
        x += 1
        return x


@pattern("a", "`sort` is taken over units")
class chosen_by_data(Net):
    after = 4

    def middle(self, x: Tensor) -> Tensor:
        return x.relu()[:, x.detach().mean((0, 2, 3)).argsort()[:4]]


@pattern("a")
class positions_chosen_by_data(Net):
    def forward(self, x: Tensor) -> Tensor:
        place = x.mean((1, 3)).argmax(1)
        y = self.a(x).relu()
        return self.head(self.b(y).relu()[torch.arange(len(x)), :, place].mean(-1))


@pattern("a")
class dropout_and_checkpoint(Net):
    def middle(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        return F.dropout(checkpoint(F.relu, x, use_reentrant=True), 0.5, self.training)


@pattern("a")
class control_flow_on_inputs(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.abs().sum()) > 0 else -x)


@pattern("a", "read by the program's control flow")
class control_flow_on_units(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x.relu() if float(x[0, 3, 0, 0]) < 1e6 else x.tanh()

"""Small networks with a residual stream behind norms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


class HandMade(nn.Module):
    """RMSNorm as language models write it: in float32 whatever the input."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        """x (..., size) -> x / √mean(x²), scaled."""
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Block(nn.Module):
    """norm -> up -> ReLU -> down, added; with `scale` feature by feature."""

    def __init__(self, size: int, hidden: int, scale: bool = False, norm: Norm = nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm(size)
        self.up = nn.Linear(size, hidden, bias=False)
        self.down = nn.Linear(hidden, size)
        self.scale = nn.Parameter(torch.rand(size) + 0.5) if scale else None

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, T, C) -> (N, T, C)."""
        change = self.down(torch.relu(self.up(self.norm(tokens))))
        return tokens + (change if self.scale is None else change * self.scale)


class Tower(nn.Module):
    """Rows of 6 numbers -> 8 features, two blocks, a norm, the mean over tokens, 3 scores."""

    def __init__(
        self, scale: bool = False, beside: bool = False, block: type[Block] = Block, norm: Norm = nn.LayerNorm
    ) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.first = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.Sequential(*(block(8, 16, scale, norm) for _ in range(2)))
        self.norm = norm(8)
        self.head = nn.Linear(16 if beside else 8, 3)
        self.beside = beside

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (N, T, 6) -> scores (N, 3)."""
        tokens = torch.cat([self.first.expand(len(rows), -1, -1), self.stem(rows)], 1)
        tokens = self.norm(self.blocks(tokens))
        whole = tokens.mean(1)
        return self.head(torch.cat([tokens[:, 0], whole], -1) if self.beside else whole)


def torchvision_vit() -> nn.Module:
    """A small torchvision ViT whose attention is in dense form."""
    from torchvision.models import VisionTransformer

    from compressor.units.dense import in_dense_form

    model = VisionTransformer(16, 8, 2, 2, 12, 24, num_classes=5).eval()
    return in_dense_form(model, torch.randn(2, 3, 16, 16))


def stirred(model: nn.Module, size: float = 0.3) -> nn.Module:
    """Every parameter (in place) moved at random, so that norms, scales and biases have signal; in float64."""
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return model.eval()


def planted(model: nn.Module, rank: int) -> nn.Module:
    """The tower (in place) with all that is written into its stream in `rank` directions, and a mean of it."""
    draw = torch.cat([torch.ones(8, 1), torch.randn(8, rank)], 1).double()
    basis = torch.linalg.qr(draw)[0][:, 1:]
    with torch.no_grad():
        for name, module in model.named_modules():
            if name == "stem" or name.endswith("down"):
                scale = getattr(model.get_submodule(name.rpartition(".")[0]), "scale", None)
                factor = torch.ones(8).double() if scale is None else scale.double()
                for leaf in ("weight", "bias"):
                    tensor = getattr(module, leaf)
                    wide = tensor if tensor.dim() > 1 else tensor[:, None]
                    part = basis @ (basis.T @ (factor[:, None] * wide.double())) + 0.3
                    tensor.copy_((part / factor[:, None]).reshape(tensor.shape))
        first: torch.Tensor = model.get_parameter("first")
        first.copy_(first.double() @ basis @ basis.T)
    return model

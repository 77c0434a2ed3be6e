"""Networks, and what is done to a bundle's files, for the tests of bundles."""

from __future__ import annotations

import json
import pickle

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from compressor.export import bundle

SOURCE = {"kind": "file", "place": "nets.py", "name": "net", "arguments": {}}


class Net(nn.Module):
    """Conv with norm and a residual block, without conv biases, so that an offset needs a new one."""

    def __init__(self, width: int = 8, inner: int = 6, bias: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.block = nn.ModuleDict(
            {
                "up/1": nn.Conv2d(width, inner, 1, bias=bias),
                "depth": nn.Conv2d(inner, inner, 3, padding=1, groups=inner),
                "down": nn.Conv2d(inner, width, 1, bias=False),
            }
        )
        self.ln = nn.LayerNorm([width])
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = self.block["down"](self.block["depth"](torch.relu(self.block["up/1"](x))))
        return self.head(self.ln((x + y).mean((2, 3))))


class Tied(nn.Module):
    """An embedding that is also the output layer, one module under two names, and buffers of both kinds."""

    scale: Tensor
    mask: Tensor

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.out = nn.Linear(width, 11, bias=False)
        self.out.weight = self.embed.weight
        self.first = nn.Linear(width, width)
        self.again = self.first
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("mask", torch.arange(width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.again(self.first(self.embed(x))) * self.scale * (self.mask + 1))


def trained(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network with other than its initial numbers everywhere, running statistics included."""
    generator = torch.Generator().manual_seed(seed)
    for value in [*net.parameters(), *net.buffers()]:
        if value.is_floating_point():
            value.data = (torch.rand(value.shape, generator=generator) + 0.1).to(value.dtype)
    return net


def state_of(net: nn.Module) -> dict[str, bytes]:
    every = {**net.state_dict(), **dict(net.named_buffers())}
    return {name: pickle.dumps((v.dtype, v.shape, v.float().numpy().tobytes())) for name, v in every.items()}


def edit(folder, **changes):
    """Put values into the manifest by dotted path."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for path, value in changes.items():
        *way, last = path.split("__")
        place = manifest
        for part in way:
            place = place[part]
        place[last] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))


def replace_weights(folder, tensors):
    """Another safetensors file under an honest hash: whoever can write one file can write both."""
    save_file(tensors, folder / "model.safetensors")
    path = folder / "model.safetensors"
    edit(folder, weights__sha256=bundle._sha256(path), weights__bytes=path.stat().st_size)

"""Whole runs on the CPU and on the second device, in a process of their own:
`python runs_on_devices.py LIBRARY REPORT` writes what came out as JSON."""

from __future__ import annotations

import copy
import json
import math
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loading
import torch
from torch import Tensor, nn

import compressor
from compressor.observe import memory
from compressor.units.fetched import fetched_bytes, gradients_beside, place

COUNT = 160
WIDTH, BLOCKS = 128, 16
ROOM = 2_300_000
"""Bytes that are free on the device, of a run that needs several times as much for weights alone."""
SAVED = "params=0.7"
"""Runs that ask for this size are saved, with their ONNX files."""


class Encoder(nn.Module):
    """A transformer block that classifies sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, norm_first=True, dropout=0.0)
        self.embed, self.head = nn.Linear(12, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x)).mean(1))


class Words(nn.Module):
    """A text classifier with a mask, whose inputs come by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden, self.head = nn.Embedding(50, 24), nn.Linear(24, 64), nn.Linear(64, 5)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden((self.words(ids) * mask[..., None]).sum(1))))


class Maps(nn.Module):
    """Convolutions, also grouped and transposed, that answer at every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.norm, self.up, self.last = nn.BatchNorm2d(16), nn.ConvTranspose2d(16, 6, 2, 2), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.grouped(torch.relu(self.first(x)))))
        return self.last(torch.relu(self.up(x)))


class Deep(nn.Module):
    """Many layers, whose weights are most of what a run needs."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(40, WIDTH), nn.Linear(WIDTH, 5)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(BLOCKS))
        self.wide = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(BLOCKS))
        self.back = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(BLOCKS))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids).mean(1)
        for norm, wide, back in zip(self.norms, self.wide, self.back, strict=True):
            x = x + back(torch.relu(wide(norm(x))))
        return self.head(x)


def closeness(outputs: Tensor, targets: Tensor) -> Tensor:
    """A score for numbers."""
    return 1 / (1 + (outputs.squeeze(1) - targets.float()).abs())


def data(network: nn.Module, inputs: Any, numbers: bool = False) -> tuple[Any, Tensor]:
    """Inputs with the network's own answers as labels."""
    with torch.no_grad():
        answers = network(**inputs) if isinstance(inputs, dict) else network(inputs)
    return inputs, answers.squeeze(1) if numbers else answers.argmax(1)


def cases() -> dict[str, tuple[nn.Module, Any, dict[str, Any]]]:
    """Networks, their data, and what is asked of `compressor.compress`."""
    torch.manual_seed(0)
    sequences, rows = torch.randn(COUNT, 6, 12), torch.randn(COUNT, 12)
    texts = {"ids": torch.randint(0, 50, (COUNT, 9)), "mask": torch.ones(COUNT, 9)}
    encoder, words, maps = Encoder().eval(), Words().eval(), Maps().eval()
    regression = nn.Sequential(nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 1)).eval()
    half = copy.deepcopy(encoder).to(torch.bfloat16)
    images = torch.randn(COUNT, 3, 8, 8)
    return {
        "attention": (encoder, data(encoder, sequences), {"keep": "params=0.65"}),
        "a turned stream": (encoder, data(encoder, sequences), {"keep": "params=0.6", "rotate": 0.75}),
        "exact": (encoder, data(encoder, sequences), {"exact": True}),
        "recovery": (encoder, data(encoder, sequences), {"keep": "params=0.6", "recover": "6st"}),
        "half precision": (half, (sequences, data(encoder, sequences)[1]), {"keep": "params=0.6"}),
        "a mapping": (words, data(words, texts), {"keep": SAVED}),
        "a search": (maps, data(maps, images), {"max_drop": 5.0}),
        "files": (maps, images, {"keep": "macs=0.7", "memory": "1MB"}),
        "numbers": (regression, data(regression, rows, True), {"keep": "params=0.6", "metric": closeness}),
    }


def ran(network: nn.Module, given: Any, asked: dict[str, Any], device: str, home: str | None = None) -> dict[str, Any]:
    """One run: on an accelerator the network is given there, too, if not said."""
    home = home or ("cpu" if asked.get("exact") else device)
    result = compressor.compress(
        copy.deepcopy(network).to(home), calibrate=given, device=device, align=1, max_drop=asked.pop("max_drop", 99.0),
        **asked,
    )  # fmt: skip
    if asked.get("keep") == SAVED:
        with tempfile.TemporaryDirectory() as folder:
            result.save(Path(folder) / "bundle", keep_failed=True)
    answer = result.verdict
    return {
        "size": result.record["compressed"],
        "verdict": None if answer is None else answer.value,
        "worked on": result.record["device"],
        "home": next(result.model.parameters()).device.type,
        "fetched": (result.record["memory"] or {}).get("weights_fetched", 0),
        "kinds": sorted({type(weight).__name__ for weight in result.model.parameters()}),
    }


def fetched(network: nn.Module, inputs: Tensor) -> dict[str, Any]:
    """Training steps with weights that are fetched, and the most that the device held; then the same with all there."""
    found: dict[str, Any] = {}
    weights = []
    for room in (ROOM / 10, math.inf):
        made = copy.deepcopy(network)
        place(made, torch.device(loading.NAME), room)
        gradients_beside(made)
        optimizer = torch.optim.AdamW(made.parameters(), 1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            made(inputs.to(loading.NAME)).square().mean().backward()
            optimizer.step()
        found |= {f"fetched with {room}": fetched_bytes(made)}
        copied = copy.deepcopy(made)
        found |= {f"copied with {room}": fetched_bytes(copied)}
        weights.append([weight.detach() for weight in copied.double().cpu().parameters()])
        found |= {f"home with {room}": sorted({f"{w.device}, {type(w).__name__}" for w in weights[-1]})}
    found["apart"] = max(float((one - other).abs().max()) for one, other in zip(*weights, strict=True))
    return found


def larger_than_the_device(library: Any) -> dict[str, Any]:
    """A network in a whole run, on a device that has room for a part of it."""
    torch.manual_seed(0)
    network = Deep().eval()
    given = data(network, torch.randint(0, 40, (COUNT, 9)))
    asked = {"keep": "params=0.7", "recover": "4st", "memory": "2MB"}
    found = {"bytes": sum(4 * weight.numel() for weight in network.parameters()), "free": ROOM}
    plain = memory.free_of
    for name, device, free in (("cpu", "cpu", plain), ("device", loading.NAME, lambda _device: float(ROOM))):
        library.forget_most()
        memory.free_of = free
        found[name] = ran(network, given, dict(asked), device, "cpu") | {"most bytes": library.most_bytes()}
    memory.free_of = plain
    return found | {"steps": fetched(network, given[0])}


def main(library: str, report: str) -> None:
    torch.set_num_threads(1)
    device = loading.register(Path(library))
    found: dict[str, Any] = {"larger": larger_than_the_device(device)}
    for name, (network, given, asked) in cases().items():
        found[name] = {}
        for device in ("cpu", loading.NAME):
            try:
                found[name][device] = ran(network, given, dict(asked), device)
            except Exception:  # noqa: BLE001  (reported as the outcome)
                found[name][device] = traceback.format_exc()[-1500:]
    mixed: Callable[[], Any] = lambda: torch.ones(3, device=loading.NAME) + torch.ones(3)  # noqa: E731
    try:
        found["a mix"] = str(mixed())
    except RuntimeError as error:
        found["a mix"] = str(error)
    Path(report).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])

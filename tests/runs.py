"""A tiny project as a user might have it, and the command line called in this process."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from compressor import cli

PROJECT = '''
import torch
from torch import nn


def net(width=10, seed=0):
    """Two hidden layers, and four classes that are about equally frequent."""
    torch.manual_seed(seed)
    layers = [nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)]
    made = nn.Sequential(*layers)
    with torch.no_grad():
        made[4].weight.mul_(20)
        made[4].bias.sub_(made(inputs(500, 9)).mean(0))
    return made


def lean():
    return nn.Sequential(nn.Linear(6, 4))


def one_unit():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 1), nn.Tanh(), nn.Linear(1, 4))


def constant():
    made = net()
    with torch.no_grad():
        made[4].weight.zero_()
    return made


def infinite():
    made = net()
    with torch.no_grad():
        made[2].weight[1, 2] = float("inf")
    return made


def copies():
    """Each unit of the second layer is there twice."""
    torch.manual_seed(0)
    made = net(12)
    with torch.no_grad():
        for tensor in (made[2].weight, made[2].bias):
            tensor[6:] = tensor[:6]
    return made.double()


def raises():
    raise RuntimeError("no licence for this network")


def no_module():
    return 3


def inputs(count=1600, seed=1):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def labelled(x, classes=4):
    with torch.no_grad():
        return net()(x).argmax(1)


def data(count=1600):
    x = inputs(count)
    return x, labelled(x)


def parts():
    return {"train": data(), "calibrate": inputs(400), "tune": take(400, 900), "judge": take(900, 1600)}


def take(start, stop):
    x, y = data()
    return x[start:stop], y[start:stop]


def opposed():
    """The judge's labels are what the network says; nothing that changes it can pass."""
    return {"calibrate": inputs(300), "tune": take(300, 700), "judge": take(700, 1600)}


def few():
    return {"calibrate": inputs(300), "tune": take(300, 600), "judge": take(600, 640)}


def unlabelled():
    return inputs(400)


def empty():
    return inputs(0), torch.zeros(0, dtype=torch.int64)


def wide():
    return torch.randn(200, 7), torch.zeros(200, dtype=torch.int64)


def bad_labels():
    x, y = data(400)
    y[17] = 4
    return x, y


def nan():
    x, y = data(400)
    x[5, 2] = float("nan")
    return x, y


def overlap():
    x, y = data(400)
    return {"calibrate": x[:300], "judge": (x[250:], y[250:])}


def raising_data():
    raise KeyError("images")


def no_data():
    return 3
'''


def project(folder: Path) -> Path:
    """The folder with `net.py` in it."""
    (folder / "net.py").write_text(PROJECT)
    return folder


class Terminal:
    """`terminal("compress", ...)` runs the command line here and keeps exit code, output and messages."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self.code, self.out, self.err = 0, "", ""

    def __call__(self, *arguments: Any) -> int:
        self._capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        self.out, self.err = self._capfd.readouterr()
        self.code = int(ended.value.code or 0)
        return self.code

    def json(self) -> Any:
        """Standard output, which must be JSON and nothing else."""
        return json.loads(self.out)


def break_midway(monkeypatch: pytest.MonkeyPatch, place: str, fault: type[BaseException]) -> None:
    """The function at `room.name` of the package does its work, and then raises `fault("midway")`."""
    room, _, name = place.partition(".")
    module = importlib.import_module(f"compressor.{room}")
    work = getattr(module, name)

    def broken(*args: Any, **kwargs: Any) -> None:
        work(*args, **kwargs)
        raise fault("midway")

    monkeypatch.setattr(module, name, broken)


def results(folder: Path) -> list[str]:
    """Names of what a run left."""
    return sorted(os.listdir(folder)) if folder.is_dir() else []  # noqa: PTH208 (hidden files too)

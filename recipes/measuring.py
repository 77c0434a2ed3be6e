"""What the recipes that measure on trained networks share: their arguments, the networks, and the file of results."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import networks
import torch
from safetensors.torch import load_file
from torch import nn

from compressor.recording import machine, versions


def arguments(about: str | None) -> argparse.ArgumentParser:
    """CHECKPOINTS (a folder), --out (a JSON file) and --threads; `about` is the recipe's own description."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments as typed, with the number of threads set."""
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return given


def trained(name: str, checkpoints: Path) -> nn.Module:
    """The network of that name with the weights of its file, in eval mode."""
    model: nn.Module = getattr(networks, name)()
    model.load_state_dict(load_file(checkpoints / f"{name}.safetensors"))
    return model.eval()


def write(content: dict[str, Any], out: Path) -> None:
    """Results as JSON, with the number of threads, the versions and the machine."""
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"threads": torch.get_num_threads(), "versions": versions(), "machine": machine()}
    out.write_text(json.dumps({**content, **about}, indent=1) + "\n")

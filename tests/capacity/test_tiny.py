"""Shipped recipes of studies at the smallest size: every setting, measure and null of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runs import Terminal

from compressor.capacity.study import run_capacity
from compressor.capacity.tiny import tiny
from compressor.errors import UsageError
from compressor.recipe import Recipe, load_recipe

LARGE = """
import torch
from torch.nn.functional import interpolate
from compressor.sources.data import load_data

def images():
    data, found = load_data("digits"), {}
    for name in ("train", "tune", "judge"):
        samples = getattr(data, name)
        inputs, labels = samples.batch(range(min(len(samples), 300)))
        found[name] = interpolate(inputs.float(), size=(28, 28)), labels
    return {**found, "calibrate": found["tune"][0]}
"""
"""Digits in the format of Fashion-MNIST, which is not on every machine."""


def climbed(name: str, folder: Path) -> dict[str, Any]:
    recipe, base = load_recipe(f"capacity/{name}")
    changes: dict[str, Any] = {}
    if recipe.data == "fashion-mnist":
        (folder / "large.py").write_text(LARGE)
        changes["data"] = f"{folder}/large.py:images"
    small = tiny(recipe)
    assert small.capacity is not None
    one = small.capacity.model_copy(update={"seeds": (0,)})
    return run_capacity(small.model_copy(update={**changes, "capacity": one}), base, folder / "out")


LACKS = {
    "decay_mlp": ("B-7", "no ladder of four sizes"),
    "random_labels": ("A-2", "fewer than 2 seeds"),
    "cnn_chunks": ("B-7", "fewer than 2 seeds"),
    "synthetic_mlp": ("A-8", "R95 is missing"),
}
"""Recipe -> a claim that it is for, and what alone that claim lacks at this size."""
SLOW = pytest.mark.slow
NAMES = ["random_labels", *(pytest.param(n, marks=SLOW) for n in ("decay_mlp", "ensemble_small", "cnn_chunks"))]


@pytest.mark.parametrize("name", [*NAMES, pytest.param("synthetic_mlp", marks=SLOW)])
def test_studies_run_through_at_the_smallest_size(name: str, tmp_path: Path) -> None:
    found = climbed(name, tmp_path)
    recipe, _ = load_recipe(f"capacity/{name}")
    assert recipe.capacity is not None
    assert {r["setting"] for r in found["rungs"]} == set(recipe.capacity.settings)
    assert {r["width"] for r in found["rungs"]} == set(recipe.capacity.widths[:2])
    claims = {row["id"]: row for row in found["claims"]}
    asked, lacks = LACKS.get(name, ("A-1", "fewer than 2 seeds"))
    assert lacks in claims[asked]["reason"], claims[asked]
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_only_what_is_more_is_cut() -> None:
    recipe, _ = load_recipe("capacity/smoke")
    small = tiny(recipe)
    assert small.capacity is not None
    assert recipe.capacity is not None
    assert (small.capacity.widths, small.capacity.seeds, small.capacity.chunks) == ((8, 16), (0, 1), 3)
    assert small.capacity.random_labels == recipe.capacity.random_labels
    assert small.train is not None
    assert (small.train.epochs, small.train.lr) == (2, 0.1)
    settings = load_recipe("capacity/fashion_mlp_wide")[0]
    shorter = tiny(settings).capacity
    assert shorter is not None
    assert shorter.settings["random"].train == {"weight_decay": 0.0, "epochs": 2}
    assert shorter.settings["few"].train_samples == 200
    with pytest.raises(UsageError, match="capacity"):
        tiny(Recipe(model="torchvision:resnet18", data="digits"))


@pytest.mark.slow
def test_a_flag_of_the_command_line(terminal: Terminal, tmp_path: Path) -> None:
    assert terminal("capacity", "capacity/smoke", "--out", tmp_path / "out", "--tiny", "--json") == 0
    found = terminal.json()
    assert [rung["width"] for rung in found["rungs"]] == [8, 8, 16, 16]
    assert "random labels" in found["rungs"][0]["nulls"]

"""All cells of a comparison -> curves, the smallest share at the allowed loss, and ours against the best peer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

from compressor.comparison.curves import Reached, best_peer, ratio, reached
from compressor.comparison.methods import BUILT_IN
from compressor.recipe import Recipe, resolved
from compressor.recording import machine, versions

SUMMARY, PICTURE = "compare.json", "compare.svg"


def summary(recipe: Recipe, networks: Sequence[Mapping[str, Any]], cells: Path, command: str | None) -> dict[str, Any]:
    """Everything that the tables and pictures of a comparison are made of."""
    assert recipe.compare is not None
    seeds = [network["seed"] for network in networks]
    found = [json.loads(path.read_bytes()) for path in sorted(cells.glob("*.json"))]
    measure, allowed = recipe.compare.measure, recipe.compress.max_drop
    methods: dict[str, Any] = {}
    for name in recipe.compare.methods:
        sizes = recipe.compare.sizes_of(name)  # a folder may hold others that were asked before
        mine = [c for c in found if c["method"] == name and c["seed"] in seeds and c["share"] in sizes]
        ends = {seed: _reached(mine, seed, measure, allowed) for seed in seeds}
        methods[name] = {
            "cells": sorted(mine, key=lambda cell: (cell["seed"], -cell["share"])),
            "reached": {str(seed): asdict(end) for seed, end in ends.items()},
        }
    return {
        "recipe": resolved(recipe),
        "networks": list(networks),
        "measure": measure,
        "allowed": allowed,
        "methods": methods,
        "against": _against(methods, [str(seed) for seed in seeds]),
        "versions": versions(),
        "machine": machine(),
        "command": command,
    }


def _reached(cells: Sequence[Mapping[str, Any]], seed: int, measure: str, allowed: float) -> Reached:
    mine = [cell for cell in cells if cell["seed"] == seed]
    end = reached([(cell[measure], cell["lost"]) for cell in mine if "error" not in cell], allowed)
    if any("error" in cell for cell in mine):  # it gave no smaller network: nothing says that its share is smaller
        return replace(end, censored=False)
    return end


def _against(methods: Mapping[str, Any], seeds: list[str]) -> dict[str, Any] | None:
    """Ours against the best peer and against training small, as ratios of the shares reached."""
    if "ours" not in methods:
        return None

    def shares(name: str) -> list[float]:
        return [methods[name]["reached"][seed]["share"] for seed in seeds]

    peers = {name: shares(name) for name in methods if name not in BUILT_IN}
    found: dict[str, Any] = {}
    if peers:
        best = best_peer(peers)
        found["best_peer"] = {"method": best, **asdict(ratio(peers[best], shares("ours")))}
    if "small_from_scratch" in methods:
        found["small_from_scratch"] = _same_sizes(methods["small_from_scratch"]["cells"], methods["ours"]["cells"])
    return found


def _same_sizes(small: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Points lost by both at the sizes that both were asked for, as means over the seeds that both have."""
    lost = {(cell["seed"], cell["share"]): cell["lost"] for cell in ours if "error" not in cell}
    pairs: dict[float, list[tuple[float, float]]] = {}
    for cell in small:
        if "error" not in cell and (cell["seed"], cell["share"]) in lost:
            pairs.setdefault(cell["share"], []).append((cell["lost"], lost[cell["seed"], cell["share"]]))
    return [
        {"share": share, "seeds": len(both), "lost": mean(b[0] for b in both), "ours_lost": mean(b[1] for b in both)}
        for share, both in sorted(pairs.items(), reverse=True)
    ]

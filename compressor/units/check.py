"""Every live group is proven by a dry run before it may be planned; what does not pass is frozen with a
reason.

Two proofs. *Numeric*: in a copy whose consumers ignore a random part of the units (their weight columns are
zero), the network cut down to the other units must give the same outputs, in float64, with signal.
*Structural*: the cut network is traced again, and its units must be the kept units of the original, position
by position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from compressor.errors import ModelError
from compressor.units.cut import cut, keep_mask, positions
from compressor.units.graph import UnitGraph, axis_lines, views
from compressor.units.trace import trace
from compressor.units.trial import Place, Trial
from compressor.units.ways import elsewhere

Kept = dict[str, tuple[int, ...]]
DRAWS = 2
"""Dry runs that every group must pass: one with the model's own weights, one with random ones."""
PLACED = 10
"""Dry runs for groups whose units are moved by position: few draws may fit such a move by accident."""
MORE = 2
"""Further draws for groups that no output hears in these."""


def checked(model: nn.Module, graph: UnitGraph, inputs: Any, seed: int = 0) -> UnitGraph:
    """The graph with every group that fails a dry run frozen; `model`, its mode and the random state are not
    changed.

    Raises ModelError where the model itself does not run on `inputs`.
    """
    live = [group.name for group in graph.groups if group.frozen is None]
    if not live:
        return graph
    trial = Trial(model, graph, inputs, seed)
    reasons: dict[str, str] = {}
    while True:
        before = len(reasons)
        for draw in range(DRAWS):
            live = _passing(trial, random_halves(graph, live, seed, draw), draw, reasons)
        for draw in range(DRAWS, PLACED):
            placed = [name for name in live if name in graph.placed]
            if placed:
                passing = _passing(trial, random_halves(graph, placed, seed, draw), draw, reasons)
                live = [name for name in live if name not in placed or name in passing]
        if live:
            kept = random_halves(graph, live, seed, DRAWS - 1)
            wrong = certify(model, cut(model, graph, kept), graph, kept, inputs)
            reasons.update({name: f"dry run: {why}" for name, why in wrong.items()})
            live = [name for name in live if name not in wrong]
        if len(reasons) == before:
            break
    _freeze_unheard(trial, graph, live, seed, reasons)
    if graph.chooses:
        _try_elsewhere(model, graph, inputs, seed, reasons)
    return frozen(graph, reasons)


def _try_elsewhere(model: nn.Module, graph: UnitGraph, inputs: Any, seed: int, reasons: dict[str, str]) -> None:
    """Dry runs on other inputs, which may take other ways through the network."""
    for given in elsewhere(inputs):
        live = [g.name for g in graph.groups if g.frozen is None and g.name not in reasons]
        try:
            trial = Trial(model, graph, given, seed)
        except ModelError:  # inputs that the network refuses
            continue
        _passing(trial, random_halves(graph, live, seed, 0), 0, reasons)


def _passing(trial: Trial, drawn: Kept, draw: int, reasons: dict[str, str]) -> list[str]:
    def outcome(names: list[str]) -> str | None:
        return trial.difference({name: drawn[name] for name in names}, draw)

    return sift(list(drawn), outcome, reasons)


def _freeze_unheard(trial: Trial, graph: UnitGraph, live: list[str], seed: int, reasons: dict[str, str]) -> None:
    """A dry run proves nothing about units that no output hears; more draws are tried first."""
    wanted: dict[str, set[tuple[Place, bool]]] = {name: set() for name in live}
    got: set[tuple[str, Place, bool]] = set()
    for draw in range(DRAWS + MORE):
        missing = [n for n in live if draw == 0 or not all((n, *part) in got for part in wanted[n])]
        if draw >= DRAWS:
            missing = _passing(trial, random_halves(graph, missing, seed, draw), draw, reasons)
        if not missing:
            return
        kept = random_halves(graph, live, seed, draw)
        for name, place, stays, _ in trial.parts(kept):
            wanted[name].add((place, stays))
        got |= trial.heard(kept, draw)
    for name in live:
        deaf = sorted(place[0] for place, stays in wanted[name] if (name, place, stays) not in got)
        if name not in reasons and deaf:
            heard = len(deaf) < len(wanted[name])
            by_way = f" by way of `{deaf[0].rpartition('.')[0]}`" if heard else ""
            reasons[name] = f"no signal reaches the output{by_way}"


def frozen(graph: UnitGraph, reasons: Mapping[str, str]) -> UnitGraph:
    """The graph with some more groups frozen; layers that lose their last live group become uncovered."""
    groups = tuple(
        replace(g, frozen=reasons[g.name]) if g.name in reasons and g.frozen is None else g for g in graph.groups
    )
    touched: dict[str, str] = {}
    live: set[str] = set()
    for group in groups:
        for layer in (*group.producers, *group.carriers, *group.consumers):
            if group.frozen is None:
                live.add(layer)
            elif group.name in reasons:
                touched.setdefault(layer, group.frozen)
    known = set(graph.covered)
    lost = {layer: why for layer, why in touched.items() if layer in known and layer not in live}
    return replace(graph, groups=groups, uncovered={**graph.uncovered, **lost})


def random_halves(graph: UnitGraph, names: list[str], seed: int, draw: int) -> Kept:
    """For each group, a random part of its units, different in each draw.

    The ends matter where networks slice by position: the draws take turns in dropping the first unit, the
    last one, neither, both.
    """
    kept: Kept = {}
    for place, group in enumerate(graph.groups):
        if group.name not in names:
            continue
        generator, size = np.random.default_rng([seed, draw, place]), len(group.units)
        share = generator.uniform(0.5, 0.7) if draw % 2 == 0 else generator.uniform(0.3, 0.5)
        stay = generator.permutation(size) < share * size if draw < DRAWS else generator.random(size) < 0.5
        turn = draw % 4 if size > 3 else draw % 2
        stay[0], stay[-1] = turn in (1, 2), turn in (0, 2)
        if stay.all() or not stay.any():
            stay[size // 2] = not stay[0]
        kept[group.name] = tuple(np.flatnonzero(stay).tolist())
    return kept


def sift(names: list[str], outcome: Callable[[list[str]], str | None], reasons: dict[str, str]) -> list[str]:
    """The names that pass together; `outcome(names)` is None or what went wrong. All are tried at once
    first."""
    accepted: list[str] = []

    def add(block: list[str]) -> None:
        why = outcome([*accepted, *block])
        if why is None:
            accepted.extend(block)
        elif len(block) == 1:
            reasons[block[0]] = why
        else:
            add(block[: len(block) // 2])
            add(block[len(block) // 2 :])

    if names:
        add(names)
    return accepted


def certify(
    model: nn.Module, small: nn.Module, graph: UnitGraph, kept: Mapping[str, tuple[int, ...]], inputs: Any
) -> dict[str, str]:
    """Prove that `small` has the structure of `model` cut to `kept`: trace it and match units one to one.

    Returns the groups that do not match with what is wrong; an empty dict is the certificate. Units of groups
    cut to one unit are told apart by nothing, and are not compared.
    """
    try:
        wrong = _unlike(trace(small, inputs), graph, kept)
        if wrong and not _unlike(trace(small, inputs, turned=True), graph, kept):
            return {}
    except ModelError as error:
        return dict.fromkeys(kept, f"forward fails after the cut: {error.got}")
    return wrong


def _unlike(new: UnitGraph, graph: UnitGraph, kept: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Groups of `graph`, cut to `kept`, whose units are not those of `new`, and why."""
    mask = keep_mask(graph, kept)
    home, names = np.full(graph.n_units + 1, -1), [group.name for group in graph.groups]
    for place, group in enumerate(graph.groups):
        if group.name in kept and len(kept[group.name]) > 1:
            home[group.units] = place
    theirs = views(new)
    lines = axis_lines(graph.axes)
    wrong: dict[str, str] = {}
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for key, units in views(graph).items():
        line = units[positions(lines[key[0]][key[1]], mask)]
        other = theirs.get(key, np.full(len(line), -1))
        if len(other) != len(line):
            found = np.unique(home[line])
            wrong.update({names[p]: f"`{key[0]}` has another size" for p in found.tolist() if p >= 0})
            continue
        pairs.append(np.stack([line, other], axis=1))
    distinct = np.unique(np.concatenate(pairs), axis=0)
    old, fresh = distinct[:, 0], distinct[:, 1]
    several = (np.bincount(old + 1)[old + 1] > 1) | (np.bincount(fresh + 1)[fresh + 1] > 1) | (fresh < 0)
    for place in np.unique(home[old[several & (old >= 0)]]).tolist():
        if place >= 0:
            wrong.setdefault(names[place], "units are laid out differently after a cut")
    return wrong

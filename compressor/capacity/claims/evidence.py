"""What a study measured, as claims read it: curves (seeds, widths) of a setting or of its nulls, and contrasts.

S seeds, W widths. A claim that asks for what is not there gets `NotInStudy`, and is undecided for that reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from compressor.capacity.measures.checks import Array
from compressor.capacity.nulls import RANDOM_LABELS

Part: TypeAlias = Mapping[str, Any]
Read: TypeAlias = Callable[[Part], float | None]
"""The measures of a rung (or of one of its nulls) -> one number; None where it was not measured."""


class NotInStudy(Exception):
    """The study does not have what a claim needs; the message says what."""


@dataclass(frozen=True)
class Evidence:
    """All rungs of a study, complete: every setting has every width and seed."""

    rungs: Sequence[Mapping[str, Any]]
    ensembles: Sequence[Mapping[str, Any]] = ()
    _at: dict[tuple[str, float, int], Mapping[str, Any]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        found = {(r["setting"], float(r["width"]), int(r["seed"])): r for r in self.rungs}
        object.__setattr__(self, "_at", found)

    @property
    def settings(self) -> list[str]:
        """Names, in the recipe's order."""
        return list(dict.fromkeys(rung["setting"] for rung in self.rungs))

    @property
    def widths(self) -> list[float]:
        """Rising."""
        return sorted({float(rung["width"]) for rung in self.rungs})

    @property
    def seeds(self) -> list[int]:
        """Rising."""
        return sorted({int(rung["seed"]) for rung in self.rungs})

    def doublings(self, first: int = 0, last: int = -1) -> float:
        """How many doublings of width lie between two rungs."""
        return math.log2(self.widths[last] / self.widths[first])

    def rung(self, setting: str, width: float, seed: int) -> Mapping[str, Any]:
        """One rung. NotInStudy where the study is not that far."""
        found = self._at.get((setting, width, seed))
        if found is None:
            raise NotInStudy(f"the study is not complete: no rung {setting}, width {width:g}, seed {seed}")
        return found

    def traits(self, setting: str) -> Mapping[str, Any]:
        """What the setting is, apart from width and seed."""
        return self.rung(setting, self.widths[0], self.seeds[0])["traits"]

    def curve(self, setting: str, read: Read, null: str | None = None, what: str = "this number") -> Array:
        """(S, W) values of one number, of the networks or of a null. NotInStudy where one is missing."""
        return np.stack([self.curve_at(width, setting, read, null, what) for width in self.widths], axis=1)

    def null_curve(self, setting: str, read: Read, null: str) -> Array:
        """(S, W) values of a null, NaN where one is missing."""
        rows = [
            [value_in(self.rung(setting, width, seed)["nulls"].get(null, {}), read) for width in self.widths]
            for seed in self.seeds
        ]
        return np.array([[math.nan if value is None else value for value in row] for row in rows])

    def networks(self, *settings: str) -> list[str]:
        """The nulls of these settings that are networks: untrained, and where they were trained, on random labels."""
        rungs = [self.rung(name, self.widths[0], self.seeds[0]) for name in settings]
        return ["untrained", *(n for n in (RANDOM_LABELS,) if all(n in rung["nulls"] for rung in rungs))]

    def nulls(self, setting: str, read: Read) -> dict[str, Array]:
        """Null -> (S, W) values, for every null that is a network; NaN where one is missing."""
        return {name: self.null_curve(setting, read, name) for name in self.networks(setting)}

    def nulls_at(self, width: float, setting: str, read: Read) -> dict[str, Array]:
        """Null -> (S,) values at one width, for every null that is a network; NaN where one is missing."""
        place = self.widths.index(width)
        return {name: rows[:, place] for name, rows in self.nulls(setting, read).items()}

    def curve_at(self, width: float, setting: str, read: Read, null: str | None, what: str) -> Array:
        """(S,) values at one width. NotInStudy where one is missing."""
        row = []
        for seed in self.seeds:
            rung = self.rung(setting, width, seed)
            value = value_in(rung["measures"] if null is None else rung["nulls"].get(null, {}), read)
            if value is None:
                raise NotInStudy(f"{what} is missing for {setting}, width {width:g}, seed {seed}")
            row.append(value)
        return np.array(row, dtype=np.float64)

    def true_settings(self) -> list[str]:
        """Settings trained on true labels. NotInStudy where there is none."""
        found = [name for name in self.settings if self.traits(name)["labels"] == "true"]
        if not found:
            raise NotInStudy("no setting with true labels")
        return found

    def contrasts(self, trait: str, also: Sequence[str] = ()) -> list[tuple[str, str]]:
        """Pairs of settings that differ in this trait alone (and in `also`, which may follow from it).

        NotInStudy where there is none.
        """
        names, pairs = self.settings, []
        for place, one in enumerate(names):
            for other in names[place + 1 :]:
                differ = {key for key in self.traits(one) if self.traits(one)[key] != self.traits(other)[key]}
                if trait in differ and differ <= {trait, *also}:
                    pairs.append((one, other))
        if not pairs:
            raise NotInStudy(f"not in this study: no two settings that differ in {trait.replace('_', ' ')} alone")
        return pairs


def value_in(part: Part, read: Read) -> float | None:
    """The number, or None where its place is missing, was refused, or is not finite."""
    try:
        value = read(part)
    except (KeyError, IndexError, TypeError):
        return None
    return None if value is None or not math.isfinite(value) else float(value)


def accuracy(which: str) -> Read:
    """Reads the accuracy in percent: `train`, `test` or `chance`."""
    return lambda part: part["accuracy"][which]


def redundancy(part: Part) -> float | None:
    """Mean R95 over layers."""
    return part["r95"]


def similar(part: Part) -> float | None:
    """Mean number of similar units over layers."""
    return part["similar"]


def removable(part: Part) -> float | None:
    """Area under the ablation curve (v2)."""
    return part["ablation"]["removable"]


def prunable(part: Part) -> float | None:
    """x*, the mean over random orders (v5 takes the luckiest one); None where agreement never falls to the level.

    Then a constant answer, which is what a network with all units ablated gives, agrees as often: x* says nothing.
    """
    found = part["ablation"]["prunable_mean"]
    return None if found is not None and found >= 1 else found


def gap(part: Part) -> float | None:
    """Targeted gap."""
    return part["ablation"]["targeted_gap"]


def chunk_mean(name: str, size: int) -> Read:
    """Mean over chunks of a quantity at a chunk size."""

    def read(part: Part) -> float | None:
        chunks = part["chunks"]
        row = chunks[name][chunks["sizes"].index(size)] if size in chunks["sizes"] else None
        values = [] if row is None else [value for value in row if value is not None]
        return sum(values) / len(values) if values else None

    return read

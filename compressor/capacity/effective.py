"""How many of its units does a network need? Effective width, from the compressor itself.

The other measures are proxies; this is what a user can have: the units that stay when the network is compressed as far
as an allowed drop permits, every layer at once, with the compressor's own verdict.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from compressor.options import Options
from compressor.outcome import Outcome
from compressor.pipeline import compress
from compressor.sources.splits import Data
from compressor.stages import Report, silent

MODEL_OUTPUT = "model output"
"""The reason for which the network's own outputs are frozen: they are no hidden units and are left out."""


@dataclass(frozen=True, slots=True)
class EffectiveWidth:
    """Units of one group of layers, and how many of them are needed. A frozen group needs all of its units."""

    name: str
    units: int
    needed: int
    frozen: str | None


@dataclass(frozen=True, slots=True)
class EffectiveWidths:
    """All groups of hidden units. The needed units are shown to suffice only where `verdict` is `passed`."""

    groups: tuple[EffectiveWidth, ...]
    verdict: str | None
    drop: float | None
    """Measured drop in percentage points on the judge's samples."""
    allowed: float
    params: float
    """Parameters of the network that stays, as a share of the original's."""

    @property
    def units(self) -> int:
        """Units of all groups."""
        return sum(group.units for group in self.groups)

    @property
    def needed(self) -> int:
        """Needed units of all groups."""
        return sum(group.needed for group in self.groups)


def effective_widths(
    model: nn.Module,
    data: Data,
    max_drop: float = 0.5,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    device: str = "auto",
    report: Report = silent,
) -> EffectiveWidths:
    """Compress `model` as far as `max_drop` percentage points permit, and count the units that stay.

    Units are not aligned to a runtime's block. Which layers give most depends on the parameters that their units cost
    (the compressor's allocation), so a layer's effective width is that of this network, not of the layer alone.
    `model` is not changed. Raises the compressor's errors for models and data that cannot be worked with.
    """
    options = Options(max_drop=max_drop, confidence=confidence, align=1, device=device, seed=seed)
    return widths_of(compress(model, data, options, report), max_drop)


def widths_of(outcome: Outcome, allowed: float) -> EffectiveWidths:
    """The effective widths that a finished compression shows."""
    kept = outcome.plan.kept
    groups = tuple(
        EffectiveWidth(g.name, len(g.units), len(kept.get(g.name, g.units)), g.frozen)
        for g in outcome.graph.groups
        if g.frozen != MODEL_OUTPUT
    )
    verdict = outcome.verdict
    difference = None if verdict is None else verdict.difference
    share = outcome.size["params"] / max(outcome.original_size["params"], 1)
    return EffectiveWidths(
        groups,
        None if verdict is None else verdict.value,
        None if difference is None else -difference,
        allowed,
        share,
    )

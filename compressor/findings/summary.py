"""All findings of a network, joined with one precedence, and their counts.

silent > removable > repeated > dependent > needed: every live unit gets exactly one finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from compressor.findings.dependent import dependent
from compressor.findings.readings import Cluster, observed
from compressor.findings.removable import predicted_losses
from compressor.findings.repeated import repeated, similarity
from compressor.findings.silent import silent
from compressor.findings.thresholds import Thresholds
from compressor.observe import Statistics
from compressor.records import Finding, FindingKind
from compressor.units.graph import UnitGraph

KINDS: tuple[FindingKind, ...] = get_args(FindingKind)


def findings(
    model: nn.Module,
    graph: UnitGraph,
    statistics: Statistics,
    thresholds: Thresholds | None = None,
    fresh: Statistics | None = None,
    below: float | None = None,
) -> list[Finding]:
    """One finding for every unit of every live group, in the order of the groups and their units.
    Deterministic.

    `unit` and `of` are numbers in the graph (`of` may be a unit of another group read at the same taps).
    `score` is the predicted loss in nats (removable, needed, silent), |correlation| (repeated) or the share
    of variance explained (dependent). With `fresh`, statistics of other samples, silence, repetition and
    dependence must hold there too. `below` is the predicted loss up to which a unit is removable (measured by
    `together.measured_limit`); without it the thresholds' allowance is spread evenly.
    """
    limits = thresholds or Thresholds()
    losses = predicted_losses(model, graph, statistics)
    allowed = removable_below(graph, limits) if below is None else below
    found: dict[int, _Said] = {}
    if fresh is not None:
        losses = torch.maximum(losses, predicted_losses(model, graph, fresh))
    again: list[Cluster | None] = [*observed(model, graph, fresh)] if fresh is not None else []
    for i, cluster in enumerate(observed(model, graph, statistics)):
        found |= _of_cluster(cluster, losses, allowed, limits, again[i] if again else None)
    return [
        Finding(group.name, int(unit), *found[int(unit)].fields)
        for group in graph.groups
        if group.frozen is None
        for unit in group.units
    ]


def removable_below(graph: UnitGraph, thresholds: Thresholds) -> float:
    """The predicted loss in nats below which one unit is removable: the network's allowance over its live
    units.
    """
    live = sum(len(group.units) for group in graph.groups if group.frozen is None)
    return thresholds.removable / max(live, 1)


@dataclass(frozen=True)
class _Said:
    kind: FindingKind
    score: float
    of: int | None = None
    constant: bool = False

    @property
    def fields(self) -> tuple[FindingKind, float, int | None, bool]:
        return self.kind, self.score, self.of, self.constant


def _of_cluster(
    cluster: Cluster, losses: Tensor, allowed: float, limits: Thresholds, fresh: Cluster | None
) -> dict[int, _Said]:
    device = cluster.live.device
    cost = losses[torch.from_numpy(cluster.numbers)].to(device)
    quiet, constant = silent(cluster, limits.silent)
    if fresh is not None:
        quiet = quiet & silent(fresh, limits.silent)[0]
    spare = cluster.complete & ~quiet & (cost <= allowed)
    free = cluster.complete & ~quiet & ~spare
    donors = (free | ~cluster.complete) & ~quiet & ~spare
    similar = similarity(cluster, limits.silent)
    if fresh is not None:
        similar = torch.minimum(similar, similarity(fresh, limits.silent))
    of, alike = repeated(cluster, free, donors, similar, cost, limits.repeated)
    named = torch.zeros_like(free)
    named[of[of >= 0]] = True
    open_ = free & (of < 0) & ~named
    share = dependent(cluster, open_, donors & ~open_ & (of < 0), cost, limits.silent, limits.dependent, fresh)
    columns = [quiet, constant, spare, of, alike, share, cost]
    rows = zip(cluster.numbers.tolist(), *[column.tolist() for column in columns], strict=True)
    live = int(cluster.live.sum())
    return {row[0]: _said(cluster, *row[1:]) for row in list(rows)[:live]}


def _said(
    cluster: Cluster,
    quiet: bool,
    constant: bool,
    spare: bool,
    of: int,
    alike: float,
    share: float,
    cost: float,
) -> _Said:
    if quiet:
        return _Said("silent", cost, constant=constant)
    if spare:
        return _Said("removable", cost)
    if of >= 0:
        return _Said("repeated", alike, of=int(cluster.numbers[of]))
    return _Said("dependent", share) if share == share else _Said("needed", cost)


def summarise(graph: UnitGraph, findings: Sequence[Finding]) -> dict[str, Any]:
    """Counts over the network: `units` = silent + removable + repeated + dependent + needed + `frozen`.

    `groups` lists the same counts per group (with `name`, and `frozen` the reason or None), in the graph's
    order.
    """
    by_group: dict[str, Counter[str]] = {}
    for finding in findings:
        by_group.setdefault(finding.group, Counter())[finding.kind] += 1
    groups = []
    for group in graph.groups:
        counts = by_group.get(group.name, Counter()) if group.frozen is None else Counter()
        row = {"name": group.name, "units": len(group.units), "frozen": group.frozen}
        groups.append(row | {kind: counts[kind] for kind in KINDS})
    total: dict[str, Any] = {"units": sum(row["units"] for row in groups)}
    total |= {kind: sum(row[kind] for row in groups) for kind in KINDS}
    total["frozen"] = sum(row["units"] for row in groups if row["frozen"] is not None)
    return total | {"groups": groups}

"""How far "removable" reaches: the largest set of cheapest units that can really be taken out all at once.

Predictions rank units well but add up badly: a saturated network's Fisher is near zero, and errors of many units
together are not the sum of their own. So the limit below which a unit counts as removable is measured.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from compressor.findings.ablation import ablated, answers, reference
from compressor.observe import CLASSES, Likelihood
from compressor.sources.samples import Samples
from compressor.units.graph import UnitGraph
from compressor.units.modes import evaluating


def measured_limit(
    model: nn.Module, graph: UnitGraph, losses: Tensor, samples: Samples, allowance: float, most: int = 256,
    likelihood: Likelihood = CLASSES,
) -> float:  # fmt: skip
    """Predicted loss in nats up to which units are removable.

    Units are taken in the order of `losses` (one per unit of the graph), replaced by their means, as many at once as
    leave the loss of `likelihood` (for classes the mean KL(original || ablated)) over at most `most` of `samples`
    within `allowance` nats (by bisection). Units of equal loss go together: a limit cannot tell them apart.
    Negative if not even the first (or those equal to it) can go. The model is as before afterwards.
    """
    if len(samples) > most:
        samples = samples.take(np.arange(most) * len(samples) // most)
    live = np.concatenate([g.units for g in graph.groups if g.frozen is None] or [np.empty(0, dtype=np.int64)])
    live = live[np.isin(live, np.concatenate([tap.units for tap in graph.taps]))]  # only at a tap can one be taken out
    order = live[np.argsort(losses.cpu().numpy()[live], kind="stable")]
    ranked = losses.cpu().numpy()[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: len(order)]) + 1  # of runs of equal losses
    with torch.no_grad(), evaluating(model):
        whole, means = reference(model, samples, graph.taps, likelihood)

        def fits(count: int) -> bool:
            with ablated(model, graph.taps, tuple(order[:count].tolist()), means):
                return likelihood.apart(whole, answers(model, samples, likelihood))[0] <= allowance

        low, high = 0, len(ends)
        while low < high:
            middle = (low + high + 1) // 2
            if fits(int(ends[middle - 1])):
                low = middle
            else:
                high = middle - 1
    return float(ranked[ends[low - 1] - 1]) if low else -1.0

"""What is measured, as sums that add up over data and over processes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, distributed

from compressor.algebra.moments import Moments
from compressor.observe.memory import in_file
from compressor.observe.processes import connected, processes


@dataclass
class TapStatistics:
    """What was measured at one tap. `per_kernel`: regressors are (entry, kernel tap) pairs, else entries alone."""

    moments: Moments
    curvature: Tensor
    """(O, O) sum over samples of Σ_positions g gᵀ, g the gradient of the log-likelihood at the consumer's output."""
    per_kernel: bool
    samples: int = 0

    def __add__(self, other: TapStatistics) -> TapStatistics:
        return TapStatistics(
            self.moments + other.moments,
            self.curvature + other.curvature,
            self.per_kernel,
            self.samples + other.samples,
        )


@dataclass
class PairStatistics:
    """What was measured at a pairing.

    `gram` (F, F) is the sum over samples of t tᵀ, t_f = Σ_positions z_f g_f with z what the layer writes and g the
    gradient of the log-likelihood there: to first order, what the likelihood of a sample loses without feature f.
    """

    gram: Tensor
    samples: int = 0


@dataclass
class Statistics:
    """All taps by module name. Statistics of disjoint data with the same shifts add up."""

    taps: dict[str, TapStatistics] = field(default_factory=dict)
    samples: int = 0
    pairs: dict[str, PairStatistics] = field(default_factory=dict)
    passes: int = 0
    """Readings of the data that were needed."""
    in_files: int = 0
    """Bytes of activations that waited in files for the way back, at most at a time."""

    def all_reduced(self) -> Statistics:
        """The sums over all processes, the same in each; itself without a process group.

        Collective: every process calls it, with the same taps and shifts (as `observe` makes them).
        """
        if processes()[1] == 1:
            return self
        for seen in self.taps.values():
            counts = torch.tensor([seen.moments.count, seen.samples], device=seen.moments.total.device)
            for sums in (counts, seen.moments.total, seen.moments.gram, seen.curvature):
                with connected():
                    distributed.all_reduce(sums)
            seen.moments.count, seen.samples = (int(c) for c in counts.tolist())
        for pair in self.pairs.values():
            count = torch.tensor([pair.samples], device=pair.gram.device)
            for sums in (count, pair.gram):
                with connected():
                    distributed.all_reduce(sums)
            pair.samples = int(count)
        self.samples = max((seen.samples for seen in self.taps.values()), default=self.samples)
        return self


def set_aside(seen: TapStatistics) -> TapStatistics:
    """The same sums outside the device's memory: in the machine's, or on the CPU in a file that goes with them."""
    for owner, name in ((seen.moments, "gram"), (seen, "curvature")):
        sums: Tensor = getattr(owner, name)
        setattr(owner, name, in_file(sums) if sums.device.type == "cpu" else sums.cpu())
    seen.moments.total, seen.moments.shift = seen.moments.total.cpu(), seen.moments.shift.cpu()
    return seen

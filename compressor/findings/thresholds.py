"""The thresholds of all findings, as they stand in the record."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from compressor.errors import UsageError


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From which value on a finding is claimed.

    `silent`: largest standard deviation of a silent unit, relative to its own level or to the liveliest unit
    of the tap (rounding of float32 stays below). `removable`: predicted loss in nats per sample, shared out
    evenly over all live units of the network: each alone may cost this value over their number. Losses of
    units that are alike add up to more than their sum; `ablation` measures all of them together.
    `repeated`: |correlation| with one kept unit at every tap. `dependent`: share of variance explained by the
    kept units at every tap, as expected on unseen samples.
    """

    silent: float = 1e-6
    removable: float = 0.01
    repeated: float = 0.95
    dependent: float = 0.95

    def __post_init__(self) -> None:
        if not (0 <= self.silent < 1 and self.removable >= 0 and 0 < self.repeated <= 1 and 0 < self.dependent <= 1):
            raise UsageError(
                "thresholds of the findings",
                str(asdict(self)),
                "silent in [0, 1), removable >= 0 nats, repeated and dependent in (0, 1]",
                "give values in these ranges",
            )

    def as_dict(self) -> dict[str, float]:
        """The JSON form."""
        return asdict(self)

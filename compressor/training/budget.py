"""How long a recovery may take, as a user says it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

Unit = Literal["ep", "min", "st"]
_FORM = re.compile(r"(\d+(?:\.\d+)?)(ep|min|st)")


@dataclass(frozen=True, slots=True)
class Budget:
    """`8ep` passes over the data, `5min` of the clock, or `400st` steps; steps alone repeat a run exactly."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Budget:
        """The budget in a text. Raises ValueError for anything but a positive number, `ep`, `min` or `st`."""
        found = _FORM.fullmatch(text)
        amount = float(found[1]) if found else 0.0
        if found is None or not 0 < amount < math.inf or (found[2] == "st" and amount % 1):
            raise ValueError(text)
        unit: Unit = "ep" if found[2] == "ep" else "min" if found[2] == "min" else "st"
        return cls(amount, unit)

    def steps(self, per_epoch: int) -> int | None:
        """The number of steps where `per_epoch` make an epoch; None where only the clock can tell."""
        if self.unit == "min":
            return None
        return max(1, round(self.amount * (per_epoch if self.unit == "ep" else 1)))

    def __str__(self) -> str:
        plain = f"{Decimal(repr(float(self.amount))):f}"  # without an exponent: `parse` reads it again
        return f"{plain.removesuffix('.0')}{self.unit}"

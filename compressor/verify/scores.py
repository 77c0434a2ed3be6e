"""Scores of one's own: how good each answer is, for tasks that are no classification."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.errors import CompressorError, DataError, UsageError
from compressor.sources.consent import named_by_user
from compressor.sources.factories import find_factory
from compressor.verify.accuracy import Outputs

Function = Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True)
class Score:
    """`function(outputs, targets)` -> one score for each sample, higher is better, all of them within the range.

    Targets are the labels; without labels the original's own outputs. Everything that is reported is in percent of the
    range: a drop of 0.5 is half a percent of `high - low`.
    """

    name: str
    function: Function
    low: float = 0.0
    high: float = 1.0

    def __call__(self, logits: Tensor, targets: Tensor) -> np.ndarray:
        """Scores (n,) in [0, 1] as shares of the range; those of outputs that are not finite are 0.

        DataError for a score that is not one number for each sample, and for one outside the range.
        """
        finite = torch.isfinite(logits).flatten(1).all(1).numpy()
        try:
            with torch.no_grad():
                found = torch.as_tensor(self.function(logits, targets)).detach().cpu().double().numpy()
        except CompressorError:
            raise
        except Exception as error:
            raise self._wrong(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
        if found.shape != (len(logits),):
            raise self._wrong(f"shape {found.shape} for {len(logits)} samples")
        slack = 1e-6 * (self.high - self.low)
        bad = finite & ~((found >= self.low - slack) & (found <= self.high + slack))
        if bad.any():
            raise self._wrong(f"{found[bad][0]:g} for sample {int(np.argmax(bad))}")
        return np.where(finite, np.clip((found - self.low) / (self.high - self.low), 0, 1), 0.0)

    def pair(self, before: Outputs, after: Outputs) -> tuple[np.ndarray, np.ndarray]:
        """The scores of both networks on the same samples."""
        targets = before.logits if before.labels is None else before.labels
        return self(before.logits, targets), self(after.logits, targets)

    def _wrong(self, got: str) -> DataError:
        return DataError(
            f"--metric {self.name}", got, f"a tensor (n,) of scores from {self.low:g} to {self.high:g}",
            "return one score for each sample, and say the range with --metric-range.",
        )  # fmt: skip


def load_score(spec: str | None, low: float, high: float, base: Path | None = None) -> Score | None:
    """The score that `path.py:metric` names; None for None. SourceError where it cannot be found, UsageError for a
    spec of another form, or a range without extent.
    """
    if spec is None:
        return None
    factory = find_factory(spec, base)
    if factory is None:
        raise UsageError("--metric", repr(spec), "path/file.py:function or package.module:function", "name a function.")
    named_by_user(factory, {})
    return Score(f"{factory.place}:{factory.name}", factory.load(), low, high)

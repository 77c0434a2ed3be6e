"""Scores of one's own: how good each answer is, for tasks that are no classification."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compressor.errors import CompressorError, DataError, UsageError
from compressor.sources.consent import named_by_user
from compressor.sources.factories import find_factory, split_query
from compressor.verify.accuracy import Outputs

Function = Callable[[Tensor, Tensor], Any]


@runtime_checkable
class Metric(Protocol):
    """What metrics of torchmetrics have."""

    higher_is_better: bool | None

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take samples in."""
        ...

    def compute(self) -> Any:
        """The value over all that were taken in."""
        ...

    def reset(self) -> None:
        """Forget them."""
        ...


def cosine(outputs: Tensor, targets: Tensor) -> Tensor:
    """How far embeddings point the same way, from -1 to 1, (n,); maps are taken as one long vector."""
    return functional.cosine_similarity(outputs.flatten(1).double(), targets.flatten(1).double())


@dataclass(frozen=True)
class Score:
    """`function(outputs, targets)` -> one score for each sample, higher is better, all of them within the range.

    A metric of torchmetrics is asked sample by sample; where a lower one is better, scores are `low + high - value`.
    Targets are the labels; without labels the original's own outputs. Everything that is reported is in percent of the
    range: a drop of 0.5 is half a percent of `high - low`.
    """

    name: str
    function: Function | Metric
    low: float = 0.0
    high: float = 1.0

    def __call__(self, logits: Tensor, targets: Tensor) -> np.ndarray:
        """Scores (n,) in [0, 1] as shares of the range; those of outputs that are not finite are 0.

        DataError for a score that is not one number for each sample, and for one outside the range.
        """
        finite = torch.isfinite(logits).flatten(1).all(1).numpy()
        try:
            with torch.no_grad():
                found = torch.as_tensor(self._asked(logits, targets)).detach().cpu().double().numpy()
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
        targets = before.answers if before.labels is None else before.labels
        return self(before.answers, targets), self(after.answers, targets)

    def _asked(self, logits: Tensor, targets: Tensor) -> Any:
        if not isinstance(self.function, Metric):
            return self.function(logits, targets)
        metric, found = copy.deepcopy(self.function), []
        if metric.higher_is_better is None:
            raise self._wrong("a metric that does not say whether higher is better")
        for row in range(len(logits)):
            metric.reset()
            metric.update(logits[row : row + 1], targets[row : row + 1])
            found.append(float(metric.compute()))
        values = torch.tensor(found, dtype=torch.float64)
        return values if metric.higher_is_better else self.low + self.high - values

    def _wrong(self, got: str) -> DataError:
        return DataError(
            f"--metric {self.name}", got, f"a tensor (n,) of scores from {self.low:g} to {self.high:g}",
            "return one score for each sample, and say the range with --metric-range.",
        )  # fmt: skip


def load_score(spec: str | None, low: float, high: float, base: Path | None = None) -> Score | None:
    """The score that `path.py:metric?argument=value` names: a function, or a class of torchmetrics; None for None.

    SourceError where it cannot be found or made, UsageError for a spec of another form.
    """
    if spec is None:
        return None
    head, arguments = split_query(spec)
    factory = find_factory(head, base)
    if factory is None:
        raise UsageError("--metric", repr(spec), "path/file.py:function or package.module:function", "name a function.")
    named_by_user(factory, arguments)
    found = factory.load()
    if isinstance(found, type):
        found = factory.call(arguments)
    elif arguments:
        found = partial(found, **arguments)
    mark = spec.partition("?")[1] + spec.partition("?")[2]
    return Score(f"{factory.place}:{factory.name}{mark}", found, low, high)

"""What every exported file is asked: the question that the network's own verdict answered, once more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compressor.export.session import OnnxModel
from compressor.records import Verdict
from compressor.report.parts import VerdictPart
from compressor.sources.samples import Samples
from compressor.verify.accuracy import Outputs, outputs_of
from compressor.verify.judge import FILE_TOLERANCE, judge, judge_outputs
from compressor.verify.scores import Score


def rejudged(
    before: Outputs, after: Outputs, asked: Verdict | VerdictPart, file: bool = False, score: Score | None = None,
    keys: np.ndarray | None = None,
) -> Verdict:  # fmt: skip
    """The question that `asked` answered, asked of other outputs; `file` for those of an ONNX file."""
    if asked.metric == "outputs":
        return judge_outputs(before, after, FILE_TOLERANCE if file and before.dtype.itemsize > 2 else None)
    if score is not None:
        return judge(before, after, allowed=asked.allowed, confidence=asked.confidence, metric=score, keys=keys)
    metric: Any = asked.metric if before.labels is not None else "agreement"
    return judge(
        before, after, before.labels, allowed=asked.allowed, confidence=asked.confidence, metric=metric, keys=keys
    )


@dataclass(frozen=True)
class Question:
    """The original's outputs on the judge samples, the network's own verdict, and what may be lost.

    `max_drop` and `confidence` are for files of another precision where `asked` is the verdict of exact mode, which is
    on the outputs themselves: no other precision gives the same, so theirs is on accuracy (agreement without labels).
    """

    before: Outputs
    samples: Samples
    asked: Verdict | VerdictPart
    max_drop: float
    confidence: float
    score: Score | None = None

    def put(self, path: Path, lower: bool = False) -> Verdict:
        """The verdict on the file at `path`; `lower` for one of lower precision than the network.

        Raises ModelError where it does not run on the samples.
        """
        after = outputs_of(OnnxModel(path, torch.get_num_threads()), self.samples, name=path.name, check=False)
        if not lower or self.asked.metric != "outputs":
            return rejudged(self.before, after, self.asked, True, self.score, self.samples.hashes)
        metric: Any = "agreement" if self.before.labels is None else "accuracy"
        if self.score is not None:
            metric = self.score
        return judge(
            self.before, after, allowed=self.max_drop, confidence=self.confidence, metric=metric,
            keys=self.samples.hashes,
        )  # fmt: skip

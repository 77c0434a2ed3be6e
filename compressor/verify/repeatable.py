"""Does a network answer the same when it is asked again, and for a sample alone? A verdict on samples rests on both."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from compressor.errors import ModelError
from compressor.sources.samples import Samples
from compressor.verify.accuracy import Outputs, outputs_of
from compressor.verify.fidelity import fidelity

SAME = 1e-3
"""Largest change of an output, relative to its spread over the samples, that arithmetic in another order explains."""
ALONE = 4
"""Samples that are asked alone."""


def refuse_chance(network: nn.Module, samples: Samples, probe: Outputs) -> None:
    """ModelError for a network that draws numbers: with another random state it answers `samples` otherwise than
    `probe`, and neither a loss nor a file could be told from chance.
    """
    changed = _apart(probe, outputs_of(network, samples, seed=1))
    if changed > SAME:
        raise ModelError(
            "the network", f"answers that differ by {changed:.2g} of their spread when it is asked again, in eval mode",
            "the same answers every time", "let no random number decide them: pass training=self.training to "
            "functional dropout, take means in the place of samples.",
        )  # fmt: skip


def batch_warning(network: nn.Module, samples: Samples, probe: Outputs) -> str | None:
    """A warning where a sample is answered otherwise alone than among others, as in `probe`."""
    count = min(ALONE, len(samples))
    if count < 2:
        return None
    try:
        alone = outputs_of(network, samples.take(range(count)), batch_size=1, check=False)
    except ModelError:
        return "The network does not run on a single sample: its verdict is one on the batches as they were judged."
    changed = _apart(replace(probe, logits=probe.logits[:count]), alone)
    if changed <= SAME:
        return None
    return (
        f"A sample's answer depends on what else is in its batch (it moves by {changed:.2g} of the spread when asked "
        "alone): the verdict holds for batches as they were judged only. A batch norm without running statistics, or a "
        "mean over the batch, does that."
    )


def _apart(one: Outputs, other: Outputs) -> float:
    """Largest change of an output, whatever labels came along."""
    return fidelity(one, other, classes=False).max_relative_change

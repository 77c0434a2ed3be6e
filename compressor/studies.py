"""What every study of several networks needs: a folder for one request, and a trained network for each part of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from compressor.errors import DataError, UsageError
from compressor.export.files import Claim, replacing, to_json, write_text
from compressor.recipe import Recipe, resolved
from compressor.sources.checkpoint import file_sha256
from compressor.sources.contents import content
from compressor.sources.factories import find_factory, split_query
from compressor.sources.models import load_model
from compressor.sources.samples import Samples
from compressor.stages import Report
from compressor.training.loop import Progress, TrainOptions, train

REQUEST = "request.txt"
_TRAINING = "training"


def request_marks(recipe: Recipe, specs: Sequence[str], base: Path, read: Iterable[str | None]) -> list[str]:
    """What tells a request from others: its recipe and the files of the functions `specs`, and what it reads.

    `read` is what tells its inputs (data, checkpoints) from others.
    """
    found = [find_factory(split_query(spec)[0], base) for spec in specs]
    asked = {"recipe": resolved(recipe), "files": [None if one is None else one.sha256 for one in found]}
    return [hashlib.sha256(to_json(one).encode()).hexdigest() for one in (asked, list(read))]


def same_request(
    claim: Claim, marks: list[str], *, force: bool, results: Iterable[str], parts: str, former: list[str] | None = None
) -> None:
    """Refuse to mix the parts of another recipe, other code or other inputs with this one's; `force` removes them.

    `marks` are those of `request_marks`, `former` those that an earlier version gave the same request; `results` the
    names of what the study writes, `parts` the folder of its parts (`*.json`). Raises UsageError where the folder was
    begun by another request.
    """
    path = claim.path / REQUEST
    if force:
        claim.clear((REQUEST, *results))
        for part in (claim.path / parts).glob("*.json"):
            part.unlink()
    known = path.read_text(encoding="utf-8").split() if path.is_file() else marks
    fits = [each for each in (marks, former or []) if known and known == each[: len(known)]]
    if not fits:  # folders of earlier versions hold the first mark alone
        raise UsageError(
            f"output folder '{claim.path}'",
            f"{parts} of another recipe, or of code, data or checkpoints that have changed since",
            "the recipe that began it", "use --force to measure again, or another folder.",
        )  # fmt: skip
    write_text(path, "\n".join(fits[0]) + "\n")
    (claim.path / parts).mkdir(exist_ok=True)


def part_of(report: Report, name: str, place: int, whole: int) -> Report:
    """Progress of one part of a study."""
    return lambda stage, done: report(f"{name} {place + 1}/{whole}: {stage}", done)


@dataclass(frozen=True)
class Wanted:
    """One network of a study: `kept` is the file that its weights lie in, or come to lie in."""

    spec: str
    seed: int
    kept: Path
    checkpoint: str | None
    options: TrainOptions | None
    prepare: Callable[[nn.Module], None] | None = None
    """Called on the network before it is trained, to change its weights in place."""
    training: str | None = None
    """Tells this training from others; noted in `kept`. None where the folder holds networks of one training only."""

    def initial(self, base: Path) -> nn.Module:
        """The network before any training, in eval mode; the same again for the same seed."""
        model = load_model(self.spec, base=base, seed=self.seed).model
        if self.prepare is not None:
            self.prepare(model)
        return model.eval()


def network(
    wanted: Wanted, base: Path, samples: Samples | None, report: Report, watch: Callable[[Progress], None] | None = None
) -> tuple[nn.Module, str]:
    """The trained network in eval mode, and how it came: from the checkpoint, the folder, or training.

    Always read back from the file that it was written to, so that resuming changes nothing. Raises DataError where
    there are no weights and nothing to train with, and what loading and training raise.
    """
    if wanted.checkpoint is not None:
        loaded = load_model(wanted.spec, wanted.checkpoint, base=base, seed=wanted.seed)
        return loaded.model, f"checkpoint {loaded.checkpoint_sha256}"
    model = wanted.initial(base)
    if not wanted.kept.is_file() or _trained_otherwise(wanted):
        if wanted.options is None or samples is None:
            raise DataError(
                f"network {wanted.spec}", f"no weights for seed {wanted.seed}, nothing to train with",
                "a checkpoint, or a `train` section and data with a training part",
                f"put {wanted.kept.name} into the folder.",
            )  # fmt: skip

        def step(progress: Progress) -> None:
            report("train", progress.done)
            if watch is not None:
                watch(progress)

        save_weights(train(model, samples, wanted.options, progress=step)[0], wanted.kept, wanted.training)
    model.load_state_dict(load_file(wanted.kept))
    return model.eval(), f"file {file_sha256(wanted.kept)}"


def _trained_otherwise(wanted: Wanted) -> bool:
    """Whether a study of another training left this file; one without a note was put there to be taken."""
    with safe_open(wanted.kept, framework="pt") as file:
        noted = (file.metadata() or {}).get(_TRAINING)
    return None not in (noted, wanted.training) and noted != wanted.training


def training_of(recipe: Recipe, base: Path) -> str:
    """What makes the trained networks of a recipe what they are: code, data, their arguments, and the training."""
    whole, names = resolved(recipe), ("model", "model_args", "data", "data_args", "train")
    files = [content(spec, base) for spec in (recipe.model, recipe.data)]
    return hashlib.sha256(to_json({"files": files, **{name: whole.get(name) for name in names}}).encode()).hexdigest()


def save_weights(model: nn.Module, path: Path, training: str | None = None) -> None:
    """Write the state dict as safetensors, atomically; `training` is noted in the file."""
    note = None if training is None else {_TRAINING: training}
    with replacing(path) as partial:
        save_file({name: t.detach().clone().contiguous() for name, t in model.state_dict().items()}, partial, note)


def weights_file(recipe: Recipe, **values: Any) -> str | None:
    """The recipe's checkpoint with `{seed}` and the like filled in. UsageError for an unknown name in braces."""
    if recipe.checkpoint is None:
        return None
    try:
        return recipe.checkpoint.format(**values)
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{name}}}" for name in values)
        raise UsageError(
            "recipe: checkpoint", f"{recipe.checkpoint!r} ({error})", f"a path with {known}", "correct it."
        ) from None

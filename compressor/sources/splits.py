"""Parts of the data: what is missing is split off what is there, by content.

Samples are ordered by a hash of their input, so the order of files does not matter, and equal inputs lie side
by side, where no cut goes between them: no sample is ever in two parts that must not share any.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from compressor.errors import DataError
from compressor.sources.factories import meant
from compressor.sources.samples import Samples, as_samples, shared
from compressor.sources.trees import describe

PARTS = ("calibrate", "tune", "judge")
"""Statistics and refits / choices between candidates / the verdict. `train` may stand beside them."""

SHARES: Mapping[str, float] = {"train": 2.0, "calibrate": 0.35, "tune": 0.15, "judge": 0.5}
"""How a donor is cut: proportions among itself and the parts that it gives."""

CAPS: Mapping[str, int] = {"calibrate": 5_000, "tune": 5_000, "judge": 20_000}
"""No part that is split off is larger; the donor keeps the rest."""

_DONORS: Mapping[str, tuple[str, ...]] = {
    "calibrate": ("train", "tune", "judge"),
    "tune": ("calibrate", "train", "judge"),
    "judge": ("tune", "calibrate"),
}
"""Who gives a missing part, in order of preference. Training data never judges."""


@dataclass(frozen=True, slots=True)
class Data:
    """The parts of a run's data. `judge` shares no input with the others; train and calibrate may overlap."""

    calibrate: Samples
    tune: Samples
    judge: Samples
    train: Samples | None = None
    described: dict[str, Any] = field(default_factory=dict)
    """For the record: `source`, a fingerprint for each part, `samples`, `split_off`, `dropped`."""
    unlabelled: Samples | None = None
    """More inputs for recovery; none of the tune split's. Whoever judges refuses those of the judge's."""


def split_by_content(samples: Samples, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Samples]:
    """Disjoint parts of about these sizes (equal inputs stay together), whatever the order of samples."""
    keys = _keys(samples, seed)
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    cuts, start = {}, 0
    for name, size in sizes.items():
        end = min(start + size, len(ranked))
        if start < end < len(ranked):
            end = int(np.searchsorted(ranked, ranked[end - 1], side="right"))
        cuts[name] = samples.take(order[start:end], name=_words(name))
        start = end
    return cuts


def complete(given: Mapping[str, Any], source: str, seed: int = 0, drop_shared: bool = False) -> Data:
    """Data with all parts, from a mapping with some of calibrate, tune, judge and train.

    Raises DataError for an unknown part, for too few samples, and where the judge's inputs were also given to
    calibrate or tune (with `drop_shared` they are left out there instead).
    """
    parts = {name: _named(as_samples(data, name=_words(name)), name) for name, data in given.items() if _known(name)}
    if not parts:
        raise DataError(f"data {source!r}", "no part", f"at least one of {', '.join(PARTS)}", "give calibrate=...")
    if not drop_shared:
        _refuse_overlap(parts)
    missing = {name: _donor(name, parts, source) for name in PARTS if name not in parts}
    for donor in dict.fromkeys(missing.values()):
        parts |= _give(donor, [name for name in PARTS if missing.get(name) == donor], parts, seed)
    dropped = _keep_judge_apart(parts)
    described: dict[str, Any] = {"source": source, "split_off": missing, "dropped": dropped, "seed": seed}
    described |= {name: parts[name].fingerprint for name in PARTS}
    described["samples"] = {name: len(part) for name, part in parts.items()}
    return Data(parts["calibrate"], parts["tune"], parts["judge"], parts.get("train"), described)


def split_whole(data: Any, source: str, seed: int = 0) -> Data:
    """Data from one dataset alone: 35 % calibrate, 15 % tune and 50 % judge, under CAPS."""
    samples = as_samples(data, name="data")
    weights = {name: SHARES[name] for name in PARTS}
    sizes = {name: min(CAPS[name], round(len(samples) * weights[name])) for name in PARTS}
    parts = split_by_content(samples, sizes, seed)
    _refuse_empty(parts, len(samples), source)
    made = complete(parts, source, seed)
    made.described["split_off"] = dict.fromkeys(PARTS, "the whole")
    return made


def with_unlabelled(data: Data, samples: Samples, source: str) -> Data:
    """The same with more inputs for recovery; what is also in the tune split is left out there, and counted.

    Raises DataError where nothing is left, or the inputs are not shaped as the others.
    """
    samples = samples.named("unlabelled data")
    shapes = [describe(part.batch([0])[0]) for part in (data.calibrate, samples)]
    if shapes[0] != shapes[1]:
        raise DataError(
            samples.name, f"inputs {shapes[1]}", f"{shapes[0]} as the calibration data", "prepare both the same way."
        )
    again = shared(samples, data.tune)
    if len(again) == len(samples):
        raise DataError(samples.name, "nothing but the tune data", "other inputs", "give more, or leave it out.")
    samples = samples.take(np.setdiff1d(np.arange(len(samples)), again)) if len(again) else samples
    about = {"source": source, "samples": len(samples), "dropped": len(again), "fingerprint": samples.fingerprint}
    return replace(data, unlabelled=samples, described={**data.described, "unlabelled": about})


def refuse_labels(samples: Samples, classes: int) -> None:
    """DataError that names a sample without a label, or whose label is not a class number 0..classes-1."""
    labels = samples.labels
    if labels is None or labels.is_floating_point():
        kind = "no labels" if labels is None else f"labels of type {labels.dtype}"
        raise DataError(samples.name, kind, "class numbers (int64)", "give a dataset of (input, label).")
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        place = int(wrong[0, 0])
        raise DataError(
            f"{samples.name}, sample {place}",
            f"label {int(labels[place])} ({len(wrong)} such samples)",
            f"0..{classes - 1}, as the model has {classes} outputs",
            "check that model and data belong together, and that labels start at 0.",
        )


def _words(name: str) -> str:
    return f"{name} data"


def _named(samples: Samples, name: str) -> Samples:
    """Samples that the caller made, under the name of their part; hashed first, so that views share them."""
    if samples.name == _words(name) or not len(samples.hashes):
        return samples
    return samples.named(_words(name))


def _known(name: str) -> bool:
    if name in SHARES:
        return True
    known = list(SHARES)
    raise DataError("data", f"a part {name!r}", f"parts {', '.join(known)}", meant(name, known) or "rename it.")


def _donor(name: str, parts: Mapping[str, Samples], source: str) -> str:
    donor = next((one for one in _DONORS[name] if one in parts), None)
    if donor is None:
        raise DataError(
            f"data {source!r}",
            f"only {', '.join(parts)}",
            f"something that {name} can be split off ({', '.join(_DONORS[name])})",
            f"give {name!r}: samples that the network was not trained on.",
        )
    return donor


def _give(donor: str, names: list[str], parts: Mapping[str, Samples], seed: int) -> dict[str, Samples]:
    pool = parts[donor]
    total = sum(SHARES[name] for name in [donor, *names])
    sizes = {name: min(CAPS[name], round(len(pool) * SHARES[name] / total)) for name in names}
    sizes[donor] = len(pool)
    made = split_by_content(pool, sizes, seed)
    _refuse_empty(made, len(pool), pool.name)
    return made


def _refuse_overlap(parts: Mapping[str, Samples]) -> None:
    for name in [name for name in ("calibrate", "tune") if name in parts and "judge" in parts]:
        again = shared(parts[name], parts["judge"])
        if len(again):
            raise DataError(
                f"{name} data",
                f"{len(again)} inputs that are also in the judge data (first: sample {int(again[0])})",
                "a judge that the choice has not seen",
                "take these samples out of one of the two.",
            )


def _keep_judge_apart(parts: dict[str, Samples]) -> dict[str, int]:
    """The judge's inputs leave the other parts; how many left which."""
    dropped = {}
    for name in [name for name in ("train", "calibrate", "tune") if name in parts]:
        again = shared(parts[name], parts["judge"])
        if len(again):
            parts[name] = parts[name].take(np.setdiff1d(np.arange(len(parts[name])), again))
            dropped[name] = len(again)
    _refuse_empty(parts, sum(map(len, parts.values())), "data")
    return dropped


def _refuse_empty(parts: Mapping[str, Samples], total: int, where: str) -> None:
    for name, part in parts.items():
        if not len(part):
            raise DataError(
                where,
                f"{total} samples, which leave none for {name}",
                "different inputs for each of calibrate, tune and judge",
                "give more data, or each part by itself.",
            )


def _keys(samples: Samples, seed: int) -> np.ndarray:
    """Sort keys, (n,) S16: the content hash itself, or keyed by the seed."""
    if seed == 0:
        return samples.hashes
    key = str(seed).encode()
    mixed = [hashlib.blake2b(row, digest_size=16, key=key).digest() for row in samples.hashes.tolist()]
    return np.array(mixed, dtype="S16")

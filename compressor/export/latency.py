"""Latency of ONNX files side by side: interleaved rounds, paired ratios, an interval for each.

Machines drift: the same file took 13.5 and then 21 ms in two runs a minute apart. So all sessions are built
first, every round times every file in a random order, and only times of the same round are compared.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import SourceError, UsageError
from compressor.export.block import Block, measured_block
from compressor.export.inputs import Inputs
from compressor.export.session import TYPES, OnnxModel

__all__ = ["Block", "FileLatency", "LatencyComparison", "compare_latency", "measured_block"]

CONFIDENCE = 0.95
MOST_NUMBERS = 2**28
"""Of an input that is made to time a file on."""

_RESAMPLES = 2000
_LEAST_ROUNDS, _MOST_ROUNDS = 10, 500
_LEAST_TIMING = 5e-4


@dataclass(frozen=True, slots=True)
class FileLatency:
    """One file's times of a call in milliseconds, and its ratio to the first file's.

    `ratio` is the median over rounds of this file's time by the first's in the same round, `interval` its
    95 % bootstrap interval over blocks of rounds; `p10_ratio` compares tenth percentiles, the quiet rounds.
    """

    path: Path
    median_ms: float
    p10_ms: float
    min_ms: float
    ratio: float
    interval: tuple[float, float]
    p10_ratio: float

    @property
    def faster(self) -> bool:
        """True if the whole interval is below the first file's time: only then is it called a gain."""
        return self.interval[1] < 1.0


def told_apart(paths: Sequence[Path]) -> list[str]:
    """Names of files, each with the folders that tell it from others of its name.

    >>> told_apart([Path("/runs/a/model.onnx"), Path("/runs/b/model.onnx"), Path("/runs/first.onnx")])
    ['a/model.onnx', 'b/model.onnx', 'first.onnx']
    """
    whole = [Path(path).resolve().parts for path in paths]
    names = []
    for parts in whole:
        others = [other for other in whole if other != parts]
        length = 1
        while length < len(parts) and any(other[-length:] == parts[-length:] for other in others):
            length += 1
        names.append("/".join(parts[-length:]))
    return names


@dataclass(frozen=True, slots=True)
class LatencyComparison:
    """All files, in the order given; the first is the base. `calls` are the calls behind one timing."""

    files: tuple[FileLatency, ...]
    threads: int
    batch: int
    rounds: int
    calls: int
    seconds: float
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, with names of files; of files of one name with as many folders as tell them apart."""
        plain = asdict(self)
        for entry, name in zip(plain["files"], told_apart([file.path for file in self.files]), strict=True):
            entry["path"] = name
            entry["interval"] = list(entry["interval"])
        return {**plain, "files": list(plain["files"]), "confidence": CONFIDENCE}


def compare_latency(
    paths: Sequence[str | Path],
    inputs: Inputs | None = None,
    batch: int = 1,
    threads: int = 1,
    seconds: float = 10.0,
    rounds: int | None = None,
    warmup: int = 3,
    seed: int = 0,
) -> LatencyComparison:
    """Time two or more ONNX files in onnxruntime on the CPU with `threads` threads each, in turn.

    Without `inputs`, random ones of the files' own shape are made, `batch` at a time. `rounds` fixes their
    number, else as many are made as `seconds` allow (10 to 500). Raises UsageError if the files take
    different inputs or fewer than two are given, SourceError for a file that does not run.
    """
    if len(paths) < 2 or batch < 1 or (rounds is not None and rounds < 2):
        raise UsageError(
            "comparing latency",
            f"{len(paths)} file{'s' * (len(paths) != 1)}, a batch of {batch}"
            + ("" if rounds is None else f", {rounds} round{'s' * (rounds != 1)}"),
            "two files or more, a batch of 1 or more, two rounds or more",
            "name the original's file first, then the others; a bundle alone is compared with its original.",
        )
    models = [OnnxModel(path, threads) for path in paths]
    feeds = _feeds(models, inputs, batch, seed)
    single = [0.0]
    for _ in range(max(1, warmup)):
        single = [_timed(model, feed, 1) for model, feed in zip(models, feeds, strict=True)]
    calls = int(np.clip(np.ceil(_LEAST_TIMING / min(single)), 1, 100))
    if rounds is None:
        rounds = int(np.clip(seconds / (calls * sum(single)), _LEAST_ROUNDS, _MOST_ROUNDS))
    order = np.random.default_rng(seed)
    times = np.zeros((len(models), rounds))
    start = time.perf_counter()
    for turn in range(rounds):
        for place in order.permutation(len(models)):
            times[place, turn] = _timed(models[place], feeds[place], calls)
    return LatencyComparison(
        files=tuple(summarize([model.path for model in models], times, seed)),
        threads=threads,
        batch=next(iter(feeds[0].values())).shape[0],
        rounds=rounds,
        calls=calls,
        seconds=time.perf_counter() - start,
        seed=seed,
    )


def summarize(paths: Sequence[Path], times: np.ndarray, seed: int = 0) -> list[FileLatency]:
    """Figures of each file from the seconds of all rounds, (files, rounds); the first file is the base."""
    draws = _resamples(times.shape[1], seed)
    tail = (1 - CONFIDENCE) / 2
    found = []
    for path, row in zip(paths, times, strict=True):
        ratios = row / times[0]
        low, high = np.quantile(np.median(ratios[draws], axis=1), [tail, 1 - tail])
        p10 = float(np.quantile(row, 0.1))
        found.append(
            FileLatency(
                path=path,
                median_ms=1e3 * float(np.median(row)),
                p10_ms=1e3 * p10,
                min_ms=1e3 * float(row.min()),
                ratio=float(np.median(ratios)),
                interval=(float(low), float(high)),
                p10_ratio=p10 / float(np.quantile(times[0], 0.1)),
            )
        )
    return found


def _resamples(rounds: int, seed: int) -> np.ndarray:
    """Rounds drawn again, (resamples, about rounds), in blocks: bursts of other work span several rounds.

    Circular block bootstrap, Politis & Romano 1992, with blocks of length rounds^(1/3).
    """
    length = max(1, round(rounds ** (1 / 3)))
    starts = np.random.default_rng(seed).integers(0, rounds, (_RESAMPLES, -(-rounds // length), 1))
    return ((starts + np.arange(length)) % rounds).reshape(_RESAMPLES, -1)


def _timed(model: OnnxModel, feed: dict[str, np.ndarray], calls: int) -> float:
    """Seconds of one call, as the mean of `calls`."""
    try:
        start = time.perf_counter()
        for _ in range(calls):
            model.run(feed)
        return (time.perf_counter() - start) / calls
    except Exception as error:  # noqa: BLE001 (onnxruntime's errors have no common class but this)
        raise SourceError(
            f"'{model.path}'",
            " ".join(str(error).split())[:300],
            "a file that runs on these inputs",
            "check the batch size and the inputs.",
        ) from None


def _feeds(models: list[OnnxModel], inputs: Inputs | None, batch: int, seed: int) -> list[dict[str, np.ndarray]]:
    """The same inputs for every file, under its own names for them."""
    if inputs is not None:
        return [model.feed(inputs) for model in models]
    generator = np.random.default_rng(seed)
    values = []
    for (name, kind, said), shape in zip(models[0].signature, _shapes(models), strict=True):
        if kind not in TYPES or None in shape[1:]:
            raise UsageError(
                f"'{models[0].path}'",
                f"input '{name}' of {kind} {list(said)}",
                "a shape that is fixed but for the batch",
                "give the inputs to time on.",
            )
        size = tuple(batch if entry is None else entry for entry in shape)
        if not 0 < math.prod(size) <= MOST_NUMBERS:
            raise SourceError(
                f"'{models[0].path}'", f"input '{name}' of shape {list(size)}", f"1 to {MOST_NUMBERS:,} numbers",
                "use a smaller batch, or check the file.",
            )  # fmt: skip
        floats = np.issubdtype(TYPES[kind], np.floating)
        value = generator.standard_normal(size) if floats else generator.integers(0, 2, size)
        values.append(value.astype(TYPES[kind]))
    return [dict(zip(model.inputs, values, strict=True)) for model in models]


def _shapes(models: list[OnnxModel]) -> list[list[int | None]]:
    """The shape of each input that all files take, None where all of them leave a size open: its name is theirs.
    An open number of tokens is the one that a file says it was made with.

    UsageError where they take different inputs.
    """
    first, found = models[0].signature, []
    length = next((model.length for model in models if model.length), None)
    for model in models[1:]:
        kinds = [[(kind, len(shape)) for _, kind, shape in one] for one in (first, model.signature)]
        if kinds[0] != kinds[1]:
            raise _other_inputs(models[0], model)
    for place in range(len(first)):
        sizes: list[int | None] = [None] * len(first[place][2])
        for model in models:
            for axis, size in enumerate(model.signature[place][2]):
                if isinstance(size, int) and sizes[axis] not in (None, size):
                    raise _other_inputs(models[0], model)
                sizes[axis] = size if isinstance(size, int) else sizes[axis]
        found.append([sizes[0], length] if len(sizes) == 2 and sizes[1] is None else sizes)
    return found


def _other_inputs(first: OnnxModel, model: OnnxModel) -> UsageError:
    return UsageError(
        f"comparing '{first.path}' with '{model.path}'",
        f"inputs {_said(model)}",
        f"the first file's {_said(first)}",
        "compare files of networks that take the same inputs.",
    )


def _said(model: OnnxModel) -> str:
    return ", ".join(f"{kind} {list(shape)}" for _, kind, shape in model.signature)

"""The options of a compression, checked once for the command line, recipes and Python alike."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from compressor.errors import UsageError
from compressor.training.budget import Budget

LEAST_MEMORY = 1e6
MEASURES = ("params", "macs", "latency")
"""What a size can be told by."""


@dataclass(frozen=True, slots=True)
class Options:
    """`keep` fixes the size, as `("params", 0.35)`, `("macs", 0.5)` or `("latency", 0.4)`; else the search finds it."""

    max_drop: float = 0.5
    confidence: float = 0.95
    keep: tuple[str, float] | None = None
    exact: bool = False
    align: int | Literal["auto"] = "auto"
    device: str = "auto"
    seed: int = 0
    recover: Budget | None = None
    """Distil from the original after the cut; minutes are for the whole run, epochs and steps for each candidate."""
    metric: str | None = None
    """`path.py:function` that scores each answer, instead of accuracy; its scores lie within `metric_range`."""
    metric_range: tuple[float, float] = (0.0, 1.0)
    latency_table: str | None = None
    """A file of `compressor timetable`, for sizes that are told by latency, instead of measuring here."""
    memory: float | None = None
    """Bytes that sums and activations may take together, in each process; a part of the machine's if not said."""
    rotate: float | None = None
    """Share of their width that residual streams behind norms keep; the rest goes by a rotation, with a loss."""
    timed: dict[str, Any] | None = None
    """What the clock told in an earlier run, for a replay: its plan is taken again and nothing is timed."""

    def __post_init__(self) -> None:
        if not 0 < self.max_drop < 100:
            raise UsageError("--max-drop", f"{self.max_drop:g}", "points between 0 and 100", "for example 0.5")
        if not 0.5 <= self.confidence < 1:
            raise UsageError("--confidence", f"{self.confidence:g}", "at least 0.5 and below 1", "for example 0.95")
        if self.align != "auto" and (type(self.align) is not int or self.align < 1):
            raise UsageError("--align", f"{self.align}", "`auto` or a whole number from 1", "1 switches it off")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise UsageError("--seed", f"{self.seed}", "a whole number from 0, below 2**32", "for example 0")
        if not (-1e30 < self.metric_range[0] < self.metric_range[1] < 1e30):
            low, high = self.metric_range
            raise UsageError("--metric-range", f"{low:g},{high:g}", "the lowest and the highest score", "0,1")
        if self.memory is not None and not LEAST_MEMORY <= self.memory < 1e18:
            raise UsageError("--memory", f"{self.memory:g} bytes", "at least 1MB", "for example 8GB")
        _check_device(self.device)
        _check_rotate(self)
        if self.exact and self.keep is not None:
            raise UsageError(
                "--exact with --keep",
                "both",
                "one of them",
                "exact mode removes what is certified, no less and no more",
            )
        if self.exact and self.recover is not None:
            raise UsageError(
                "--exact with --recover", "both", "one of them", "what is removed exactly has nothing to recover"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the record."""
        plain = asdict(self)
        del plain["timed"]
        for unused in ("latency_table", "memory", "rotate"):
            if plain[unused] is None:
                del plain[unused]
        plain["keep"] = None if self.keep is None else f"{self.keep[0]}={self.keep[1]:g}"
        plain["metric_range"] = list(self.metric_range)
        if self.metric is None:
            del plain["metric"], plain["metric_range"]
        plain["recover"] = None if self.recover is None else str(self.recover)
        return plain


LARGEST = 0.7
"""The first share where no sizes are given; the others follow in equal ratios, down to the least that can be built."""
MOST = 30


@dataclass(frozen=True)
class Sizes:
    """What a frontier is asked for: shares of `measure`, or their number."""

    measure: str = "params"
    shares: tuple[float, ...] | None = None
    points: int = 5

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise UsageError("--measure", repr(self.measure), f"one of {', '.join(MEASURES)}", "for example params")
        if not 2 <= self.points <= MOST:
            raise UsageError("--points", f"{self.points}", f"a whole number from 2 to {MOST}", "for example 5")
        wrong = [share for share in self.shares or () if not 0 < share <= 1]
        if wrong or (self.shares is not None and not 1 <= len(self.shares) <= MOST):
            got = ", ".join(f"{share:g}" for share in self.shares or ()) or "none"
            raise UsageError("--sizes", got, f"1 to {MOST} shares, each above 0 and at most 1", "for example 0.5,0.25")

    def spread(self, smallest: float) -> list[float]:
        """The shares, from the largest to the smallest; `smallest` is the least that can be built."""
        if self.shares is not None:
            return sorted(set(self.shares), reverse=True)
        low = min(1.02 * smallest, 1.0)
        first = max(LARGEST, low)
        spread = {first * (low / first) ** (place / (self.points - 1)) for place in range(self.points)}
        return sorted(spread, reverse=True)  # one size where no smaller one can be built


def refuse_unread(unlabelled: object, options: Options, where: str = "unlabelled") -> None:
    """UsageError for unlabelled data that nothing reads."""
    if unlabelled is not None and options.recover is None:
        wanted = where.replace("unlabelled", "recover")
        raise UsageError(where, f"no {wanted}", "both", "only recovery reads unlabelled data.")


def refuse_unread_table(options: Options, sizes: Sizes | None = None) -> None:
    """UsageError for a latency table that nothing reads."""
    measure = sizes.measure if sizes else options.keep[0] if options.keep else None
    if options.latency_table is not None and measure != "latency":
        where = "--latency-table"
        step = "add --measure latency." if sizes else "add --keep latency=0.5."
        raise UsageError(where, f"sizes told by {measure or 'accuracy'}", "by latency", step)


def parse_sizes(text: str | None) -> tuple[float, ...] | None:
    """`0.5,0.35,0.25` as numbers. Raises UsageError for anything else."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError("--sizes", repr(text), "shares with commas between them", "for example 0.5,0.25") from None


def parse_range(text: str | None) -> tuple[float, float]:
    """`0,1` as two numbers (the default). Raises UsageError for anything else."""
    try:
        low, high = (float(part) for part in (text or "0,1").split(","))
    except ValueError:
        raise UsageError("--metric-range", repr(text), "two numbers with a comma between them", "0,1") from None
    return low, high


def _check_rotate(options: Options) -> None:
    """UsageError for a share that is none, and for what a rotation does not go with."""
    if options.rotate is None:
        return
    number = isinstance(options.rotate, (int, float)) and not isinstance(options.rotate, bool)
    if not number or not 0 < options.rotate < 1:
        raise UsageError("--rotate", f"{options.rotate!r}", "a share between 0 and 1", "for example 0.75")
    if options.exact:
        raise UsageError("--exact with --rotate", "both", "one of them", "a rotated and cut stream is never exact")
    if options.keep is not None and options.keep[0] == "latency":
        raise UsageError(
            "--rotate with --keep latency", "both", "a size told by params or macs", "for example --keep params=0.5"
        )


def _check_device(name: str) -> None:
    """UsageError for a device that torch does not know, or that this machine does not have."""
    import torch

    from compressor.observe import processes

    if name == "auto" or re.fullmatch(r"cpu(:0)?", name):
        return
    there: list[str] = []
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        places = range(torch.accelerator.device_count())
        there += [accelerator.type, *(f"{accelerator.type}:{place}" for place in places)]
    if processes()[1] > 1:  # each has a device of its own
        there = [kind for kind in there if ":" not in kind]
    if name not in there:
        raise UsageError("--device", f"{name!r}", f"one of {', '.join(['auto', 'cpu', *there])}", "`auto` picks one.")


def parse_keep(text: str | tuple[str, float] | None) -> tuple[str, float] | None:
    """`params=0.35`, `macs=0.5` or `latency=0.4` as a pair. Raises UsageError for anything else."""
    if text is None:
        return None
    measure, share = "", -1.0
    if isinstance(text, str):
        measure, _, number = text.partition("=")
        try:
            share = float(number)
        except ValueError:
            share = -1.0
    elif isinstance(text, (tuple, list)) and len(text) == 2 and isinstance(text[1], (int, float)):
        measure, share = text
    if measure not in MEASURES or not 0 < share <= 1:
        allowed = "params=SHARE, macs=SHARE or latency=SHARE, 0 < SHARE <= 1"
        raise UsageError("--keep", f"{text!r}", allowed, "for example params=0.35")
    return measure, float(share)


def parse_recover(text: str | Budget | None) -> Budget | None:
    """`8ep`, `5min` or `400st` as a budget. Raises UsageError for anything else."""
    if text is None or isinstance(text, Budget):
        return text
    try:
        return Budget.parse(text)
    except (TypeError, ValueError):
        expected = "epochs, minutes or steps: a number above 0 with `ep`, `min` or `st`"
        raise UsageError("--recover", f"{text!r}", expected, "for example 8ep, 5min or 400st") from None


def parse_memory(text: str | float | None) -> float | None:
    """`8GB` or `500MB` in bytes (a number is bytes already). Raises UsageError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(i?)B", text) if isinstance(text, str) else None
    if text is None or (isinstance(text, (int, float)) and not isinstance(text, bool)):
        return text
    if found is None:
        raise UsageError("--memory", f"{text!r}", "a number with MB, GB or TB (or MiB, GiB, TiB)", "for example 8GB")
    return float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2] or " ")


def parse_align(text: str | int) -> int | Literal["auto"]:
    """`auto` or a whole number. Raises UsageError for anything else."""
    if text == "auto":
        return "auto"
    try:
        if isinstance(text, float):
            raise ValueError
        return int(text)
    except (TypeError, ValueError):
        raise UsageError("--align", f"{text!r}", "`auto` or a whole number from 1", "1 switches it off") from None

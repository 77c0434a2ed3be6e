"""Numbers and sentences that the terminal and the page share, in plain ASCII."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any

from compressor.report.record import Candidate, Record, VerdictPart, validate

KINDS = ("needed", "removable", "repeated", "dependent", "silent")
"""What a unit can be, in the order in which reports show it."""

_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def plain(text: object) -> str:
    """One line of text without control characters, so that a layer's name cannot steer a terminal."""
    spaced = (" " if letter.isspace() else letter for letter in str(text))
    return "".join(letter if letter.isprintable() else "?" for letter in spaced)


def amount(number: float, like: float | None = None) -> str:
    """2911754 -> '2.91 M', in the unit of `like` where that leaves two digits; below 10,000 all digits.

    >>> amount(349_000, like=2_910_000), amount(640)
    ('0.35 M', '640')
    """
    scale = max(abs(number), abs(like)) if like else abs(number)
    if scale < 1e4:
        return f"{number:,.0f}"
    if abs(number) < scale / 20:  # 0.01 M says less than 12.3 k
        scale = abs(number)
    for size, letter in _STEPS:
        if scale >= size:
            return f"{number / size:.2f} {letter}"
    return f"{number:,.0f}"


def percent(share: float) -> str:
    """0.12 -> '12.0 %'."""
    return f"{100 * share:.1f} %"


def share_of(part: float, whole: float) -> str:
    """Part of a whole in percent, '-' where there is no whole."""
    return percent(part / whole) if whole else "-"


def points(value: float) -> str:
    """Signed percentage points with two digits, never '-0.00'."""
    text = f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def interval(low: float, high: float) -> str:
    """Both ends rounded outwards, so that the words never claim more than the numbers."""
    down = math.floor(round(100 * low, 6)) / 100
    up = math.ceil(round(100 * high, 6)) / 100
    return f"[{points(down)}, {points(up)}]"


def file_size(count: float) -> str:
    """Bytes as people read them: '1.40 MB'."""
    for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.2f} {name}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """'0.42 s', '12.3 s', '2 min 05 s'."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def number(value: object, digits: int = 3) -> str:
    """A figure of any size with a few digits; '-' for none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "-" if value is None else plain(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def outcome(record: Record) -> str:
    """One of passed, failed, undecided, nothing to compress, analyzed."""
    if record.mode == "analyze":
        return "analyzed"
    if record.nothing_to_do is not None:
        return "nothing to compress"
    return record.verdict.value if record.verdict else "undecided"


def verdict_line(record: Mapping[str, Any] | Record) -> str:
    """The whole run in one line, outcome first."""
    checked = validate(record)
    found = outcome(checked)
    head = found.upper()
    if found == "analyzed":
        return f"{head}: {findings_sentence(checked)}; nothing was changed"
    if found == "nothing to compress":
        size = amount(checked.original.params)
        return f"{head}: {plain(checked.nothing_to_do)}; the bundle is the original ({size} parameters)"
    return f"{head}: {', '.join(facts(checked))}"


def facts(record: Record) -> list[str]:
    """What the verdict rests on: sizes, then what was measured, then what that means."""
    verdict = record.verdict
    said = [size_change(record)]
    if verdict is None:
        return said
    said += changed_outputs(verdict) if verdict.metric == "outputs" else compared(verdict)
    if verdict.details.get("doubt"):
        said.append(plain(str(verdict.details["doubt"])))
    elif verdict.value == "undecided":
        said.append("too few samples to tell")
    if not record.exported:
        said.append("nothing exported")
    return said


def size_change(record: Record) -> str:
    """'2.91 M -> 0.35 M parameters (12.0 %)'."""
    before = record.original.params
    after = record.compressed.params if record.compressed else before
    return f"{amount(before)} -> {amount(after, like=before)} parameters ({share_of(after, before)})"


def compared(verdict: VerdictPart) -> list[str]:
    """The statistical comparison in words."""
    bounds = interval(verdict.interval[0], verdict.interval[1])
    return [
        f"{plain(verdict.metric)} {verdict.original:.2f} -> {verdict.compressed:.2f}",
        f"difference {points(verdict.difference)} points {bounds} at {100 * verdict.confidence:g} %",
        f"allowed {points(-verdict.allowed)}",
        f"{verdict.samples} samples",
    ]


def changed_outputs(verdict: VerdictPart) -> list[str]:
    """Exact mode in words: how far the outputs moved."""
    change, tolerance = verdict.details.get("max_relative_change"), verdict.details.get("tolerance")
    moved = "outputs not finite" if change is None else f"outputs moved by {number(change)} of their spread"
    return [f"{moved} (tolerance {number(tolerance)})", f"{verdict.samples} samples"]


def findings_sentence(record: Record) -> str:
    """'1,024 units: 500 needed, 300 removable, ...; 64 frozen'."""
    found = record.findings
    counts = [(getattr(found, kind), kind) for kind in KINDS]
    said = ", ".join(f"{count:,} {kind}" for count, kind in counts if count) or "none examined"
    frozen = f"; {found.frozen:,} frozen" if found.frozen else ""
    return f"{found.units:,} units: {said}{frozen}"


def next_step(record: Record, folder: str = "DIR") -> str:
    """What to do now."""
    found = outcome(record)
    if found == "passed":
        again = f"compressor verify {plain(shlex.quote(folder))} --data {_data_words(record)}"
        return f"compressor.load({plain(folder)!r}) gives the network back; judge it again: {again}"
    if found == "failed":
        kept = "" if record.exported else ", or --keep-failed to write it all the same"
        return f"keep more (--keep) or allow a larger --max-drop{kept}"
    if found == "undecided":
        return "judge on more samples, or allow a larger --max-drop"
    if found == "analyzed":
        return "compressor compress with the same MODEL and DATA makes the network smaller"
    if record.mode == "exact":
        return "without --exact, units are removed that cost next to nothing; the verdict says how little"
    return "allow a larger --max-drop, or fix a size with --keep"


def _data_words(record: Record) -> str:
    """The data as they were named on the command line; a recipe's paths are relative to the recipe."""
    source = record.data.described.get("source")
    if not isinstance(source, str) or (record.recipe is not None and (":" in source or "/" in source)):
        return "DATA"
    return plain(shlex.quote(source))


def ablation_sentence(record: Record) -> str | None:
    """How well prediction and real removal agree, None where it was not tried."""
    found = record.ablation
    if found is None or not found.tried:
        return None
    said = f"{len(found.tried)} units were really removed, one at a time: "
    if found.rank_correlation is None:
        said += "too few or too equal to rank"
    else:
        said += f"rank correlation of predicted and measured loss {found.rank_correlation:.2f}"
    if found.confirmed is not None:
        said += f"; {percent(found.confirmed)} of the {number(found.removable)} removable ones confirmed"
    if found.together is not None:
        both = f"predicted {number(found.together.predicted)}, measured {number(found.together.measured)} nats"
        said += f"; all {number(found.together.units)} removable units at once: {both}"
        if found.together.measured > 10 * max(found.together.predicted, 0.0):
            said += " (single predictions miss what units share: how far to go is decided by measured losses)"
    return said


def recovery_sentence(record: Record) -> str | None:
    """What recovery did on the tune split, and what it took; None where there was none."""
    found = record.recover
    if found is None:
        return None
    tune = found.tune
    metric = "agreement with the original" if tune["before"].accuracy is None else "accuracy"
    figures = [
        tuned.agreement if tuned.accuracy is None else tuned.accuracy for tuned in (tune["before"], tune["after"])
    ]
    went = " -> ".join("-" if figure is None else f"{figure:.2f}" for figure in figures)
    nearer = f"{plain(found.measure)} {number(found.before)} -> {number(found.after)}"
    took = f"{found.steps:,} steps, {found.epochs:g} epochs of {found.samples:,} inputs, {duration(found.seconds)}"
    took += f", learning rate {found.rate:.2g} (best of {len(found.pilots)} tried)" if found.pilots else ""
    took += f" in {record.processes} processes" if record.processes > 1 else ""
    what = "Recovered by distillation, without labels" if found.kept else "Recovery did not help and was not kept"
    if found.kept and not found.best_step:
        what = "Recovery came no nearer, and the network is the one from before it"
    return f"{what}: tune {metric} {went}, {nearer}; {took}"


def memory_sentence(record: Record) -> str | None:
    """What did not fit in memory at once, None where everything did."""
    found = record.memory
    if found is None or not (
        found.passes > 1 or found.refit_in_files or found.activations_in_files or found.weights_fetched
    ):
        return None
    times = "one reading" if found.passes == 1 else f"{found.passes} readings"
    said = "Memory" if found.allowed is None else f"Memory of {file_size(found.allowed)}"
    said += f": statistics in {times} of the data"
    if found.activations_in_files:
        said += f", {file_size(found.activations_in_files)} of a batch's activations in files"
    if found.weights_fetched:
        said += f"; {file_size(found.weights_fetched)} of weights lay beside the device, fetched for each operation"
    if found.refit_in_files:
        said += f"; {found.refit_in_files:,} of the refit's {found.refit_samples:,} samples waited in files"
    return said


def rotated_sentences(record: Record) -> list[str]:
    """A line for each residual stream that was asked to become narrower: by how much, or why not."""
    found = record.rotation
    if found is None:
        return []
    said = []
    for one in found.streams:
        kept = f", which keep {percent(min(one.kept_variance.values()))} or more of what its norms give"
        kept = kept if one.kept_variance else ""
        said.append(f"Rotated: the stream of '{plain(one.name)}', {one.before:,} -> {one.after:,} features{kept}")
    return said + [f"Not rotated: the stream of '{plain(name)}': {plain(why)}" for name, why in found.refused.items()]


def clocked_sentence(record: Record) -> str | None:
    """How the latency that was asked for was met, None where none was asked for."""
    found = record.latency
    if found is None:
        return None
    said = f"Latency: {percent(found.asked)} asked for, {percent(found.predicted)} predicted from "
    if found.measured is None or found.interval is None:
        return f"{said}the layer times of {plain(found.given)}, which were not measured here"
    low, high = found.interval
    said += "measured layer times"
    said += f", {percent(found.measured)} measured [{percent(low)}, {percent(high)}]"
    if len(found.tried) > 1:
        said += f" after {len(found.tried) - 1} corrections" if len(found.tried) > 2 else " after one correction"
    return said


def variant_sentences(record: Record) -> list[str]:
    """A line for each variant of the ONNX file in lower precision: verdict, size and latency against the original."""
    lines, onnx = [], record.onnx
    for one in onnx.variants if onnx else ():
        verdict = one.verdict
        size = file_size(one.bytes)
        if onnx and onnx.original_bytes:
            size += f" ({share_of(one.bytes, onnx.original_bytes)} of the original's)"
        said = f"{one.precision} file {plain(one.path)}: {verdict.value}, {points(verdict.difference)} points "
        said += f"{interval(verdict.interval[0], verdict.interval[1])}, {size}"
        if one.latency_ratio is not None and one.latency_interval is not None:
            low, high = one.latency_interval
            said += f", latency {percent(one.latency_ratio)} [{percent(low)}, {percent(high)}]"
        lines.append(said)
    return lines


def candidates(record: Record) -> list[tuple[str, Candidate]]:
    """The search from the largest to the smallest; the one that this record is about has a mark."""
    mark = "selected" if outcome(record) == "passed" else "this one"
    ordered = sorted(record.search, key=lambda candidate: (-candidate.params, -candidate.macs))
    return [(mark if candidate.selected else "", candidate) for candidate in ordered]


def nearness(record: Record) -> list[tuple[str, str]]:
    """Lines about the outputs next to the original's: name and figure."""
    near = record.fidelity or {}
    lines: list[tuple[str, str]] = []
    if near.get("agreement") is not None:
        lines.append(("same answer as the original", f"{number(near['agreement'], 5)} %"))
    if near.get("kl") is not None:
        lines.append(("mean KL divergence", f"{number(near['kl'])} nats"))
    if near.get("max_abs_change") is not None:
        relative = f" ({number(near.get('max_relative_change'))} of their spread)"
        lines.append(("largest change of an output", f"{number(near['max_abs_change'])}{relative}"))
    if near.get("not_finite"):
        lines.append(("outputs that are not finite", number(near["not_finite"])))
    worst = near.get("worst_class")
    if isinstance(worst, dict):
        shares = f"{number(worst.get('original'), 4)} -> {number(worst.get('compressed'), 4)} %"
        label, count = number(worst.get("label")), number(worst.get("samples"))
        lines.append(("class that lost most", f"class {label}: {shares} ({count} samples)"))
    return lines

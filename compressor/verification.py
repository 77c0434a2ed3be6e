"""Judging a bundle again: network and ONNX file against the original that the record names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn

from compressor.errors import SourceError
from compressor.export.bundle import load_bundle
from compressor.export.files import PRECISIONS, VARIANTS
from compressor.export.manifest import MANIFEST, WEIGHTS, read_manifest
from compressor.export.precision import file_name
from compressor.questions import Question, rejudged
from compressor.records import Verdict, VerdictValue
from compressor.report.record import Record, read_record
from compressor.sources.checkpoint import file_sha256
from compressor.sources.consent import refuse_unknown_spec
from compressor.sources.data import load_data
from compressor.sources.models import LoadedModel, load_model, refuse_changed_file
from compressor.sources.samples import Samples, as_samples
from compressor.verify.accuracy import outputs_of
from compressor.verify.scores import Score, load_score

ONNX = "model.onnx"
RECORD = "record.json"
REPORT = "report.html"
ORIGINAL = "original.safetensors"
"""Where a run that trained its network keeps the original's weights."""
HASHED = (WEIGHTS, MANIFEST, ONNX, *VARIANTS, ORIGINAL)
"""Files whose sha256 the record holds."""
SEVERITY: Mapping[VerdictValue, int] = {"passed": 0, "undecided": 1, "failed": 2}


@dataclass(frozen=True)
class Verification:
    """Verdicts on the bundle's network and, if it has one, on its ONNX file."""

    verdict: Verdict
    onnx_verdict: Verdict | None
    samples: int
    files: tuple[str, ...] = ()
    """Those that were compared with the record and are unchanged."""
    variants: Mapping[str, Verdict] = field(default_factory=dict)
    """Verdicts on the files in lower precision, by their names; those that failed in the run are left out."""
    same_data: bool = False
    """Whether these are the very samples that judged the run."""

    @property
    def worst(self) -> Verdict:
        """The first failed verdict of the network and its files, else the first undecided one, else the network's."""
        files = [self.verdict, *([] if self.onnx_verdict is None else [self.onnx_verdict]), *self.variants.values()]
        return max(files, key=lambda verdict: SEVERITY[verdict.value])  # of equals the first

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        onnx = None if self.onnx_verdict is None else self.onnx_verdict.as_dict()
        return {
            "verdict": self.verdict.as_dict(), "onnx_verdict": onnx, "samples": self.samples,
            "variants": {name: verdict.as_dict() for name, verdict in self.variants.items()},
            "files_unchanged": list(self.files), "same_judge_data": self.same_data,
        }  # fmt: skip


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of each file of HASHED that is in the folder."""
    return {name: file_sha256(folder / name) for name in HASHED if (folder / name).is_file()}


def open_bundle(folder: str | Path, factory: Callable[..., nn.Module] | None = None) -> nn.Module:
    """The compressed network of a bundle, in eval mode; see `export.bundle.load_bundle`.

    SourceError where its network was handed over in Python, so that only `factory` can build it again.
    """
    folder = Path(folder).expanduser()
    source = read_manifest(folder).source
    if factory is None and source.get("kind") == "object":
        raise SourceError(
            f"bundle '{folder}'",
            f"a network that was handed over in Python ({source.get('spec')})",
            "the function that builds the original network",
            "call compressor.load(DIR, factory=callable), or compress `file.py:factory` to need none.",
        )
    return load_bundle(folder, factory=factory)


def verify_bundle(
    folder: Path,
    data: Any,
    *,
    factory: Callable[..., nn.Module] | None = None,
    original: nn.Module | LoadedModel | None = None,
    checkpoint: str | Path | None = None,
    metric: Callable[..., Any] | None = None,
) -> Verification:
    """Judge the bundle in `folder` on all of `data` (anything `as_samples` takes), as its record asked.

    Raises SourceError where files are not those of the record, or the original cannot be had.
    """
    record = recorded(folder)
    if record.verdict is None:
        raise SourceError(f"record of '{folder}'", "no verdict", "the record of a compression", "name its folder.")
    unchanged = _refuse_changed_files(folder, record)
    score = score_of(folder, record, metric)
    small = open_bundle(folder, factory)
    samples: Samples = as_samples(data, "judge data")
    whole = original if original is not None else original_of(folder, record, checkpoint)
    given = whole.answers is not None if isinstance(whole, LoadedModel) else False
    whole = (whole.answers or whole.model) if isinstance(whole, LoadedModel) else whole
    before = outputs_of(whole, samples)
    verdict = rejudged(before, outputs_of(small, samples, check=False), record.verdict, given, score, samples.hashes)
    files = [file for file in (folder / file_name(precision) for precision in PRECISIONS) if file.is_file()]
    allowed = allowed_by(folder, record) if files else (record.verdict.allowed, record.verdict.confidence)
    question = Question(before, samples, record.verdict, *allowed, score)
    onnx = question.put(folder / ONNX) if (folder / ONNX).is_file() else None
    variants = {file.name: question.put(file, lower=True) for file in files}
    same = samples.fingerprint == record.data.judge
    return Verification(verdict, onnx, len(samples), unchanged, variants, same)


def verify_named(
    folder: Path, data: str, seed: int | None = None, checkpoint: str | Path | None = None
) -> Verification:
    """The same on the judge part of the data that a DATA spec names, prepared as the original's weights need it.

    `seed` says how the data is cut; None as in the run.
    """
    record = recorded(folder)
    original = original_of(folder, record, checkpoint)
    used = record.seed if seed is None else seed
    samples = load_data(data, seed=used, transform=original.transform).judge
    return verify_bundle(folder, samples, original=original, checkpoint=checkpoint)


def score_of(folder: Path, record: Record, metric: Callable[..., Any] | None = None) -> Score | None:
    """What the record says that answers are judged by; `metric` where it was handed over in Python."""
    spec = record.options.get("metric")
    low, high = _limits(folder, record.options.get("metric_range", [0.0, 1.0]))
    if record.verdict is None or record.verdict.metric == "outputs" or spec is None:
        return None
    if metric is not None:
        return Score(str(spec), metric, low, high)
    base = Path(str((record.request or {}).get("base", ".")))
    refuse_unknown_spec(str(spec), f"record of '{folder}', metric", base)
    return load_score(str(spec), low, high, base)


def allowed_by(folder: Path, record: Record) -> tuple[float, float]:
    """What the run could lose, and its confidence. SourceError where the record has none that can be asked for."""
    if record.verdict is not None and record.verdict.metric != "outputs":
        return record.verdict.allowed, record.verdict.confidence
    found = [record.options.get("max_drop"), record.options.get("confidence")]
    drop, confidence = _pair(f"record of '{folder}', max_drop and confidence", found, "two numbers")
    if not (0 <= drop < 100 and 0.5 <= confidence < 1):
        where = f"record of '{folder}', max_drop and confidence"
        raise SourceError(where, f"{drop:g} and {confidence:g}", "0 to 100, and 0.5 to 1", "compress again.")
    return drop, confidence


def _limits(folder: Path, found: object) -> tuple[float, float]:
    return _pair(f"record of '{folder}', metric_range", found, "the lowest and the highest score")


def _pair(where: str, found: object, expected: str) -> tuple[float, float]:
    try:
        return TypeAdapter(tuple[float, float]).validate_python(found)
    except ValidationError:
        raise SourceError(where, f"{found!r:.60}", expected, "compress again.") from None


def recorded(folder: Path) -> Record:
    """The record of a bundle folder. SourceError where there is none, or nothing was exported."""
    if not (folder / RECORD).is_file():
        got = "no record.json" if folder.is_dir() else "a file" if folder.is_file() else "no such folder"
        inside = folder.is_file() and (folder.parent / RECORD).is_file()
        next_step = f"name its folder, '{folder.parent}'." if inside else _points_of(folder) or "check the path."
        raise SourceError(f"bundle '{folder}'", got, "a folder that `compressor compress` wrote", next_step)
    record = read_record(folder / RECORD)
    if not (folder / MANIFEST).is_file():
        _refuse_changed_files(folder, record)  # where one was exported, it is missing
        analyzed = record.mode == "analyze"
        raise SourceError(
            f"bundle '{folder}'",
            "an analysis, which makes no network" if analyzed else "a record, but no network (nothing was exported)",
            "an exported bundle",
            "`compressor compress` with the same MODEL and DATA makes one."
            if analyzed
            else "repeat the run with --force --keep-failed to export a network whose verdict failed.",
        )
    return record


def _points_of(folder: Path) -> str | None:
    """What to name where a folder of bundles (a frontier's) was named; None where there are none in it."""
    inside = sorted(record.parent for record in folder.glob(f"*/{RECORD}"))
    return f"name one of the {len(inside)} in it, for example '{inside[0]}'." if inside else None


def original_of(folder: Path, record: Record, checkpoint: str | Path | None = None) -> LoadedModel:
    """The original network with its weights, from what the record names; works from any directory.

    Raises SourceError where it cannot be had, or is another one than was compressed.
    """
    if record.source.get("kind") == "object" or not record.source.get("spec"):
        raise SourceError(
            f"original of '{folder}'", "a network that was handed over in Python", "a source that can be loaded",
            "call compressor.verify(DIR, data, factory=callable, original=model) from Python.",
        )  # fmt: skip
    weights = _weights_of(folder, record, checkpoint)
    source = record.source
    refuse_changed_file(
        source.get("kind"), source.get("place"), source.get("sha256"),
        "restore it, or give the code and the original yourself: verify(DIR, data, factory=callable, original=model).",
    )  # fmt: skip
    spec = _anywhere(source)
    refuse_unknown_spec(spec, f"record of '{folder}', source")
    return load_model(spec, weights, seed=record.seed, load_bundle=open_bundle)


def _weights_of(folder: Path, record: Record, checkpoint: str | Path | None) -> Path | None:
    """The file with the original's weights: the one named now, the record's, or one that the run trained; None where it
    was compressed with those of its source."""
    own, said = folder / ORIGINAL, record.options.get("checkpoint")
    weights = Path(checkpoint or str(said)) if checkpoint or said else own if own.is_file() else None
    if weights is not None and not checkpoint and not weights.exists():
        raise SourceError(
            f"checkpoint {weights}", "no such file", "the original's weights, where they were when it was compressed",
            "tell where they are now: --checkpoint FILE (in Python: original=model).",
        )  # fmt: skip
    known = record.options.get("checkpoint_sha256")
    if weights is not None and weights != own and known is not None and weights.is_file():
        found = file_sha256(weights)
        if found != known:
            raise SourceError(
                f"checkpoint {weights}", f"sha256 {found[:12]}...", f"{str(known)[:12]}..., as when it was compressed",
                "give the original's file with --checkpoint.",
            )  # fmt: skip
    return weights


def _anywhere(source: Mapping[str, Any]) -> str:
    """The source's spec with absolute paths, so that it is found from any directory."""
    kind, place, name = source.get("kind"), source.get("place"), source.get("name")
    if kind not in ("file", "package"):
        return str(place if kind == "bundle" else source["spec"])
    arguments = source.get("arguments")
    pairs = "&".join(f"{key}={value}" for key, value in (arguments if isinstance(arguments, dict) else {}).items())
    return f"{place}:{name}?{pairs}" if pairs else f"{place}:{name}"


def _refuse_changed_files(folder: Path, record: Record) -> tuple[str, ...]:
    """The record's files, which are all there and unchanged; SourceError for the first that is not."""
    known = record.files
    for name, sha256 in known.items():
        path = folder / Path(name).name
        found = file_sha256(path) if path.is_file() else None
        if found != sha256:
            raise SourceError(
                f"'{path}'",
                "no such file" if found is None else f"another file (sha256 {found[:12]}...)",
                f"the file that was judged (sha256 {str(sha256)[:12]}...)",
                "restore it, or repeat the run with --resume.",
            )
    return tuple(known)

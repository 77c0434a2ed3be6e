"""Recipes, manifests and records: tags, bombs, and names of code that nobody but the file has named."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import struct
from functools import partial
from pathlib import Path
from typing import Any

from corpus import CANARY, added, attack
from report_samples import passed

from compressor.report.record import validate

EVIL = f"import os\nos.mkdir({CANARY!r})\n\ndef net(**_):\n    os.mkdir({CANARY!r})\n\ndata = net\n"


def _recipe(folder: Path, text: str | bytes) -> list[str]:
    (folder / "r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return ["run", "r.yaml", "--out", "out"]


_WHOLE = "model: digits.py:net\ndata: digits\n"
_LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
for _name, _text in {
    "a tag that calls": f"model: !!python/object/apply:os.mkdir [{CANARY}]\ndata: digits\n",
    "a tag that makes an object": "model: !!python/object:subprocess.Popen {}\ndata: digits\n",
    "a tag that names": "model: !!python/name:os.system\ndata: digits\n",
    "a tag that imports": f"model: !!python/module:{CANARY}\ndata: digits\n",
    "a tag of its own": "model: !evil x\ndata: digits\n",
    "a bomb of aliases": _LAUGHS,
    "an alias of itself": "model: &a [*a]\n",
    "merged keys": "x: &x {a: 1}\nmodel: {<<: *x}\n",
    "deep nesting": "model: " + "[" * 90_000,
    "deep nesting in blocks": "".join("  " * i + "a:\n" for i in range(300)),
    "a huge text": _WHOLE + "description: " + "x" * 250_000,
    "many keys": "".join(f"k{i}: 1\n" for i in range(4000)),
    "a number that overflows": _WHOLE + "compress: {max_drop: 1e999}\n",
    "a number of many digits": _WHOLE + "compress: {seed: " + "9" * 9000 + "}\n",
    "a number to the base 60": _WHOLE + "compress: {seed: " + "1:" * 20_000 + "1}\n",
    "a date that is none": _WHOLE + "compress: {seed: 2024-99-99}\n",
    "binary that is none": "model: !!binary '****'\n",
    "keys that are lists": "? [model]\n: x\n",
    "keys that are mappings": "? {a: b}\n: x\n",
    "nulls": b"model: \x00\ndata: digits\n",
    "no UTF-8": b"\xff\xfe\xfd\xfc",
    "surrogates": b"model: \xed\xa0\x80\ndata: digits\n",
    "control characters": "model: 'a\\x1b]0;owned\\x07'\ndata: digits\nevil: 1\n",
    "several documents": "model: a\n---\nmodel: b\n",
    "a list": "- model\n",
}.items():
    added("YAML", _name, partial(_recipe, text=_text), 2)


_MKDIR = f"os:mkdir?path={CANARY}"
for _name, _text in {
    "a model of an installed package": f"model: {_MKDIR}\ndata: digits\n",
    "a model's arguments elsewhere": f"model: os:mkdir\nmodel_args: {{path: {CANARY}}}\ndata: digits\n",
    "data of an installed package": f"model: torchvision:resnet18?weights=none\ndata: {_MKDIR}\n",
    "a method of an installed package": f"{_WHOLE}compare: {{methods: {{x: '{_MKDIR}'}}, sizes: [0.5]}}\n",
    "unlabelled data of an installed package": f"{_WHOLE}compress: {{recover: 1ep, unlabelled: '{_MKDIR}'}}\n",
    "a setting of a ladder": f"model: os:mkdir\ndata: digits\ncapacity: {{widths: [1, 2], settings: "
    f"{{a: {{model_args: {{path: {CANARY}}}}}}}}}\n",
    "a file of the standard library": f"model: {os.__file__}:mkdir?path={CANARY}\ndata: digits\n",
    "a file of another folder": "model: ../../elsewhere/evil.py:net\ndata: digits\n",
}.items():
    added("YAML", _name, partial(_recipe, text=_text))


@attack("YAML")
def a_link_to_a_file_of_another_folder(folder: Path) -> list[str]:
    (folder / "other").mkdir()
    (folder / "other" / "evil.py").write_text(EVIL)
    (folder / "near.py").symlink_to(folder / "other" / "evil.py")
    return _recipe(folder, "model: near.py:net\ndata: digits\n")


def _weights() -> bytes:
    """A safetensors file with one tensor `weight` of shape (4, 6)."""
    header = json.dumps({"weight": {"dtype": "F32", "shape": [4, 6], "data_offsets": [0, 96]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(96)


def _bundle(folder: Path, source: Any, **changes: Any) -> None:
    """A bundle in `folder/bundle` whose manifest has this source."""
    place, content = folder / "bundle", _weights()
    place.mkdir()
    (place / "model.safetensors").write_bytes(content)
    weights = {"file": "model.safetensors", "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    manifest = {"schema_version": 1, "source": source, "weights": weights, "widths": {}, "tied": {}, "transient": []}
    manifest = {**manifest, **changes}
    manifest["weights"] = {**weights, **changes.get("weights", {})}
    (place / "manifest.json").write_text(json.dumps(manifest))


def _evil_file(folder: Path, name: str = "evil.py") -> tuple[str, str]:
    path = folder / name
    path.write_text(EVIL)
    return str(path.resolve()), hashlib.sha256(path.read_bytes()).hexdigest()


def _source(kind: str, place: str, name: str = "", **more: Any) -> dict[str, Any]:
    spec = f"{place}:{name}" if name else place
    return {"spec": spec, "kind": kind, "place": place, "name": name, "arguments": {}, "sha256": None, **more}


INSPECT = ["inspect", "bundle", "--input", "6"]


@attack("bundle")
def manifest_names_a_file_with_its_right_hash(folder: Path) -> list[str]:
    place, mark = _evil_file(folder)
    _bundle(folder, _source("file", place, "net", sha256=mark))
    return INSPECT


@attack("bundle")
def manifest_names_a_file_inside_the_bundle(folder: Path) -> list[str]:
    _bundle(folder, {})
    place, mark = _evil_file(folder / "bundle")
    (folder / "bundle" / "manifest.json").unlink()
    (folder / "bundle" / "model.safetensors").unlink()
    (folder / "bundle").rename(folder / "other")
    _bundle(folder, _source("file", place.replace("bundle", "other"), "net", sha256=mark))
    return INSPECT


def _package(folder: Path, place: str, name: str, arguments: dict[str, Any]) -> list[str]:
    _evil_file(folder)
    _bundle(folder, _source("package", place, name, arguments=arguments))
    return INSPECT


for _name, _place, _function, _arguments in [
    ("os.mkdir", "os", "mkdir", {"path": CANARY}),
    ("os.system", "os", "system", {"command": f"touch {CANARY}"}),
    ("subprocess", "subprocess", "getoutput", {"cmd": f"touch {CANARY}"}),
    ("eval", "builtins", "eval", {"source": f"open('{CANARY}', 'w')"}),
    ("a module of the working directory", "evil", "net", {}),
]:
    added("bundle", f"manifest names {_name}", partial(_package, place=_place, name=_function, arguments=_arguments))


def _faulty(folder: Path, source: Any, changes: dict[str, Any]) -> list[str]:
    _bundle(folder, source, **changes)
    return INSPECT


_TV = partial(_source, "torchvision", "resnet18")
for _name, _source_of, _changes in [
    ("weights of another path", _TV(), {"weights": {"file": "../../etc/passwd"}}),
    ("an absolute path", _TV(), {"weights": {"file": "/etc/passwd"}}),
    ("a source of another kind", _source("shell", "touch ran"), {}),
    ("a source with more keys", {**_TV(), "run": "touch ran"}, {}),
    ("a source that is a list", [1, 2], {}),
    ("torchvision with a trillion classes", _TV(arguments={"num_classes": 10**12}), {}),
    ("torchvision with trained weights", _TV(arguments={"weights": "DEFAULT"}), {}),
    ("torchvision with a text for a layer", _TV(arguments={"norm_layer": "os.system"}), {}),
    ("torchvision of no such name", _source("torchvision", "os.system"), {}),
    ("torchvision of a private name", _source("torchvision", "__builtins__"), {}),
    ("widths of 2^40", _TV(), {"widths": {"changed": {"fc.weight": {"before": [1000, 512], "after": [2**40, 512]}}}}),
    ("negative widths", _TV(), {"widths": {"changed": {"fc.weight": {"before": [1000, 512], "after": [-1, 512]}}}}),
    ("an unknown attribute", _TV(), {"widths": {"attributes": {"fc": {"forward": {"before": 1, "after": 2}}}}}),
    ("names with path parts", _TV(), {"transient": ["../../ran"]}),
    ("names with control characters", _TV(), {"tied": {"a\x1b[2J": "b\x00"}}),
    ("a name that is tied to itself", _TV(), {"tied": {"weight": "weight"}}),
    ("another schema", _TV(), {"schema_version": 99}),
    ("unknown keys", _TV(), {"run": "touch ran"}),
]:  # fmt: skip
    added("bundle", f"manifest: {_name}", partial(_faulty, source=_source_of, changes=_changes))


def _raw_manifest(folder: Path, content: bytes) -> list[str]:
    _bundle(folder, {})
    (folder / "bundle" / "manifest.json").write_bytes(content)
    return INSPECT


for _name, _content in {
    "deep JSON": b"[" * 200_000,
    "deep objects": b'{"source":' * 50_000,
    "no UTF-8": b"\xff\xfe{}",
    "surrogates": b'{"schema_version": 1, "\\ud800": "\\udfff"}',
    "not a number": b'{"schema_version": NaN}',
    "a number of many digits": b'{"schema_version": ' + b"9" * 100_000 + b"}",
    "nothing": b"",
}.items():
    added("bundle", f"manifest of {_name}", partial(_raw_manifest, content=_content))


@attack("bundle")
def manifest_of_a_gigabyte(folder: Path) -> list[str]:
    _bundle(folder, {})
    os.truncate(folder / "bundle" / "manifest.json", 2**30)
    return INSPECT


def _record(folder: Path, source: Any, verb: str, **changes: Any) -> list[str]:
    """A bundle with a record that names other code than its manifest."""
    _bundle(folder, _TV())
    record = passed(source=source, files={}, threads=1, **changes)
    validate(copy.deepcopy(record))
    (folder / "bundle" / "record.json").write_text(json.dumps(record))
    return ["verify", "bundle", "--data", "digits"] if verb == "verify" else ["replay", "bundle"]


def _request(folder: Path, model: str, data: str) -> list[str]:
    _evil_file(folder)
    asked = {"model": model, "data": data, "checkpoint": None, "base": str(folder), "train": None, "onnx": False}
    options = {"keep": "params=0.5", "align": 1, "exact": False, "recover": None, "seed": 0}
    return _record(folder, _TV(), "replay", request=asked, options=options, recipe=None)


for _name, _model, _data in [
    ("model", "evil.py:net", "digits"),
    ("model by package", "evil:net", "digits"),
    ("data", "torchvision:resnet18?weights=none", "evil.py:data"),
    ("os.mkdir as data", "torchvision:resnet18?weights=none", f"os:mkdir?path={CANARY}"),
    ("arguments that are none", "evil.py:net?x", "digits"),
]:
    added("record", f"replay of its {_name}", partial(_request, model=_model, data=_data))


def _threads(folder: Path, count: int) -> list[str]:
    words = _request(folder, "torchvision:resnet18?weights=none", "digits")
    path = folder / "bundle" / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "threads": count}))
    return words


added("record", "replay on a billion threads", partial(_threads, count=10**9))


@attack("record")
def files_outside_the_bundle(folder: Path) -> list[str]:
    _record(folder, _TV(), "verify")
    path = folder / "bundle" / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": {"../../../etc/passwd": "0" * 64}}))
    return ["verify", "bundle", "--data", "digits"]


@attack("record")
def files_that_are_no_hashes(folder: Path) -> list[str]:
    _record(folder, _TV(), "verify")
    path = folder / "bundle" / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": [1, 2]}))
    return ["verify", "bundle", "--data", "digits"]


@attack("record")
def deep_record(folder: Path) -> list[str]:
    _record(folder, _TV(), "verify")
    (folder / "bundle" / "record.json").write_bytes(b"[" * 200_000)
    return ["verify", "bundle", "--data", "digits"]


def _original(folder: Path, kind: str, place: str, spec: str) -> list[str]:
    """`verify` after a manifest that can be loaded: the record's source is what lies."""
    _evil_file(folder)
    words = _record(folder, {**_source(kind, place), "spec": spec}, "verify")
    return ["original_of", *words]


for _name, _kind, _place, _spec in [
    ("a spec that says another thing than its kind", "torchvision", "resnet18", "evil.py:net"),
    ("a bundle that is a file", "bundle", "evil.py:net", "bundle"),
    ("a file", "file", "evil.py", "evil.py:net"),
    ("an unknown kind", "x", "y", "evil.py:net"),
]:
    added("record", f"verify of {_name}", partial(_original, kind=_kind, place=_place, spec=_spec))

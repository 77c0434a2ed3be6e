"""Bundles: missing, damaged and hostile files are refused before memory is taken."""

from __future__ import annotations

import copy
import json
import os
import pickle

import pytest
import torch
from bundle_samples import SOURCE, Net, edit, replace_weights, trained
from safetensors.torch import load_file

from compressor.errors import SourceError
from compressor.export import bundle
from compressor.export.bundle import load_bundle, save_bundle
from compressor.export.manifest import parse_manifest, read_manifest
from compressor.export.widths import rebuild


def test_missing_and_damaged_files_are_refused(saved, tmp_path):
    folder, _, _ = saved
    with pytest.raises(SourceError, match=r"nowhere.*manifest\.json"):
        load_bundle(tmp_path / "nowhere", factory=Net)
    whole = (folder / "model.safetensors").read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(SourceError, match=r"bytes|sha256") as caught:
            load_bundle(folder, factory=Net)
        assert caught.value.exit_code == 3
    (folder / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="No such file"):
        load_bundle(folder, factory=Net)


def test_a_killed_save_leaves_the_old_bundle_or_is_noticed(saved, monkeypatch):
    folder, original, _ = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(os, "replace", _die)
    with pytest.raises(KeyboardInterrupt):
        save_bundle(folder, trained(Net(4, 2)), original, SOURCE)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    monkeypatch.undo()
    monkeypatch.setattr(bundle, "write_json", _die)
    with pytest.raises(KeyboardInterrupt):
        save_bundle(folder, trained(Net(4, 2)), original, SOURCE)
    with pytest.raises(SourceError, match="manifest"):
        load_bundle(folder, factory=Net)


def _die(*_: object) -> None:
    raise KeyboardInterrupt


HUGE = 2**39


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": 2},
        {"schema_version": "1"},
        {"schema_version": True},
        {"surprise": 1},
        {"weights__file": "../model.safetensors"},
        {"weights__file": "/etc/passwd"},
        {"weights__sha256": "0" * 63},
        {"weights__sha256": "0" * 64},
        {"weights__bytes": -1},
        {"widths__changed": {"stem.weight": {"before": [8, 1, 3, 3], "after": [-5, 1, 3, 3]}}},
        {"widths__changed": {"stem.weight": {"before": [8, 1, 3, 3], "after": [HUGE, 1, 3, 3]}}},
        {"widths__changed": {"stem.weight": {"before": [8, 1, 3, 3], "after": [2**62, 1, 3, 3]}}},
        {"widths__changed": {"stem.weight": {"before": [8, 1, 3, 3], "after": [1.5, 1, 3, 3]}}},
        {"widths__changed": {"stem.weight": {"before": [8, 1, 3, 3], "after": [1] * 9}}},
        {"widths__changed": {"stem.weight": {"before": [8, 1, 3, 3], "after": [4, 1, 3, 3]}}},
        {"widths__changed": {}},
        {"widths__changed": {"../stem.weight": {"before": [8], "after": [5]}}},
        {"widths__changed": {"stem.__class__": {"before": [8], "after": [5]}}},
        {"widths__added": {"forward": {"shape": [3], "kind": "parameter"}}},
        {"widths__added": {"block.up/1.forward": {"shape": [3], "kind": "buffer"}}},
        {"widths__added": {"block.up/1.bias": {"shape": [HUGE], "kind": "parameter"}}},
        {"widths__added": {"block.up/1.bias": {"shape": [3], "kind": "method"}}},
        {"widths__added": {"": {"shape": [3], "kind": "parameter"}}},
        {"widths__removed": ["head.bias"]},
        {"widths__removed": ["nothing.here"]},
        {"widths__attributes": {"stem": {"training": {"before": 1, "after": 0}}}},
        {"widths__attributes": {"stem": {"out_channels": {"before": 8, "after": -1}}}},
        {"widths__attributes": {"stem": {"out_channels": {"before": 8, "after": [5]}}}},
        {"widths__attributes": {"stem": {"in_features": {"before": 8, "after": 5}}}},
        {"widths__attributes": {"no.such": {"out_channels": {"before": 8, "after": 5}}}},
        {"tied": {"head.bias": "stem.weight"}},
        {"tied": {"a": "b"}},
        {"tied": {"a": "b", "b": "stem.weight"}},
        {"transient": ["head.bias"]},
        {"transient": ["nothing"]},
        {"source": []},
    ],
    ids=lambda changes: str(changes)[:70],
)
def test_hostile_manifests_are_source_errors(saved, changes):
    folder, _, _ = saved
    edit(folder, **changes)
    with pytest.raises(SourceError) as caught:
        load_bundle(folder, factory=Net)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"null", b"[" * 100000, b'{"schema_version": NaN}', b"{}"])
def test_manifests_that_are_none_are_source_errors(saved, content):
    folder, _, _ = saved
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(SourceError, match=r"manifest\.json"):
        load_bundle(folder, factory=Net)


def test_a_manifest_that_agrees_with_a_wrong_file_is_refused_before_memory_is_taken(saved):
    """Extra tensors, wrong shapes, integers in a weight's place: checked against the network too."""
    folder, _, _ = saved
    good = load_file(folder / "model.safetensors")
    for changes in (
        {"extra": torch.zeros(3)},
        {"head.bias": torch.zeros(11)},
        {"stem.weight": torch.zeros(6, 1, 3, 3)},
        {"head.weight": torch.zeros(10, 5, dtype=torch.int64)},
        {"norm.num_batches_tracked": torch.tensor(0.5)},
    ):
        replace_weights(folder, {**good, **changes})
        with pytest.raises(SourceError):
            load_bundle(folder, factory=Net)
    replace_weights(folder, {name: value for name, value in good.items() if name != "head.bias"})
    with pytest.raises(SourceError, match=r"missing: head\.bias"):
        load_bundle(folder, factory=Net)
    replace_weights(folder, good)
    load_bundle(folder, factory=Net)


def test_rebuild_alone_refuses_what_is_larger_than_its_original(saved):
    folder, original, _ = saved
    plain = json.loads((folder / "manifest.json").read_text())
    for name, shape in (("stem.weight", [HUGE, 1, 3, 3]), ("head.weight", [10, 2000])):
        hostile = copy.deepcopy(plain)
        hostile["widths"]["changed"][name]["after"] = shape
        with pytest.raises(SourceError, match="no larger than its original"):
            rebuild(original, hostile)


def test_not_a_safetensors_file(saved):
    folder, _, _ = saved
    path = folder / "model.safetensors"
    for content in (b"", b"\x00" * 40, pickle.dumps({"a": 1}), b"\xff" * 8 + b"{}"):
        path.write_bytes(content)
        edit(folder, weights__sha256=bundle._sha256(path), weights__bytes=len(content))
        with pytest.raises(SourceError, match="safetensors"):
            load_bundle(folder, factory=Net)


def test_a_newer_schema_says_so(saved):
    folder, _, _ = saved
    edit(folder, schema_version=2)
    with pytest.raises(SourceError, match="newer one"):
        read_manifest(folder)
    with pytest.raises(SourceError, match="schema_version"):
        parse_manifest({"schema_version": 1.5})

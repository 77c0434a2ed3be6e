"""Bundles: round trips of every kind of change, ties and dtypes, and hostile or damaged folders."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compressor.errors import ModelError, SourceError
from compressor.export import bundle
from compressor.export.bundle import load_bundle, save_bundle
from compressor.export.manifest import parse_manifest, read_manifest
from compressor.export.widths import compare, rebuild
from compressor.sources.models import LoadedModel, load_model

SOURCE = {"kind": "file", "place": "nets.py", "name": "net", "arguments": {}}


class Net(nn.Module):
    """Conv with norm and a residual block, without conv biases, so that an offset needs a new one."""

    def __init__(self, width: int = 8, inner: int = 6, bias: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.block = nn.ModuleDict(
            {
                "up/1": nn.Conv2d(width, inner, 1, bias=bias),
                "depth": nn.Conv2d(inner, inner, 3, padding=1, groups=inner),
                "down": nn.Conv2d(inner, width, 1, bias=False),
            }
        )
        self.ln = nn.LayerNorm([width])
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = self.block["down"](self.block["depth"](torch.relu(self.block["up/1"](x))))
        return self.head(self.ln((x + y).mean((2, 3))))


class Tied(nn.Module):
    """An embedding that is also the output layer, one module under two names, and buffers of both kinds."""

    scale: Tensor
    mask: Tensor

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.out = nn.Linear(width, 11, bias=False)
        self.out.weight = self.embed.weight
        self.first = nn.Linear(width, width)
        self.again = self.first
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("mask", torch.arange(width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.again(self.first(self.embed(x))) * self.scale * (self.mask + 1))


def trained(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network with other than its initial numbers everywhere, running statistics included."""
    generator = torch.Generator().manual_seed(seed)
    for value in [*net.parameters(), *net.buffers()]:
        if value.is_floating_point():
            value.data = (torch.rand(value.shape, generator=generator) + 0.1).to(value.dtype)
    return net


def state_of(net: nn.Module) -> dict[str, bytes]:
    every = {**net.state_dict(), **dict(net.named_buffers())}
    return {name: pickle.dumps((v.dtype, v.shape, v.float().numpy().tobytes())) for name, v in every.items()}


@pytest.fixture
def saved(tmp_path):
    original, small = trained(Net()), trained(Net(5, 3, bias=True), seed=1)
    save_bundle(tmp_path, small, original, SOURCE)
    return tmp_path, original, small


def edit(folder, **changes):
    """Put values into the manifest by dotted path."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for path, value in changes.items():
        *way, last = path.split("__")
        place = manifest
        for part in way:
            place = place[part]
        place[last] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))


def replace_weights(folder, tensors):
    """Another safetensors file under an honest hash: whoever can write one file can write both."""
    save_file(tensors, folder / "model.safetensors")
    path = folder / "model.safetensors"
    edit(folder, weights__sha256=bundle._sha256(path), weights__bytes=path.stat().st_size)


def test_round_trip_gives_the_same_network_bit_for_bit(saved):
    folder, _, small = saved
    before = state_of(small)
    loaded = load_bundle(folder, factory=Net)
    assert state_of(loaded) == before
    assert type(loaded) is Net
    assert not loaded.training
    assert (loaded.stem.out_channels, loaded.norm.num_features, loaded.head.in_features) == (5, 5, 5)
    assert (loaded.block["depth"].groups, loaded.ln.normalized_shape) == (3, (5,))
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(loaded(x), small.eval()(x))
    loaded(x).sum().backward()
    assert loaded.block["up/1"].bias.grad is not None


def test_the_manifest_says_what_differs(saved):
    folder, _, _ = saved
    manifest = json.loads((folder / "manifest.json").read_text())
    widths = manifest["widths"]
    assert manifest["schema_version"] == 1
    assert manifest["source"] == SOURCE
    assert widths["changed"]["block.depth.weight"] == {"before": [6, 1, 3, 3], "after": [3, 1, 3, 3]}
    assert "head.bias" not in widths["changed"]
    assert widths["added"] == {"block.up/1.bias": {"shape": [3], "kind": "parameter"}}
    assert widths["attributes"]["ln"] == {"normalized_shape": {"before": [8], "after": [5]}}
    assert widths["removed"] == []


def test_nothing_given_is_changed(tmp_path):
    original, small = trained(Net()).train(), trained(Net(5, 3)).train()
    cached = Net()
    before = [state_of(net) for net in (original, small, cached)]
    save_bundle(tmp_path, small, original, SOURCE)
    load_bundle(tmp_path, factory=lambda: cached)
    assert [state_of(net) for net in (original, small, cached)] == before
    assert original.training
    assert small.training
    assert cached.training
    assert cached.stem.out_channels == 8


def test_the_same_network_gives_the_same_bytes(tmp_path, saved):
    folder, original, small = saved
    again = tmp_path / "again"
    again.mkdir()
    save_bundle(again, small, original, dict(reversed(list(SOURCE.items()))))
    for name in ("model.safetensors", "manifest.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_an_uncompressed_network_is_a_bundle_without_widths(tmp_path):
    original = trained(Net())
    assert save_bundle(tmp_path, original, original, SOURCE).widths.empty
    assert state_of(load_bundle(tmp_path, factory=Net)) == state_of(original)


def test_a_removed_bias_stays_away(tmp_path):
    small = trained(Net(5, 3))
    manifest = save_bundle(tmp_path, small, trained(Net(bias=True)), SOURCE)
    assert manifest.widths.removed == ["block.up/1.bias"]
    assert load_bundle(tmp_path, factory=lambda: Net(bias=True)).block["up/1"].bias is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_come_back_even_if_the_source_makes_float32(tmp_path, dtype):
    small = trained(Net(5, 3, bias=True)).to(dtype)
    small.head.double()
    save_bundle(tmp_path, small, Net().to(dtype), SOURCE)
    loaded = load_bundle(tmp_path, factory=Net)
    assert loaded.stem.weight.dtype == dtype
    assert loaded.head.weight.dtype == torch.float64
    assert loaded.norm.num_batches_tracked.dtype == torch.int64
    assert state_of(loaded) == state_of(small)


def test_tied_tensors_are_stored_once_and_tied_again(tmp_path):
    original, small = trained(Tied()), trained(Tied(4), seed=1)
    manifest = save_bundle(tmp_path, small, original, SOURCE)
    assert manifest.tied == {
        "out.weight": "embed.weight",
        "again.weight": "first.weight",
        "again.bias": "first.bias",
    }
    assert "out.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = load_bundle(tmp_path, factory=Tied)
    assert loaded.out.weight is loaded.embed.weight
    assert loaded.again is loaded.first
    assert state_of(loaded) == state_of(small)
    assert rebuild(original, manifest).out.weight.shape == (11, 4)


def test_ties_that_surgery_has_cut_stay_cut(tmp_path):
    small = trained(Tied())
    small.out.weight = nn.Parameter(small.out.weight.detach() * 2)
    save_bundle(tmp_path, small, trained(Tied()), SOURCE)
    loaded = load_bundle(tmp_path, factory=Tied)
    assert torch.equal(loaded.out.weight, 2 * loaded.embed.weight)


def test_views_of_one_memory_are_stored_apart(tmp_path):
    small = trained(Net(5, 3))
    base = torch.randn(20)
    small.norm.weight = nn.Parameter(base[:5])
    small.norm.bias = nn.Parameter(base[3:8])
    small.norm.running_mean = base[::4]
    save_bundle(tmp_path, small, trained(Net()), SOURCE)
    assert state_of(load_bundle(tmp_path, factory=Net)) == state_of(small)


def test_buffers_outside_the_state_dict_are_stored_where_they_differ(tmp_path):
    small = trained(Tied())
    assert save_bundle(tmp_path, small, trained(Tied()), SOURCE).transient == []
    small.mask = small.mask.flip(0)
    assert save_bundle(tmp_path, small, trained(Tied()), SOURCE).transient == ["mask"]
    loaded = load_bundle(tmp_path, factory=Tied)
    assert torch.equal(loaded.mask, small.mask)
    assert "mask" not in loaded.state_dict()


def test_frozen_parameters_stay_frozen(tmp_path):
    def net() -> nn.Module:
        return Net().requires_grad_(False)

    save_bundle(tmp_path, trained(Net(5, 3, bias=True)), trained(net()), SOURCE)
    assert {p.requires_grad for n, p in load_bundle(tmp_path, factory=net).named_parameters() if "up/1.b" not in n} == {
        False
    }


def test_the_loaded_network_outlives_its_file(saved):
    folder, _, small = saved
    loaded = load_bundle(folder, factory=Net)
    (folder / "model.safetensors").write_bytes(b"")
    assert state_of(loaded) == state_of(small)


def test_no_pickle_anywhere(saved):
    folder, _, _ = saved
    for path in folder.iterdir():
        assert path.name in ("model.safetensors", "manifest.json")
        assert not zipfile.is_zipfile(path)
    json.loads((folder / "manifest.json").read_text())
    load_file(folder / "model.safetensors")


def test_the_source_loader_gets_the_source_and_the_factory_goes_first(saved):
    folder, _, small = saved
    seen = []

    def loader(source):
        seen.append(source)
        return Net()

    assert state_of(load_bundle(folder, source_loader=loader)) == state_of(small)
    load_bundle(folder, factory=Net, source_loader=loader)
    assert seen == [SOURCE]
    with pytest.raises(SourceError, match=r"nn\.Module"):
        load_bundle(folder, factory=lambda: torch.zeros(1))


FILE = """
from torch import nn
def net(width=4):
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))
"""


def file_source(folder, width=8) -> LoadedModel:
    (folder / "nets.py").write_text(FILE)
    return load_model(f"{folder / 'nets.py'}:net?width={width}")


def test_a_python_file_is_a_source_and_its_factory_gets_the_arguments(tmp_path):
    loaded = file_source(tmp_path)
    small = trained(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)))
    (tmp_path / "run").mkdir()
    save_bundle(tmp_path / "run", small, loaded.model, loaded.source.as_dict())
    seed = torch.get_rng_state()
    assert state_of(load_bundle(tmp_path / "run")) == state_of(small)
    assert torch.equal(torch.get_rng_state(), seed)

    def net(width: int = 4) -> nn.Module:
        return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))

    assert state_of(load_bundle(tmp_path / "run", factory=net)) == state_of(small)
    assert state_of(load_bundle(tmp_path / "run", factory=lambda: net(8))) == state_of(small)
    (tmp_path / "nets.py").unlink()
    with pytest.raises(SourceError, match="factory=callable"):
        load_bundle(tmp_path / "run")


def test_a_bundle_of_a_bundle_needs_the_first_no_more(tmp_path):
    loaded = file_source(tmp_path)
    first, second = tmp_path / "first", tmp_path / "second"
    sizes = (5, 2)
    nets = [trained(nn.Sequential(nn.Linear(3, n), nn.ReLU(), nn.Linear(n, 2))) for n in sizes]
    first.mkdir()
    second.mkdir()
    save_bundle(first, nets[0], loaded.model, loaded.source.as_dict())
    again = load_model(str(first), load_bundle=load_bundle)
    assert again.source.kind == "bundle"
    manifest = save_bundle(second, nets[1], again.model, again.source.as_dict())
    assert manifest.widths.changed["0.weight"].before == [8, 3]
    shutil.rmtree(first)
    assert state_of(load_bundle(second)) == state_of(nets[1])


@pytest.mark.parametrize(
    "source",
    [{}, {"kind": "pickle"}, {"spec": "a", "kind": "torchvision", "place": 3}, {"spec": 1, "run": "rm"}],
)
def test_a_faulty_source_is_a_source_error(saved, source):
    folder, _, _ = saved
    edit(folder, source=source)
    with pytest.raises(SourceError, match="manifest, source"):
        load_bundle(folder)


def test_rebuild_takes_the_plain_manifest_and_compare_is_then_empty(saved):
    folder, original, small = saved
    plain = json.loads((folder / "manifest.json").read_text())
    again = rebuild(original, plain)
    assert compare(again, small).empty
    assert not compare(original, small).empty


def test_a_network_of_other_modules_is_refused_and_nothing_written(tmp_path):
    small = trained(Net(5, 3))
    small.norm = nn.Identity()
    with pytest.raises(ModelError, match=r"module 'norm'.*Identity"):
        save_bundle(tmp_path, small, Net(), SOURCE)
    small = trained(Net())
    small.extra = nn.ReLU()
    with pytest.raises(ModelError, match="no such module"):
        save_bundle(tmp_path, small, Net(), SOURCE)
    small = trained(Net())
    small.stem.stride = (2, 2)
    with pytest.raises(ModelError, match="stride"):
        save_bundle(tmp_path, small, Net(), SOURCE)
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_makes_another_network_is_refused(saved):
    folder, _, _ = saved
    with pytest.raises(SourceError, match=r"shape \[9, 6, 1, 1\].*shape \[8, 6, 1, 1\]"):
        load_bundle(folder, factory=lambda: Net(9))
    with pytest.raises(SourceError, match="no free place"):
        load_bundle(folder, factory=lambda: Net(bias=True))

    def longer() -> nn.Module:
        net = Net()
        net.more = nn.Linear(2, 2)
        return net

    with pytest.raises(SourceError, match=r"missing|unexpected: more\.bias"):
        load_bundle(folder, factory=longer)

    def otherwise() -> nn.Module:
        net = Net()
        net.block["depth"].groups = 2
        return net

    with pytest.raises(SourceError, match="groups = 2"):
        load_bundle(folder, factory=otherwise)


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


def test_other_state_than_tensors_is_refused(tmp_path):
    class Stateful(nn.Linear):
        def get_extra_state(self) -> object:
            return {"step": 1}

        def set_extra_state(self, state: object) -> None:
            pass

    with pytest.raises(ModelError, match="_extra_state"):
        save_bundle(tmp_path, Stateful(2, 2), Stateful(2, 2), SOURCE)


def test_a_newer_schema_says_so(saved):
    folder, _, _ = saved
    edit(folder, schema_version=2)
    with pytest.raises(SourceError, match="newer one"):
        read_manifest(folder)
    with pytest.raises(SourceError, match="schema_version"):
        parse_manifest({"schema_version": 1.5})

"""Bundles: where the original's code comes from, and sources that make another network."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from bundle_samples import SOURCE, Net, edit, state_of, trained
from torch import nn

from compressor.errors import ModelError, SourceError
from compressor.export.bundle import load_bundle, save_bundle
from compressor.export.widths import compare, rebuild
from compressor.sources.models import LoadedModel, load_model


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

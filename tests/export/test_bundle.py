"""Bundles: round trips of every kind of change, ties and dtypes."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch
from bundle_samples import SOURCE, Net, Tied, state_of, trained
from safetensors.torch import load_file
from torch import nn

from compressor.errors import ModelError
from compressor.export.bundle import load_bundle, save_bundle
from compressor.export.widths import rebuild


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


def test_other_state_than_tensors_is_refused(tmp_path):
    class Stateful(nn.Linear):
        def get_extra_state(self) -> object:
            return {"step": 1}

        def set_extra_state(self, state: object) -> None:
            pass

    with pytest.raises(ModelError, match="_extra_state"):
        save_bundle(tmp_path, Stateful(2, 2), Stateful(2, 2), SOURCE)

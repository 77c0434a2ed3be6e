import argparse
import collections
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compressor.errors import SourceError
from compressor.sources.checkpoint import apply_state, load_state


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def same(state, model):
    own = model.state_dict()
    return set(state) == set(own) and all(torch.equal(state[key], own[key]) for key in own)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: collections.OrderedDict(state),
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": [0.1]}},
        lambda state: {
            "model": {f"module.{key}": value for key, value in state.items()},
            "acc": np.float64(0.9),
        },
        lambda state: {"model_state_dict": {f"_orig_mod.module.{key}": value for key, value in state.items()}},
        lambda state: {"net": state, "args": argparse.Namespace(lr=0.1), "curve": np.arange(3.0)},
        lambda state: {
            "state_dict": {key: value * 0 for key, value in state.items()},
            "state_dict_ema": {f"model.{key}": value for key, value in state.items()},
        },
        lambda state: {"model_ema": {"n_averaged": torch.tensor(7)} | {f"module.{k}": v for k, v in state.items()}},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_wrapped_states(tmp_path: Path, wrap, zipped):
    model = network()
    torch.save(wrap(dict(model.state_dict())), tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    state = load_state(tmp_path / "c.pt")
    assert same(state, model)
    other = network(1)
    apply_state(other, state)
    assert same(state, other)


@pytest.mark.parametrize(
    ("taken", "beside", "words"),
    [
        ("ema", {"model": network(1).state_dict()}, "c.pt holds several sets of weights: 'ema' was taken, not 'model'"),
        ("model", {"teacher": {"state_dict": network(1).state_dict()}}, "'model' was taken, not 'teacher'"),
        ("model", {"optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "stats": {"mean": torch.zeros(3)}}, None),
    ],
)
def test_several_sets_of_weights_are_told_of(tmp_path: Path, taken, beside, words):
    model = network()
    torch.save({**beside, taken: model.state_dict()}, tmp_path / "c.pt")
    state = load_state(tmp_path / "c.pt")
    assert same(state, model)
    assert state.note is None if words is None else words in str(state.note)


def test_safetensors_by_name_or_content(tmp_path: Path):
    model = network()
    for name in ("weights.safetensors", "weights.bin"):
        save_file(dict(model.state_dict()), tmp_path / name)
        assert same(load_state(tmp_path / name), model)


class Runs:
    """A pickle of this creates a file when it is loaded."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("how", ["zip", "legacy", "plain pickle"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, how):
    target = tmp_path / "ran"
    content = {"state_dict": dict(network().state_dict()), "extra": Runs(target)}
    file = tmp_path / "evil.pth"
    if how == "plain pickle":
        file.write_bytes(pickle.dumps(content["extra"]))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(SourceError, match=r"pickle with code in it .*not run") as caught:
        load_state(file)
    assert "safetensors" in caught.value.next_step
    assert not target.exists()


def test_whole_module_is_refused_by_name(tmp_path: Path):
    torch.save(network(), tmp_path / "whole.pt")
    with pytest.raises(SourceError, match="whole pickled module") as caught:
        load_state(tmp_path / "whole.pt")
    assert "state_dict()" in caught.value.next_step


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_truncated(tmp_path: Path, suffix, share):
    file = tmp_path / f"c.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(dict(network().state_dict()), file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(SourceError, match="bytes that cannot be read as a checkpoint"):
        load_state(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello, this is no checkpoint\n" * 9, "cannot be read"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "cannot be read"),
        (b"{" * 40, "cannot be read"),
    ],
)
def test_foreign_files(tmp_path: Path, content, words):
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(SourceError, match=words):
        load_state(tmp_path / "c.pth")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "a list"),
        ({"epoch": 1, "loss": 0.5}, "a dict with keys epoch, loss"),
        (torch.zeros(3), "a Tensor"),
        ({}, "a dict"),
    ],
)
def test_files_without_a_state(tmp_path: Path, content, words):
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(SourceError, match=words):
        load_state(tmp_path / "c.pt")


def test_missing_file_and_folder(tmp_path: Path):
    with pytest.raises(SourceError, match="no such file"):
        load_state(tmp_path / "nowhere.pt")
    with pytest.raises(SourceError, match="a folder"):
        load_state(tmp_path)


def test_wrong_keys_are_named_and_nothing_is_loaded():
    model, state = network(), dict(network(1).state_dict())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state["head.weight"] = state.pop("4.weight")
    state["0.weight"] = state["0.weight"][:3]
    with pytest.raises(SourceError) as caught:
        apply_state(model, state)
    for words in (
        "1 missing: 4.weight",
        "1 unexpected: head.weight",
        "0.weight (3, 1, 3, 3) instead of (4, 1, 3, 3)",
    ):
        assert words in str(caught.value)
    assert same(before, model)


def test_weights_that_are_not_finite_are_named():
    state = {key: value.clone() for key, value in network().state_dict().items()}
    state["4.bias"][1] = float("inf")
    with pytest.raises(SourceError, match=r"1 weights with NaN or infinite values: 4\.bias"):
        apply_state(network(), state)


def test_a_prefix_is_fitted_only_as_a_whole():
    state = dict(network(1).state_dict())
    for model in (network(), nn.ModuleDict({"backbone": network()})):
        for prefix in ("net.", "backbone.", ""):
            apply_state(model, {prefix + key: value for key, value in state.items()})
            assert torch.equal(next(model.parameters()), state["0.weight"])
    half = {("net." if key.startswith("0") else "other.") + key: value for key, value in state.items()}
    with pytest.raises(SourceError, match="8 missing"):
        apply_state(network(), half)


def test_old_counters_and_tied_weights_may_be_missing():
    state = dict(network(1).state_dict())
    del state["1.num_batches_tracked"]
    model = network()
    apply_state(model, state)
    assert torch.equal(model[4].weight, state["4.weight"])
    tied = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    tied["b"].weight = tied["a"].weight
    apply_state(tied, {"a.weight": torch.eye(3)})
    assert torch.equal(tied["b"].weight, torch.eye(3))

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compressor.comparison.methods import find_method
from compressor.comparison.task import Task
from compressor.sources.data import load_data
from compressor.sources.samples import as_samples
from compressor.training.loop import TrainOptions, train
from compressor.verify.accuracy import accuracy, outputs_of

RECIPES = Path(__file__).parent.parent.parent / "recipes"
PRUNING = [
    "lamp", "taylor&scope=isomorphic", "hessian&scope=local", "magnitude_l2&scope=local", "fpgm", "bnscale", "random"
]  # fmt: skip


@pytest.fixture(scope="module")
def task() -> Task:
    sys.path.insert(0, str(RECIPES))
    try:
        import networks
    finally:
        sys.path.remove(str(RECIPES))
    data = load_data("digits")
    assert data.train is not None
    torch.manual_seed(0)
    model, _ = train(networks.digits_cnn(width=0.25), data.train, TrainOptions(epochs=4, batch=64))
    return Task(model, replace(data, calibrate=data.calibrate.take(range(200))), "params", 0)


def quality(task: Task, spec: str) -> tuple[float, float]:
    small = find_method(spec, RECIPES)(task)(0.6)
    found = outputs_of(small, task.data.judge, check=False)
    return task.size(small) / task.size(task.model), accuracy(found)


@pytest.mark.parametrize("importance", PRUNING)
def test_torch_pruning_meets_the_size_and_leaves_a_network_that_works(task: Task, importance: str) -> None:
    pytest.importorskip("torch_pruning")
    share, right = quality(task, f"peers/pruning.py:prune?importance={importance}")
    assert 0.45 < share <= 0.6
    assert right > 50


@pytest.mark.parametrize("method", ["fold", "fold?repair=false", "neuron_merging"])
def test_merging_meets_the_size_and_leaves_a_network_that_works(task: Task, method: str) -> None:
    share, right = quality(task, f"peers/merging.py:{method}")
    assert 0.45 < share <= 0.6
    assert right > 40


@pytest.mark.parametrize("spec", ["pruning.py:prune?importance=taylor", "merging.py:fold", "merging.py:neuron_merging"])
def test_networks_of_tokens_come_out_whole(spec: str) -> None:
    """Only the hidden layers of the blocks are cut; attention and what layer norms mix stay."""
    pytest.importorskip("torch_pruning")
    sys.path.insert(0, str(RECIPES))
    try:
        import more_networks
    finally:
        sys.path.remove(str(RECIPES))
    torch.manual_seed(0)
    model, images = more_networks.vit(width=0.25).eval(), torch.rand(300, 1, 28, 28)
    data = replace(load_data("digits"), calibrate=as_samples((images, torch.zeros(300, dtype=torch.long))))
    task = Task(model, data, "params", 0)
    small = find_method(f"peers/{spec}", RECIPES)(task)(0.9)
    assert 0.85 < task.size(small) / task.size(model) <= 0.9
    assert [len(next(block.up.parameters())) < 128 for block in small.blocks].count(True) >= 1
    assert all(block.qkv.out_features == 192 for block in small.blocks)
    assert small(images[:3]).isfinite().all()


def test_folding_units_that_are_copies_changes_nothing() -> None:
    """Known answer: every unit twice, clustered to half: the outputs stay."""
    torch.manual_seed(0)
    half = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 12), torch.nn.ReLU(), torch.nn.Linear(12, 10))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 24), torch.nn.ReLU(), torch.nn.Linear(24, 10))
    first, last = half[1], half[3]
    model[1].weight.data, model[1].bias.data = first.weight.data.repeat(2, 1), first.bias.data.repeat(2)
    model[3].weight.data, model[3].bias.data = last.weight.data.repeat(1, 2) / 2, last.bias.data
    task = Task(model.eval(), load_data("digits"), "params", 0)
    share = (64 * 12 + 12 + 120 + 10 + 0.5) / (64 * 24 + 24 + 240 + 10)
    small = find_method("peers/merging.py:fold?repair=false", RECIPES)(task)(share)
    images = task.data.judge.batch(torch.arange(50))[0]
    assert task.size(small) < task.size(model)
    torch.testing.assert_close(small(images), model(images), rtol=1e-4, atol=1e-5)

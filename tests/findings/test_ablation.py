"""Ablation: what is predicted is what is measured, and the model is as before."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from compressor.findings.ablation import confirm_removable
from compressor.findings.removable import predicted_losses
from compressor.findings.summary import findings
from compressor.observe import observe
from compressor.records import Finding
from compressor.sources.samples import Samples, as_samples, batches
from compressor.units.graph import UnitGraph
from compressor.units.trace import trace


def network(padding: int = 1) -> nn.Sequential:
    """A small conv net whose units matter to very different degrees."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 10, 3, padding=padding),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(40, 4),
    ).eval()
    size = torch.logspace(-4, 0, 12)
    model[3].weight.data *= size[None, :, None, None]  # type: ignore[operator]
    model[8].weight.data *= torch.logspace(-2, 2.5, 10).repeat_interleave(4)  # type: ignore[operator]
    return model


def prepared(model: nn.Module, count: int = 400) -> tuple[UnitGraph, list[Finding], Samples, torch.Tensor]:
    x = torch.randn(count, 2, 7, 7, generator=torch.Generator().manual_seed(0)) + 0.5
    samples = as_samples((x, torch.zeros(count, dtype=torch.long)))
    graph = trace(model, x[:2])
    seen = observe(model, graph, lambda: batches(samples, 100), count)
    return graph, findings(model, graph, seen), samples, predicted_losses(model, graph, seen)


@pytest.mark.parametrize("padding", [0, 1])
def test_prediction_agrees_with_measurement(padding: int) -> None:
    model = network(padding)
    graph, found, samples, predicted = prepared(model)
    result = confirm_removable(model, graph, found, samples, predicted, sample=20, most=400)
    assert result.rank_correlation is not None
    assert result.rank_correlation > 0.9
    assert result.median_ratio is not None
    assert 0.3 < result.median_ratio < 3
    assert result.confirmed is not None
    assert result.confirmed > 0.8
    assert result.together is not None
    assert len(result.together.units) == sum(f.kind == "removable" for f in found)
    assert all(one.measured < 2 * result.below for one in result.tried if one.kind == "removable")


def test_a_needed_unit_called_removable_is_not_confirmed() -> None:
    model = network()
    graph, found, samples, predicted = prepared(model)
    lies = [Finding(f.group, f.unit, "removable", f.score) for f in found if f.kind == "needed"]
    result = confirm_removable(model, graph, lies, samples, predicted, sample=5, below=1e-9)
    assert result.removable == len(lies) > 2
    assert result.confirmed == 0


def test_the_measured_loss_is_that_of_removing_the_unit_and_folding_its_mean() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    x = torch.randn(200, 6)
    graph = trace(model, x[:2])
    found = [Finding(graph.groups[0].name, 2, "needed", 1.0)]
    one = confirm_removable(model, graph, found, as_samples((x, torch.zeros(200))), {2: 1.0}).tried[0]
    hidden = model[1](model[0](x)).detach()
    cut = hidden.clone()
    cut[:, 2] = hidden[:, 2].mean()
    p, q = (torch.log_softmax(model[2](h).double(), 1) for h in (hidden, cut))
    assert one.measured == pytest.approx(float((p.exp() * (p - q)).sum(1).mean().detach()), rel=1e-4)
    assert one.agreement == pytest.approx(float((p.argmax(1) == q.argmax(1)).double().mean()))


def test_nothing_is_changed_and_a_seed_decides() -> None:
    model = network().train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.eval()
    graph, found, samples, predicted = prepared(model)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    random = torch.get_rng_state()
    results = [confirm_removable(model, graph, found, samples, predicted, sample=8, seed=s) for s in (0, 0, 1)]
    assert results[0] == results[1] != results[2]
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert json.loads(json.dumps(results[0].as_dict()))["samples"] == 256 < len(samples)


def test_hooks_go_when_the_model_fails() -> None:
    model = network()
    graph, found, samples, predicted = prepared(model)
    calls = 0

    def fail(module: nn.Module, args: object, output: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls > 6:
            raise RuntimeError("out of order")

    handle = model[8].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of order"):
        confirm_removable(model, graph, found, samples, predicted)
    handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_nothing_to_try_is_said() -> None:
    model = network()
    graph, _, samples, predicted = prepared(model)
    result = confirm_removable(model, graph, [], samples, predicted)
    assert result.tried == ()
    assert result.confirmed is None
    assert result.rank_correlation is None

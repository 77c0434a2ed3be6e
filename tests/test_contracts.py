"""What `compress` promises whatever the network: nothing given is changed, and the result is one of its kind."""

from __future__ import annotations

import hashlib
import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted import Depthwise, Residual
from runs import break_midway
from torch import Tensor, nn

import compressor

Network = tuple[nn.Module, Any]
N = 240


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(seed))


def dense(**kwargs: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4)).to(**kwargs)


class Answers(nn.Module):
    """Its answer comes in `form`."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body, self.form = dense(), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.body(x))


class Two(nn.Module):
    """Two inputs, by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(6, 8), nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.relu(self.one(left) + self.two(right)))


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], Network], str]] = {
    "mlp": (lambda: (dense(), numbers(6)), "the output"),
    "training": (lambda: (dense().train(), numbers(6)), "the output"),
    "float64": (lambda: (dense(dtype=torch.float64), numbers(6)), "the output"),
    "bfloat16": (lambda: (dense(dtype=torch.bfloat16), numbers(6)), "the output"),
    "tuple": (lambda: (Answers(lambda y: (y, y.sum(1))), numbers(6)), "tensor 0"),
    "dict": (lambda: (Answers(lambda y: {"aux": y.sum(1), "logits": y}), numbers(6)), "'logits'"),
    "two inputs": (lambda: (Two(), [((a, b), 0) for a, b in zip(numbers(6), numbers(3, seed=1), strict=True)]), "the"),
    "conv1d": (lambda: (conv1d(), numbers(2, 9)), "the output"),
    "residual": (lambda: (Residual(6), numbers(3, 5, 5)), "the output"),
    "depthwise": (lambda: (Depthwise(6), numbers(3, 5, 5)), "the output"),
}


def made(name: str) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model, data = NETWORKS[name][0]()
        return model if name == "training" else model.eval(), data


def state(model: nn.Module) -> dict[str, Any]:
    """All of a model, and of this process, that must stay as it is."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "weights": digest.hexdigest(),
        "modes": [module.training for module in model.modules()],
        "hooks": [len(getattr(module, kind)) for module in model.modules() for kind in hooks],
        "flags": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.sum().item() for p in model.parameters()],
        "identity": [id(p) for p in model.parameters()],
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "random": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "filters": list(warnings.filters),
        "cwd": Path.cwd(),
        "environment": dict(os.environ),
    }


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore")
def test_nothing_given_is_changed(name: str) -> None:
    model, data = made(name)
    first = next(model.parameters())
    first.requires_grad_(False)
    last = list(model.parameters())[-1]
    last.grad = torch.ones_like(last)
    before = state(model)
    result = compressor.compress(model, data, keep="params=0.7", max_drop=60, align=1)
    assert state(model) == before
    assert type(result.model) is type(model)
    assert result.model is not model
    assert not result.model.training
    assert [p.dtype for p in result.model.parameters()] == [p.dtype for p in model.parameters()]
    assert not next(result.model.parameters()).requires_grad
    assert all(p.grad is None for p in result.model.parameters())
    assert state(result.model)["hooks"] == state(model)["hooks"]
    assert result.record["compressed"]["params"] == sum(p.numel() for p in result.model.parameters())
    assert result.record["compressed"]["params"] <= 0.7 * result.record["original"]["params"]
    assert NETWORKS[name][1] in result.record["verdict"]["details"]["judged"]
    assert result.verdict is not None
    assert result.verdict.metric == ("accuracy" if name == "two inputs" else "agreement")


@pytest.mark.parametrize(
    "stage", ["workbench.find_units", "workbench.findings", "pipeline.search", "pipeline.judge_candidates"]
)
@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_changed_by_a_failure(
    stage: str, fault: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = made("training")
    before = state(model)
    break_midway(monkeypatch, stage, fault)
    with pytest.raises(fault, match="midway"):
        compressor.compress(model, data, max_drop=60, align=1)
    assert state(model) == before


def test_exact_and_analyze_change_nothing_either() -> None:
    model, data = made("training")
    before = state(model)
    result = compressor.compress(model, data, exact=True)
    assert state(model) == before
    assert result.verdict is not None
    assert result.verdict.metric == "outputs"
    assert result.verdict.value == "passed"
    assert result.record["verdict"]["details"]["judged"] == "the output"
    record = compressor.analyze(model, data)
    assert state(model) == before
    assert record["mode"] == "analyze"
    assert record["verdict"] is None


def test_nothing_to_do_returns_another_network() -> None:
    model = nn.Sequential(nn.Linear(6, 4)).train()
    result = compressor.compress(model, numbers(6))
    assert result.model is not model
    assert model.training
    assert not result.model.training
    assert torch.equal(result.model[0].weight, model[0].weight)  # pyright: ignore[reportIndexIssue, reportArgumentType]

"""Every wiring pattern is either exact under a cut, or refused in plain words; there is no third outcome."""

from __future__ import annotations

import pytest
import torch
from outcomes import built, live_groups, random_kept, run, unread
from unit_planted import PATTERNS

from compressor.units.check import certify, checked
from compressor.units.cut import cut
from compressor.units.trace import trace

EXACT = [name for name, pattern in PATTERNS.items() if pattern.says is None]
REFUSED = [name for name, pattern in PATTERNS.items() if pattern.says is not None]


@pytest.mark.parametrize("name", EXACT)
def test_exact_patterns_are_live_and_cut_exactly(name: str) -> None:
    model, inputs = built(name)
    graph = checked(model, trace(model, inputs), inputs)
    groups = {group.name: group for group in graph.groups}
    assert groups[PATTERNS[name].of].frozen is None
    live = live_groups(graph)
    for seed in (11, 12):
        kept = random_kept(graph, live, seed)
        whole = unread(model, graph, kept)
        small = cut(whole, graph, kept)
        for big, little in zip(run(whole, inputs), run(small, inputs), strict=True):
            torch.testing.assert_close(little, big, rtol=1e-9, atol=1e-11)
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert certify(model, small, graph, kept, inputs) == {}


def test_enough_patterns_are_planted() -> None:
    assert len(EXACT) >= 50
    assert len(REFUSED) >= 30


@pytest.mark.parametrize("name", ["residual", "depthwise", "two_sided_slice"])
def test_nothing_given_is_changed(name: str) -> None:
    model, inputs = built(name)
    model.train()
    model.a.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    kept_inputs, state = inputs.clone(), torch.get_rng_state()
    checked(model, trace(model, inputs), inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(inputs, kept_inputs)
    assert all(not module._forward_pre_hooks and not module._forward_hooks for module in model.modules())
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())

"""Ablation curves on networks with an answer key: dead units, copies, folds; nothing given is changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import Concat, Convs, Dense, Residual, small
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.capacity.ablation import ablation_curve, noise_curve, place_moments, random_and_targeted
from compressor.capacity.collect import Layer, Place, layers_at, layers_of
from compressor.capacity.measures import prunable, removable_area, targeted_gap
from compressor.capacity.prefix import Prefix
from compressor.errors import ModelError, UsageError
from compressor.sources.samples import Samples, as_samples
from compressor.stages import find_units


def normal(samples: int, inputs: int = 6) -> Tensor:
    return torch.randn(samples, inputs, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def balanced(model: nn.Module, head: nn.Module, inputs: Tensor) -> None:
    """Shift the head's bias so that no class is preferred on average: answers differ from sample to sample."""
    with torch.no_grad():
        head.bias -= model(inputs).mean(0)  # type: ignore[operator]


def network(inputs: int = 6, width: int = 12, classes: int = 3, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)]
    model = nn.Sequential(*parts).double()
    balanced(model, model[4], normal(300, inputs))
    return model


def data(model: nn.Module, samples: int = 300, inputs: int = 6) -> Samples:
    x = normal(samples, inputs)
    return as_samples((x, model(x).argmax(1).detach()))


def by_hand(model: nn.Sequential, x: Tensor, gone: dict[int, list[int]], how: str) -> Tensor:
    """Predictions with units of the ReLUs at these places ablated, layer after layer, without hooks."""
    intact = {}
    h = x
    for i, module in enumerate(model):
        h = intact[i] = module(h)
    h = x
    for i, module in enumerate(model):
        h = module(h)
        if gone.get(i):
            h = h.clone()
            stay = [u for u in range(h.shape[1]) if u not in gone[i]]
            if how == "zero":
                h[:, gone[i]] = 0
            elif how == "mean" or not stay:
                h[:, gone[i]] = intact[i][:, gone[i]].mean(0)
            else:
                c = torch.from_numpy(np.cov(intact[i].numpy(), rowvar=False, bias=True))
                d = c[stay][:, stay]
                beta = torch.linalg.solve(d + (1e-3 + 1e-9) * torch.diag(d.diagonal()), c[stay][:, gone[i]])
                centre = intact[i].mean(0)
                h[:, gone[i]] = centre[gone[i]] + (h[:, stay] - centre[stay]) @ beta
    return h.argmax(1)


@pytest.mark.parametrize("how", ["zero", "mean", "fold"])
def test_a_loop_without_hooks_agrees(how: str) -> None:
    model = network()
    samples = data(model)
    x, labels = samples.batch(torch.arange(len(samples)))
    found = ablation_curve(model, layers_at(["1", "3"]), samples, how=how, orders=2, seed=5)  # type: ignore[arg-type]
    for r in range(2):
        ranks = [np.random.default_rng([5, r, i]).permutation(12).tolist() for i in range(2)]
        for f, fraction in enumerate(found.fractions):
            count = int(fraction * 12 + 1e-9)
            with torch.no_grad():
                answers = by_hand(model, x, {1: ranks[0][:count], 3: ranks[1][:count]}, how)
            assert found.agreement[r, f] == pytest.approx(float((answers == labels).double().mean()), abs=1e-12)
    assert found.accuracy is not None
    np.testing.assert_array_equal(found.accuracy, found.agreement)  # the labels are the network's own answers


def test_everything_at_zero_agrees_with_a_constant_answer() -> None:
    model = network()
    samples = data(model)
    found = ablation_curve(model, layers_at(["3"]), samples)
    constant = int(model[4].bias.argmax())  # type: ignore[union-attr]
    share = float((samples.labels == constant).double().mean())  # type: ignore[union-attr]
    assert (found.agreement[:, 0] == 1).all()
    assert found.agreement[:, -1] == pytest.approx([share] * 3, abs=1e-12)
    assert found.chance == pytest.approx(float(samples.labels.bincount().max()) / 300, abs=1e-12)  # type: ignore[union-attr]


def test_units_that_nobody_reads_are_removable() -> None:
    model = network()
    with torch.no_grad():
        model[4].weight.zero_()  # type: ignore[union-attr]
    found = ablation_curve(model, layers_at(["1", "3"]), data(model))
    assert removable_area(found.agreement) == 1.0
    assert prunable(found.fractions, found.agreement).mean == 1.0


def copied(copies: int = 4) -> tuple[nn.Sequential, Samples]:
    """Every hidden unit stands there several times, so folding on what stays is exact until the last copy goes."""
    plain = network(width=4)
    wide = network(width=4 * copies)
    with torch.no_grad():
        wide[0].weight.copy_(plain[0].weight.repeat(copies, 1))  # type: ignore[union-attr, operator]
        wide[0].bias.copy_(plain[0].bias.repeat(copies))  # type: ignore[union-attr, operator]
        wide[2].weight.copy_(plain[2].weight.repeat(copies, copies) / copies)  # type: ignore[union-attr, operator]
        wide[2].bias.copy_(plain[2].bias.repeat(copies))  # type: ignore[union-attr, operator]
        wide[4].weight.copy_(plain[4].weight.repeat(1, copies) / copies)  # type: ignore[union-attr, operator]
        wide[4].bias.copy_(plain[4].bias)  # type: ignore[union-attr, operator]
    return wide, data(wide)


def test_copies_can_be_folded_but_not_zeroed() -> None:
    model, samples = copied()
    half = [0.0, 0.25, 0.5]
    areas = {
        how: removable_area(ablation_curve(model, layers_at(["1"]), samples, how=how, fractions=half).agreement)  # type: ignore[arg-type]
        for how in ("zero", "mean", "fold")
    }
    assert areas["fold"] > 0.99
    assert areas["fold"] > areas["mean"] + 0.02


def test_removing_the_most_similar_first_hurts_where_units_are_copies() -> None:
    model, samples = copied()
    layers = layers_at(["1"])
    options = {"fractions": [0.0, 0.25, 0.5, 0.75], "orders": 8, "how": "fold"}
    by_chance = ablation_curve(model, layers, samples, **options)  # type: ignore[arg-type]
    by_likeness = ablation_curve(model, layers, samples, targeted=True, **options)  # type: ignore[arg-type]
    assert targeted_gap(by_chance.agreement, by_likeness.agreement) > 0.05


def test_orders_are_nested_seeded_and_their_own() -> None:
    model = network()
    samples = data(model)
    one = ablation_curve(model, layers_at(["1"]), samples, orders=3, seed=1)
    more = ablation_curve(model, layers_at(["1"]), samples, orders=4, seed=1)
    np.testing.assert_array_equal(one.agreement, more.agreement[:3])
    assert not np.array_equal(one.agreement, ablation_curve(model, layers_at(["1"]), samples, seed=2).agreement)


def test_one_layer_alone_is_gentler_than_all() -> None:
    model = network(width=40)
    samples = data(model)
    alone, together = (
        removable_area(ablation_curve(model, layers_at(names), samples, orders=8).agreement)
        for names in (["3"], ["1", "3"])
    )
    assert alone > together


@pytest.mark.parametrize("room", [2**28, 20_000, 0])
def test_what_comes_before_the_ablation_is_computed_once(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    samples = data(model)
    plain = ablation_curve(model, layers_at(["3"]), samples)
    runs: list[int] = []
    model[0].register_forward_hook(lambda *_: runs.append(0))
    monkeypatch.setattr("compressor.capacity.prefix.ROOM", room)
    forward = nn.Linear.forward
    calls: list[int] = []
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: (calls.append(id(self)), forward(self, x))[1])
    again = ablation_curve(model, layers_at(["3"]), samples)
    np.testing.assert_array_equal(plain.agreement, again.agreement)
    passes = 3 * 5 + 2  # three orders of five parts, everything once, and the intact pass
    assert len(runs) == 3 * passes  # in three batches
    assert calls.count(id(model[0])) == (3 if room == 2**28 else 3 * passes)
    assert calls.count(id(model[4])) == 3 * passes
    assert "forward" not in vars(model[0])


def test_a_layer_that_runs_on_both_sides_of_the_ablation_is_not_remembered() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.act, self.head = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.shared(self.act(self.shared(x))))

    model = Twice().double()
    prefix = Prefix(model, layers_at(["act"])[0].places)
    with prefix.recorded():
        model(normal(5))
    assert prefix._kept == {}


def test_both_kinds_of_order_together_are_those_of_each_alone() -> None:
    model, samples = copied()
    both = random_and_targeted(model, layers_at(["1", "3"]), samples, orders=2, seed=4)
    for targeted, curve in zip((False, True), both, strict=True):
        alone = ablation_curve(model, layers_at(["1", "3"]), samples, orders=2, seed=4, targeted=targeted)
        np.testing.assert_array_equal(curve.agreement, alone.agreement)


def test_noise_of_the_units_own_spread() -> None:
    model = network()
    samples = data(model)
    found = noise_curve(model, layers_at(["3"]), samples, scales=[0.0, 0.1, 1.0], orders=2, seed=1)
    assert found.how == "noise"
    assert (found.agreement[:, 0] == 1).all()
    assert (found.agreement[:, 1] > found.agreement[:, 2] + 0.05).all()
    assert (found.agreement[0] != found.agreement[1]).any()
    np.testing.assert_array_equal(
        found.agreement,
        noise_curve(model, layers_at(["3"]), samples, scales=[0.0, 0.1, 1.0], orders=2, seed=1).agreement,
    )
    x, _ = samples.batch(torch.arange(len(samples)))
    with torch.no_grad():
        hidden = model[:4](x)
        draws = torch.Generator().manual_seed(int(np.random.SeedSequence([1, 0, 2, 0]).generate_state(1)[0]))
        noise = torch.cat([torch.randn(part.shape, generator=draws) for part in hidden.split(128)])
        answers = model[4](hidden + hidden.std(1, correction=0, keepdim=True) * noise.double()).argmax(1)
    assert found.agreement[0, 2] == pytest.approx(float((answers == samples.labels).double().mean()), abs=1e-12)


def test_exchangeable_units_can_be_pruned_more_the_more_there_are_without_any_training() -> None:
    shares = []
    for width in (8, 64, 512):
        draws = torch.Generator().manual_seed(0)
        model = nn.Sequential(nn.Linear(6, width, bias=False), nn.Identity(), nn.Linear(width, 2, bias=False)).double()
        with torch.no_grad():  # every unit: the same signal, and noise of its own twice as large
            model[0].weight.copy_(torch.ones(width, 6) + 2 * torch.randn(width, 6, generator=draws))
            model[2].weight.copy_(torch.tensor([[1.0], [-1.0]]).expand(2, width) / width)
        curve = ablation_curve(model, layers_at(["1"]), data(model), orders=5)
        shares.append(prunable(curve.fractions, curve.agreement).mean)
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.8


def test_the_model_is_left_as_it_was() -> None:
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    samples = data(model)
    state = torch.random.get_rng_state()
    ablation_curve(model, layers_at(["1"]), samples, how="fold", targeted=True)
    with pytest.raises(UsageError):
        ablation_curve(model, layers_at(["1", "9"]), samples)
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# -- layers of any network, from its unit graph ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"), [("dense", Dense), ("convs", Convs), ("residual", Residual), ("concat", Concat)]
)
def test_groups_of_a_unit_graph_are_ablated_at_everything_that_reads_them(name: str, kind: type[nn.Module]) -> None:
    model, inputs = small(name)
    assert isinstance(model, kind)
    balanced(model, model.c if name == "dense" else model.head, inputs)  # type: ignore[arg-type]
    samples = as_samples((inputs, model(inputs).argmax(1).detach()))
    layers = layers_of(find_units(model, samples, 0))
    assert layers
    zero = ablation_curve(model, layers, samples, orders=2)
    assert (zero.agreement[:, 0] == 1).all()
    assert zero.agreement[:, -1].min() < 1
    if name == "residual":
        stream = next(layer for layer in layers if len(layer.places) > 1)
        assert {place.module for place in stream.places} == {"a", "head"}


def test_a_flattened_unit_goes_with_all_its_entries() -> None:
    model, inputs = small("convs")
    samples = as_samples((inputs, model(inputs).argmax(1).detach()))
    layer = next(one for one in layers_of(find_units(model, samples, 0)) if one.places[0].module == "head")
    assert layer.places[0].units is not None
    assert np.bincount(layer.places[0].units).tolist() == [4] * 12
    with torch.no_grad():
        x = inputs
        x = F.relu(model.b(F.relu(model.norm(model.a(x)))))  # type: ignore[operator]
        x = F.adaptive_avg_pool2d(F.relu(model.end(model.c(x))), 2)  # type: ignore[operator]
        gone = np.random.default_rng([0, 0, 0]).permutation(12)[:6]
        x[:, gone] = 0
        answers = model.head(x.flatten(1)).argmax(1)  # type: ignore[operator]
    found = ablation_curve(model, [layer], samples, fractions=[0.0, 0.5], orders=1)
    assert found.agreement[0, 1] == pytest.approx(float((answers == samples.labels).double().mean()), abs=1e-12)


def test_moments_of_a_feature_map_count_every_position() -> None:
    model, inputs = small("convs")
    samples = as_samples(inputs)
    found = place_moments(model, [Layer("a", (Place("a"),))], samples)["a"][0]
    rows = model.a(inputs).detach().movedim(1, -1).flatten(0, -2).numpy()  # type: ignore[operator]
    np.testing.assert_allclose(found.mean.numpy(), rows.mean(0), atol=1e-10)
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(rows, rowvar=False, bias=True), atol=1e-10)


class Unused(nn.Module):
    """Has a layer that is never run."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_what_cannot_be_ablated_is_refused() -> None:
    samples = as_samples(torch.randn(20, 6))
    with pytest.raises(ModelError, match="idle"):
        ablation_curve(Unused(), layers_at(["idle"]), samples)
    model = network().float()
    for change in ({"fractions": [0.5, 0.5]}, {"fractions": [0, 2]}, {"orders": 0}, {"how": "half"}, {"seed": -1}):
        with pytest.raises(UsageError, match="ablation"):
            ablation_curve(model, layers_at(["1"]), samples, **change)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="layers"):
        ablation_curve(model, [], samples)

"""Planted networks with answer keys: every planted unit is found for what it is, nothing else is claimed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compressor.errors import UsageError
from compressor.findings.removable import predicted_losses
from compressor.findings.summary import KINDS, Thresholds, findings, summarise
from compressor.observe import Statistics, observe
from compressor.records import Finding
from compressor.sources.samples import as_samples, batches
from compressor.units.graph import UnitGraph
from compressor.units.trace import trace


def statistics(model: nn.Module, inputs: torch.Tensor) -> tuple[UnitGraph, Statistics]:
    """The model's units, observed on these inputs."""
    model.eval()
    graph = trace(model, inputs[:2])
    samples = as_samples((inputs, torch.zeros(len(inputs), dtype=torch.long)))
    return graph, observe(model, graph, lambda: batches(samples, 100), len(inputs))


def found(model: nn.Module, inputs: torch.Tensor, **options: float) -> dict[str, list[Finding]]:
    """Findings per group."""
    graph, seen = statistics(model, inputs)
    result: dict[str, list[Finding]] = {}
    for finding in findings(model, graph, seen, Thresholds(**options)):
        result.setdefault(finding.group, []).append(finding)
    return result


def dense(hidden: int = 24, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, hidden), nn.ReLU(), nn.Linear(hidden, 5))


def conv(seed: int = 0, padding: int = 1, stride: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3, padding=padding, stride=stride),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(5),
    )


def images(count: int = 300, size: int = 8, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def rows(count: int = 600, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


def plant(layer: nn.Module) -> None:
    """Unit 1 dead, 2 constant at 1.5, 4 twice unit 3, 6 and 7 shares of unit 5."""
    weight, bias = layer.weight.data, layer.bias.data  # type: ignore[union-attr]
    weight[1], bias[1] = 0, -1
    weight[2], bias[2] = 0, 1.5
    for copied, source, share in [(4, 3, 2.0), (6, 5, 0.3), (7, 5, 1.7)]:
        weight[copied], bias[copied] = share * weight[source], share * bias[source]


def kinds(some: list[Finding]) -> list[str]:
    return [finding.kind for finding in some]


def check_planted(some: list[Finding]) -> None:
    """The answer key of `plant`."""
    first = some[0].unit
    assert some[1].kind == "silent"
    assert not some[1].constant
    assert some[2].kind == "silent"
    assert some[2].constant
    for family in ([3, 4], [5, 6, 7]):
        members = [some[i] for i in family]
        leaders = [member for member in members if member.kind == "needed"]
        assert len(leaders) == 1
        others = [member for member in members if member is not leaders[0]]
        assert all(m.kind == "repeated" and m.of == leaders[0].unit and m.score > 0.9999 for m in others)
    rest = [some[i] for i in range(len(some)) if i not in range(1, 8)]
    assert kinds(rest) == ["needed"] * len(rest)
    assert [finding.unit - first for finding in some] == list(range(len(some)))


def test_planted_dense() -> None:
    model = dense()
    plant(model[0])
    (some,) = found(model, rows(), removable=0.0).values()
    check_planted(some)


@pytest.mark.parametrize(("padding", "stride"), [(0, 1), (1, 1), (1, 2), (2, 1)])
def test_planted_conv_whatever_the_padding(padding: int, stride: int) -> None:
    model = conv(padding=padding, stride=stride)
    model(images(2))
    plant(model[0])
    plant(model[2])
    first, flattened = found(model, images(), removable=0.0).values()
    if padding == 2:  # every kernel tap reads padding: a constant cannot be told from a unit that varies
        assert first[2].kind == "needed"
        assert first[1].kind == "silent"
        first[2] = Finding(first[2].group, first[2].unit, "silent", 0.0, constant=True)
    check_planted(first)
    check_planted(flattened)


@pytest.mark.parametrize("padding", [None, 0, 1])
def test_constants_of_any_size_are_silent(padding: int | None) -> None:
    """Also those that are no short binary fractions, so that their sums are rounded."""
    model, inputs = (dense(), rows()) if padding is None else (conv(padding=padding), images())
    model(inputs[:2])
    layer = model[0]
    layer.weight.data[:12] = 0  # type: ignore[union-attr,operator]
    layer.bias.data[:12] = 0.1 + 4 * torch.rand(12, generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr]
    some = next(iter(found(model, inputs, removable=0.0).values()))
    assert [(one.kind, one.constant) for one in some[:12]] == [("silent", True)] * 12
    assert all(one.kind != "silent" for one in some[12:])


def test_a_unit_that_varies_only_where_the_centre_of_the_kernel_does_not_look_is_not_silent() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1, stride=2), nn.Flatten(), nn.LazyLinear(3))
    x = images()
    x[:, 0, ::2, ::2] = 0.7  # constant where the stride puts the centre
    model(x[:2])
    model[0].weight.data[0] = torch.tensor([1.0, 0, 0])[:, None, None]  # type: ignore[union-attr,operator]
    model[0].bias.data[0] = 0  # type: ignore[union-attr,operator]
    some = next(iter(found(model, x, removable=0.0).values()))
    assert some[0].kind != "silent"


def linear_combinations(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 10, bias=True), nn.Linear(10, 5))
    weight = model[0].weight.data
    weight[8] = weight[0] - 2 * weight[1]  # type: ignore[index,operator]
    weight[9] = weight[2] + weight[3] + 0.5 * weight[4]  # type: ignore[index,operator]
    return model


def test_linear_combinations_are_dependent() -> None:
    (some,) = found(linear_combinations(), rows(), removable=0.0).values()
    assert kinds(some).count("dependent") == 2
    assert kinds(some).count("needed") == 8
    assert all(finding.score > 0.99 for finding in some if finding.kind == "dependent")
    families = ([0, 1, 8], [2, 3, 4, 9])
    assert all([some[i].kind for i in family].count("dependent") == 1 for family in families)


def test_dependence_is_not_claimed_where_samples_do_not_suffice() -> None:
    model = dense(hidden=40)
    (few,) = found(model, rows(30), removable=0.0).values()
    assert kinds(few) == ["needed"] * 40  # 30 samples: every unit is a combination of 39 others
    (planted,) = found(linear_combinations(), rows(9), removable=0.0).values()
    assert kinds(planted) == ["needed"] * 10


@pytest.mark.parametrize("count", [5, 8, 20, 50, 300])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_lean_random_network_is_not_accused(count: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(40, 32), nn.Tanh(), nn.Linear(32, 20), nn.Tanh(), nn.Linear(20, 5))
    x = torch.randn(count, 40, generator=torch.Generator().manual_seed(seed))
    claimed = [f for some in found(model, x, removable=0.0).values() for f in some if f.kind != "needed"]
    assert not claimed


def test_positions_of_few_images_are_not_many_samples() -> None:
    model = conv()
    model(images(2, size=16))
    first, second = found(model, images(4, size=16), removable=0.0).values()
    assert kinds(first) == ["needed"] * 16
    assert kinds(second) == ["needed"] * 8


def test_what_holds_on_the_first_samples_only_is_withdrawn() -> None:
    model = linear_combinations()
    model[0].weight.data[7] = model[0].weight.data[6] * 1.0  # type: ignore[index,operator,union-attr]
    model[0].weight.data[7, 11] += 3.0  # type: ignore[index,operator,union-attr]
    model[0].weight.data[8, 11] += 3.0  # type: ignore[index,operator,union-attr]
    model[0].weight.data[5] = 0  # type: ignore[index,operator,union-attr]
    model[0].weight.data[5, 11] = 1.0  # type: ignore[index,operator,union-attr]
    calm = rows()
    calm[:, 11] = 0.0  # 5 is silent, 7 repeats 6, 8 depends on 0 and 1, until feature 11 wakes up
    graph, seen = statistics(model, calm)
    _, woken = statistics(model, rows(seed=2))
    limits = Thresholds(removable=0.0)
    before = findings(model, graph, seen, limits)
    after = findings(model, graph, seen, limits, fresh=woken)
    assert before[5].kind == "silent"
    assert before[8].kind in ("dependent", "needed")
    assert sorted([before[6].kind, before[7].kind]) == ["needed", "repeated"]
    assert [after[i].kind for i in (5, 6, 7)] == ["needed"] * 3
    assert kinds(before).count("dependent") == 2
    assert kinds(after).count("dependent") == 1
    assert kinds(findings(model, graph, seen, limits, fresh=seen)) == kinds(before)


class Branches(nn.Module):
    """Two branches joined before one reader, one of which is also read alone."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(12, 6), nn.Linear(12, 6)
        self.alone, self.both = nn.Linear(6, 4), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = torch.relu(self.left(x)), torch.relu(self.right(x))
        return self.alone(left) + self.both(torch.cat([left, right], 1))


def test_a_unit_of_another_branch_can_stand_in_only_where_it_is_read_too() -> None:
    torch.manual_seed(3)
    model = Branches()
    model.right.weight.data[2], model.right.bias.data[2] = model.left.weight.data[4], model.left.bias.data[4]
    groups = found(model, rows(), removable=0.0)
    left, right = groups.values()
    assert right[2].kind == "repeated"
    assert right[2].of == left[4].unit
    assert kinds(left) == ["needed"] * 6
    assert kinds(right).count("needed") == 5


def test_removable_is_what_little_is_lost_without() -> None:
    model = dense()
    model[2].weight.data[:, 7] = 0  # type: ignore[index,operator,union-attr]
    model[2].weight.data[:, 9] *= 1e-4  # type: ignore[index,operator,union-attr]
    (some,) = found(model, rows(), removable=1e-6).values()
    assert [f.unit for f in some if f.kind == "removable"] == [7, 9]
    assert some[7].score == 0
    assert 0 < some[9].score < 1e-8


def test_prediction_is_the_second_order_loss_of_a_linear_softmax_model() -> None:
    """Logits z = Wx: the loss of replacing x_i by its mean is ½ var(x_i) w_iᵀ F w_i, F = E[diag p - p pᵀ]."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 4), nn.Linear(4, 3)).eval()
    x = rows(4000)
    graph, seen = statistics(model, x)
    hidden = model[0](x).detach()
    p = torch.softmax(model[1](hidden), 1).detach()
    fisher = torch.diag(p.mean(0)) - p.T @ p / len(p)
    weight = model[1].weight.detach()
    expected = 0.5 * hidden.var(0, unbiased=False) * (weight.T @ fisher @ weight).diagonal()  # type: ignore[operator]
    assert torch.allclose(predicted_losses(model, graph, seen)[:4], expected.double(), rtol=0.1)


def test_sums_precedence_and_determinism() -> None:
    model = conv()
    model(images(2))
    plant(model[0])
    model[2].weight.data[:, 3] *= 1e-5  # type: ignore[index,operator,union-attr]
    before = copy.deepcopy(model.state_dict())
    graph, seen = statistics(model, images())
    some = findings(model, graph, seen)
    assert some == findings(model, graph, seen)
    assert some[3].kind == "removable"  # although it repeats unit 4
    counts = summarise(graph, some)
    assert set(counts) == {"units", *KINDS, "frozen", "groups"}
    assert counts["units"] == sum(counts[kind] for kind in KINDS) + counts["frozen"] == 16 + 8 + 5
    assert counts["frozen"] == 5
    for row in counts["groups"]:
        assert sum(row[kind] for kind in KINDS) == (row["units"] if row["frozen"] is None else 0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_nothing_is_claimed_of_units_with_an_unobserved_or_broken_tap() -> None:
    torch.manual_seed(3)
    model = Branches()
    plant_into = model.right
    plant_into.weight.data[2], plant_into.bias.data[2] = plant_into.weight.data[4], plant_into.bias.data[4]
    model.left.weight.data[1] = 0
    graph, seen = statistics(model, rows())
    del seen.taps["alone"]
    some = findings(model, graph, seen, Thresholds(removable=0.0))
    assert kinds(some[:6]) == ["needed"] * 6
    assert kinds(some[6:]).count("repeated") == 1
    seen.taps["both"].moments.gram.fill_(torch.nan)
    assert set(kinds(findings(model, graph, seen, Thresholds(removable=0.0)))) == {"needed"}


def test_thresholds_are_checked_and_recorded() -> None:
    assert Thresholds().as_dict() == {"silent": 1e-6, "removable": 0.01, "repeated": 0.95, "dependent": 0.95}
    with pytest.raises(UsageError, match="repeated"):
        Thresholds(repeated=1.5)

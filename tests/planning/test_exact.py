"""Exact mode against answer keys: every planted surplus unit goes, lean networks stay whole."""

from __future__ import annotations

import copy

import planted
import pytest
import torch
from torch import Tensor, nn

from compressor.planning.exact import ExactPlan, find_exact
from compressor.surgery.exact import exact_compress, moved
from compressor.units.trace import trace

EVERY = sorted(planted.SMALL)


def removed(plan: ExactPlan) -> dict[str, int]:
    return {fold.group: len(fold.dropped) for fold in plan.folds}


def gap(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return moved([a(x)], [b(x)])


def other_inputs(x: Tensor) -> Tensor:
    return 1.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(99), dtype=torch.float64).to(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", EVERY)
def test_every_clone_goes(name: str, dtype: torch.dtype) -> None:
    lean, x = planted.small(name)
    lean, x = lean.to(dtype), x.to(dtype)
    graph = trace(lean, x)
    wide = planted.split(lean, graph, planted.choose(graph, 1, groups=1.0, units=0.3))
    limit = 1e-10 if dtype == torch.float64 else 1e-4
    assert gap(lean, wide.model, x) < limit
    small, plan = exact_compress(wide.model, trace(wide.model, x), x)
    assert removed(plan) == wide.surplus
    assert gap(wide.model, small, other_inputs(x)) < limit
    assert {key: value.shape for key, value in small.state_dict().items()} == {
        key: value.shape for key, value in lean.state_dict().items()
    }
    assert {f.kind for f in plan.findings} == {"repeated"}


@pytest.mark.parametrize("name", EVERY)
def test_lean_networks_stay_whole(name: str) -> None:
    lean, x = planted.small(name, seed=5)
    small, plan = exact_compress(lean, trace(lean, x), x)
    assert plan.removed == 0
    assert gap(lean, small, x) == 0.0


def test_every_kind_of_surplus_is_named() -> None:
    model, x = planted.small("dense", count=400)
    with torch.no_grad():
        model.a.weight[1], model.a.bias[1] = 0.0, 0.8  # constant
        model.a.weight[2], model.a.bias[2] = 0.0, -0.8  # dead
        model.a.weight[3], model.a.bias[3] = 2 * model.a.weight[0], 2 * model.a.bias[0]  # scaled
        model.b.weight[:, 4] = 0.0  # read by nobody
        model.a.bias[5] = -100.0  # silent on the sample only
    plan = find_exact(model, trace(model, x), x)
    kinds = {(f.group, f.unit, f.kind, f.constant) for f in plan.findings}
    assert kinds - {("a", 0, "repeated", False)} - {("a", 3, "repeated", False)} == {
        ("a", 1, "silent", True),
        ("a", 2, "silent", False),
        ("a", 4, "removable", False),
    }
    assert sum(f.kind == "repeated" for f in plan.findings) == 1
    assert [(f.group, f.unit) for f in plan.silent_on_sample] == [("a", 5)]
    small, done = exact_compress(model, trace(model, x), x)
    assert done.removed == 4
    assert gap(model, small, other_inputs(x)) < 1e-10


class Linear(nn.Module):
    """A layer without activation: combinations of its units are units, too."""

    def __init__(self, padded: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 14, 3), nn.Conv2d(14, 12, 3, padding=int(padded))
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(self.a(x)))).mean((2, 3))


@pytest.mark.parametrize("padded", [True, False])
def test_combinations_go_and_take_their_constants_where_that_is_exact(padded: bool) -> None:
    torch.manual_seed(0)
    model, x = Linear(padded).double(), torch.randn(64, 3, 10, 10, dtype=torch.float64)
    with torch.no_grad():
        mix = torch.randn(4, 10, dtype=torch.float64)
        model.a.weight[10:] = torch.einsum("dk,kcij->dcij", mix, model.a.weight[:10])
        model.a.bias[10:] = mix @ model.a.bias[:10] + (0.0 if padded else 1.0)
    small, plan = exact_compress(model, trace(model, x), x)
    assert removed(plan) == {"a": 4}
    assert {f.kind for f in plan.findings} == {"dependent"}
    assert gap(model, small, other_inputs(x)) < 1e-10
    with torch.no_grad():
        model.a.bias[10:] += torch.arange(4) + 1.0  # no combination any more without a constant
    assert removed(find_exact(model, trace(model, x), x)) == ({"a": 3} if padded else {"a": 4})


def test_few_images_remove_nothing_that_fresh_inputs_need() -> None:
    """On eight images, units look silent, equal and dependent that are not."""
    lean, x = planted.small("convs", count=8)
    images = torch.zeros_like(x)
    images[:, :, 3:5, 3:5] = x[:, :, 3:5, 3:5].abs()  # always dark borders, only positive values
    with torch.no_grad():
        lean.a.weight[1] = lean.a.weight[0]
        lean.a.weight[1][:, 0, 0] += 0.5 * (lean.a.weight[0].abs().mean())
        lean.norm.bias[2] -= 6.0
    graph = trace(lean, images)
    small, plan = exact_compress(lean, graph, images)
    assert plan.removed == 0
    wide = planted.split(lean, graph, planted.choose(graph, 2, groups=1.0, units=0.3))
    small, plan = exact_compress(wide.model, trace(wide.model, images), images)
    assert plan.removed > 0
    assert gap(wide.model, small, other_inputs(x)) < 1e-10


def test_a_dense_layer_on_few_samples_claims_no_combination() -> None:
    model = planted.Dense(width=300, inputs=400).double()
    x = torch.randn(8, 400, dtype=torch.float64)
    plan = find_exact(model, trace(model, x), x, effort=0.0)
    assert plan.removed == 0
    assert set(plan.too_few_rows) == {"a", "b"}
    assert find_exact(model, trace(model, x), x).too_few_rows == ()


def test_a_fold_that_moves_the_outputs_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = planted.small("dense")
    with torch.no_grad():
        for layer, of in ((model.a, 0), (model.b, 2)):
            layer.weight[1], layer.bias[1] = layer.weight[of], layer.bias[of]
    graph = trace(model, x)
    plan = find_exact(model, graph, x)
    assert removed(plan) == {"a": 1, "b": 1}
    wrong = {m: 1.001 * e for m, e in plan.folds[0].expand.items()}
    object.__setattr__(plan.folds[0], "expand", wrong)
    monkeypatch.setattr("compressor.surgery.exact.find_exact", lambda *a, **k: plan)
    small, done = exact_compress(model, graph, x)
    assert removed(done) == {"b": 1}
    assert done.taken_back == ("a",)
    assert gap(model, small, x) < 1e-10


def test_nothing_given_is_changed_and_the_same_seed_gives_the_same_plan() -> None:
    lean, x = planted.small("residual")
    graph = trace(lean, x)
    model = planted.split(lean, graph, planted.choose(graph, 4)).model.train()
    before, inputs, state = copy.deepcopy(model.state_dict()), x.clone(), torch.get_rng_state()
    plans = [exact_compress(model, trace(model, x), x)[1] for _ in range(2)]
    assert plans[0].kept == plans[1].kept
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, inputs)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(not m._forward_pre_hooks for m in model.modules())


class Tokens(nn.Module):
    """Integer inputs: an embedding, and an MLP block on a stream that a norm freezes."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(30, 12), nn.LayerNorm(12)
        self.up, self.down, self.head = nn.Linear(12, 24), nn.Linear(24, 12), nn.Linear(12, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return self.head(self.norm(x).mean(1))


def test_integer_inputs_and_hidden_units_of_a_transformer() -> None:
    torch.manual_seed(0)
    lean, ids = Tokens().double(), torch.randint(30, (40, 9))
    graph = trace(lean, ids)
    wide = planted.split(lean, graph, {"up": {3: 4, 7: 2}})
    small, plan = exact_compress(wide.model, trace(wide.model, ids), ids)
    assert removed(plan) == {"up": 4}
    assert gap(wide.model, small, torch.randint(30, (20, 9))) < 1e-10


class Speaker(Tokens):
    """Says the next number, by the embedding's own weight (as GPT-2 and many others do)."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 30)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.head(self.norm(x + self.down(nn.functional.gelu(self.up(self.norm(x))))))


def test_an_embedding_that_is_tied_to_the_output_is_no_hindrance() -> None:
    torch.manual_seed(0)
    lean, ids = Speaker().double(), torch.randint(30, (40, 9))
    wide = planted.split(lean, trace(lean, ids), {"up": {3: 4, 7: 2}})
    small, plan = exact_compress(wide.model, trace(wide.model, ids), ids)
    assert removed(plan) == {"up": 4}
    assert gap(wide.model, small, torch.randint(30, (20, 9))) < 1e-10
    assert small.get_parameter("head.weight") is small.get_parameter("table.weight")


class TwoReaders(nn.Module):
    """One stream, read through two norms of which one silences a unit: as in densely connected networks."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.norm1, self.b = nn.BatchNorm2d(8), nn.Conv2d(8, 5, 3, padding=1)
        self.norm2, self.c = nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(self.norm1(x).relu()).mean((2, 3)) + self.c(self.norm2(x).relu()).mean((2, 3))


@pytest.mark.parametrize("equal", [True, False])
def test_copies_silent_at_one_reader_go_only_if_their_weights_are_equal(equal: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 3, 7, 7, dtype=torch.float64)
    lean = planted.awake(TwoReaders().double(), x)
    with torch.no_grad():
        lean.norm2.bias[4] = -100.0
    graph = trace(lean, x)
    wide = planted.split(lean, graph, {"a": {4: 3}})
    with torch.no_grad():
        if not equal:
            wide.model.norm2.bias[5] = -60.0  # silent here, too, but awake on other inputs
            wide.model.norm2.bias[6] = -80.0
    small, plan = exact_compress(wide.model, trace(wide.model, x), x)
    assert removed(plan) == ({"a": 2} if equal else {})
    assert gap(wide.model, small, 100 * other_inputs(x)) < 1e-10


class Unlike(nn.Module):
    """Two halves of one layer that pass different activations: equal weights do not make copies there."""

    def __init__(self, alike: bool) -> None:
        super().__init__()
        self.alike = alike
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        second = torch.relu(x[:, 4:]) if self.alike else torch.nn.functional.relu6(10 * x[:, 4:])
        return self.b(torch.cat([torch.relu(x[:, :4]), second], 1))


@pytest.mark.parametrize("alike", [True, False])
def test_equal_weights_that_no_sample_moves_go_only_if_wired_alike(alike: bool) -> None:
    torch.manual_seed(0)
    model, x = Unlike(alike).double(), torch.randn(50, 6, dtype=torch.float64)
    with torch.no_grad():
        model.a.bias[1] = -50.0  # silent on every sample, not on every input
        model.a.weight[6], model.a.bias[6] = model.a.weight[1], model.a.bias[1]
    small, plan = exact_compress(model, trace(model, x), x)
    assert removed(plan) == ({"a": 1} if alike else {})
    assert len(plan.silent_on_sample) == (1 if alike else 2)
    assert gap(model, small, 100 * other_inputs(x)) < 1e-10


class Flags(nn.Module):
    """Reads flags: what is made up for it are the samples themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.to(self.a.weight.dtype)).relu())


def test_twins_go_where_what_they_are_equal_to_only_looks_like_a_copy_of_a_third() -> None:
    torch.manual_seed(0)
    model, x = Flags().double(), torch.rand(60, 6) < 0.5
    x[:, 2] = False
    with torch.no_grad():
        model.a.weight[:4] = torch.tensor([1.0, 1.0, 0, 0, 0, 0])
        model.a.weight[2:4, 2] = 0.3  # no sample tells 2 and 3 from 0 and 1
        model.a.bias[:4] = -1.5
    small, plan = exact_compress(model, trace(model, x), x)
    assert removed(plan) == {"a": 2}
    assert {(found.unit, found.of) for found in plan.findings} == {(1, 0), (3, 2)}
    assert gap(model, small, torch.rand(200, 6) < 0.5) < 1e-10


class Squeezed(nn.Module):
    """All axes of length one are dropped: that of the batch where it is one sample, that of the units where one is
    left."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, width, 3), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu().mean((2, 3), keepdim=True).squeeze())


def test_no_batch_is_a_single_sample() -> None:
    torch.manual_seed(0)
    model, x = Squeezed(12).double(), torch.randn(34, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        model.a.weight[1], model.a.bias[1] = model.a.weight[0], model.a.bias[0]
    small, plan = exact_compress(model, trace(model, x), x)
    assert removed(plan) == {"a": 1}
    assert gap(model, small, other_inputs(x)) < 1e-10


def test_a_cut_network_that_does_not_run_is_taken_back() -> None:
    torch.manual_seed(0)
    model, x = Squeezed(6).double(), torch.randn(34, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        model.a.weight.copy_(model.a.weight[:1].expand_as(model.a.weight))
        model.a.bias.fill_(0.1)
    small, plan = exact_compress(model, trace(model, x), x)
    assert plan.taken_back == ("a",)
    assert gap(model, small, x) == 0.0


class Casting(planted.Dense):
    """Computes in single precision, whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def test_a_network_that_casts_to_single_precision_is_searched_in_it() -> None:
    torch.manual_seed(0)
    model, x = Casting(), torch.randn(60, 10)
    with torch.no_grad():
        model.a.weight[1], model.a.bias[1] = model.a.weight[0], model.a.bias[0]
    small, plan = exact_compress(model, trace(model, x), x)
    assert removed(plan) == {"a": 1}
    assert gap(model, small, other_inputs(x)) < 1e-4

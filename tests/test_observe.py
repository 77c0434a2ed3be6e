"""Statistics: what they are, that nothing but the data decides them, and that nothing given is changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import planted
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.observe import Statistics, memory_of, observe, readers
from compressor.observe.memory import overflowing
from compressor.observe.passes import passes
from compressor.observe.readers import TapReader
from compressor.sources.samples import Batch, as_samples
from compressor.stages import Workshop, working_copy
from compressor.units.graph import UnitGraph
from compressor.units.trace import trace


def batched(x: Tensor, size: int, stop: int | None = None) -> Callable[[], Iterator[Batch]]:
    """Batches of these inputs; an exception after `stop` batches."""

    def source() -> Iterator[Batch]:
        for i, ids in enumerate(torch.arange(len(x)).split(size)):
            if i == stop:
                raise OSError("the disk is gone")
            yield Batch(ids, x[ids], None)

    return source


def seen(model: nn.Module, x: Tensor, size: int = 16, **options: Any) -> tuple[UnitGraph, Statistics]:
    graph = trace(model, x[:2])
    return graph, observe(model, graph, batched(x, size), len(x), **options)


def apart(one: Statistics, other: Statistics) -> float:
    """Largest relative difference of any sum."""
    assert list(one.taps) == list(other.taps)
    assert one.samples == other.samples
    worst = 0.0
    for name, left in one.taps.items():
        right = other.taps[name]
        assert (left.moments.count, left.samples) == (right.moments.count, right.samples)
        pairs = [
            (left.moments.covariance(), right.moments.covariance()),
            (left.moments.mean(), right.moments.mean()),
            (left.curvature, right.curvature),
        ]
        worst = max(worst, *[float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs])
    return worst


def test_moments_are_those_of_the_inputs_of_each_consumer() -> None:
    model, x = planted.small("dense")
    _, found = seen(model, x)
    inside = F.relu(model.a(x)).detach()
    assert torch.allclose(found.taps["b"].moments.mean(), inside.mean(0), atol=1e-12)
    assert torch.allclose(found.taps["b"].moments.covariance(), torch.cov(inside.T, correction=0), atol=1e-12)
    assert found.taps["b"].samples == found.samples == found.taps["b"].moments.count == len(x)


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-5, 1e-4])
def test_units_that_hardly_vary_are_no_rounding(spread: float) -> None:
    """Noise in the place of a variance is correlated beyond 1: the path could not even begin."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 4)).eval()
    model[0].weight.data[:30] *= spread
    model[0].bias.data[:30] = 0.5 + 4 * torch.rand(30)
    x = torch.randn(600, 8)
    graph, found = seen(model, x, 200)
    covariance = found.taps["2"].moments.covariance()
    scale = covariance.diagonal()[covariance.diagonal() > 0].sqrt()
    live = covariance.diagonal() > 0
    correlation = covariance[live][:, live] / scale[:, None] / scale
    assert float(torch.linalg.eigvalsh(correlation).min()) > -1e-3  # the ridge of the paths
    shop = Workshop.open(model, graph, as_samples((x, torch.zeros(600, dtype=torch.int64))), seed=0)
    shop.statistics = found
    assert len(shop.paths("params")[0].order) == 39


def test_convolutions_are_observed_per_kernel_tap() -> None:
    model, x = planted.small("residual")
    _, found = seen(model, x)
    inside = F.relu(model.stem(x)).detach()
    rows = F.unfold(inside, 3, padding=1).transpose(1, 2).flatten(0, 1)
    measured = found.taps["a"]
    assert measured.per_kernel
    assert torch.allclose(measured.moments.covariance(), torch.cov(rows.T, correction=0), atol=1e-12)


def fisher(model: nn.Module, x: Tensor, layer: nn.Module) -> Tensor:
    """(O, O) the exact Fisher at a layer's output, summed over positions: mean over samples and labels of g gᵀ."""
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _m, _a, out: kept.append(out))
    logits = model(x)
    handle.remove()
    total = torch.zeros(kept[0].shape[1], kept[0].shape[1], dtype=torch.float64)
    chances = logits.softmax(1).detach()
    for label in range(logits.shape[1]):
        (g,) = torch.autograd.grad(logits.log_softmax(1)[:, label].sum(), kept[0], retain_graph=True)
        total += torch.einsum("n,nop,nqp->oq", chances[:, label], g.flatten(2), g.flatten(2))
    return total / len(x)


@pytest.mark.parametrize(("name", "layer"), [("convs", "b"), ("residual", "b")])
def test_the_curvature_is_the_fisher_of_the_models_own_output(name: str, layer: str) -> None:
    model, x = planted.small(name, count=3000)
    _, found = seen(model, x, 500)
    measured = found.taps[layer].curvature / found.samples
    exact = fisher(model, x, model.get_submodule(layer))
    assert float((measured - exact).norm() / exact.norm()) < 0.1


def test_batch_size_decides_nothing() -> None:
    for name in ("convs", "depthwise"):
        model, x = planted.small(name, count=48)
        _, one = seen(model, x, 48)
        _, other = seen(model, x, 7)
        assert apart(one, other) < 1e-10
        _, one = seen(model.float(), x.float(), 48)
        _, other = seen(model, x.float(), 7)
        assert apart(one, other) < 1e-4


@pytest.mark.parametrize("inner", [(), (4,)])
def test_activations_in_place_do_not_change_the_curvature(inner: tuple[int, ...]) -> None:
    """A linear layer's output is a view for tokens: what is written into it afterwards must not cut gradients."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5)).double()
    placed = copy.deepcopy(plain)
    placed[1].inplace = placed[3].inplace = True
    x = torch.randn(40, *inner, 6, dtype=torch.float64)

    def pooled(model: nn.Module) -> nn.Module:
        return nn.Sequential(model, nn.Flatten(1, -2), Mean()) if inner else nn.Sequential(model)

    _, one = seen(pooled(plain), x)
    _, other = seen(pooled(placed), x)
    assert apart(one, other) < 1e-12
    assert all(float(tap.curvature.abs().max()) > 0 for tap in other.taps.values())


class Mean(nn.Module):
    """Mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1) if x.dim() == 3 else x


def test_one_score_counts_as_two_classes_and_maps_are_judged_at_every_position() -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 4, dtype=torch.float64)
    single = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    _, found = seen(single, x)
    chance = torch.sigmoid(single(x)).detach()
    exact = float((chance * (1 - chance)).mean())
    assert float(found.taps["2"].curvature) / 60 == pytest.approx(exact, rel=0.6)
    maps = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1)).double()
    images = torch.randn(200, 3, 3, 3, dtype=torch.float64)
    _, found = seen(maps, images)
    logits = maps(images).flatten(2).transpose(1, 2).flatten(0, 1).detach().softmax(1)
    exact_map = torch.diag(logits.mean(0)) - logits.T @ logits / len(logits)
    measured = found.taps["2"].curvature / found.samples / 9
    assert float((measured - exact_map).norm() / exact_map.norm()) < 0.1


@pytest.mark.parametrize("padding", ["same", (2, 1), "valid"])
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4)])
def test_rows_are_what_the_convolution_reads_whatever_its_padding(padding: Any, mode: str, kernel: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, kernel, padding=padding, padding_mode=mode), nn.Flatten()
    ).double()
    x = torch.randn(6, 2, 7, 8, dtype=torch.float64)
    inside, out = model[0](x).detach(), model[:2](x).detach()
    graph = trace(model, x[:2])
    tap = next(tap for tap in graph.taps if tap.module == "1")
    reader = TapReader(tap, model[1], 6, 0)
    positions = reader.picked(torch.arange(6), inside, out)
    assert positions is not None
    predicted = reader.rows(inside, positions) @ model[1].weight.flatten(1).T + model[1].bias
    assert torch.allclose(predicted, out.flatten(2).transpose(1, 2).flatten(0, 1), atol=1e-12)


def test_a_convolution_with_its_own_forward_is_seen_per_channel() -> None:
    class Same(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.pad(x, (1, 1, 1, 1)))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 1), nn.ReLU(), Same(5, 4, 3), Mean2()).double()
    _, found = seen(model, torch.randn(8, 2, 6, 6, dtype=torch.float64))
    assert not found.taps["2"].per_kernel
    assert len(found.taps["2"].moments.total) == 5


class Mean2(nn.Module):
    """Mean over positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def test_too_many_regressors_are_seen_per_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_REGRESSORS", 20)
    model, x = planted.small("residual")
    _, found = seen(model, x)
    assert not found.taps["a"].per_kernel
    inside = F.relu(model.stem(x)).detach().transpose(0, 1).flatten(1)
    assert torch.allclose(found.taps["a"].moments.covariance(), torch.cov(inside, correction=0), atol=1e-12)


def test_a_layer_that_runs_twice_counts_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.again(F.relu(self.first(x))))
            return self.head(F.relu(self.again(x)))

    torch.manual_seed(0)
    model, x = Twice().double(), torch.randn(30, 5, dtype=torch.float64)
    _, found = seen(model, x)
    once = F.relu(model.first(x))
    rows = torch.cat([once, torch.tanh(model.again(once))]).detach()
    assert found.taps["again"].moments.count == 60
    assert found.taps["again"].samples == 30
    assert torch.allclose(found.taps["again"].moments.covariance(), torch.cov(rows.T, correction=0), atol=1e-12)


def test_a_budget_splits_the_taps_over_passes_with_the_same_result() -> None:
    model, x = planted.small("residual")
    steps: list[int] = []
    runs: list[int] = []
    counter = model.register_forward_pre_hook(lambda _m, _a: runs.append(1))
    graph, whole = seen(model, x)
    ordinary = len(runs)
    _, split = seen(model, x, budget_bytes=1.0, progress=steps.append)
    counter.remove()
    assert apart(whole, split) == 0.0
    assert len(runs) > 2 * ordinary
    assert sum(steps) == len(x)
    assert min(steps) >= 0
    sizes = {tap.module: TapReader(tap, model.get_submodule(tap.module), 64, 0) for tap in graph.taps}
    half = sum(reader.bytes for reader in sizes.values()) / 2
    parts = passes(sizes, half)
    assert [name for part in parts for name in part] == list(sizes)
    assert all(len(part) == 1 or sum(r.bytes for r in part.values()) <= half for part in parts)
    assert memory_of(torch.device("cpu")) > 1e8


@pytest.mark.parametrize("name", ["dense", "residual", "concat"])
def test_activations_beyond_the_budget_wait_in_files_with_the_same_result(name: str) -> None:
    model, x = planted.small(name)
    _, plenty = seen(model, x)
    _, little = seen(model, x, budget_bytes=2000.0)
    assert plenty.in_files == 0 < little.in_files
    assert apart(plenty, little) < 1e-12


def test_a_change_in_place_is_noticed_where_the_tensor_itself_was_kept() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 7), nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            kept = self.a(x).sigmoid()
            return self.b(kept.clone()) * kept.mul_(2).sum()

    model, x = Wrong().double(), torch.randn(8, 5, dtype=torch.float64)
    for budget in (1e9, 0.0):
        with overflowing(model, budget):
            out = model(x)
        if budget:
            with pytest.raises(RuntimeError, match="in place"):
                torch.autograd.grad(out.sum(), model.a.weight)
        else:  # what is in a file is what was computed
            torch.autograd.grad(out.sum(), model.a.weight)


def test_bfloat16_forward_passes_give_nearly_the_same_sums() -> None:
    model, x = planted.small("dense", count=400)
    model, x = model.float(), x.float()
    _, whole = seen(model, x)
    _, half = seen(model, x, autocast=torch.bfloat16)
    assert half.taps["b"].moments.gram.dtype == torch.float64
    assert 0 < apart(whole, half) < 0.2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = F.relu(model.a(x)).float().detach()  # products of rounded activations are not rounded again
        _, inherited = seen(model, x)
    exact = torch.cov(inside.double().T, correction=0)
    assert torch.allclose(half.taps["b"].moments.covariance(), exact, rtol=1e-4, atol=1e-6)
    assert apart(whole, inherited) == 0.0  # a caller's own setting does not reach the pass


def snapshot(model: nn.Module) -> tuple[Any, ...]:
    return (
        [(n, t.clone()) for n, t in model.state_dict().items()],
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        [p.grad for p in model.parameters()],
    )


@pytest.mark.parametrize("stop", [None, 1])
def test_nothing_given_is_changed_also_after_an_exception(stop: int | None) -> None:
    model, x = planted.small("convs")
    model.train()
    model.norm.eval()
    model.b.weight.requires_grad_(False)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.shape != model.a.weight.shape)
    graph = trace(model, x[:2])
    before, random = snapshot(model), torch.random.get_rng_state()
    if stop is None:
        found = observe(model, graph, batched(x, 16), len(x))
        assert all(float(tap.curvature.abs().max()) > 0 for tap in found.taps.values())  # frozen weights as well
    else:
        with pytest.raises(OSError, match="the disk is gone"):
            observe(model, graph, batched(x, 16, stop), len(x))
    after = snapshot(model)
    assert all(n == m and torch.equal(a, b) for (n, a), (m, b) in zip(before[0], after[0], strict=True))
    assert before[1:] == after[1:]
    assert torch.equal(random, torch.random.get_rng_state())


def shop(x: Tensor, model: nn.Module) -> Workshop:
    samples = as_samples((x, torch.zeros(len(x), dtype=torch.long)))
    work = working_copy(model, torch.device("cpu"))
    return Workshop.open(work, trace(work, x[:2]), samples, 0)


def _process(rank: int, world: int, folder: str, sizes: list[int]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        found = []
        for samples in sizes:
            model, x = planted.small("convs", count=samples)
            here = shop(x.float(), model.float())
            here.measure()
            found.append((here.statistics, [path.order.tolist() for path in here.paths("params")]))
        failure = ""
        try:
            observe(here.model, here.graph, batched(x.float(), 16, 0 if rank == 1 else None), len(x))
        except (OSError, RuntimeError) as error:
            failure = str(error)
        torch.save((found, failure), f"{folder}/{rank}.pt")
        torch.distributed.barrier()  # gloo may abort where one leaves while the other still speaks
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_end_with_the_statistics_of_one(tmp_path: Path) -> None:
    """Three uneven batches for two processes; then one batch, so that the second process has none; then an error."""
    sizes = [600, 40]
    torch.multiprocessing.spawn(_process, (2, str(tmp_path), sizes), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    for place, samples in enumerate(sizes):
        model, x = planted.small("convs", count=samples)
        alone = shop(x.float(), model.float())
        alone.measure()
        orders = [path.order.tolist() for path in alone.paths("params")]
        for found, _ in results:
            assert apart(found[place][0], alone.statistics) < 1e-9
            assert found[place][1] == orders
    assert results[0][1].startswith("an error in another process (1):\nTraceback")
    assert [failure.strip().endswith("the disk is gone") for _, failure in results] == [True, True]


def test_no_group_means_no_reduction() -> None:
    model, x = planted.small("dense")
    _, found = seen(model, x)
    assert found.all_reduced() is found


def test_frozen_graphs_have_nothing_to_observe() -> None:
    model, x = planted.small("dense")
    graph = trace(model, x[:2])
    found = observe(model, graph, batched(x, 16), len(x), taps=[])
    assert found.taps == {}
    assert found.samples == len(x)

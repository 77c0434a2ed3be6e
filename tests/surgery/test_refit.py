"""The lock-step refit: better than the fold on data that it has not seen; skips are corrected."""

from __future__ import annotations

import copy
import math
from functools import cache

import planted
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from compressor.observe import observe, readers
from compressor.sources.samples import Batch
from compressor.surgery import refit
from compressor.surgery.landing import landings
from compressor.surgery.lanes import Lane
from compressor.surgery.operate import operate
from compressor.surgery.refit import Refit
from compressor.units.program import record
from compressor.units.trace import trace


class Net(nn.Module):
    """A residual network for 8 x 8 digits."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.a1, self.na1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.a2, self.na2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.b1, self.b2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.na2(self.a2(F.relu(self.na1(self.a1(x))))))
        x = F.relu(x + self.b2(F.relu(self.b1(x))))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


@cache
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A trained network, and images that fit it and images that it and the fits have not seen."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    torch.manual_seed(0)
    model = Net()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(3):
        for ids in torch.randperm(1200).split(50):
            optimiser.zero_grad()
            F.cross_entropy(model(x[ids]), y[ids]).backward()
            optimiser.step()
    return model.eval(), x[:1200], x[1200:]


def folded(model: nn.Module, x: Tensor, share: float) -> tuple[nn.Module, dict[str, tuple[int, ...]], object]:
    graph = trace(model, x[:2])
    seen = observe(model, graph, lambda: (Batch(i, x[i], None) for i in torch.arange(len(x)).split(200)), len(x))
    spots = {spot.module: spot for spot in landings(record(model, x[:2]))}
    kept = {g.name: tuple(range(math.ceil(share * len(g.units)))) for g in graph.groups if g.frozen is None}
    return operate(model, graph, seen, kept, spots, 1e-3), kept, graph


def error(model: nn.Module, small: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        before, after = model(x), small(x)
    return float((before - after).norm() / (before - before.mean(0)).norm())


def refitted(model: nn.Module, x: Tensor, share: float, size: int) -> tuple[nn.Module, nn.Module]:
    small, kept, graph = folded(model, x, share)
    start = [p.clone() for p in small.parameters()]
    fold = folded(model, x, share)[0]
    done = Refit(model, small, graph, kept, list(x.split(size)), 1e-3).run()  # type: ignore[arg-type]
    assert done is small
    assert any(not torch.equal(a, b) for a, b in zip(start, small.parameters(), strict=True))
    return fold, small


@pytest.mark.parametrize("ceiling", [4700, 40])
def test_better_than_the_fold_on_unseen_images(ceiling: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_REGRESSORS", ceiling)
    model, fit, fresh = trained()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    random = torch.random.get_rng_state()
    fold, small = refitted(model, fit, 0.6, 200)
    assert error(model, small, fresh) < 0.9 * error(model, fold, fresh)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert not any(m._forward_hooks or m.training for m in model.modules())
    assert torch.equal(random, torch.random.get_rng_state())


class Skip(nn.Module):
    """A skip that loses what it read, beside a branch that knows enough to make up for it."""

    def __init__(self) -> None:
        super().__init__()
        self.lossy, self.skip = nn.Linear(6, 30), nn.Linear(30, 8)
        self.rich, self.last = nn.Linear(6, 64), nn.Linear(64, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.skip(torch.tanh(2 * self.lossy(x)))
        return self.head(torch.tanh(self.last(torch.tanh(self.rich(x))) + skip))


def test_correcting_the_skip_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Skip().eval(), torch.randn(1500, 6)
    graph = trace(model, x[:2])
    lossy = next(g.name for g in graph.groups if "lossy" in g.producers)
    seen = observe(model, graph, lambda: [Batch(torch.arange(1000), x[:1000], None)], 1000)
    spots = {spot.module: spot for spot in landings(record(model, x[:2]))}

    def made() -> nn.Module:
        kept = {lossy: tuple(range(6))}
        small = operate(model, graph, seen, kept, spots, 1e-3)
        return Refit(model, small, graph, kept, list(x[:1000].split(250)), 1e-3).run()

    small = made()
    monkeypatch.setattr(Refit, "_corrected", lambda _self, _spot, y, _chunk, _rows: y)
    assert error(model, small, x[1000:]) < 0.8 * error(model, made(), x[1000:])


def test_the_size_of_chunks_hardly_matters() -> None:
    model, fit, fresh = trained()
    _, one = refitted(model, fit, 0.6, 200)
    _, other = refitted(model, fit, 0.6, 300)
    assert error(one, other, fresh) < 0.02


class Tokens(nn.Module):
    """Residual token mixers: linear layers on 3-d inputs, one of them without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(5, 8)
        self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 8, bias=False)
        self.head = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.start(x))
        x = x + self.down(F.relu(self.up(x)))
        return self.head(x.mean(1))


class Map(nn.Module):
    """Linear layers on the channels of feature maps, with large biases, which are added by operations of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(1, 8, 1), nn.Linear(8, 20), nn.Linear(20, 8)
        self.head = nn.Linear(8, 4)
        nn.init.normal_(self.a.bias, 0.0, 3.0)
        nn.init.normal_(self.b.bias, 0.0, 3.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x + self.b(F.gelu(self.a(x)))
        return self.head(F.gelu(x).mean((1, 2)))


def test_biases_that_are_added_apart_stay() -> None:
    torch.manual_seed(0)
    model, x = Map().eval(), torch.randn(400, 1, 4, 4)
    found = {spot.module: spot for spot in landings(record(model, x[:2]))}
    assert (found["a"].apart, found["b"].apart, found["head"].apart) == ("a.bias", "b.bias", None)
    assert found["b"].other is not None
    small, again = refitted(model, x[:300], 0.7, 100)
    assert error(model, again, x[300:]) <= 1.1 * error(model, small, x[300:])
    assert error(model, again, x[300:]) < 0.3


class Ups(nn.Module):
    """Through a transposed convolution and a convolution without bias and norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up = nn.Conv2d(2, 12, 3, padding=1), nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.bare, self.head = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.bare(F.relu(self.up(F.relu(self.a(x)))))).mean((2, 3)))


class Twice(nn.Module):
    """One layer that runs twice: it keeps its fold, the others are refitted."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(6, 20), nn.Linear(20, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.again(torch.relu(self.first(x))))
        return self.head(torch.relu(self.again(x)))


class Wrapped(nn.Module):
    """Padding by wrapping round is an operation of its own in the program."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 12, 1), nn.Conv2d(12, 8, 3, padding=1, padding_mode="circular")
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


class Shifted(nn.Module):
    """A vector of its own, added to what a layer without bias gives."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 20), nn.Linear(20, 16, bias=False)
        self.shift, self.head = nn.Parameter(torch.randn(16)), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.a(x))) + self.shift))


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (Shifted, (6,)),
        (Tokens, (7, 5)),
        (Ups, (2, 6, 6)),
        (Twice, (6,)),
        (Wrapped, (2, 6, 6)),
        (planted.Depthwise, (3, 8, 8)),
    ],
)
def test_other_layers_are_no_worse_than_folded(build: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = build().eval()
    x = torch.randn(900, *shape)
    fold, small = refitted(model, x[:600], 0.7, 150)
    assert error(model, small, x[600:]) < 1.02 * error(model, fold, x[600:])


@pytest.mark.parametrize(("build", "shape"), [(Net, (1, 8, 8)), (Tokens, (7, 5)), (Skip, (6,))])
@pytest.mark.parametrize("resident", [0, 2])
def test_chunks_that_wait_in_files_change_nothing(
    build: type[nn.Module], shape: tuple[int, ...], resident: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(300, *shape)
    small, kept, graph = folded(model, x, 0.7)
    other = copy.deepcopy(small)
    waiting: list[bool] = []

    def rest(lane: Lane, chunk: int) -> None:
        real(lane, chunk)
        held = [v for n, v in lane.values[chunk].items() if isinstance(v, Tensor) and n in lane.of_samples]
        waiting.extend((value.untyped_storage().filename is not None) == (chunk >= resident) for value in held)

    real = Lane.rest
    monkeypatch.setattr(Lane, "rest", rest)
    Refit(model, small, graph, kept, list(x.split(50)), 1e-3, resident=resident).run()  # type: ignore[arg-type]
    assert len(waiting) > 10
    assert all(waiting)
    Refit(model, other, graph, kept, list(x.split(50)), 1e-3).run()  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), other.parameters(), strict=True))


def test_an_unseen_chunk_can_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit that is silent in the first chunk and not in the second still makes its consumer refit."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    small, kept, graph = folded(model, torch.randn(64, 4), 0.7)
    run = Refit(model, small, graph, kept, [torch.zeros(8, 4), torch.randn(8, 4)], 1e-3)  # type: ignore[arg-type]
    fitted: list[str] = []
    monkeypatch.setattr(refit.Refit, "_fit", lambda _self, spot, _tap: fitted.append(spot.module))
    run.run()
    assert fitted == ["2", "4"]


def test_a_network_that_runs_other_operations_is_refused() -> None:
    model, x = planted.small("dense")
    graph = trace(model, x[:2])
    with pytest.raises(RuntimeError):
        Refit(model, nn.Sequential(model, nn.ReLU()), graph, {}, [x], 1e-3)

"""Layers that compute their weights are worked on as the plain layers that they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import compressor
from compressor.attention.dense import DenseAttention
from compressor.computed import computed_again, computed_layers, made_plain
from compressor.export.bundle import load_bundle, save_bundle
from compressor.units.check import checked
from compressor.units.dense import in_dense_form
from compressor.units.trace import trace


class Standardised(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019)."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(input, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class Scaled(nn.Linear):
    """A weight scaled at run time (Karras et al. 2018)."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * 0.7, self.bias)


class Heard(nn.Linear):
    """A weight that depends on what it reads."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * input.mean().detach(), self.bias)


class After(nn.Linear):
    """More than a product: what comes after it is no plain layer."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * 0.7, self.bias).tanh()


class Net(nn.Module):
    """Every kind in turn; the last layer is plain."""

    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.weight_norm(nn.Conv2d(1, 8, 3, padding=1))
        self.b = Standardised(8, 12, 3, stride=2, padding=1)
        self.c = spectral_norm(nn.ConvTranspose2d(12, 6, 2, stride=2))
        self.d = Scaled(6, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.d(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))).mean((2, 3)))))


KINDS = {"a": "Conv2d", "b": "Conv2d", "c": "ConvTranspose2d", "d": "Linear"}


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().eval()


def images() -> Tensor:
    return torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_each_kind_is_found_and_answers_the_same() -> None:
    model, x = net(), images()
    assert computed_layers(model) == KINDS
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dense = in_dense_form(model, x)
    assert {name: type(dense.get_submodule(name)).__name__ for name in KINDS} == KINDS
    with torch.no_grad():
        assert torch.allclose(model(x), dense(x), atol=1e-6)
    graph = checked(dense, trace(dense, x), x)
    assert [group.name for group in graph.groups if group.frozen is None] == ["a", "b", "c", "d"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", [Heard, After])
def test_what_a_plain_layer_would_not_answer_stays(kind: type[nn.Module]) -> None:
    assert computed_layers(nn.Sequential(kind(4, 4), nn.ReLU(), nn.Linear(4, 2))) == {}


HOOKS = {
    "weight norm": weight_norm,
    "spectral norm": spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}
"""What hooks of torch compute a weight for."""


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_that_compute_a_weight_are_worked_on(hook: str, tmp_path: Path) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(HOOKS[hook](nn.Linear(6, 16)), nn.ReLU(), HOOKS[hook](nn.Linear(16, 4)))

    model, x = make(), torch.randn(60, 6, generator=torch.Generator().manual_seed(1))
    model(x).sum().backward()  # as after training: the weight that the hook left is part of a graph
    labels, before = model.eval()(x).argmax(1), model(x).detach()
    assert compressor.compress(model, x, exact=True, device="cpu").verdict.value == "passed"
    result = compressor.compress(model, (x, labels), keep="params=0.5", align=1, device="cpu", max_drop=50)
    assert torch.equal(model(x), before)
    result.save(tmp_path / "out", onnx=False)
    again = compressor.load(tmp_path / "out", factory=make)
    assert again[0].weight.shape[0] < 16  # pyright: ignore[reportIndexIssue]
    assert torch.equal(again(x), result.model(x))


def test_shared_layers_stay_as_they_are() -> None:
    shared = Scaled(4, 4)
    assert computed_layers(nn.Sequential(shared, nn.ReLU(), shared)) == {}


def test_untouched_layers_come_back_in_their_class() -> None:
    model = net()
    small = computed_again(made_plain(net(), KINDS), model)
    assert {name: type(small.get_submodule(name)) for name in KINDS} == {
        name: type(model.get_submodule(name)) for name in KINDS
    }
    plain = made_plain(net(), KINDS)
    with torch.no_grad():
        plain.get_submodule("d").weight += 1.0  # pyright: ignore[reportOperatorIssue]
    assert type(computed_again(plain, model).get_submodule("d")) is nn.Linear


def test_a_compressed_network_is_saved_and_loaded(tmp_path: Path) -> None:
    model, x = net(), images()
    result = compressor.compress(model, (x, model(x).argmax(1)), keep="params=0.5", align=1, device="cpu")
    assert type(result.model.get_submodule("b")) is nn.Conv2d
    manifest = save_bundle(tmp_path, result.model, model, {"kind": "none"}, lambda _: net())
    assert manifest.plain["b"] == "Conv2d"
    again = load_bundle(tmp_path, source_loader=lambda _: net())
    with torch.no_grad():
        assert torch.equal(again(x), result.model(x))


def test_timm_layers_that_pad_to_the_same_size_become_theirs_with_plain_weights() -> None:
    layers = pytest.importorskip("timm.layers")
    model = nn.Sequential(layers.ScaledStdConv2dSame(3, 8, 3, stride=2), nn.ReLU(), layers.StdConv2d(8, 4, 3))
    assert computed_layers(model) == {"0": "Conv2dSame", "2": "Conv2d"}
    x = torch.randn(2, 3, 9, 10)
    with torch.no_grad():
        assert torch.allclose(made_plain(model, {"0": "Conv2dSame"})(x), model(x), atol=1e-5)


class Caching(nn.Module):
    """Keeps what it made of its parameters, as LeViT does in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shift, self.last = nn.Linear(6, 16), nn.Parameter(torch.randn(16)), nn.Linear(16, 4)
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if "shift" not in self.cache:
            self.cache["shift"] = self.shift * 2
        return self.last(F.relu(self.first(x)) + self.cache["shift"])


def test_a_network_that_cached_a_tensor_of_a_graph_is_worked_on() -> None:
    torch.manual_seed(0)
    model, x = Caching().eval(), torch.randn(60, 6)
    model(x).sum().backward()
    before = model(x).detach()
    result = compressor.compress(model, (x, before.argmax(1)), exact=True, device="cpu")
    assert torch.allclose(result.model(x), before, atol=1e-5)
    assert not model.cache["shift"].is_leaf


class Mixing(nn.Module):
    """Attention by hand whose layers compute their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 2
        self.qkv = parametrizations.weight_norm(nn.Linear(8, 24))
        self.out = parametrizations.weight_norm(nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(2, 0).transpose(2, 3)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Text(nn.Module):
    """A block of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mixing, self.head = nn.Linear(5, 8), Mixing(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.mixing(x)).mean(1))


def test_attention_whose_layers_compute_their_weights_is_saved_and_loaded(tmp_path: Path) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return Text().eval()

    model, x = make(), torch.randn(80, 7, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = model(x).argmax(1)
    result = compressor.compress(model, (x, labels), keep="params=0.7", align=1, device="cpu", max_drop=50)
    assert isinstance(result.model.get_submodule("mixing"), DenseAttention)
    result.save(tmp_path / "out", onnx=False)
    with torch.no_grad():
        assert torch.equal(compressor.load(tmp_path / "out", factory=make)(x), result.model(x))

"""Hidden units of recurrent layers, found and cut: planted copies, a lossy run from weights to files, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compressor
from compressor.errors import ModelError, SourceError
from compressor.export.bundle import load_bundle, save_bundle
from compressor.export.manifest import MANIFEST
from compressor.export.onnx import export_onnx
from compressor.export.session import OnnxModel
from compressor.recurrent.layers import Last
from compressor.recurrent.rolled import Rolled
from compressor.recurrent.unrolled import Unrolled
from compressor.surgery.exact import exact_compress, moved
from compressor.units.check import checked
from compressor.units.cut import cut
from compressor.units.dense import given_form, in_dense_form
from compressor.units.trace import trace

SOURCE = {"spec": "x", "kind": "object", "place": "x", "name": "net", "arguments": {}, "sha256": None}
X = torch.randn(48, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Reader(nn.Module):
    """A recurrent layer, and a head that `reads` what it gives."""

    def __init__(self, kind: str, reads: Callable[[Any, Tensor], Tensor], width: int = 6, **options: Any) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(3, width, batch_first=True, **options)
        self.reads = reads
        self.head = nn.Linear(width * (1 + self.rnn.bidirectional), 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.reads(self.rnn, x))


def ends(rnn: Any, x: Tensor) -> Tensor:
    """Both ends of the sequence, so that each direction is heard."""
    out = rnn(x)[0]
    return out[:, 0] + out[:, -1]


def zeros(rnn: Any, x: Tensor) -> Tensor:
    """States of zeros, made in the forward pass with the width of the original."""
    h = torch.zeros(1, len(x), 6, dtype=x.dtype)
    return rnn(x, (h, h.clone()))[0][:, -1]


def top(rnn: Any, x: Tensor) -> Tensor:
    return rnn(x)[1][0][-1]


def both_tops(rnn: Any, x: Tensor) -> Tensor:
    h = rnn(x)[1]
    return torch.cat((h[-2], h[-1]), dim=1)


def halves(rnn: Any, x: Tensor) -> Tensor:
    """The directions taken apart by the layer's own width."""
    out = rnn(x)[0].view(len(x), x.shape[1], 2, rnn.hidden_size)
    return torch.cat([out[:, -1, 0], out[:, 0, 1]], 1)


def slices(rnn: Any, x: Tensor) -> Tensor:
    out, width = rnn(x)[0], rnn.hidden_size
    return torch.cat([out[:, -1, :width], out[:, 0, width:]], 1)


def stacked(rnn: Any, x: Tensor) -> Tensor:
    return rnn(x)[1].transpose(0, 1).reshape(len(x), -1)


def ones(rnn: Any, x: Tensor) -> Tensor:
    return rnn(x, torch.ones(1, len(x), 6, dtype=x.dtype))[0][:, -1]


def packed(rnn: Any, x: Tensor) -> Tensor:
    given = nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), x.shape[1]), batch_first=True)
    return rnn(given)[1][-1]


def net(kind: str, reads: Callable[[Any, Tensor], Tensor], **options: Any) -> Any:
    torch.manual_seed(0)
    return Reader(kind, reads, **options).double().eval()


def opened(model: nn.Module) -> tuple[nn.Module, Any]:
    made = in_dense_form(model, X)
    return made, checked(made, trace(made, X), X[:2])


def ran(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def plant(model: Any) -> None:
    """The last hidden unit of every layer and direction becomes a clone of another; both are read."""
    for name, parameter in model.rnn.named_parameters():
        rows = parameter.data.view(-1, model.rnn.hidden_size, *parameter.shape[1:])
        rows[:, 5] = rows[:, 1]
        assert name


@pytest.mark.parametrize(
    ("kind", "options"),
    [("LSTM", {}), ("GRU", {"bias": False}), ("GRU", {}), ("RNN", {"num_layers": 2, "bidirectional": True})],
)
def test_planted_copies_of_hidden_units_go(kind: str, options: dict[str, Any]) -> None:
    model = net(kind, ends, **options)
    plant(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made, graph = opened(model)
    small, plan = exact_compress(made, graph, X, effort=0.0)
    layers = model.rnn.num_layers * (1 + model.rnn.bidirectional)
    assert {fold.group: len(fold.dropped) for fold in plan.folds} == {f"rnn.layers.{i}.x": 1 for i in range(layers)}
    assert plan.taken_back == ()
    back: Any = given_form(small, model)
    assert isinstance(back.rnn, Rolled)
    assert [layer.width for layer in back.rnn.layers] == [5] * layers
    fresh = torch.randn(4, 9, 3, dtype=torch.float64)
    assert moved([ran(model, fresh)], [ran(back, fresh)]) < 1e-10
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_a_lean_layer_stays_as_it_is() -> None:
    model = net("GRU", ends)
    made, graph = opened(model)
    small, plan = exact_compress(made, graph, X, effort=0.0)
    assert not plan.folds
    assert type(given_form(small, model).get_submodule("rnn")) is nn.GRU


@pytest.mark.parametrize(
    ("kind", "reads", "options", "live"),
    [
        ("LSTM", zeros, {}, 1),
        ("LSTM", top, {"num_layers": 2}, 2),
        ("GRU", both_tops, {"bidirectional": True}, 2),
        ("GRU", slices, {"bidirectional": True}, 2),
        ("RNN", halves, {"bidirectional": True}, 0),
        ("RNN", stacked, {"bidirectional": True}, 0),
        ("GRU", ones, {}, 0),
        ("GRU", packed, {}, 0),
    ],
)
def test_what_reads_a_layer_decides_what_can_go(
    kind: str, reads: Callable[[Any, Tensor], Tensor], options: dict[str, Any], live: int
) -> None:
    """Whatever is live can be cut to widths that differ between layers; the rest is frozen with its reason."""
    model = net(kind, reads, **options)
    made, graph = opened(model)
    groups = [group for group in graph.groups if group.name.startswith("rnn")]
    kept = {g.name: tuple(range(5 - i)) for i, g in enumerate(g for g in groups if g.frozen is None)}
    assert len(kept) == live
    if not live:
        assert groups
        assert all(group.frozen for group in groups)
        assert isinstance(made.get_submodule("rnn"), Unrolled) == (reads in (halves, stacked))
        return
    small = cut(made, graph, kept)
    result: Any = given_form(small, model)
    assert [layer.width for layer in result.rnn.layers] == [5 - i for i in range(live)]
    torch.testing.assert_close(ran(result, X), ran(cut(made, graph, kept), X))


def test_states_that_are_zero_in_these_data_only_are_no_reason_to_drop_them() -> None:
    class Streams(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(3, 6, batch_first=True), nn.Linear(6, 4)

        def forward(self, x: Tensor, before: Tensor) -> Tensor:
            return self.head(self.rnn(x, before.transpose(0, 1).contiguous())[0][:, -1])

    model = Streams().eval()
    assert in_dense_form(model, (X[:2].float(), torch.zeros(2, 1, 6))) is model


def narrow(keep: dict[str, tuple[int, ...]] | None = None) -> tuple[Any, Any]:
    """An original, and it with fewer hidden units, others in each layer."""
    model = net("LSTM", top, num_layers=2)
    made, graph = opened(model)
    small = cut(made, graph, keep or {"rnn.layers.0.x": (0, 2, 3, 5), "rnn.layers.1.x": (1, 2, 4)})
    assert isinstance(small.get_submodule("rnn"), Unrolled)
    return model, given_form(small, model).eval()


def test_bundles_and_files_of_layers_of_several_widths(tmp_path: Path) -> None:
    model, small = narrow()
    manifest = save_bundle(tmp_path, small, model, SOURCE)
    assert (manifest.recurrent, manifest.attention) == (["rnn"], [])

    def factory() -> nn.Module:
        return net("LSTM", top, num_layers=2)

    loaded: Any = load_bundle(tmp_path, factory=factory)
    assert isinstance(loaded.rnn, Rolled)
    assert torch.equal(ran(loaded, X), ran(small, X))
    assert isinstance(loaded.rnn(X)[1][0], Last)
    with pytest.raises(ModelError, match="states to begin with"):
        loaded.rnn(X, (torch.ones(2, 48, 6), torch.ones(2, 48, 6)))
    made = export_onnx(small.float(), X[:4].float(), tmp_path / "model.onnx")
    assert made.parity.signal
    assert (made.exporter, made.notes) == ("dynamo", ())
    for count in (1, 7):
        torch.testing.assert_close(OnnxModel(made.path)(X[:count].float()), ran(small, X[:count].float()))
    path = tmp_path / MANIFEST
    for name in ("head", "nobody", "", "rnn.layers.0", "rnn.weight_ih_l0"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"recurrent": [name]}))
        with pytest.raises(SourceError, match="recurrent"):
            load_bundle(tmp_path, factory=factory)


def test_a_result_is_compressed_again(tmp_path: Path) -> None:
    """A layer of several widths is worked on layer by layer, and saved relative to the first original."""
    first, model = narrow()
    made, graph = opened(model)
    names = [group.name for group in graph.groups if group.frozen is None]
    assert names == ["rnn.layers.0.inner.layers.0.x", "rnn.layers.1.inner.layers.0.x"]
    small: Any = given_form(cut(made, graph, {names[0]: (0, 3)}), model)
    assert [type(layer.inner) for layer in small.rnn.layers] == [nn.LSTM, nn.LSTM]
    assert [layer.width for layer in small.rnn.layers] == [2, 3]
    torch.testing.assert_close(ran(small, X), ran(cut(made, graph, {names[0]: (0, 3)}), X))
    save_bundle(tmp_path, small, first, SOURCE)
    loaded = load_bundle(tmp_path, factory=lambda: net("LSTM", top, num_layers=2))
    assert torch.equal(ran(loaded, X), ran(small, X))


class Digits(nn.Module):
    """Handwritten digits read row by row."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(8, width, batch_first=True), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[1][0][-1])


def test_a_lossy_run_cuts_hidden_units_and_its_files_agree(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    torch.manual_seed(0)
    order = torch.randperm(len(digits.target))
    x, y = torch.tensor(digits.images / 16, dtype=torch.float32)[order], torch.tensor(digits.target)[order]
    model = Digits()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(12):
        for ids in torch.randperm(900).split(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[ids]), y[ids]).backward()
            optimizer.step()
    model.eval()
    result = compressor.compress(
        model, (x[:900], y[:900]), tune=(x[900:1100], y[900:1100]), judge=(x[1100:], y[1100:]), keep="params=0.5",
        max_drop=5.0, align=1,
    )  # fmt: skip
    small: Any = result.model
    assert isinstance(small.rnn, Rolled)
    sizes = [sum(p.numel() for p in each.parameters()) for each in (small, model)]
    assert sizes[0] < 0.5 * sizes[1]
    assert [result.record["compressed"]["params"], result.record["original"]["params"]] == sizes
    shares = [float((ran(each, x[1100:]).argmax(1) == y[1100:]).float().mean()) for each in (model, small)]
    assert shares[0] > 0.9
    assert shares[1] > shares[0] - 0.05
    result.save(tmp_path)
    loaded = load_bundle(tmp_path, factory=Digits)
    assert torch.equal(ran(loaded, x), ran(small, x))
    found = OnnxModel(tmp_path / "model.onnx")(x[:13])
    torch.testing.assert_close(found, ran(small, x[:13]), rtol=1e-4, atol=1e-4)

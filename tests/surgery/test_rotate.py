"""A stream turned by any rotation leaves the function as it is; what the dry run cannot follow is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from stream_nets import HandMade, Tower, stirred, torchvision_vit
from torch import Tensor, nn

from compressor.surgery.rotate import folded, reading, refusal, spread_basis, turned, writing
from compressor.units.check import checked
from compressor.units.streams import Stream, find_streams
from compressor.units.trace import recorded_pair, trace


def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, dtype=torch.float64)


def rows() -> Tensor:
    return torch.randn(3, 5, 6, dtype=torch.float64)


def timm_vit() -> nn.Module:
    pytest.importorskip("timm")
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"embed_dim": 12, "depth": 2, "num_heads": 2, "mlp_ratio": 2, "num_classes": 5}
    return VisionTransformer(16, 8, init_values=0.1, **sizes)  # type: ignore[arg-type]


def hf(kind: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = getattr(transformers, f"{kind}Config")(image_size=16, patch_size=8, num_labels=5, **sizes)
    return getattr(transformers, f"{kind}ForImageClassification")(config)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "tower": (Tower, rows),
    "scaled": (lambda: Tower(scale=True), rows),
    "beside": (lambda: Tower(beside=True), rows),
    "rms": (lambda: Tower(scale=True, norm=nn.RMSNorm), rows),
    "torchvision": (torchvision_vit, images),
    "timm": (timm_vit, images),
    "vit": (lambda: hf("ViT"), images),
    "deit": (lambda: hf("DeiT"), images),
    "dinov2": (lambda: hf("Dinov2"), images),
}


def only_stream(model: nn.Module, inputs: Tensor) -> Stream:
    (stream,), refused = find_streams(model, recorded_pair(model, inputs))
    assert refused == {}
    return stream


def orthonormal(width: int, size: int, centred: bool = True) -> Tensor:
    """(width, size) random orthonormal columns, orthogonal to the ones if `centred`."""
    draw = torch.randn(width, width, dtype=torch.float64)
    draw[:, 0] = 1
    return torch.linalg.qr(draw)[0][:, int(centred) :][:, :size]


def answers(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        out = model(inputs)
    return out if isinstance(out, Tensor) else out.logits


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("more", [0, 5])
def test_every_rotation_of_all_directions_leaves_the_outputs(name: str, more: int) -> None:
    torch.manual_seed(1)
    make, draw = NETWORKS[name]
    model, inputs = stirred(make()), draw()
    before = answers(model, inputs)
    stream = only_stream(model, inputs)
    assert stream.centred == (name != "rms")
    basis = orthonormal(stream.width, stream.width - stream.centred, stream.centred)
    wide = turned(folded(model, [stream]), stream, basis, stream.width + more)
    after = answers(wide, inputs)
    assert float((after - before).abs().max()) <= 1e-10 * float(before.abs().max())
    assert float(before.std()) > 1e-3
    assert only_stream(wide, inputs).width == stream.width + more
    assert torch.equal(answers(model, inputs), before)
    assert refusal(model, stream, inputs) is None


def test_directions_that_nobody_writes_go_without_loss() -> None:
    model, inputs = stirred(Tower()), rows()
    stream = only_stream(model, inputs)
    basis = orthonormal(8, 4)
    with torch.no_grad():
        for layer in stream.layers:
            module = model.get_submodule(layer)
            for leaf in ("weight", "bias"):
                tensor = getattr(module, leaf)
                tensor.copy_(basis @ (basis.T @ tensor) + 0.7)  # and a mean, which norms do not see
        model.first.copy_(model.first @ basis @ basis.T)  # type: ignore[operator]
    small = turned(folded(model, [stream]), stream, basis, 5)
    before = answers(model, inputs)
    assert float((answers(small, inputs) - before).abs().max()) <= 1e-10 * float(before.abs().max())
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())
    lossy = turned(folded(model, [stream]), stream, basis[:, :3], 4)
    assert float((answers(lossy, inputs) - before).abs().max()) > 1e-3 * float(before.abs().max())


def test_an_rms_norm_written_by_hand_is_followed_up_to_its_own_rounding() -> None:
    torch.manual_seed(1)
    model, inputs = stirred(Tower(norm=HandMade)), rows()
    stream = only_stream(model, inputs)
    assert (stream.centred, stream.norms) == (False, ("blocks.0.norm", "blocks.1.norm", "norm"))
    assert refusal(model, stream, inputs) is None
    wide = turned(folded(model, [stream]), stream, orthonormal(8, 8, False), 11)
    before = answers(model, inputs)
    assert float((answers(wide, inputs) - before).abs().max()) <= 1e-6 * float(before.abs().max())
    for wrong in (replace(stream, reads=stream.reads[1:]), replace(stream, norms=stream.norms[:1])):
        assert (refusal(model, wrong, inputs) or "").startswith("dry run: ")


def test_all_directions_of_a_stream_that_is_not_centred() -> None:
    columns = spread_basis(7, 7, centred=False)
    assert torch.allclose(columns.T @ columns, torch.eye(7, dtype=torch.float64), atol=1e-14)
    basis, x = orthonormal(9, 6, False), torch.randn(9, 40, dtype=torch.float64)
    z, part = writing(basis, 7, False) @ x, basis @ (basis.T @ x)
    assert torch.allclose(z.square().mean(0), part.square().mean(0))
    assert torch.allclose(reading(basis, 7, False) @ z, part)


def test_what_is_written_and_read_has_the_mean_and_the_length_that_a_norm_needs() -> None:
    columns = spread_basis(7, 5)
    assert torch.allclose(columns.T @ columns, torch.eye(5, dtype=torch.float64), atol=1e-14)
    assert float(columns.sum(0).abs().max()) < 1e-14
    basis, x = orthonormal(9, 5), torch.randn(9, 40, dtype=torch.float64)
    z, part = writing(basis, 7) @ x, basis @ (basis.T @ x)
    assert torch.allclose(z.var(0, correction=0), part.var(0, correction=0))
    assert torch.allclose(reading(basis, 7) @ z, part)


def test_a_stream_that_is_not_the_whole_story_is_refused_by_the_dry_run() -> None:
    model, inputs = Tower(), rows()
    stream = only_stream(model, inputs)
    assert refusal(model, stream, inputs) is None
    for wrong in (
        replace(stream, reads=stream.reads[1:]),
        replace(stream, constants=()),
        replace(stream, layers=stream.layers[1:]),
        replace(stream, norms=stream.norms[:1]),
    ):
        assert (refusal(model, wrong, inputs) or "").startswith("dry run: ")


class Sized(Tower):
    """Its stream is reshaped by a number that it keeps under a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_dim, self.breadth = 8, 8

    def forward(self, rows: Tensor) -> Tensor:
        tokens = self.stem(rows).reshape(len(rows), -1, self.hidden_dim)
        return self.head(self.norm(self.blocks(tokens)).reshape(len(rows), -1, self.breadth or self.hidden_dim).mean(1))


def test_widths_that_a_module_keeps_follow_where_their_name_is_known() -> None:
    model, inputs = Sized(), rows()
    stream = only_stream(model.double(), inputs)
    assert "shape" in (refusal(model, stream, inputs) or "")
    made = turned(folded(model, [stream]), stream, orthonormal(8, 5), 6)
    assert (made.hidden_dim, made.breadth, model.hidden_dim) == (6, 8, 8)
    model.breadth = 0
    assert refusal(model, stream, inputs) is None


def test_attention_wider_than_its_input_is_still_told_apart_by_its_units() -> None:
    """The keys' weight is read along both of its axes, which have different lengths then."""
    model, inputs = stirred(torchvision_vit()), images()
    stream = only_stream(model, inputs)
    small = turned(folded(model, [stream]), stream, orthonormal(12, 6), 7)
    graph = checked(small, trace(small, inputs), inputs)
    live = [group.name for group in graph.groups if group.frozen is None]
    assert sum(name.rpartition(".")[2] in ("q", "v", "heads") for name in live) == 6

"""Attention in windows, of timm's Swin and of the second version of Swin: equal, planted, lossy, exported."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from planted_attention import lively, plant
from torch import Tensor, nn
from torchvision.models import swin_transformer as vision

import compressor
from compressor.attention.dense import DenseAttention
from compressor.attention.known import attention_names, dense_form, plain_again
from compressor.attention.swin_form import SwinAttention
from compressor.attention.timm_swin_form import TimmSwinAttention
from compressor.attention.windows import COSINE, WindowAttention
from compressor.export.onnx import OnnxModel, export_onnx
from compressor.surgery.exact import exact_compress, moved
from compressor.units.check import checked
from compressor.units.dense import with_dense_attention
from compressor.units.heads import attentions
from compressor.units.trace import trace


def images(count: int, size: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def timm_swin(**options: Any) -> nn.Module:
    """Two blocks of four heads, the second with shifted windows."""
    first = pytest.importorskip("timm.models.swin_transformer")
    options = {"depths": (2,), "num_heads": (4,), "window_size": 4, **options}
    return first.SwinTransformer(16, 2, 3, 5, embed_dim=16, **options)


def timm_swin_v2(**options: Any) -> nn.Module:
    second = pytest.importorskip("timm.models.swin_transformer_v2")
    options = {"depths": (2,), "num_heads": (4,), "window_size": 4, **options}
    return second.SwinTransformerV2(16, 2, 3, 5, embed_dim=16, **options)


def vision_swin_v2() -> nn.Module:
    return vision.SwinTransformer(
        [2, 2], 16, [2], [4], [4, 4], num_classes=5, block=vision.SwinTransformerBlockV2,
        downsample_layer=vision.PatchMergingV2,
    )  # fmt: skip


NETS: dict[str, Callable[[], nn.Module]] = {
    "timm_swin": timm_swin, "timm_swin_v2": timm_swin_v2, "vision_swin_v2": vision_swin_v2,
}  # fmt: skip
QUICK = ("timm_swin", "timm_swin_v2", pytest.param("vision_swin_v2", marks=pytest.mark.slow))
OTHER_NETS: dict[str, Callable[[], nn.Module]] = {
    **NETS,
    "a map of one window": lambda: timm_swin(depths=(1, 2), num_heads=(4, 2)),
    "a map of one window, v2": lambda: timm_swin_v2(depths=(1, 2), num_heads=(4, 2)),
    "no biases": lambda: timm_swin(qkv_bias=False),
    "no biases, v2": lambda: timm_swin_v2(qkv_bias=False),
    "heads of a given size": lambda: timm_swin(head_dim=6),
    "a mask made anew": lambda: timm_swin(dynamic_img_size=True),
    "windows that do not fill the map": lambda: timm_swin(window_size=3),
    "windows that do not fill the map, v2": lambda: timm_swin_v2(window_size=3),
}


def network(name: str, seed: int = 0) -> nn.Module:
    """In float64, with weights that make patterns uneven and classes differ."""
    torch.manual_seed(seed)
    model = lively(OTHER_NETS[name]())
    for leaf, parameter in model.named_parameters():
        if parameter.dim() > 1 and "logit_scale" not in leaf:
            size = 1.0 if "table" in leaf else parameter[0].numel() ** -0.5
            parameter.data = size * torch.randn(parameter.shape, dtype=parameter.dtype)
    return model


def ran(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("name", OTHER_NETS)
def test_windows_give_what_the_original_gives_and_go_back_into_its_class(name: str) -> None:
    model, x = network(name), images(3)
    opened = with_dense_attention(model, x, normal=False)
    assert list(attentions(opened)) == attention_names(model)
    assert len(attentions(opened)) == sum("WindowAttention" in type(m).__name__ for m in model.modules()) >= 2
    torch.testing.assert_close(ran(opened, x), ran(model, x), rtol=1e-12, atol=1e-12)
    for attention in attentions(opened).values():
        assert isinstance(attention, WindowAttention)
        for parameter in attention.parameters():
            parameter.data.add_(0.05 * torch.randn(parameter.shape, dtype=torch.float64))
    again = plain_again(copy.deepcopy(opened), model)
    assert [type(m) for m in again.modules()] == [type(m) for m in model.modules()]
    assert moved([ran(model, x)], [ran(again, x)]) > 1e-3
    torch.testing.assert_close(ran(again, x), ran(opened, x), rtol=1e-12, atol=1e-12)


def test_maps_of_other_sizes_in_the_second_version_of_torchvision() -> None:
    model = network("vision_swin_v2")
    opened = with_dense_attention(model, images(2), normal=False)
    for size in (8, 13, 22):
        x = images(2, size)
        torch.testing.assert_close(ran(opened, x), ran(model, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("separate", [False, True])
def test_a_temperature_beyond_its_bound_and_biases_beside_the_layer(separate: bool) -> None:
    home = pytest.importorskip("timm.models.swin_transformer_v2")
    torch.manual_seed(0)
    whole: Any = lively(home.WindowAttention(12, (2, 2), 3, qkv_bias_separate=separate))
    whole.logit_scale.data[1] = 9
    dense, x = dense_form(whole), images(8)[:, 0, :4, :12].contiguous()
    assert isinstance(dense, TimmSwinAttention)
    mask = torch.randn(4, 4, 4, dtype=torch.float64)
    for given in (None, mask):
        torch.testing.assert_close(dense(x, mask=given), whole(x, mask=given), rtol=1e-12, atol=1e-12)


def test_fused_attention_is_followed_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network("timm_swin"), images(2)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            monkeypatch.setattr(module, "fused_attn", True)
    opened = with_dense_attention(model, x, normal=False)
    assert len(attentions(opened)) == 2
    torch.testing.assert_close(ran(opened, x), ran(model, x), rtol=1e-12, atol=1e-12)


def test_what_is_live_and_why_the_rest_is_not() -> None:
    graphs = {}
    for name in NETS:
        opened = with_dense_attention(network(name), images(2), normal=False)
        graphs[name] = checked(opened, trace(opened, images(2)), images(2))
    for name, graph in graphs.items():
        inside = {group.name: group.frozen for group in graph.groups if ".attn." in group.name}
        fixed = {group for group, why in inside.items() if why == COSINE}
        assert fixed == {n for n in inside if n.endswith((".q", ".k")) and name != "timm_swin"}
        assert {why for group, why in inside.items() if group not in fixed} == {None}
        sizes = {group.name: len(group.units) for group in graph.groups}
        assert [sizes[n] for n in sizes if n.endswith(".heads")] == [4, 4]


def surplus(name: str, seed: int = 2) -> tuple[nn.Module, list[str]]:
    """A network whose last heads are copies of the first, with spare dimensions (see `plant`), in its own classes."""
    lean = network(name, seed)
    for place in attention_names(lean):
        module: Any = lean.get_submodule(place)
        heads = [module.logit_scale.data, module.cpb_mlp[2].weight.data] if hasattr(module, "cpb_mlp") else []
        for of_heads in heads or [module.relative_position_bias_table.data.T]:
            of_heads[-1] = of_heads[0]
    opened = with_dense_attention(lean, images(2), normal=False)
    for attention in attentions(opened).values():
        assert attention.out is not None
        plant(attention, attention.out)
    return plain_again(opened, lean), attention_names(lean)


def removed(wide: nn.Module, inputs: Tensor) -> tuple[nn.Module, dict[str, int]]:
    opened = with_dense_attention(wide, inputs)
    small, plan = exact_compress(opened, trace(opened, inputs), inputs, effort=0.0)
    assert plan.taken_back == ()
    return small, {fold.group: len(fold.dropped) for fold in plan.folds}


@pytest.mark.parametrize("name", NETS)
def test_planted_heads_and_values_of_windows_go(name: str) -> None:
    wide, places = surplus(name)
    assert not attentions(wide)
    small, gone = removed(wide, images(24))
    leaves = ("heads", "q", "v") if name == "timm_swin" else ("heads", "v")
    assert gone == {f"{place}.{leaf}": 1 for place in places for leaf in leaves}
    fresh = images(6, seed=9)
    assert moved([ran(wide, fresh)], [ran(small, fresh)]) < 1e-10
    for attention in attentions(small).values():
        assert len(attention.scale) == 3
        if attention.by_head:
            assert attention.get_parameter(attention.by_head[0]).shape == (3, 512)


@pytest.mark.parametrize("name", NETS)
def test_lean_windows_stay_whole(name: str) -> None:
    assert removed(network(name, 3), images(24))[1] == {}


@pytest.mark.parametrize("differing", ["biases", "temperatures"])
def test_heads_that_only_their_biases_or_temperatures_tell_apart_stay(differing: str) -> None:
    wide, places = surplus("vision_swin_v2")
    for place in places:
        module: Any = wide.get_submodule(place)
        if differing == "biases":
            module.cpb_mlp[2].weight.data[-1] *= 1.1
        else:
            module.logit_scale.data[-1] += 0.5
    small, gone = removed(wide, images(24))
    assert gone == {f"{place}.v": 1 for place in places}
    assert moved([ran(wide, images(4))], [ran(small, images(4))]) < 1e-10


@pytest.mark.parametrize("name", QUICK)
def test_an_exact_result_is_exported_with_its_masks_and_loaded(name: str, tmp_path: Path) -> None:
    model, x = surplus(name)[0].float(), images(64).float()
    result = compressor.compress(model, x, exact=True)
    inside = list(attentions(result.model).values())
    assert [len(attention.scale) for attention in inside] == [3, 3]
    assert {type(attention) for attention in inside} == {SwinAttention if "vision" in name else TimmSwinAttention}
    assert moved([ran(model, x)], [ran(result.model, x)]) < 1e-4
    made = export_onnx(result.model, x, tmp_path / "model.onnx")
    assert (made.exporter, made.parity.holds, made.parity.signal) == ("dynamo", True, True)
    torch.testing.assert_close(OnnxModel(made.path)(x[:7]), ran(model, x[:7]), rtol=1e-4, atol=1e-4)
    result.save(tmp_path / "small", onnx=False)
    loaded = compressor.load(tmp_path / "small", factory=lambda: surplus(name)[0].float())
    assert torch.equal(ran(loaded, x[:8]), ran(result.model, x[:8]))


@pytest.mark.parametrize("name", QUICK)
def test_a_lossy_cut_makes_attention_narrower_and_is_certified(name: str) -> None:
    """Of a network whose surplus is nearly that: some noise makes copies and spare dimensions differ."""
    model, generator = surplus(name)[0], torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data.add_(0.01 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    *_, head = (module for module in model.modules() if isinstance(module, nn.Linear))
    head.bias.data.sub_(ran(model, images(99)).mean(0))  # no class is the rule
    model, x = model.float(), images(600).float()
    labels = ran(model, x).argmax(1)
    assert len(labels.unique()) > 2
    result = compressor.compress(model, (x, labels), keep="params=0.85", max_drop=15.0, align=1)
    assert result.verdict is not None
    assert result.verdict.value == "passed"
    sizes = [(len(a.scale), a.v.out_features // len(a.scale)) for a in attentions(result.model).values()]
    assert sizes
    assert sum(p.numel() for p in result.model.parameters()) == result.record["compressed"]["params"]
    unread = 2 * 16 if "vision" in name else 0  # biases of keys, which torchvision zeroes in every forward pass
    assert sum(p.numel() for p in model.parameters()) == result.record["original"]["params"] + unread
    assert min(heads * values for heads, values in sizes) < 16
    if name != "timm_swin":  # cosines
        assert {a.q.out_features // len(a.scale) for a in attentions(result.model).values()} == {4}


def test_what_is_not_followed_is_refused_by_name() -> None:
    first, second = (pytest.importorskip(f"timm.models.swin_transformer{end}") for end in ("", "_v2"))
    hooked = first.WindowAttention(12, 3, window_size=2)
    hooked.proj.register_forward_hook(lambda *_: None)
    listened = second.WindowAttention(12, (2, 2), 3)
    listened.cpb_mlp.register_forward_hook(lambda *_: None)
    replaced = second.WindowAttention(12, (2, 2), 3)
    replaced.qkv = nn.Sequential(replaced.qkv)
    for module, word in ((hooked, "hooks"), (listened, "hooks"), (replaced, "another kind")):
        reason = dense_form(module)
        assert isinstance(reason, str)
        assert "WindowAttention" in reason
        assert word in reason

    class Mine(first.WindowAttention):
        pass

    assert not isinstance(dense_form(Mine(12, 3, window_size=2)), DenseAttention)

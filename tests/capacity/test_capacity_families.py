"""The papers' networks: published sizes, every layer named for measuring, all code paths at tiny size."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from compressor.capacity.collect import collect, layers_at
from compressor.capacity.settings import settings_of
from compressor.capacity.study import run_capacity
from compressor.capacity.tiny import tiny
from compressor.recipe import load_recipe
from compressor.sources.factories import find_factory, split_query
from compressor.sources.samples import as_samples
from compressor.training.loop import _prefers_channels_last

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "recipes" / "capacity"))

import families
import images

IMAGE = (3, 32, 32)
TINY: dict[str, tuple[dict[str, Any], tuple[int, ...], list[int]]] = {
    "mlp": ({"width": 8, "inputs": 12}, (12,), [8, 8]),
    "shallow": ({"width": 8, "dimension": 10}, (10,), [8]),
    "parity_mlp": ({"width": 8}, (10,), [8] * 5),
    "alexnet": ({"width": 1 / 16}, IMAGE, [6, 16, 24, 12]),
    "resnet56": ({"width": 0.25, "blocks": 1}, IMAGE, [4, 4, 8, 16]),
    "wrn28": ({"width": 16, "blocks": 1}, IMAGE, [16]),
    "densenet40": ({"width": 8, "layers": 1}, IMAGE, [9]),
    "resnet18": ({"width": 1 / 16, "classes": 10}, IMAGE, [4, 4, 8, 16, 32]),
    "resnet50": ({"width": 1 / 16, "classes": 10}, IMAGE, [4, 16, 32, 64, 128]),
    "small_cnn": ({"width": 16}, (1, 28, 28), [4, 8, 16]),
    "inception": ({"width": 0.25}, IMAGE, [8, 12, 12, 24, 24]),
    "inception_v3": (
        {"width": 1 / 16, "classes": 10},
        (3, 75, 75),
        [2, 2, 4, 5, 12, 16, 18, 18, *[48] * 5, 80, 128, 128],
    ),
}


def family(name: str) -> Any:
    return getattr(families, name, None) or getattr(images, name)


def count(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def test_parameters_are_the_published_ones() -> None:
    assert [count(families.alexnet(w)) for w in (0.25, 0.5, 1)] == [438_746, 1_749_930, 6_989_642]
    assert [count(families.resnet56(w)) for w in (0.25, 0.5, 1)] == [54_518, 215_362, 856_058]
    assert [count(families.shallow(w)) for w in (32, 512)] == [418, 6_658]
    assert count(families.shallow(32, 10_000)) == 320_098
    assert [families.densenet40(c).head.in_features for c in (8, 16)] == [44, 88]


@pytest.mark.parametrize("name", TINY)
def test_every_tap_grows_with_the_width(name: str) -> None:
    arguments, shape, units = TINY[name]
    model = family(name)(**arguments).eval()
    samples = as_samples((torch.randn(4, *shape), torch.zeros(4, dtype=torch.int64)))
    found = collect(model, layers_at(model.taps), samples, max_rows=64)
    assert [layer.rows.shape[1] for layer in found.values()] == units
    wider = family(name)(**{**arguments, "width": 2 * arguments["width"]})
    assert count(wider) > 1.5 * count(model)
    model.train()(torch.randn(4, *shape)).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_the_teacher_is_one_and_the_same() -> None:
    one, other = families.teacher(10, 50, 200), families.teacher(10, 50, 200)
    assert torch.equal(one["judge"][0], other["judge"][0])  # type: ignore[index]
    inputs, labels = families.teacher(10, 50, 2000)["judge"]  # type: ignore[misc]
    assert inputs.shape == (2000, 10)
    assert 0.1 < labels.double().mean() < 0.9  # not balanced by construction, but both classes are there


def test_weights_of_the_students_have_the_published_spread() -> None:
    model = families.shallow(512, 10, spread=10.0)
    assert float(model.layers[0].weight.std()) == pytest.approx(1e-2 * 0.88, rel=0.1)  # cut at two deviations
    assert float(model.head.weight.std()) == pytest.approx(1e-1 * 0.88, rel=0.1)
    assert float(model.head.bias.abs().max()) == 0


def test_inception_v3_at_full_width_is_torchvisions() -> None:
    from torchvision.models import inception_v3

    with torch.device("meta"):
        theirs = inception_v3(weights=None, aux_logits=False, init_weights=False)
        ours = images.inception_v3(1.0)
        assert len(ours.taps) == 16
    assert {n: w.shape for n, w in ours.named_parameters()} == {n: w.shape for n, w in theirs.named_parameters()}
    with pytest.raises(ValueError, match="multiples"):
        images.inception_v3(0.3)


def test_one_block_can_be_widened_alone() -> None:
    plain, wide = images.inception(1.0), images.inception(2.0, block=1)
    assert [block.units for block in plain.blocks] == [48, 48, 96, 96]
    assert [block.units for block in wide.blocks] == [48, 96, 96, 96]
    assert count(images.inception(1.0, block=1)) == count(plain)


SHIPPED = sorted(path for path in (Path(families.__file__).parent).glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_recipe_builds_its_networks(path: Path) -> None:
    recipe, base = load_recipe(path)
    for setting in settings_of(recipe):
        assert setting.train is not None
        with torch.device("meta"):
            found = find_factory(split_query(recipe.spec_of(model=setting.section.model_args)[0])[0], base)
            assert found is not None
            arguments = {**recipe.model_args, **setting.section.model_args}
            ends = [
                found.call({**arguments, "width": int(w) if w >= 8 else w})
                for w in (setting.ladder.widths[0], setting.ladder.widths[-1])
            ]
        assert count(ends[1]) > 1.2 * count(ends[0])


def test_narrow_strided_skips_are_not_trained_with_channels_last() -> None:
    """There torch's kernel corrupts memory on CPUs."""
    assert _prefers_channels_last(families.wrn28(64, blocks=1))
    assert not _prefers_channels_last(families.wrn28(16, blocks=1))
    assert not _prefers_channels_last(families.mlp(8))


def climbed(path: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """A shipped recipe at tiny size: what it names, on data of the same format."""
    recipe, base = load_recipe(path)
    small = tiny(recipe)
    assert small.capacity is not None
    assert small.train is not None
    fewer = {"seeds": (0,), "snapshots": (), "train_samples": 20, "random_labels": False}
    ladder = small.capacity.model_copy(update={**fewer, "widths": changes.pop("widths", small.capacity.widths)})
    if "settings" in changes:
        names = changes.pop("settings")
        ladder = ladder.model_copy(update={"settings": {name: ladder.settings[name] for name in names}})
    train = small.train.model_copy(update={"epochs": 1, "batch": 10})
    return run_capacity(small.model_copy(update={"capacity": ladder, "train": train, **changes}), base, folder / "out")


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both CIFARs, small and without a meaning."""

    def fake(classes: int) -> Any:
        def load(root: str, train: bool, download: bool) -> Any:
            count = 5040 if train else 120
            pixels = np.random.RandomState(int(train)).randint(0, 256, (count, 32, 32, 3), np.uint8)
            return SimpleNamespace(data=pixels, targets=[place % classes for place in range(count)])

        return load

    for classes in (10, 100):
        monkeypatch.setattr(f"torchvision.datasets.CIFAR{classes}", fake(classes))
        monkeypatch.setenv(f"CIFAR{classes}", str(tmp_path))


@pytest.mark.usefixtures("cifar")
def test_wide_resnets_climb_on_cifar_100(tmp_path: Path) -> None:
    arguments = {"classes": 100, "blocks": 1}
    found = climbed(SHIPPED[0].parent / "wrn28_cifar100.yaml", tmp_path, widths=(8, 16), model_args=arguments)
    assert [rung["measures"]["chunks"]["units"] for rung in found["rungs"]] == [8, 16]
    assert found["rungs"][0]["measures"]["layers"][0]["samples"] == 120


FULL_SCALE: dict[str, dict[str, Any]] = {
    "alexnet_cifar10": {
        "widths": (1 / 32, 1 / 16),
        "settings": ("random_labels", "augmented", "quarter"),
    },
    "resnet56_cifar10": {"widths": (0.125, 0.25), "model_args": {"blocks": 1}},
    "wrn28_cifar10": {"widths": (8, 16), "model_args": {"blocks": 1}},
    "densenet40_cifar10": {"widths": (4, 8), "model_args": {"layers": 1}},
    "inception_layer_cifar10": {"widths": (0.25, 0.5)},
}


@pytest.mark.slow
@pytest.mark.usefixtures("cifar")
@pytest.mark.parametrize("name", FULL_SCALE)
def test_recipes_for_other_machines_climb_at_tiny_size(name: str, tmp_path: Path) -> None:
    found = climbed(SHIPPED[0].parent / f"{name}.yaml", tmp_path, **dict(FULL_SCALE[name]))
    for rung in found["rungs"]:
        assert rung["measures"]["layers"]
        assert not any("refused" in layer for layer in rung["measures"]["layers"])
        few = name == "inception_layer_cifar10"  # 60 rows for 96 units
        assert ("refused" if few else "sizes") in rung["measures"]["chunks"]
    assert len(found["claims"]) == 25


def test_a_resnet_climbs_on_a_folder_of_images(tmp_path: Path) -> None:
    for part, amount in (("train", 12), ("val", 30)):
        for place, kind in enumerate(("cat", "dog")):
            (tmp_path / "imagenet" / part / kind).mkdir(parents=True)
            for i in range(amount):
                pixels = np.random.RandomState([place, i, amount]).randint(0, 256, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "imagenet" / part / kind / f"{i}.png")
    found = climbed(
        SHIPPED[0].parent / "resnet18_imagenet.yaml", tmp_path, widths=(1 / 16, 1 / 8), model_args={"classes": 2},
        data=f"imagefolder:{tmp_path / 'imagenet'}", data_args={"size": 32},
    )  # fmt: skip
    assert [len(rung["measures"]["layers"]) for rung in found["rungs"]] == [5, 5]
    assert found["rungs"][1]["measures"]["by_layer"][0]["name"] == "relu"
    assert found["rungs"][1]["nulls"]["untrained"]["by_layer"][0]["name"] == "relu"

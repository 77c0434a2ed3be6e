"""Detectors: the network before the boxes is compressed, and judged by its boxes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.ssdlite import SSDLiteHead

import compressor
from compressor.sources.samples import as_samples
from compressor.stages import find_units

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))
import detection

BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 11, 10]])


def answer(*classes: int | None) -> Tensor:
    """One row for each box, sure of its class (None: of the background), without offsets."""
    rows = torch.zeros(3, 4 + 3)
    for row, kind in zip(rows, classes, strict=True):
        row[4 if kind is None else 4 + kind] = 9
    return rows


def test_detections_are_decoded_and_each_object_is_counted_once():
    corners, kinds = detection.detections(answer(1, 2, 1), BOXES)
    assert sorted(kinds.tolist()) == [0, 1]  # the third box overlaps the first
    assert torch.allclose(corners[kinds == 1], BOXES[1:2])
    moved = answer(None, 2, None)
    moved[1, :4] = torch.tensor([5.0, 0, 0, 5 * torch.log(torch.tensor(0.5))])
    corners, _ = detection.detections(moved, BOXES)
    assert torch.allclose(corners, torch.tensor([[30.0, 25, 50, 35]]))


@pytest.mark.parametrize(
    ("ours", "theirs", "score"),
    [
        ((1, 2, None), (1, 2, None), 1.0),
        ((None, None, None), (None, None, None), 1.0),
        ((None, None, None), (1, None, None), 0.0),
        ((1, 1, None), (1, 2, None), 0.5),
        ((None, 2, 1), (1, 2, None), 1.0),  # another box of the same place
        ((1, None, None), (1, 2, None), 2 / 3),
    ],
)
def test_agreement_of_boxes(ours: tuple[int, ...], theirs: tuple[int, ...], score: float):
    found = detection.agreement(answer(*ours)[None], answer(*theirs)[None], BOXES)
    assert found.tolist() == pytest.approx([score])


class Backbone(nn.Module):
    """Two feature maps, of 16 and 4 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 24, 3, 4, 1), nn.Conv2d(24, 16, 3, 2, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        first = torch.relu(self.first(images))
        return {"0": first, "1": torch.relu(self.second(first))}


def test_a_detector_s_backbone_and_heads_get_smaller_and_keep_their_boxes():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = SSDLiteHead([24, 16], [1, 1], 3, nn.BatchNorm2d)
        for part, spread in ((head.classification_head, 1.0), (head.regression_head, 0.1)):
            for depthwise, last in part.module_list:  # answers that depend on the image
                nn.init.normal_(depthwise[0].weight, std=0.5)
                nn.init.normal_(last.weight, std=spread)
        network = detection.Heads(SimpleNamespace(backbone=Backbone(), head=head)).eval()  # type: ignore[arg-type]
        images = torch.rand(240, 3, 16, 16)
    corners = torch.rand(20, 2, generator=torch.Generator().manual_seed(1)) * 16
    boxes = torch.cat([corners, corners + 6], 1)
    graph = find_units(network, as_samples(images), 0)
    live = {group.name for group in graph.groups if group.frozen is None}
    assert {"backbone.first", "backbone.second"} <= live
    assert {g.frozen for g in graph.groups if "head" in g.name and g.name not in live} == {"model output"}

    def same(outputs: Tensor, targets: Tensor) -> Tensor:
        return detection.agreement(outputs, targets, boxes)

    small = compressor.compress(network, images, keep="params=0.7", align=1, max_drop=20, metric=same)
    assert small.verdict is not None
    with torch.no_grad():
        assert sum(len(detection.detections(one, boxes)[0]) for one in network(images[:50])) > 15
    assert -20 < small.verdict.difference <= 0
    assert small.record["compressed"]["params"] < 0.75 * small.record["original"]["params"]


@pytest.mark.slow
def test_ssdlite_is_followed_into_its_heads():
    network = detection.ssdlite(64, 5)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert network(images).shape == (4, len(detection.default_boxes(64)), 9)
    graph = find_units(network, as_samples(images), 0)
    live = [group for group in graph.groups if group.frozen is None]
    assert len(live) > 20
    assert any("head" in group.name for group in live)
    assert sum(group.frozen == "model output" for group in graph.groups) == 12  # six maps, two heads

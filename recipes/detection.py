"""Detection: an SSDLite of torchvision as a plain network, and how its answers are compared.

    compressor compress recipes/detection.py:ssdlite --checkpoint detector.safetensors --data photos.py:images \
        --metric recipes/detection.py:same_boxes --out small

A detector's own forward ends in a list of boxes, whose number depends on the image: nothing that units could be
followed through, or that could be compared number by number. What is compressed is the network before that: backbone
and heads, whose answers are one row of 4 offsets and C class scores for each default box; the metric does the rest. Of
a detector of two stages it is the backbone, with its feature maps as answers. Frozen are the last layers of the heads.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, box_iou

SIZE, CLASSES = 320, 91
SURE, OVERLAP = 0.5, 0.5
"""A detection: the least probability, and the least intersection over union that counts as the same box."""
MOST = 100


class Heads(nn.Module):
    """Backbone and heads of a detector: images (N, 3, S, S) -> (N, boxes, 4 + classes), offsets first."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone: nn.Module = detector.backbone  # pyright: ignore[reportAttributeAccessIssue]
        self.head: nn.Module = detector.head  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, images: Tensor) -> Tensor:
        """Offsets and scores of every default box."""
        found = self.head(list(self.backbone(images).values()))
        return torch.cat([found["bbox_regression"], found["cls_logits"]], 2)


def ssdlite(size: int = SIZE, classes: int = CLASSES) -> nn.Module:
    """SSDLite with MobileNetV3-Large, untrained; class 0 is the background."""
    made = Heads(ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=classes))
    made.input_shape = (3, size, size)  # type: ignore[assignment]
    return made.eval()


@cache
def default_boxes(size: int = SIZE) -> Tensor:
    """(boxes, 4) corners of the default boxes in pixels."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        detector = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2).eval()
        images = torch.zeros(1, 3, size, size)
        features = list(detector.get_submodule("backbone")(images).values())
        return detector.get_submodule("anchor_generator")(ImageList(images, [(size, size)]), features)[0]


def detections(answer: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Corners (n, 4) and classes (n,) that one answer (boxes, 4 + classes) is sure of, each object once."""
    probability = answer[:, 4:].softmax(1)
    sure, kind = probability[:, 1:].max(1)
    size = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + answer[:, :2] / 10 * size
    half = size * torch.exp((answer[:, 2:4] / 5).clamp(max=4)) / 2
    corners = torch.cat([centre - half, centre + half], 1)
    chosen = torch.nonzero(sure > SURE).flatten()
    kept = chosen[batched_nms(corners[chosen], sure[chosen], kind[chosen], OVERLAP)][:MOST]
    return corners[kept], kind[kept]


def same_boxes(outputs: Tensor, targets: Tensor, size: int = SIZE) -> Tensor:
    """`agreement` of an SSDLite's answers with the original's, on images of this size."""
    return agreement(outputs, targets, default_boxes(size))


def agreement(outputs: Tensor, targets: Tensor, boxes: Tensor) -> Tensor:
    """(n,) F1 of the detections of `outputs` against those of `targets` (n, boxes, 4 + classes), 1 where neither has
    any. A detection is the same if a box of the same class overlaps; each counts once."""
    found, boxes = [], boxes.to(outputs)
    for ours, theirs in zip(outputs, targets, strict=True):
        (corners, kinds), (wanted, wanted_kinds) = detections(ours, boxes), detections(theirs, boxes)
        overlap = box_iou(corners, wanted) * (kinds[:, None] == wanted_kinds[None, :])
        same = 0
        while overlap.numel() and float(overlap.max()) >= OVERLAP:  # the best pair first
            row, column = divmod(int(overlap.argmax()), overlap.shape[1])
            overlap[row], overlap[:, column] = 0, 0
            same += 1
        total = len(kinds) + len(wanted_kinds)
        found.append(2 * same / total if total else 1.0)
    return torch.tensor(found)

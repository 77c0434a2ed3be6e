"""Bad compressions on purpose: none of them is ever passed."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from runs import Terminal
from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import DataError, SourceError
from compressor.export.onnx import export_onnx
from compressor.records import Verdict
from compressor.sources.checkpoint import file_sha256
from compressor.sources.data import load_data
from compressor.sources.models import load_model
from compressor.verification import verify_bundle
from compressor.verify.accuracy import outputs_of
from compressor.verify.doubts import above_chance
from compressor.verify.fidelity import fidelity
from compressor.verify.judge import judge

CLASSES, N = 10, 3000
CENTRES = 2.2 * functional.normalize(torch.randn(CLASSES, 20, generator=torch.Generator().manual_seed(1)), dim=1)


def drawn(count: int, seed: int, rare: float = 0.1) -> tuple[Tensor, Tensor]:
    """Inputs (n, 20) around ten centres, and labels; class 0 has a share of `rare`."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.full((CLASSES,), (1 - rare) / (CLASSES - 1))
    shares[0] = rare
    labels = torch.multinomial(shares, count, replacement=True, generator=generator)
    return CENTRES[labels] + 0.5 * torch.randn(count, 20, generator=generator), labels


def original() -> nn.Module:
    """The best linear network for these inputs: about 97 % right."""
    made = nn.Linear(20, CLASSES)
    with torch.no_grad():
        made.weight.copy_(CENTRES)
        made.bias.copy_(-CENTRES.square().sum(1) / 2)
    return made.eval()


def without_class(label: int) -> nn.Module:
    made = copy.deepcopy(original())
    with torch.no_grad():
        made.bias[label] = -1e4  # pyright: ignore[reportArgumentType, reportIndexIssue]
    return made


class Constant(nn.Module):
    """The same answer for everything."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, x: Tensor) -> Tensor:
        return functional.one_hot(torch.full((len(x),), self.label), CLASSES).float()


class Memory(nn.Module):
    """Right on the samples it has seen, an answer without any sense for others."""

    def __init__(self, seen: Tensor, answers: Tensor) -> None:
        super().__init__()
        self.seen, self.answers = seen, answers

    def forward(self, x: Tensor) -> Tensor:
        distance, place = torch.cdist(x, self.seen).min(1)
        guess = (x[:, 0].abs() * 1e4).long() % CLASSES
        return functional.one_hot(torch.where(distance < 0.05, self.answers[place], guess), CLASSES).float()


def judged(bad: nn.Module, inputs: Tensor, labels: Tensor, allowed: float = 0.5) -> Verdict:
    before = outputs_of(original(), Pairs(inputs, labels))
    return judge(before, outputs_of(bad, Pairs(inputs, labels), check=False), allowed=allowed)


class Pairs:
    """Samples in memory."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs[ids], self.labels[ids]


def test_the_original_itself_passes() -> None:
    inputs, labels = drawn(N, 2)
    assert judged(original(), inputs, labels).value == "passed"


@pytest.mark.parametrize(("rare", "value"), [(0.1, "failed"), (0.02, "failed"), (0.008, "undecided")])
def test_one_class_destroyed(rare: float, value: str) -> None:
    inputs, labels = drawn(N, 2, rare)
    found = judged(without_class(0), inputs, labels)
    assert found.value == value
    assert found.value != "passed"


def test_a_class_rarer_than_the_allowed_drop_is_named() -> None:
    """Its loss is within what was allowed; the record says which class lost all."""
    inputs, labels = drawn(N, 2, 0.001)
    before, after = original()(inputs).detach(), without_class(0)(inputs).detach()
    worst = fidelity(before, after, labels).worst_class
    assert worst is not None
    assert (worst.label, worst.compressed) == (0, 0.0)


def test_overfit_to_the_calibration_data() -> None:
    inputs, labels = drawn(N, 2)
    calibrate, answers = drawn(500, 3)
    bad = Memory(calibrate, answers)
    assert judged(bad, calibrate, answers, 3.0).value == "passed"  # why what calibrates may not judge
    assert judged(bad, inputs, labels, 3.0).value == "failed"


@pytest.mark.parametrize("allowed", [0.5, 5.0, 20.0])
def test_shuffled_labels_pass_nothing(allowed: float) -> None:
    inputs, labels = drawn(N, 2)
    shuffled = labels[torch.randperm(N, generator=torch.Generator().manual_seed(4))]
    for bad in (without_class(3), Constant(2), Memory(*drawn(500, 3))):
        found = judged(bad, inputs, shuffled, allowed)
        assert found.value != "passed"
        assert found.interval[0] >= -allowed or "doubt" not in found.details
    if allowed == 20:
        assert "better than chance" in str(found.details["doubt"])


@pytest.mark.parametrize("rare", [0.1, 0.999])
def test_a_constant_output(rare: float) -> None:
    """Also where one class is so frequent that naming it always costs next to nothing."""
    inputs, labels = drawn(N, 2, rare)
    found = judged(Constant(0), inputs, labels)
    assert found.value == "failed"
    assert ("same for every sample" in str(found.details.get("doubt"))) == (rare > 0.9)


def test_outputs_that_are_not_finite() -> None:
    inputs, labels = drawn(N, 2)
    bad = copy.deepcopy(original())
    with torch.no_grad():
        bad.weight[0, 0] = torch.nan  # pyright: ignore[reportArgumentType, reportIndexIssue, reportCallIssue]
    assert judged(bad, inputs, labels, 20.0).value == "failed"


def test_chance_is_that_of_a_random_order() -> None:
    generator = torch.Generator().manual_seed(0)
    answers = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 400, True, generator=generator)
    truth = torch.multinomial(torch.tensor([0.5, 0.1, 0.4]), 400, True, generator=generator)
    drawn = torch.tensor([above_chance(answers, truth[torch.randperm(400, generator=generator)]) for _ in range(600)])
    assert abs(float(drawn.mean())) < 0.15
    assert 0.9 < float(drawn.std()) < 1.1
    assert above_chance(answers, answers) > 15


COPIED = """
import torch
from net import data, inputs, labelled

def twice(order=0):
    x, y = data(1200)
    place = torch.randperm(600, generator=torch.Generator().manual_seed(order)) if order else torch.arange(600)
    return {"calibrate": (x[:600], y[:600]), "tune": (x[600:], y[600:]), "judge": (x[:600][place], y[:600][place])}
"""


@pytest.mark.parametrize("order", [0, 5])
def test_a_judge_copied_from_calibration_is_refused(home: Path, order: int) -> None:
    (home / "copied.py").write_text(COPIED)
    with pytest.raises(DataError, match="also in the judge data"):
        load_data(f"copied.py:twice?order={order}", base=home)


@pytest.mark.usefixtures("no_page")
def test_a_swapped_onnx_file_is_never_passed(home: Path, terminal: Terminal) -> None:
    asked = ("compress", "net.py:net", "--data", "net.py:data", "--align", "1", "--max-drop", "30")
    assert terminal(*asked, "--keep", "params=0.8", "--out", "good") == 0
    stranger = load_model("net.py:net?seed=3", base=home).model
    export_onnx(stranger, torch.zeros(8, 6), home / "good" / "model.onnx")
    data = load_data("net.py:data", base=home).judge
    with pytest.raises(SourceError, match=r"model\.onnx.*another file"):
        verify_bundle(home / "good", data)
    assert terminal("verify", "good", "--data", "net.py:data") == 3
    record = json.loads((home / "good" / "record.json").read_text())
    record["files"]["model.onnx"] = file_sha256(home / "good" / "model.onnx")
    (home / "good" / "record.json").write_text(json.dumps(record))  # whoever forges the hash, too
    found = verify_bundle(home / "good", data)
    assert found.onnx_verdict is not None
    assert found.verdict.value == "passed"
    assert found.onnx_verdict.value != "passed"
    assert found.worst is found.onnx_verdict

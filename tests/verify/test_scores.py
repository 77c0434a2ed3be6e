from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from runs import Terminal
from torch import Tensor, nn

import compressor
from compressor.errors import CompressorError, DataError, SourceError, UsageError
from compressor.verify.judge import judge
from compressor.verify.scores import Score, cosine, load_score

SCORES = '''
import torch
from torch.nn import functional

def near(outputs, targets):
    """1 for the exact value, falling to 0 at a distance of two."""
    return 1 - (outputs - targets).abs().mean(1).clamp(max=2) / 2

def cosine(outputs, targets):
    return functional.cosine_similarity(outputs, targets)

def overlap(outputs, targets):
    """Intersection over union of the foreground."""
    said, truth = outputs.argmax(1) == 1, targets == 1
    both, either = (said & truth).flatten(1).sum(1), (said | truth).flatten(1).sum(1)
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both, dtype=torch.float))
'''
NETWORKS = """
import torch
from torch import nn

def inputs(count=900, seed=1):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))

def regressor():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 2))
    with torch.no_grad():
        made[2].weight[6:] = made[2].weight[:6]
        made[2].bias[6:] = made[2].bias[:6]
    return made

def targets():
    x = inputs()
    noise = 0.1 * torch.randn(900, 2, generator=torch.Generator().manual_seed(2))
    return x, (regressor()(x) + noise).detach()

def segmenter():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)]
    made = nn.Sequential(*layers)
    with torch.no_grad():
        made[2].weight[4:] = made[2].weight[:4]
        made[2].bias[4:] = made[2].bias[:4]
        made[4].bias -= made(images()).mean((0, 2, 3))
    return made

def images(count=900):
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(3))

def masks():
    with torch.no_grad():
        return images(), segmenter()(images()).argmax(1)
"""


@pytest.fixture
def tasks(home: Path) -> Path:
    (home / "scores.py").write_text(SCORES)
    (home / "tasks.py").write_text(NETWORKS)
    return home


@pytest.mark.parametrize(
    ("model", "data", "metric", "limits"),
    [
        ("regressor", "targets", "near", "0,1"),
        ("regressor", "inputs", "cosine", "-1,1"),
        ("segmenter", "masks", "overlap", "0,1"),
    ],
)
def test_a_task_from_the_command_line(
    tasks: Path, terminal: Terminal, no_onnx: None, no_page: None, model: str, data: str, metric: str, limits: str
):
    """Regression, embedding (without labels: against the original's own) and segmentation; judged, and verified."""
    words = ["compress", f"tasks.py:{model}", "--data", f"tasks.py:{data}", "--out", "out", "--keep", "params=0.75"]
    words += ["--metric", f"scores.py:{metric}", "--metric-range", limits, "--max-drop", "5", "--align", "1", "--json"]
    words += ["--recover", "2st"] if model == "regressor" else []
    assert terminal(*words) == 0, terminal.err
    verdict = terminal.json()["verdict"]
    assert verdict["metric"].endswith(f"scores.py:{metric}")
    assert verdict["details"]["bound"] == "betting (Waudby-Smith & Ramdas)" or metric == "overlap"
    assert -5 <= verdict["interval"][0] <= verdict["difference"] <= verdict["interval"][1]
    assert terminal("verify", "out", "--data", f"tasks.py:{data}", "--json") == 0, terminal.err
    again = terminal.json()["verdict"]
    assert {**again, "details": None} == {**verdict, "details": None}


def test_a_frontier_is_judged_by_it(tasks: Path, terminal: Terminal, no_onnx: None, no_page: None):
    words = ["frontier", "tasks.py:regressor", "--data", "tasks.py:targets", "--out", "out", "--sizes", "0.9,0.75"]
    words += ["--metric", "scores.py:near", "--max-drop", "5", "--align", "1", "--json"]
    assert terminal(*words) == 0, terminal.err
    named = [Path(point["verdict"]["metric"]).name for point in terminal.json()["points"]]
    assert named == ["scores.py:near"] * 2


def test_in_python(tmp_path: Path, no_page: None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    x = torch.randn(600, 4)

    def near(outputs: Tensor, targets: Tensor) -> Tensor:
        return (-(outputs - targets).abs()).clamp(min=-3).squeeze(1)

    truth = model(x).detach() + 0.1
    options = {"keep": "params=0.5", "metric": near, "metric_range": (-3.0, 0.0), "max_drop": 50, "align": 1}
    result = compressor.compress(model, (x, truth), **options)
    assert result.verdict is not None
    own = float(
        near(model(result.data.judge.batch(range(len(result.data.judge)))[0]), truth[:1].new_zeros(1, 1)).mean()
    )
    assert own <= 0
    assert result.verdict.original == pytest.approx(100 * (1 - 0.1 / 3), abs=0.01)
    del options["keep"]
    (point,) = compressor.frontier(model, (x, truth), sizes=(0.5,), **options)
    assert point.verdict is not None
    assert point.verdict.difference == result.verdict.difference
    result.save(tmp_path, onnx=False)
    judge_part = [result.data.judge[place] for place in range(len(result.data.judge))]
    factory = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))  # noqa: E731
    again = compressor.verify(tmp_path, judge_part, factory=factory, original=model, metric=near)
    assert again.difference == pytest.approx(result.verdict.difference)
    record = (tmp_path / "record.json").read_text()
    (tmp_path / "record.json").write_text(record.replace('"metric_range": [\n', '"metric_range": [\n"low",\n'))
    with pytest.raises(SourceError, match="lowest"):
        compressor.verify(tmp_path, judge_part, factory=factory, original=model, metric=near)


def _score(function: object, low: float = 0.0, high: float = 1.0) -> Score:
    return Score("here", function, low, high)  # type: ignore[arg-type]


def test_scores_are_shares_of_their_range():
    before, after = torch.zeros(400, 1), torch.full((400, 1), -0.2)
    found = judge(before, after, before, allowed=5, metric=_score(lambda o, _: o.squeeze(1), -2.0, 2.0))
    assert found.original == pytest.approx(50)
    assert found.difference == pytest.approx(-5)
    assert found.interval[0] < -5 < found.interval[1]
    assert found.value == "undecided"


def test_what_is_not_finite_scores_lowest():
    before, after = torch.zeros(8, 1), torch.zeros(8, 1)
    after[3] = float("nan")
    score = _score(lambda o, _: 1 - o.abs().squeeze(1))
    assert score(after, before).tolist() == [1, 1, 1, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda o, t: o, "shape"),
        (lambda o, t: o.squeeze(1) + 7, "for sample 0"),
        (lambda o, t: o.squeeze(1) * float("nan"), "nan"),
        (lambda o, t: o[:2].squeeze(1), "shape"),
        (lambda o, t: o.no_such_thing, "AttributeError"),
    ],
)
def test_scores_that_are_none(function: object, words: str):
    with pytest.raises(DataError, match=words):
        _score(function)(torch.zeros(4, 1), torch.zeros(4, 1))


def test_never_passes_what_loses_the_limit():
    """Networks that lose exactly what is allowed pass at most as often as the confidence promises."""
    random, passed, rounds = np.random.RandomState(0), 0, 300
    score = _score(lambda o, _: o.squeeze(1))
    for _ in range(rounds):
        before = torch.from_numpy(random.uniform(0.5, 1, (150, 1)))
        change = random.choice([0.0, -0.5], p=[0.9, 0.1], size=(150, 1))
        verdict = judge(before, before + torch.from_numpy(change), before, allowed=5, metric=score)
        passed += verdict.value == "passed"
    assert passed <= 0.05 * rounds + 3 * (0.05 * 0.95 * rounds) ** 0.5


@pytest.mark.parametrize(
    ("metric", "limits", "code", "words"),
    [
        ("scores.py:none", "0,1", 3, "no callable"),
        ("scores", "0,1", 2, "--metric"),
        ("scores.py:near", "1,0", 2, "--metric-range"),
        ("scores.py:near", "low", 2, "--metric-range"),
        ("scores.py:cosine", "0,0.1", 3, "for sample"),
    ],
)
def test_refusals(tasks: Path, terminal: Terminal, metric: str, limits: str, code: int, words: str):
    given = ["compress", "tasks.py:regressor", "--data", "tasks.py:targets", "--out", "out", "--keep", "params=0.9"]
    assert terminal(*given, "--metric", metric, "--metric-range", limits, "--align", "1") == code, terminal.err
    assert words in terminal.err


def test_a_record_runs_no_metric_that_was_not_named(tasks: Path):
    (tasks / "other.py").write_text("open('ran', 'w')\n")
    with pytest.raises(CompressorError):
        load_score("other.py:near", 0, 1, tasks / "gone")
    with pytest.raises(UsageError):
        load_score("other", 0, 1)


class Mean:
    """As torchmetrics has them: the mean absolute error over what was taken in."""

    higher_is_better: bool | None = False

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.errors = factor, [torch.tensor(5.0)]

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.errors.append((preds - target).abs().mean() * self.factor)

    def compute(self) -> Tensor:
        return torch.stack(self.errors).mean()

    def reset(self) -> None:
        self.errors = []


def test_a_metric_object_is_asked_sample_by_sample():
    metric, outputs = Mean(), torch.tensor([[1.0], [2.0], [4.0]])
    found = Score("mean", metric, 0, 4)(outputs, torch.tensor([[1.0], [1.0], [1.0]]))
    assert found.tolist() == [1.0, 0.75, 0.25]
    assert len(metric.errors) == 1  # as it was given
    metric.higher_is_better = None
    with pytest.raises(DataError, match="higher is better"):
        Score("mean", metric, 0, 4)(outputs, outputs)


def test_a_class_and_a_function_with_arguments_by_name(tmp_path: Path):
    (tmp_path / "own.py").write_text(
        "def constant(outputs, targets, value=0.0):\n    return outputs[:, 0] * 0 + value\n"
    )
    score = load_score("own.py:constant?value=0.5", 0, 1, tmp_path)
    assert score is not None
    assert score(torch.ones(3, 2), torch.ones(3, 2)).tolist() == [0.5] * 3
    assert score.name.endswith("own.py:constant?value=0.5")
    angle = load_score("compressor.verify.scores:cosine", -1, 1)
    assert angle is not None
    assert angle(torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[3.0, 0], [1, 0]])).tolist() == [1.0, 0.5]


def test_torchmetrics_by_name():
    pytest.importorskip("torchmetrics")
    outputs, targets = torch.tensor([[1.0, 0], [0, 2], [1, 1]]), torch.tensor([[3.0, 0], [1, 0], [1, 1]])
    angle = load_score("torchmetrics.regression:CosineSimilarity?reduction=sum", -1, 1)
    error = load_score("torchmetrics.regression:MeanAbsoluteError", 0, 2)
    assert angle is not None
    assert error is not None
    assert angle(outputs, targets) == pytest.approx([1.0, 0.5, 1.0])
    assert error(outputs, targets) == pytest.approx([0.5, 0.25, 1.0])


def test_an_embedding_is_judged_by_its_angle_to_the_original_s(tasks: Path):
    """Without labels the targets are the original's outputs, which are numbers: nothing is read as classes."""
    rows = torch.randn(900, 6, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 8)).eval()
    found = compressor.compress(
        model, rows, keep="params=0.6", align=1, max_drop=3, metric=cosine, metric_range=(-1, 1)
    )
    assert found.verdict is not None
    assert found.verdict.value == "passed"
    assert found.verdict.original == pytest.approx(100)
    assert any("targets are the original's own outputs" in warning for warning in found.record["warnings"])

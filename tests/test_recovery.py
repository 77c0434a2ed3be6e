"""`--recover` from end to end: in Python, on the command line and in a recipe; what it records, reads and refuses."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Terminal
from torch import Tensor, nn

import compressor
from compressor import candidates
from compressor.api import Result
from compressor.errors import DataError, UsageError
from compressor.frontier.points import trace
from compressor.jobs import from_recipe
from compressor.options import Options, Sizes, parse_recover
from compressor.planning.search import Tuned
from compressor.recipe import parse_recipe
from compressor.report.record import validate
from compressor.report.words import recovery_sentence
from compressor.sources.data import data_of
from compressor.sources.samples import as_samples
from compressor.training import recover
from compressor.training.budget import Budget
from compressor.training.loop import TrainOptions
from compressor.verify.accuracy import Outputs


def network() -> nn.Module:
    """Two hidden layers, and five classes that are about equally frequent."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        last = nn.Linear(24, 5)
        made = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), last).eval()
    with torch.no_grad():
        last.weight.mul_(12)
        last.bias.sub_(made(inputs(500, 9)).mean(0))
    return made


def inputs(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def parts() -> tuple[Tensor, Any, Any]:
    """Calibration inputs; labelled tune and judge inputs."""
    tune, judge = inputs(400, 1), inputs(600, 2)
    with torch.no_grad():
        return inputs(1500), (tune, network()(tune).argmax(1)), (judge, network()(judge).argmax(1))


ASKED: dict[str, Any] = {"keep": "params=0.4", "max_drop": 90, "align": 1}


@pytest.fixture(scope="module")
def plain() -> Result:
    return compressor.compress(network(), *parts(), **ASKED)


@pytest.fixture(scope="module")
def recovered() -> Result:
    return compressor.compress(network(), *parts(), **ASKED, recover="30ep")


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_candidate_is_recovered_before_it_is_compared(plain: Result, recovered: Result) -> None:
    about, row = recovered.record["recover"], recovered.record["search"][0]
    assert plain.record["recover"] is None
    assert plain.record["search"][0]["recovered"] is None
    assert recovered.record["compressed"] == plain.record["compressed"]
    assert recovered.record["groups"] == plain.record["groups"]
    assert row["recovered"] == about
    assert (about["budget"], about["steps"], about["samples"]) == ("30ep", 30 * (1500 // recover.OPTIONS.batch), 1500)
    assert recovered.record["options"]["recover"] == "30ep"
    assert about["tune"]["before"] == plain.record["search"][0]["tune"]
    assert about["tune"]["after"] == row["tune"]
    assert row["tune"]["accuracy"] > about["tune"]["before"]["accuracy"] + 1
    assert recovered.verdict is not None
    assert plain.verdict is not None
    assert recovered.verdict.compressed > plain.verdict.compressed + 1
    assert about["after"] < 0.7 * about["before"]
    assert recovered.record["seconds"]["recover"] >= about["seconds"] - 0.01  # both are rounded


def test_the_report_says_it(recovered: Result) -> None:
    about = recovered.record["recover"]
    said = recovery_sentence(validate(recovered.record))
    assert said is not None
    before, after = (about["tune"][when]["accuracy"] for when in ("before", "after"))
    assert f"tune accuracy {before:.2f} -> {after:.2f}" in said
    assert f"{about['steps']:,} steps, 30 epochs of 1,500 inputs" in said


def test_no_labels_are_needed_and_the_steps_repeat_the_run(recovered: Result, tmp_path: Path) -> None:
    calibrate, (tune, _), (judge, _) = parts()
    steps = recovered.record["recover"]["steps"]
    again = compressor.compress(network(), calibrate, tune, judge, **ASKED, recover=f"{steps}st")
    assert same(again.model, recovered.model)
    assert again.record["recover"]["tune"]["after"]["agreement"] == recovered.record["search"][0]["tune"]["accuracy"]
    again.save(tmp_path, onnx=False)
    assert same(compressor.load(tmp_path, factory=network), recovered.model)
    assert "agreement with the original" in (recovery_sentence(validate(again.record)) or "")


def test_nothing_given_is_changed(recovered: Result) -> None:
    model = network().train()
    model[0].weight.requires_grad_(False)  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    result = compressor.compress(model, *parts(), **ASKED, recover="5st")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 5]
    assert [p.requires_grad for p in result.model.parameters()] == [False, *[True] * 5]
    assert all(p.grad is None for net in (model, result.model) for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not result.model.training


def test_a_search_shares_the_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def timed(budget: Budget, *given: Any, parts: int, seed: int, options: TrainOptions, classes: bool) -> int:
        asked.append((budget, parts, seed))
        return 11

    monkeypatch.setattr(candidates, "steps_of", timed)
    found = compressor.compress(network(), *parts(), max_drop=20, align=1, recover="5min", seed=3).record
    assert asked == [(Budget(5, "min"), 8, 3)]
    assert len(found["search"]) > 1
    assert [row["recovered"]["steps"] for row in found["search"]] == [11] * len(found["search"])
    assert found["recover"] == next(row["recovered"] for row in found["search"] if row["selected"])
    compressor.compress(network(), *parts(), **ASKED, recover="2min")
    assert asked[1] == (Budget(2, "min"), 1, 0)


def test_more_inputs(recovered: Result) -> None:
    calibrate, (tune, labels), judge = parts()
    more = torch.cat([inputs(3000, 5), tune[:7]])
    result = compressor.compress(network(), calibrate, (tune, labels), judge, **ASKED, recover="1ep", unlabelled=more)
    record = result.record
    assert record["recover"]["samples"] == 4500
    assert record["data"]["counts"]["unlabelled"] == 3000
    assert record["data"]["described"]["unlabelled"]["dropped"] == 7
    assert len(record["data"]["unlabelled"]) == 64
    assert "unlabelled" not in recovered.record["data"]


def test_judge_data_may_not_be_learnt_from() -> None:
    calibrate, tune, judge = parts()
    more = torch.cat([inputs(50, 5), judge[0][:3]])
    with pytest.raises(DataError, match="3 also in 'unlabelled'"):
        compressor.compress(network(), calibrate, tune, judge, **ASKED, recover="1st", unlabelled=more)


def test_refusals() -> None:
    calibrate, tune, judge = parts()
    for more, words in ((torch.randn(9, 7), r"inputs \(7,\)"), (tune[0], "nothing but the tune data")):
        with pytest.raises(DataError, match=words):
            compressor.compress(network(), calibrate, tune, judge, recover="1st", unlabelled=more)
    with pytest.raises(UsageError, match="only recovery reads"):
        compressor.compress(network(), calibrate, unlabelled=inputs(5))
    with pytest.raises(UsageError, match="nothing to recover"):
        Options(exact=True, recover=Budget(1, "ep"))
    for text in ("", "5", "5 min", "0ep", "min", 5, "1e9ep"):
        with pytest.raises(UsageError, match="8ep, 5min or 400st"):
            parse_recover(text)  # pyright: ignore[reportArgumentType]


def test_a_loss_that_is_not_finite_is_said(monkeypatch: pytest.MonkeyPatch, plain: Result) -> None:
    wild = replace(recover.OPTIONS, lr=1e30, optimizer="sgd")
    monkeypatch.setattr(candidates, "OPTIONS", wild)
    result = compressor.compress(network(), *parts(), **ASKED, recover="30st")
    assert any("Recovery ended early: a loss of" in text for text in result.record["warnings"])
    assert result.record["recover"]["best_step"] == 0
    assert "came no nearer" in (recovery_sentence(validate(result.record)) or "")
    assert same(result.model, plain.model)
    validate(result.record)


def test_a_recovery_that_loses_answers_is_not_kept(monkeypatch: pytest.MonkeyPatch, plain: Result) -> None:
    """Nearer in its outputs by the criterion, yet wrong: whoever recovers returns a network that answers one class."""
    real = candidates.recover

    def spoilt(*given: Any, **options: Any) -> Any:
        made, about = real(*given, **options)
        last = [module for module in made.modules() if isinstance(module, nn.Linear)][-1]
        with torch.no_grad():
            last.bias[0] += 1e3
        return made, about

    monkeypatch.setattr(candidates, "recover", spoilt)
    result = compressor.compress(network(), *parts(), **ASKED, recover="30st")
    assert same(result.model, plain.model)
    assert result.record["recover"]["kept"] is False
    assert result.record["search"][0]["tune"] == plain.record["search"][0]["tune"]
    assert any("lost on the tune split" in text for text in result.record["warnings"])
    assert "not kept" in (recovery_sentence(validate(result.record)) or "")
    options = Options(max_drop=90, align=1, recover=Budget(5, "st"))
    whole = trace(network(), data_of(*parts(), seed=0), options, Sizes(shares=(0.5, 0.4)))
    assert [text for text in whole.warnings if "0.5, 0.4 of the params: recovery lost on the tune split" in text]


class Done(candidates.Recoverer):
    """A recovery that is over."""

    def __call__(self, *_: Any) -> tuple[nn.Module, dict[str, Any]]:
        return nn.Identity(), {}


@pytest.mark.parametrize(
    ("losses", "gains", "kept"),
    [(60, 40, True), (67, 40, True), (90, 40, False), (0, 0, True)],
    ids=["the same", "worse by chance", "clearly worse", "the original's own"],
)
def test_answers_that_changed_by_chance_do_not_undo_a_recovery(losses: int, gains: int, kept: bool) -> None:
    """On 1,500 samples; the outputs are nearer to the original's by the criterion."""
    empty = as_samples(torch.zeros(4, 2))
    recoverer = Done(Budget.parse("1st"), nn.Identity(), empty, empty, seed=0)
    before = Outputs(torch.zeros(1500, 2), torch.zeros(1500, dtype=torch.int64), "output", torch.float32)
    small, after = nn.ReLU(), Tuned(losses, gains, 1500)
    made, tuned, about = recoverer.better(small, before, Tuned(60, 40, 1500), lambda _: after, lambda _: None)
    assert about["kept"] is kept
    assert (made is small) is not kept
    assert (tuned is after) is kept


def test_smaller_batches_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def short(*given: Any, options: TrainOptions, **more: Any) -> Any:
        sizes.append(options.batch)
        if options.batch > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return recover.recover(*given, options=options, **more)

    monkeypatch.setattr(candidates, "recover", short)
    record = compressor.compress(network(), *parts(), **ASKED, recover="3st").record
    assert sizes == [recover.OPTIONS.batch // 2**times for times in range(len(sizes))]
    assert record["recover"]["batch"] == sizes[-1] <= 20
    found = compressor.compress(network(), *parts(), **ASKED, recover="1ep").record["recover"]
    assert (found["epochs"], found["steps"]) == (1, 1500 // found["batch"])


@pytest.mark.usefixtures("no_page", "no_onnx")
def test_the_command_line(home: Path, terminal: Terminal) -> None:
    (home / "more.py").write_text(
        "import net, torch\n\ndef more():\n    return net.inputs(300, 7), torch.zeros(300, dtype=torch.int64)\n\n"
        "def judged():\n    return net.parts()['judge'][0]\n\n"
        "def mapping():\n    return {'train': net.inputs(200, 8), 'calibrate': net.inputs(50, 9), 'judge': judged()}\n"
    )
    asked = ("compress", "net.py:net", "--data", "net.py:parts", "--keep", "params=0.7", "--align", "1")
    flags = ("--max-drop", "60", "--recover", "3ep", "--json")
    assert terminal(*asked, *flags, "--unlabelled", "more.py:more", "--out", "out") == 0
    found = json.loads((home / "out" / "record.json").read_text())
    assert found["recover"]["samples"] == 700
    assert found["data"]["counts"]["unlabelled"] == 300
    assert found["options"]["recover"] == "3ep"
    assert terminal(*asked, *flags, "--unlabelled", "more.py:more", "--out", "out", "--resume") == 0
    assert terminal(*asked, *flags, "--out", "out", "--resume") == 2
    assert terminal(*asked, *flags, "--unlabelled", "more.py:mapping", "--out", "mapped") == 0
    assert terminal.json()["recover"]["samples"] == 650
    assert terminal(*asked, *flags, "--unlabelled", "more.py:judged", "--out", "refused") == 3
    assert "also in 'unlabelled'" in terminal.err
    assert terminal(*asked, "--unlabelled", "more.py:more", "--out", "refused") == 2
    assert terminal(*asked, "--recover", "soon", "--out", "refused") == 2
    assert terminal(*asked, "--recover", "3ep", "--unlabelled", "nowhere.py:more", "--out", "refused") == 3


def test_a_recipe() -> None:
    text = "model: net.py:net\ndata: digits\ncompress: {recover: 0.5min, unlabelled: more.py:more}\n"
    job = from_recipe(parse_recipe(text, "here"), Path(), None)
    assert job.options.recover == Budget(0.5, "min")
    assert job.unlabelled == "more.py:more"
    steps = from_recipe(parse_recipe(text.replace("0.5min", "400st"), "here"), Path(), None)
    assert steps.options.recover == Budget(400, "st")
    with pytest.raises(UsageError, match=r"compress\.recover"):
        parse_recipe(text.replace("0.5min", "0.5st"), "here")

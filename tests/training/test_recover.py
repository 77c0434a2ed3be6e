"""Recovery: nearer to the original than before, without labels, from the same seed the same."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from recoveries import FAST, Digits, hurt, vectors
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.sources.samples import as_samples
from compressor.training import loop
from compressor.training import recover as recovering
from compressor.training.budget import Budget
from compressor.training.loop import CHECKS, accuracy
from compressor.training.recover import recover, steps_of
from compressor.training.teacher import Teacher


def test_improves_without_labels_and_changes_nothing_given(digits: Digits) -> None:
    model, samples, tune, judge = digits
    small, state = hurt(model).train(), torch.get_rng_state()
    given = [{key: value.clone() for key, value in net.state_dict().items()} for net in (model, small)]
    done: list[float] = []
    made, about = recover(small, model, samples, tune, 60, options=FAST, progress=done.append)
    assert accuracy(small, judge) < accuracy(model, judge) - 5
    assert accuracy(made, judge) > accuracy(model, judge) - 3
    assert about.after < 0.3 * about.before
    assert about.after == pytest.approx(Teacher(model, tune, torch.device("cpu")).distance(made), rel=1e-4)
    assert (about.steps, about.epochs) == (60, round(60 / (len(samples) // 64), 2))
    assert [step for step, _ in about.checks] == [0, *(6 * place for place in range(1, CHECKS + 1))]
    assert about.after == min(value for _, value in about.checks)
    assert len(done) == 60 + 6 * len(about.pilots)
    assert done == sorted(done)
    assert done[-1] == pytest.approx(1)
    assert small.training
    assert not made.training
    assert torch.equal(torch.get_rng_state(), state)
    for net, before in zip((model, small), given, strict=True):
        assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
        assert all(weight.grad is None for weight in net.parameters())


def test_the_same_seed_and_steps_give_the_same_weights(digits: Digits) -> None:
    model, samples, tune, _ = digits
    made = [recover(hurt(model), model, samples, tune, 12, seed=seed, options=FAST)[0] for seed in (0, 0, 1)]
    weights = [list(net.state_dict().values()) for net in made]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))


def test_a_student_that_is_the_original_stays(digits: Digits) -> None:
    model, samples, tune, _ = digits
    made, about = recover(model, model, samples, tune, 10, options=FAST)
    assert about.best_step == 0
    assert about.before == about.after < 1e-10
    assert made is not model
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize("rate", [1.0, 1e20])
def test_never_worse_than_before(digits: Digits, rate: float) -> None:
    model, samples, tune, _ = digits
    small = hurt(model, 0.05)
    options = replace(FAST, lr=rate, optimizer="sgd")
    made, about = recover(small, model, samples, tune, 20, options=options)
    assert about.after <= about.before
    assert about.after == about.as_dict()["after"] == min(value for _, value in about.checks)
    if rate < 1e10:
        assert max(value for _, value in about.checks) > about.before
    else:
        assert "a loss of" in (about.stopped or "")
        assert about.best_step == 0
        assert all(torch.equal(a, b) for a, b in zip(made.parameters(), small.parameters(), strict=True))


class Watched(nn.Module):
    """A network that remembers what it saw while it learnt."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, []

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            SEEN.append(images.detach().clone())
        return self.inner(images)


SEEN: list[Tensor] = []


def test_the_tune_split_is_not_trained_on(digits: Digits) -> None:
    model, samples, tune, _ = digits
    SEEN.clear()
    recover(Watched(hurt(model)), model, samples, tune, 20, options=replace(FAST, mix=False))
    images = {tuple(image.flatten().tolist()) for batch in SEEN for image in batch}
    assert len(images) > 500
    assert images <= {tuple(image.flatten().tolist()) for image in samples.batch(range(len(samples)))[0]}
    assert not images & {tuple(image.flatten().tolist()) for image in tune.batch(range(len(tune)))[0]}


class Precise(nn.Module):
    """A network that remembers the dtype of its answers, apart for the student's training."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        answers = self.inner(images)
        DTYPES.append((torch.is_grad_enabled(), len(images), answers.dtype))
        return answers


DTYPES: list[tuple[bool, int, torch.dtype]] = []


@pytest.mark.parametrize("fast", [True, False])
def test_the_original_is_asked_as_precisely_as_the_student_computes(
    digits: Digits, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, samples, tune, _ = digits
    monkeypatch.setattr(loop, "_computes_bf16", lambda _device: fast)
    DTYPES.clear()
    _, about = recover(Precise(hurt(model)), Precise(model), samples, tune, 10, options=FAST)
    taught = {dtype for _, count, dtype in DTYPES if count == FAST.batch}
    judged = {dtype for _, count, dtype in DTYPES if count != FAST.batch}
    assert taught == {torch.bfloat16 if fast else torch.float32}
    assert judged == {torch.float32}
    assert about.after < about.before


class Recurrent(nn.Module):
    """Reads the rows of an image one by one, and remembers the modes of its recurrence while it learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.LSTM(8, 12, 2, batch_first=True, dropout=0.5)
        self.head = nn.Linear(12, 10)

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            MODES.add((self.rows.training, self.rows.dropout))
        return self.head(self.rows(images.flatten(1).reshape(len(images), 8, 8))[0][:, -1])


MODES: set[tuple[bool, float]] = set()


def test_recurrences_learn_in_train_mode_without_dropout(digits: Digits) -> None:
    _, samples, tune, _ = digits
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Recurrent().eval()
    MODES.clear()
    small = hurt(model)
    made, about = recover(small, model, samples, tune, 20, options=FAST)
    assert {(True, 0.0)} == MODES, "cuDNN refuses to go back through a recurrence in eval mode"
    assert about.after < about.before
    assert isinstance(made.rows, nn.LSTM)
    assert (made.rows.training, made.rows.dropout) == (False, 0.5)
    assert about.after == pytest.approx(Teacher(model, tune, torch.device("cpu")).distance(made), rel=1e-4)


class Named(nn.Module):
    """Several inputs by name, an output with other things in it."""

    def __init__(self, outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.outputs = outputs
        self.layer = nn.Linear(6, int(torch.tensor(outputs).prod()))

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        scores = self.layer(torch.cat([left, right], 1)).reshape(len(left), *self.outputs)
        return {"other": left, "logits": scores}


@pytest.mark.parametrize(
    ("outputs", "measure"), [((4,), "KL divergence"), ((1,), "squared error"), ((3, 2), "squared error")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_inputs_outputs_and_dtype(outputs: tuple[int, ...], measure: str, dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(0)
    whole = torch.randn(400, 6, generator=draws)
    halves = (whole[:300], whole[300:])
    samples, tune = [as_samples(({"left": x[:, :2], "right": x[:, 2:]}, torch.zeros(len(x)))) for x in halves]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Named(outputs).to(dtype)
    made, about = recover(hurt(model, 1.0), model, samples, tune, 60, options=replace(FAST, lr=0.1))
    assert about.measure == measure
    assert about.after < 0.1 * about.before
    assert next(made.parameters()).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_trained_in_float32_and_comes_back(digits: Digits, dtype: torch.dtype) -> None:
    model, samples, tune, judge = digits
    half = copy.deepcopy(model).to(dtype)
    small = hurt(half)
    made, about = recover(small, half, samples, tune, 60, options=FAST)
    assert about.stopped is None
    assert about.after < 0.3 * about.before
    assert {tensor.dtype for tensor in made.state_dict().values() if tensor.is_floating_point()} == {dtype}
    assert {weight.dtype for weight in small.parameters()} | {weight.dtype for weight in half.parameters()} == {dtype}
    wide = [copy.deepcopy(net).float() for net in (half, made)]
    assert about.after == pytest.approx(Teacher(wide[0], tune, torch.device("cpu")).distance(wide[1]), rel=1e-4)
    assert accuracy(wide[1], judge) > accuracy(wide[0], judge) - 3
    assert steps_of(Budget.parse("0.02min"), small, half, samples, tune) >= 1


def test_what_rounding_makes_worse_stays(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples, tune, _ = digits
    half = copy.deepcopy(model).to(torch.bfloat16)
    small, real = hurt(half), recovering.set_numbers

    def coarse(made: nn.Module, numbers: dict[str, Tensor]) -> None:
        """Rounded to halves: far more than bfloat16 rounds."""
        real(made, {name: (2 * tensor).round() / 2 for name, tensor in numbers.items()})

    monkeypatch.setattr(recovering, "set_numbers", coarse)
    made, about = recover(small, half, samples, tune, 10, options=FAST)
    assert (about.after, about.best_step) == (about.before, 0)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), small.parameters(), strict=True))


class Stated(nn.Linear):
    """A layer whose state holds more than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: Any) -> None:
        raise AssertionError("training sets nothing but weights")


def test_a_state_of_more_than_tensors_and_a_caller_without_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Stated(6, 8), nn.ReLU(), nn.Linear(8, 3))
    made, about = recover(hurt(model), model, vectors(), vectors(), 10)
    assert about.after < about.before
    with torch.no_grad():
        again, _ = recover(hurt(model), model, vectors(), vectors(), 10)
    pairs = zip(made.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


class Closed(nn.Linear):
    """A layer that gives no gradients."""

    @torch.no_grad()
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)


def test_a_network_without_gradients_is_refused_by_name() -> None:
    model = Closed(6, 3)
    with pytest.raises(ModelError, match="outputs without gradients"):
        recover(hurt(model), model, vectors(), vectors(), 2)

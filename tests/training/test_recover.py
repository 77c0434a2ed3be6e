"""Recovery: nearer to the original than before, without labels, from the same seed the same."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.sources.data import load_data
from compressor.sources.samples import Samples, as_samples
from compressor.training import loop
from compressor.training import pilots as trials
from compressor.training import teacher as teaching
from compressor.training.budget import Budget
from compressor.training.loop import CHECKS, TrainOptions, accuracy, steps_per_epoch, train
from compressor.training.pilots import FACTOR, PILOTS
from compressor.training.recover import OPTIONS, recover, steps_of
from compressor.training.teacher import Teacher

FAST = replace(OPTIONS, batch=64)


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 10),
        )  # fmt: skip


def hurt(model: nn.Module, share: float = 0.5) -> nn.Module:
    """A copy with noise on its weights."""
    copied, draws = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in copied.parameters():
            if weight.ndim > 1:
                weight.add_(share * weight.std() * torch.randn(weight.shape, generator=draws))
    return copied


def bare(samples: Samples) -> Samples:
    """The inputs without labels."""
    return as_samples(samples.batch(range(len(samples)))[0])


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Samples, Samples, Samples]:
    """A trained network, and unlabelled calibration and tune images, and labelled judge images."""
    data = load_data("digits")
    model, _ = train(network(), data.calibrate, TrainOptions(8, 64, 0.05))
    return model, bare(data.calibrate), bare(data.tune), data.judge


Digits = tuple[nn.Module, Samples, Samples, Samples]


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


def test_pilots_choose_the_rate(digits: Digits) -> None:
    model, samples, tune, _ = digits
    found = []
    for damage in (0.05, 1.0):  # what lost little needs a low rate, what lost much a high one
        about = recover(hurt(model, damage), model, samples, tune, 60, options=replace(FAST, lr=0.01))[1]
        assert [rate for rate, _ in about.pilots[:2]] == pytest.approx([0.01, 0.01 / FACTOR])
        assert about.rate == min(about.pilots, key=lambda pilot: pilot[1])[0]
        assert about.best_step > 0
        assert about.after < about.before
        found.append(about.rate)
    assert found[0] < found[1]


@pytest.mark.parametrize(
    ("distances", "powers"),
    [
        ({0: 6.0, -1: 7.0, 1: 8.0}, [0, -1, 1]),  # the first is the best of three
        ({0: 6.0, -1: 7.0, 1: 5.0, 2: 8.0}, [0, -1, 1, 2]),
        ({0: 6.0, -1: 7.0, 1: 5.0, 2: 4.5}, [0, -1, 1, 2]),  # PILOTS at most
        ({0: 4.0, -1: 7.0}, [0, -1]),  # less than half of 8.5 is left
        ({0: 6.0, -1: 7.0, 1: 4.0}, [0, -1, 1]),
        ({0: 3.0, -1: 2.0, -2: 4.0}, [0, -1, -2]),
        ({0: 3.0, -1: 2.0, -2: 1.0}, [0, -1, -2]),  # no lower
        ({0: 2.0, -1: 2.0, -2: 4.0}, [0, -1, -2]),  # of equals the lower rate
        ({0: math.inf, -1: math.inf, -2: 1.0}, [0, -1, -2]),
    ],
)
def test_pilots_go_on_where_the_distance_falls(
    distances: dict[int, float], powers: list[int], digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, samples, tune, _ = digits

    def known(_small: Any, _samples: Any, _teacher: Any, options: TrainOptions, _progress: Any) -> float:
        return distances[round(math.log(options.lr / FAST.lr, FACTOR))]

    monkeypatch.setattr(trials, "_after_pilot", known)
    monkeypatch.setattr(Teacher, "distance", lambda *_: 8.5)
    about = recover(hurt(model), model, samples, tune, 1, options=FAST)[1]
    assert [rate for rate, _ in about.pilots] == pytest.approx([FAST.lr * FACTOR**power for power in powers])
    assert len(powers) <= PILOTS
    best = min(distances, key=lambda power: (distances[power], power))
    assert about.rate == pytest.approx(FAST.lr * FACTOR**best)


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


def test_what_rounding_makes_worse_stays(digits: Digits) -> None:
    model, samples, tune, _ = digits
    half = copy.deepcopy(model).to(torch.bfloat16)
    small = hurt(half, 0.001)  # as far as bfloat16 can tell two weights apart
    made, about = recover(small, half, samples, tune, 2, options=replace(FAST, lr=1e-7))
    assert about.after <= about.before
    if about.best_step == 0:
        assert all(torch.equal(a, b) for a, b in zip(made.parameters(), small.parameters(), strict=True))


@pytest.mark.parametrize(
    ("text", "steps"),
    [("2ep", 30), ("0.5ep", 8), ("0.01ep", 1), ("400st", 400), ("5min", None), ("0.5min", None), ("0.00001ep", 1)],
)
def test_budgets(text: str, steps: int | None) -> None:
    assert str(Budget.parse(text)) == text
    assert Budget.parse(text).steps(15) == steps


@pytest.mark.parametrize("text", ["", "8", "ep", "0ep", "-1ep", "1.5st", "8 ep", "5minutes", "nanmin", "1e3st"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(ValueError, match=text or "^$"):
        Budget.parse(text)


def test_minutes_become_steps(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples, tune, _ = digits

    def known(text: str, parts: int = 1) -> int:
        return steps_of(Budget.parse(text), model, model, samples, tune, parts=parts)

    assert known("3ep") == 3 * steps_per_epoch(samples, OPTIONS)
    assert known("7st", parts=8) == 7
    clock = [0.0]

    def ticking(*given: Any, **more: Any) -> Any:
        """Training whose steps take 2 seconds by the clock, the first one 30."""
        progress = more["progress"]
        for seconds in (30, 2, 2, 2):
            clock[0] += seconds
            progress(None)

    monkeypatch.setattr(teaching, "train", ticking)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert known("5min") == 92, "132 steps of 2 seconds are left: 92, and 4 pilots of 10"
    assert known("16min", parts=8) == 30, "42 steps: 30, and 4 pilots of 3"
    assert known("1min") == 8, "12 steps: 8, and 4 pilots of 1"
    assert known("0.1min") == 1


def test_a_budget_in_minutes_is_about_kept(digits: Digits) -> None:
    model, samples, tune, _ = digits
    steps = steps_of(Budget(0.03, "min"), hurt(model), model, samples, tune)
    _, about = recover(hurt(model), model, samples, tune, steps)
    assert 0.2 < about.seconds < 8


class Stated(nn.Linear):
    """A layer whose state holds more than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: Any) -> None:
        raise AssertionError("training sets nothing but weights")


def vectors() -> Samples:
    return as_samples(torch.randn(60, 6, generator=torch.Generator().manual_seed(0)))


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


class Masked(nn.Linear):
    """Attends to nothing: with the lowest float32 as a mask that is a mean, with minus infinity not a number."""

    def forward(self, input: Tensor) -> Tensor:
        answers = super().forward(input)
        lowest = torch.full(answers.shape, torch.finfo(torch.float32).min)
        return answers * lowest.to(answers.dtype).softmax(1)


@pytest.mark.parametrize(("classes", "layer"), [(True, Masked), (False, nn.Linear)])
def test_minutes_are_timed_in_the_precision_of_the_recovery(
    classes: bool, layer: type[nn.Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16, where answers are scores of classes and stay finite in it; also on machines that emulate it."""
    monkeypatch.setattr(loop, "_computes_bf16", lambda _: True)
    model, used, real = layer(6, 3), set[bool](), teaching.train

    def noted(*given: Any, **more: Any) -> Any:
        used.add(given[2].bf16)
        return real(*given, **more)

    monkeypatch.setattr(teaching, "train", noted)
    steps_of(Budget(0.001, "min"), model, model, vectors(), vectors(), classes=classes)
    assert used == {False}
    _, about = recover(hurt(model), model, vectors(), vectors(), 10, classes=classes)
    assert used == {False}
    assert about.stopped is None
    assert about.after < about.before

"""Recovery by two processes: the network of one process, the same in both, and one end."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor.sources.samples import Samples, as_samples
from compressor.training.budget import Budget
from compressor.training.loop import TrainOptions, train
from compressor.training.recover import OPTIONS, recover, steps_of
from compressor.training.together import Team

STEPS = 25
PLAIN = replace(OPTIONS, bf16=False)
CASES: dict[str, tuple[torch.dtype, TrainOptions, bool]] = {
    "wide": (torch.float64, replace(PLAIN, batch=17), True),
    "narrow": (torch.float32, PLAIN, True),
    "numbers": (torch.float64, replace(PLAIN, batch=17), False),
    "one sample": (torch.float64, replace(PLAIN, batch=1), True),
    "unmixed": (torch.float64, replace(PLAIN, batch=20, mix=False), True),
    "too fast": (torch.float64, replace(PLAIN, batch=17, optimizer="sgd", lr=1e30), True),
}


class Net(nn.Module):
    """A convolution with a batch norm and dropout, and a layer that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(), nn.Flatten())
        self.head, self.unread = nn.Linear(96, 5), nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


def networks(dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """An original whose norm has seen data, and a student with noise on its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        original = Net().to(dtype)
        original(images(200, 5).to(dtype))
        student = copy.deepcopy(original)
        with torch.no_grad():
            for weight in student.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    return original.eval(), student.eval()


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


class Counting(Samples):
    """Samples that count how often one was read, and may break."""

    def __init__(self, count: int, seed: int, breaks: int | None = None) -> None:
        inside = as_samples(images(count, seed))
        super().__init__(inside._store)
        self.read, self.breaks = 0, breaks

    def batch(self, ids: Any) -> tuple[Any, Tensor | None]:
        self.read += len(ids)
        if self.breaks is not None and self.read > self.breaks:
            raise OSError("the disk is gone")
        return super().batch(np.asarray(ids))


def made(name: str) -> tuple[dict[str, Tensor], dict[str, Any], int]:
    """The weights of a recovery, what it says, and how many samples were read."""
    dtype, options, classes = CASES[name]
    (original, student), samples = networks(dtype), Counting(150, 1)
    found, about = recover(
        student, original, samples, as_samples(images(41, 2)), STEPS, seed=3, options=options, classes=classes
    )
    return found.state_dict(), about.as_dict(), samples.read


def _process(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        found = {name: made(name) for name in CASES}
        original, student = networks(torch.float32)
        data = as_samples(images(150, 1)), as_samples(images(41, 2))
        steps = steps_of(Budget(0.02 * (1 + rank), "min"), student, original, *data, options=PLAIN)
        failure = ""
        try:
            recover(student, original, Counting(150, 1, 200 if rank == 1 else None), data[0], STEPS, options=PLAIN)
        except (OSError, RuntimeError) as error:
            failure = str(error)
        torch.save((found, steps, failure, Team(False).size), f"{folder}/{rank}.pt")
        torch.distributed.barrier()  # gloo may abort where one leaves while the other still speaks
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("both")
    torch.multiprocessing.spawn(_process, (2, str(folder)), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("name", list(CASES))
def test_two_processes_train_what_one_does(name: str, both: list[Any]) -> None:
    (first, about, read), (second, other, other_read) = (found[0][name] for found in both)
    alone, expected, read_alone = made(name)
    limit = 1e-10 if CASES[name][0] == torch.float64 else 1e-5
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert max(float((first[key] - alone[key]).abs().max()) for key in alone) < limit
    assert [about[key] == other[key] == expected[key] for key in ("steps", "best_step", "rate", "measure")] == 4 * [
        True
    ]
    assert about["after"] == other["after"] == pytest.approx(expected["after"], rel=1e-5)
    if name == "unmixed":
        assert read == other_read == read_alone / 2
    elif name == "too fast":
        assert about["stopped"] is not None
        assert about["best_step"] == 0
    elif name != "one sample":
        assert about["best_step"] > 0
        assert max(read, other_read) < 0.85 * read_alone


def test_the_first_clock_turns_minutes_into_steps_for_all(both: list[Any]) -> None:
    assert both[0][1] == both[1][1] > 1


def test_an_error_in_one_process_ends_the_training_in_both(both: list[Any]) -> None:
    assert both[0][2].startswith("an error in another process (1):\nTraceback")
    assert [found[2].strip().endswith("the disk is gone") for found in both] == [True, True]


def test_what_is_not_shared_is_trained_alone(both: list[Any]) -> None:
    assert [found[3] for found in both] == [1, 1]


def test_moving_norms_are_not_shared() -> None:
    with pytest.raises(ValueError, match="frozen modes"):
        train(networks(torch.float32)[1], as_samples(images(8, 0)), shared=True, loss=lambda *_: torch.zeros(()))


@pytest.mark.parametrize(("count", "size"), [(10, 3), (2, 4), (7, 7), (5, 1)])
def test_parts_make_the_whole(count: int, size: int) -> None:
    team, places, shares = Team(False), [], []
    team.size = size
    for team.rank in range(size):
        own, share = team.part(count)
        assert len(own) >= 1
        places += own.tolist() if share else []
        shares.append(share)
    assert places == list(range(count))
    assert sum(shares) == pytest.approx(1)

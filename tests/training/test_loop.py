from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.errors import DataError, ModelError
from compressor.sources.samples import as_samples
from compressor.training.augment import augmented
from compressor.training.loop import TrainOptions, accuracy, train


def corners(count=240, seed=0):
    """Images with a bright corner; the label says which."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    images = 0.3 * torch.randn(count, 1, 8, 8, generator=draws)
    for place, label in enumerate(labels.tolist()):
        images[place, 0, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 1
    return as_samples((images, labels))


def network(classes=4):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(4),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(32, classes),
        )


@pytest.mark.parametrize(
    "options", [TrainOptions(8, 32, 0.1), TrainOptions(12, 32, 0.01, "adamw", label_smoothing=0.1)]
)
def test_learns_and_leaves_the_given_model_alone(options):
    model, state = network(), torch.get_rng_state()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained, report = train(model, corners(), options, check=corners(seed=1))
    assert report.accuracy > 97
    assert report.accuracy == accuracy(trained, corners(seed=1))
    assert report.losses[-1] < 0.6 * report.losses[0]
    assert report.steps == options.epochs * (240 // 32)
    assert not trained.training
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_same_seed_same_weights():
    options = TrainOptions(2, 32, 0.05, flip=True, shift=1, seed=3)
    one, two = (train(network(), corners(), options)[0] for _ in range(2))
    other = train(network(), corners(), TrainOptions(2, 32, 0.05, flip=True, shift=1, seed=4))[0]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one[0].weight, other[0].weight)


def test_a_loss_of_ones_own_sees_what_the_network_saw():
    teacher, _ = train(network(), corners(), TrainOptions(8, 32, 0.1))
    unlabelled = as_samples(corners().batch(range(240))[0])
    seen = []

    def distil(output, batch):
        seen.append(batch.labels)
        with torch.no_grad():
            wanted = teacher(batch.inputs).log_softmax(1)
        return F.kl_div(output.log_softmax(1), wanted, log_target=True, reduction="batchmean")

    student, report = train(network(), unlabelled, TrainOptions(8, 32, 0.1), loss=distil)
    assert accuracy(student, corners(seed=1)) > 95
    assert seen[0] is None
    assert report.train_accuracy is None


def test_progress_and_time_limit():
    steps = []
    _, report = train(network(), corners(), TrainOptions(2, 32, 0.05), progress=steps.append)
    assert [step.step for step in steps] == list(range(1, 15))
    assert steps[-1].done == 1
    assert steps[-1].loss == report.losses[-1]
    _, report = train(network(), corners(), TrainOptions(10_000, 32, 0.05, seconds=0.2))
    assert 0 < report.steps < 70_000
    assert report.seconds < 5


def test_dict_inputs_and_outputs():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 4)

        def forward(self, pixels):
            return {"extra": pixels.mean(), "logits": self.layer(pixels.flatten(1))}

    images, labels = corners().batch(range(240))
    samples = as_samples(({"pixels": images}, labels))
    trained, _ = train(Named(), samples, TrainOptions(5, 32, 0.05))
    assert accuracy(trained, samples) > 95


def test_refusals():
    with pytest.raises(DataError, match="no labels"):
        train(network(), as_samples(torch.randn(40, 1, 8, 8)))
    with pytest.raises(ModelError, match="lower lr"):
        train(network(), corners(), TrainOptions(5, 32, 1e18))


def test_accuracy_restores_the_modes():
    model = network()
    model[1].eval()
    accuracy(model, corners())
    assert model.training
    assert not model[1].training
    assert model[5].training


def test_augmentation_mirrors_and_moves_whole_images():
    draws = torch.Generator().manual_seed(0)
    image = torch.arange(16.0).reshape(1, 1, 4, 4).expand(64, 1, 4, 4)
    for one in augmented(image, True, 0, draws):
        assert torch.equal(one, image[0]) or torch.equal(one, image[0].flip(-1))
    padded = F.pad(image[:1], (1, 1, 1, 1), mode="replicate")[0]
    moved = {(r, c): padded[:, r : r + 4, c : c + 4] for r in range(3) for c in range(3)}
    found = set()
    for one in augmented(image, False, 1, draws):
        found |= {place for place, wanted in moved.items() if torch.equal(one, wanted)}
    assert found == set(moved)


class Given(nn.Module):
    """Answers what it is given, by one factor that can be trained."""

    def __init__(self, named: bool = False) -> None:
        super().__init__()
        self.factor, self.named = nn.Parameter(torch.ones(())), named

    def forward(self, x: Tensor) -> Any:
        return {"logits": self.factor * x} if self.named else self.factor * x


@pytest.mark.parametrize("batch", [16, 64, 512])
def test_what_single_answers_mean_does_not_depend_on_the_batch(batch: int) -> None:
    odds = torch.rand(300, 1, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.05
    odds[17] = -1.0
    assert accuracy(Given(), as_samples((odds, (odds[:, 0] > 0).long())), batch=batch) == 100


def test_maps_of_two_classes_are_trained_by_one_score() -> None:
    maps = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = (maps[:, 0] > 0).long()
    labels[:, 0] = 255
    labels = labels.to(torch.uint8)  # as masks are stored
    made, report = train(Given(), as_samples((maps, labels)), TrainOptions(2, 16, 0.1))
    assert report.train_accuracy == 100
    assert report.losses[1] < report.losses[0]
    assert accuracy(made, as_samples((maps, labels))) == 100


def test_targets_that_are_numbers_are_compared_in_the_order_that_they_came_in() -> None:
    answers = torch.randn(32, 5, 3, generator=torch.Generator().manual_seed(0))
    _, report = train(Given(named=True), as_samples((answers, answers)), TrainOptions(1, 16, 1e-9))
    assert report.losses[0] < 1e-12


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([-1, 1] * 10), r"sample 0: got label -1; expected 0 to 2.*\(labels \+ 1\) // 2"),
        (torch.tensor([0, 3] * 10), "sample 1: got label 3; expected 0 to 2, as the network tells 3 classes apart"),
        (torch.eye(3)[torch.arange(20) % 3].long(), r"labels\.argmax\(1\)"),
        (torch.ones(20), r"numbers of shape \(20,\) for outputs of shape \(n, 3\).*labels\.long"),
    ],
)
def test_labels_that_do_not_fit_are_refused_before_the_first_step(labels: Tensor, words: str) -> None:
    samples = as_samples((torch.randn(20, 4), labels), "train data")
    with pytest.raises(DataError, match=words):
        train(nn.Sequential(nn.Linear(4, 3)), samples, TrainOptions(epochs=1))

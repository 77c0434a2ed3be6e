"""Views of inputs for losses that need no labels: what is mixed, cut and moved, and what stays as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compressor.training.augment import SMALLEST, Views, moved, viewed, views

COUNT = 400


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def how(*, weight: float, cut: bool, move: tuple[int, int] = (0, 0), centre: tuple[float, float] = (0.5, 0.5)) -> Views:
    """Two inputs that get each other, in one known way."""
    return Views(
        partner=torch.tensor([1, 0]),
        weight=torch.full((2,), weight),
        cut=torch.full((2,), cut),
        centre=torch.tensor(centre)[:, None].expand(2, 2),
        move=torch.tensor(move)[:, None].expand(2, 2),
    )


def seen(inputs: Tensor, view: Views) -> Tensor:
    return viewed(inputs, torch.arange(len(inputs)), view.partner, view)


def images(size: int = 16) -> Tensor:
    """One black image and one white one."""
    return torch.stack([torch.zeros(1, size, size), torch.ones(1, size, size)])


def test_half_of_the_inputs_are_seen_as_they_are():
    inputs = torch.randn(COUNT, 5, generator=draws(1))
    view = views(COUNT, draws())
    same = (seen(inputs, view) == inputs).all(1)
    assert 0.4 * COUNT < int(same.sum()) < 0.6 * COUNT
    assert torch.equal(
        same | (view.partner == torch.arange(COUNT)), (view.weight == 1) | (view.partner == torch.arange(COUNT))
    )


def test_the_others_lie_between_two_inputs():
    inputs = torch.randn(COUNT, 5, generator=draws(1))
    view = views(COUNT, draws())
    wanted = view.weight[:, None] * inputs + (1 - view.weight[:, None]) * inputs[view.partner]
    assert torch.allclose(seen(inputs, view), wanted)
    assert len(view.partner.unique()) == COUNT


@pytest.mark.parametrize("weight", [1.0, 0.75, 0.4])
def test_a_cut_image_shows_its_share_of_both(weight: float):
    made = seen(images(), how(weight=weight, cut=True))
    assert set(made.unique().tolist()) <= {0.0, 1.0}
    assert float(made[0].mean()) == pytest.approx(1 - weight, abs=0.1)
    assert torch.equal(made[1], 1 - made[0])
    if weight < 1:
        assert made[0, 0, 8, 8] == 1  # the rectangle lies around its centre
        assert made[0, 0, 0, 0] == 0


def test_a_rectangle_at_an_edge_is_cut_off():
    made = seen(images(), how(weight=0.75, cut=True, centre=(0.0, 1.0)))
    assert made[0, 0, 0, 15] == 1
    assert float(made[0].mean()) == pytest.approx(0.25 / 4, abs=0.03)


def test_images_move_by_whole_pixels_and_repeat_their_edge():
    image = torch.arange(64.0).reshape(1, 1, 8, 8)
    up = moved(image, torch.tensor([[1], [0]]), 1)
    assert torch.equal(up[0, 0, :7], image[0, 0, 1:])
    assert torch.equal(up[0, 0, 7], image[0, 0, 7])
    assert torch.equal(seen(images(), how(weight=1.0, cut=False, move=(1, -1))), images())
    left = moved(image, torch.tensor([[0], [-1]]), 1)
    assert torch.equal(left[0, 0, :, 1:], image[0, 0, :, :7])


@pytest.mark.parametrize("inputs", [images(SMALLEST - 1), torch.randn(2, 3, 20), torch.randn(2, 3, 4, 5, 6)])
def test_what_is_no_image_is_only_averaged(inputs: Tensor):
    made = seen(inputs, how(weight=0.25, cut=True, move=(1, 1)))
    assert torch.allclose(made, 0.25 * inputs + 0.75 * inputs.flip(0))


def test_whole_numbers_stay_and_so_does_what_is_beside_them():
    tokens = {"ids": torch.tensor([[1, 2], [3, 4]]), "weights": torch.randn(2, 2)}
    made = viewed(tokens, torch.arange(2), torch.tensor([1, 0]), how(weight=0.5, cut=True))
    assert isinstance(made, dict)
    assert all(torch.equal(made[name], tokens[name]) for name in tokens)


def test_a_part_of_a_batch_is_seen_as_in_the_whole():
    inputs = torch.randn(COUNT, 1, 12, 12, generator=draws(2))
    view = views(COUNT, draws())
    places = torch.arange(100, 200)
    part = view.of(places)
    assert torch.equal(viewed(inputs, places, part.partner, part), seen(inputs, view)[places])

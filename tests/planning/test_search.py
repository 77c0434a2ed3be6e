"""Budget in, ratio out: the search finds the smallest promising size and never lists anything twice or out of order."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from compressor.algebra.intervals import paired_bounds
from compressor.planning.search import Candidate, Tuned, search

SAMPLES = 2000


class Builder:
    """Candidates that lose `losses(share)` of the tune samples; remembers what was built."""

    def __init__(self, losses: Callable[[float], float], grid: float | None = None) -> None:
        self.losses, self.grid, self.asked = losses, grid, []
        self._made: dict[float, str] = {}

    def __call__(self, share: float) -> tuple[str, Tuned]:
        self.asked.append(share)
        real = share if self.grid is None else max(self.grid, round(share / self.grid) * self.grid)
        built = self._made.setdefault(real, f"network of {real:.4f}")
        return built, Tuned(int(SAMPLES * self.losses(real)), 0, SAMPLES)


def run(builder: Builder, smallest: float = 0.05, drop: float = 1.0, **options: float) -> list[Candidate[str]]:
    return search(
        builder,
        smallest=smallest,
        judge_samples=10_000,
        max_drop=drop,
        confidence=0.95,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("edge", [0.07, 0.2, 0.45, 0.8])
def test_the_smallest_promising_size_is_found_within_the_ratio(edge: float) -> None:
    builder = Builder(lambda share: 0.0 if share >= edge else 0.5)
    found = run(builder)
    promising = [c for c in found if c.expected_lower >= -1.0]
    assert edge <= promising[-1].share <= edge * 1.2
    assert len(builder.asked) <= 8
    below = [c.share for c in found if c.expected_lower < -1.0]
    assert len(below) <= 1
    assert all(edge / 1.2 <= share < edge for share in below)


def test_the_list_falls_in_size_and_holds_no_unpromising_size_before_a_promising_one() -> None:
    for edge in (0.1, 0.3, 0.6):
        noisy = Builder(lambda share, edge=edge: 0.0 if share >= edge or 0.15 < share < 0.18 else 0.2)
        found = run(noisy)
        shares = [c.share for c in found]
        assert shares == sorted(shares, reverse=True)
        assert len(set(shares)) == len(shares)
        fine = [c.expected_lower >= -1.0 for c in found]
        assert fine == sorted(fine, reverse=True)


def test_nothing_promising_gives_the_largest_alone() -> None:
    builder = Builder(lambda _share: 0.4)
    found = run(builder)
    assert [c.share for c in found] == [max(builder.asked)]
    assert max(builder.asked) < 1


def test_everything_promising_ends_near_the_smallest() -> None:
    builder = Builder(lambda _share: 0.0)
    found = run(builder, smallest=0.1)
    assert found[-1].share < 0.1 * 1.13
    assert min(builder.asked) >= 0.1


def test_the_same_network_is_listed_once() -> None:
    builder = Builder(lambda share: 0.0 if share >= 0.2 else 0.5, grid=0.1)
    found = run(builder)
    assert len({c.built for c in found}) == len(found)


def test_the_limit_holds() -> None:
    builder = Builder(lambda share: 0.0 if share >= 0.3333 else 0.5)
    run(builder, limit=3, ratio=1.0001)
    assert len(builder.asked) == 3


def test_tuned_counts_become_points_and_bounds() -> None:
    tuned = Tuned(losses=30, gains=10, samples=1000)
    assert tuned.difference == pytest.approx(-2.0)
    assert tuned.expected_lower(1000, 0.95) == pytest.approx(100 * paired_bounds(30, 10, 1000, 0.95)[0])
    assert tuned.expected_lower(10_000, 0.95) > tuned.expected_lower(1000, 0.95)
    assert tuned.expected_lower(1000, 0.99) < tuned.expected_lower(1000, 0.95)
    crowded = Tuned(losses=51, gains=49, samples=100)
    assert -100 <= crowded.expected_lower(33, 0.95) < 0  # counts that round up to more than there are

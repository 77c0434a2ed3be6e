from __future__ import annotations

import math

import pytest

from compressor.comparison.curves import Reached, best_peer, ratio, reached


def test_a_crossing_is_read_on_a_log_scale_of_the_share() -> None:
    found = reached([(0.5, 0.25), (0.25, 0.75)], allowed=0.5)
    assert found.share == pytest.approx(math.sqrt(0.5 * 0.25))
    assert not found.censored


def test_the_original_is_a_point_of_every_curve() -> None:
    assert reached([(0.5, 1.0)], allowed=0.5).share == pytest.approx(math.sqrt(0.5))


def test_what_is_good_again_below_the_first_crossing_is_not_counted() -> None:
    found = reached([(0.8, 0.1), (0.6, 0.9), (0.4, 0.2)], allowed=0.5)
    assert 0.6 < found.share < 0.8


def test_a_curve_that_never_crosses_is_censored_at_its_last_point() -> None:
    assert reached([(0.5, 0.1), (0.2, -0.3)], allowed=0.5) == Reached(0.2, True)
    assert reached([], allowed=0.5) == Reached(1.0, True)


def test_ratios_are_geometric_means_with_students_interval() -> None:
    found = ratio([0.4, 0.6, 0.5], [0.2, 0.2, 0.2])
    assert found.value == pytest.approx((2 * 3 * 2.5) ** (1 / 3))
    assert found.interval is not None
    low, high = found.interval
    assert low < found.value < high
    assert math.log(high / found.value) == pytest.approx(math.log(found.value / low))
    assert ratio([0.4], [0.2]).interval is None


def test_the_best_peer_is_one_for_all_seeds() -> None:
    assert best_peer({"a": [0.5, 0.5], "b": [0.3, 0.9], "c": [0.6, 0.6]}) == "a"

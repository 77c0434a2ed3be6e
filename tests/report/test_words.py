import pytest
from report_samples import RECOVERED, passed

from compressor.report.record import validate
from compressor.report.words import (
    ablation_sentence,
    amount,
    duration,
    file_size,
    interval,
    next_step,
    number,
    percent,
    plain,
    points,
    recovery_sentence,
    share_of,
)


@pytest.mark.parametrize(
    ("value", "like", "words"),
    [
        (0, None, "0"),
        (9_999, None, "9,999"),
        (10_000, None, "10.00 k"),
        (2_911_754, None, "2.91 M"),
        (349_410, 2_911_754, "0.35 M"),
        (12_300, 2_911_754, "12.30 k"),
        (640, 2_911_754, "640"),
        (4_100_000_000, None, "4.10 G"),
        (2.5e12, None, "2.50 T"),
    ],
)
def test_amounts(value, like, words):
    assert amount(value, like) == words


@pytest.mark.parametrize(
    ("value", "words"), [(-0.39, "-0.39"), (0.004, "0.00"), (-0.004, "0.00"), (0, "0.00"), (1.5, "+1.50")]
)
def test_points(value, words):
    assert points(value) == words


def test_intervals_are_rounded_outwards():
    """A lower bound of -0.504 must not look like an allowed -0.50."""
    assert interval(-0.504, 0.111) == "[-0.51, +0.12]"
    assert interval(-0.49, -0.29) == "[-0.49, -0.29]"
    assert interval(-0.5, 0.0) == "[-0.50, 0.00]"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4213, "0.42 s"), (12.34, "12.3 s"), (125, "2 min 05 s"), (59.99, "60.0 s"), (7325, "2 h 02 min")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_small_words():
    assert (percent(0.12), share_of(1, 0), share_of(1, 4)) == ("12.0 %", "-", "25.0 %")
    assert (file_size(12), file_size(1_402_113)) == ("12 B", "1.40 MB")
    assert (number(None), number(1234), number(0.00012345), number("cpu")) == (
        "-",
        "1,234",
        "0.000123",
        "cpu",
    )
    assert plain("a\x1b[31mb\n\ud800") == "a?[31mb ?"


def test_the_next_command_names_the_data_where_they_are_known():
    record = passed()
    assert next_step(validate(record), "small").endswith("verify small --data DATA")
    record["data"]["described"] = {"source": "my photos.py:load"}
    assert next_step(validate(record), "small").endswith("--data 'my photos.py:load'")
    record["recipe"] = {"model": "net.py:net"}  # whose paths are relative to the recipe
    assert next_step(validate(record), "small").endswith("--data DATA")
    record["data"]["described"] = {"source": "digits"}
    assert next_step(validate(record), "small").endswith("--data digits")
    assert next_step(validate(record), "my run").endswith("verify 'my run' --data digits")


def test_single_predictions_that_miss_the_whole_are_explained():
    record = passed()
    record["ablation"]["together"] = {**record["ablation"]["together"], "predicted": 2e-7, "measured": 9.7e-3}
    assert "decided by measured losses" in str(ablation_sentence(validate(record)))
    record["ablation"]["together"] = {**record["ablation"]["together"], "predicted": 9e-3}
    assert "decided by measured losses" not in str(ablation_sentence(validate(record)))


def test_the_rate_that_pilots_chose_is_said():
    pilots = [{"rate": rate, "distance": 0.1} for rate in (2e-3, 6e-4)]
    chosen = recovery_sentence(validate({**passed(), "recover": {**RECOVERED, "rate": 6e-4, "pilots": pilots}}))
    assert str(chosen).endswith(", learning rate 0.0006 (best of 2 tried)")
    assert "learning rate" not in str(recovery_sentence(validate({**passed(), "recover": {**RECOVERED, "tries": 3}})))

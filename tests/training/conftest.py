"""What several tests of recoveries start from."""

from __future__ import annotations

import pytest
from recoveries import Digits, bare, network

from compressor.sources.data import load_data
from compressor.training.loop import TrainOptions, train


@pytest.fixture(scope="module")
def digits() -> Digits:
    """A trained network, and unlabelled calibration and tune images, and labelled judge images."""
    data = load_data("digits")
    model, _ = train(network(), data.calibrate, TrainOptions(8, 64, 0.05))
    return model, bare(data.calibrate), bare(data.tune), data.judge

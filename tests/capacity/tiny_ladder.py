"""A network by width and a few digits, as a user's file beside a recipe: what the tests of studies train."""

from __future__ import annotations

NET = """
from torch import nn

def net(width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

def few(train=200, tune=40, judge=200):
    from compressor.sources.data import load_data
    data = load_data("digits")
    one = lambda samples, count: samples.take(range(count)).batch(range(count))
    return {"train": one(data.train, train), "tune": one(data.tune, tune), "judge": one(data.judge, judge)}
"""

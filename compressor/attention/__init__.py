"""Attention written as four plain linear layers, so that its heads and dimensions are units like any other."""

"""Tensors in, tensors out; knows no network."""

"""Verify: outputs of two networks on the same samples -> fidelity and a statistical verdict."""

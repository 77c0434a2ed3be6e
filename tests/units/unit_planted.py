"""All planted patterns: importing the files that hold them registers them."""

from __future__ import annotations

import importlib

from unit_patterns import PATTERNS

for part in ("layers", "moves", "norms", "weights"):
    importlib.import_module(f"unit_patterns_{part}")

__all__ = ["PATTERNS"]

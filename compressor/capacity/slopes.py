"""The fall of chunk errors above the critical size, fitted for every setting: what the report draws."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressor.capacity.claims.doimo import LEAST_SIZES, at_the_greatest, critical
from compressor.capacity.claims.evidence import Evidence, NotInStudy
from compressor.capacity.measures import fitted_slope
from compressor.errors import CompressorError


def fitted_slopes(study: Evidence) -> dict[str, dict[str, Any]]:
    """Setting -> exponent with its interval over seeds, floor, amplitude, and the sizes that were fitted.

    Settings without three chunk sizes between w* (zero training error) and the greatest width are left out.
    """
    found = {}
    for name in study.settings:
        try:
            start, ladder = critical(study, name, "by_error")
            sizes = [size for size in ladder if start <= size < ladder[-1]]
            if len(sizes) < LEAST_SIZES:
                continue
            errors = np.stack([at_the_greatest(study, name, "test_error", size) for size in sizes], axis=1)
            fit = fitted_slope(sizes, errors)
        except (NotInStudy, CompressorError):
            continue
        interval = [float(end) if np.isfinite(end) else None for end in fit.interval]
        about = {"exponent": fit.value, "interval": interval, "floor": fit.floor, "amplitude": fit.amplitude}
        found[name] = {**about, "sizes": sizes}
    return found

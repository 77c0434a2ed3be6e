"""Pure measures of a layer's activations (samples, units) and of curves over width: numbers in, frozen values out."""

from compressor.capacity.measures.agreement import (
    Prunable,
    agreement_threshold,
    prunable,
    removable_area,
    targeted_gap,
)
from compressor.capacity.measures.checks import live_units
from compressor.capacity.measures.chunks import (
    ChunkReconstruction,
    chunk_reconstruction,
    correlation_null,
    draws,
    ladder,
)
from compressor.capacity.measures.classification import ChunkErrors, ChunkLosses, chunk_errors, chunk_losses
from compressor.capacity.measures.critical import CriticalWidth, clones, critical_width
from compressor.capacity.measures.grouping import Clustering, clustering_test
from compressor.capacity.measures.rates import Growth, growth
from compressor.capacity.measures.seeds import Estimate, over_seeds
from compressor.capacity.measures.similar import SimilarUnits, similar_units
from compressor.capacity.measures.slope import Slope, fitted_slope
from compressor.capacity.measures.spectrum import Redundancy, redundancy95, redundancy95_live

__all__ = [
    "ChunkErrors",
    "ChunkLosses",
    "ChunkReconstruction",
    "Clustering",
    "CriticalWidth",
    "Estimate",
    "Growth",
    "Prunable",
    "Redundancy",
    "SimilarUnits",
    "Slope",
    "agreement_threshold",
    "chunk_errors",
    "chunk_losses",
    "chunk_reconstruction",
    "clones",
    "clustering_test",
    "correlation_null",
    "critical_width",
    "draws",
    "fitted_slope",
    "growth",
    "ladder",
    "live_units",
    "over_seeds",
    "prunable",
    "redundancy95",
    "redundancy95_live",
    "removable_area",
    "similar_units",
    "targeted_gap",
]

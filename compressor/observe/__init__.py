"""What a network does on data: second moments at every consumer's input, and the loss's curvature at its output."""

from compressor.observe.likelihood import (
    CLASSES,
    Classes,
    Likelihood,
    Numbers,
    Probabilities,
    likelihood_of,
    sampled_log_likelihood,
)
from compressor.observe.memory import (
    FREE_SHARE,
    MEMORY_SHARE,
    empty_in_file,
    free_of,
    half,
    in_file,
    memory_of,
    room_for_weights,
)
from compressor.observe.passes import observe
from compressor.observe.processes import from_first, in_step, in_turn, least, meet, only_first, processes, told
from compressor.observe.readers import ROWS_PER_REGRESSOR, Geometry, TapReader, blocks_of, takes_constant
from compressor.observe.statistics import PairStatistics, Statistics, TapStatistics

__all__ = [
    "CLASSES",
    "FREE_SHARE",
    "MEMORY_SHARE",
    "ROWS_PER_REGRESSOR",
    "Classes",
    "Geometry",
    "Likelihood",
    "Numbers",
    "PairStatistics",
    "Probabilities",
    "Statistics",
    "TapReader",
    "TapStatistics",
    "blocks_of",
    "empty_in_file",
    "free_of",
    "from_first",
    "half",
    "in_file",
    "in_step",
    "in_turn",
    "least",
    "likelihood_of",
    "meet",
    "memory_of",
    "observe",
    "only_first",
    "processes",
    "room_for_weights",
    "sampled_log_likelihood",
    "takes_constant",
    "told",
]

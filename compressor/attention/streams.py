"""Attention that may read another stream than its own, an encoder's, and keep keys and values for the next step."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

ELSEWHERE = ("key_value_states", "encoder_hidden_states")
"""What classes of transformers call the stream that keys and values are read from, if it is another."""
CACHES = ("past_key_values", "cache")
"""What they call keys and values of earlier steps; since transformers 5.24 the second."""


def known_cache(*given: Any) -> Any:
    """The cache among what a layer was called with: versions of transformers call it by other names."""
    return next((each for each in given if each is not None), None)


def takes(kind: type, *names: str) -> bool:
    """True if the forward of a class has one of these arguments by its name."""
    return any(name in inspect.signature(kind.forward).parameters for name in names)  # type: ignore[attr-defined]


def keys_and_values(
    made: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    tokens: Tensor,
    other: Tensor | None,
    past: Any,
    place: int | None,
) -> tuple[Tensor, Tensor]:
    """(N, K, S, Q) and (N, K, S, V), `made` of `tokens`, or of the `other` stream, with those that a cache of
    transformers has for the layer at this `place`: those of another stream are computed once and kept.
    """
    source = tokens if other is None else other
    if past is None:
        return made(source, source)
    both = hasattr(past, "self_attention_cache")
    if both and other is not None and past.is_updated.get(place):
        layer = past.cross_attention_cache.layers[place]
        return layer.keys, layer.values
    cache = past if not both else past.self_attention_cache if other is None else past.cross_attention_cache
    k, v = cache.update(*made(source, source), place)
    if both and other is not None:
        past.is_updated[place] = True
    return k, v

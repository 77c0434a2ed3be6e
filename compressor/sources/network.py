"""Downloads that give up, and where they are kept."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NETWORK_SECONDS = 10.0
"""A server that does not answer within this time counts as absent."""


@contextmanager
def impatient() -> Iterator[None]:
    """Sockets opened inside give up after NETWORK_SECONDS instead of never."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def cache_folder() -> Path:
    """Where downloaded datasets are kept: `$XDG_CACHE_HOME/compressor`, or `~/.cache/compressor`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "compressor"

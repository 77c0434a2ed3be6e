"""The error family: every message says where, what was got, what was expected, and the next step.

Floor 0. Exit codes are those of the command line: 2 usage, 3 something named cannot be read or worked with.
"""

from __future__ import annotations


class CompressorError(Exception):
    """Base of every error a user can meet; `exit_code` is what the command line returns for it."""

    exit_code = 3

    def __init__(self, where: str, got: str, expected: str, next_step: str) -> None:
        where, got, expected, next_step = (_printable(part) for part in (where, got, expected, next_step))
        self.where, self.got, self.expected, self.next_step = where, got, expected, next_step
        super().__init__(f"{where}: got {got}; expected {expected}. Next: {next_step}")

    def __reduce__(self) -> tuple[type[CompressorError], tuple[str, str, str, str]]:
        """Errors travel between processes."""
        return type(self), (self.where, self.got, self.expected, self.next_step)


class UsageError(CompressorError):
    """A flag, a recipe or an output folder is not usable as given (exit 2)."""

    exit_code = 2


class UnwrittenPage(UsageError):
    """A report could not be written, but all that it tells of is finished and stays (exit 2)."""


class SourceError(CompressorError):
    """A model, a checkpoint or data cannot be found, read or trusted (exit 3)."""


class ModelError(CompressorError):
    """The model was read but cannot be worked with: it does not run, or its weights are not finite (exit 3)."""


class DataError(CompressorError):
    """The data was found but cannot be worked with: empty, wrong shapes, labels out of range (exit 3)."""


def _printable(text: str) -> str:
    """Names come from files: control characters (which command a terminal) and lone surrogates are shown escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\u00a0" else c.encode("unicode_escape").decode() for c in text)

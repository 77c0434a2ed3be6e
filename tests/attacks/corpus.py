"""Hostile files, made when they are needed: each attack plants its files in an empty folder and says what to call.

An attack is stopped if none of its code ran (no file or folder `ran`, no process started), the command ended in time
and within its memory, with the right exit code, and with one message in the house's form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runs import project

CANARY = "ran"


@dataclass(frozen=True)
class Attack:
    """`plant(folder)` writes the files and returns the command line; `code` is how it must end."""

    family: str
    name: str
    plant: Callable[[Path], list[str]]
    code: int = 3


ATTACKS: list[Attack] = []


def attack(family: str, code: int = 3) -> Callable[[Callable[[Path], list[str]]], Callable[[Path], list[str]]]:
    """Register a function as an attack; its name with spaces is the attack's."""

    def add(plant: Callable[[Path], list[str]]) -> Callable[[Path], list[str]]:
        ATTACKS.append(Attack(family, plant.__name__.replace("_", " "), plant, code))
        return plant

    return add


def added(family: str, name: str, plant: Callable[[Path], list[str]], code: int = 3) -> None:
    """Register an attack that is one of many of a kind."""
    ATTACKS.append(Attack(family, name, plant, code))


def with_checkpoint(folder: Path, name: str, content: bytes) -> list[str]:
    """The command line that loads this file as the checkpoint of the user's own network."""
    project(folder)
    (folder / name).write_bytes(content)
    return ["inspect", "net.py:net", "--input", "6", "--checkpoint", name]

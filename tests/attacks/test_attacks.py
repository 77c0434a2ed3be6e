"""Hostile files: nothing of theirs runs, memory stays bounded, and the refusal is one clean message."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "report")]

import hostile_checkpoints  # noqa: E402, F401
import hostile_models  # noqa: E402, F401
import hostile_tables  # noqa: E402, F401
import hostile_texts  # noqa: E402, F401
from attempts import attempts  # noqa: E402
from corpus import ATTACKS  # noqa: E402

FAMILIES = sorted({attack.family for attack in ATTACKS})


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What became of every attack."""
    return attempts(tmp_path_factory.mktemp("attacks"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_attack_is_stopped(rows: list[dict[str, Any]], family: str) -> None:
    mine = [row for row in rows if row["family"] == family]
    assert len(mine) == sum(attack.family == family for attack in ATTACKS)
    assert [row for row in mine if not row["stopped"]] == []


def test_no_attack_ended_the_process(rows: list[dict[str, Any]]) -> None:
    assert len(rows) == len(ATTACKS) > 150
    assert [row for row in rows if row["family"] == "ended the process"] == []

"""The README tells the truth: its tables come from the results, its commands and flags exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compressor.cli import app
from compressor.recipe import load_recipe

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "recipes"), str(ROOT / "tests")]

import comparison_table  # noqa: E402
import readme_commands  # noqa: E402
import readme_tables  # noqa: E402

TEXT = (ROOT / "README.md").read_text()


def test_tables_are_what_the_results_say() -> None:
    assert readme_tables.filled(TEXT) == TEXT


def test_shares_say_where_a_curve_was_not_measured() -> None:
    """Seed 0 never crosses; seed 1 crosses before its first size; seed 2 between two sizes."""
    lost = {0: (0.1, 0.2), 1: (0.9, 1.5), 2: (0.1, 0.9)}
    cells = [
        {"seed": s, "share": x, "lost": y} for s, two in lost.items() for x, y in zip((0.5, 0.3), two, strict=True)
    ]
    ends = {str(s): {"share": 0.4, "censored": s == 0} for s in lost}
    content = {"allowed": 0.5, "methods": {"peer": {"cells": cells, "reached": ends}}}
    assert comparison_table._shares(content, "peer") == "<40.0, ~40.0, 40.0 %"


@pytest.mark.parametrize("name", readme_tables.NAMES)
def test_every_table_has_a_place(name: str) -> None:
    assert f"<!-- table: {name} -->" in TEXT


def test_the_main_command_runs_a_recipe_that_ships() -> None:
    words = readme_commands.command("main").split()
    recipe, _ = load_recipe(words[words.index("run") + 1])
    assert recipe.data == "digits"
    assert recipe.train is not None


def test_the_test_command_runs_pytest() -> None:
    assert readme_commands.command("test").endswith("pytest")


@pytest.mark.parametrize("verb", sorted(set(re.findall(r"^compressor ([\w-]+)", TEXT, re.MULTILINE))))
def test_every_verb_shown_exists_with_its_flags(verb: str) -> None:
    shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert shown.exit_code == 0
    for line in re.findall(rf"^compressor {verb} .*$", TEXT, re.MULTILINE):
        for flag in re.findall(r"--[a-z-]+", line.partition("#")[0]):
            assert flag in shown.output

"""Rungs measured elsewhere are the rungs measured here; what goes wrong there is said here."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest
from tiny_ladder import NET

from compressor.capacity.engines import LOCAL_RAY
from compressor.capacity.study import run_capacity
from compressor.errors import DataError, UsageError
from compressor.recipe import Recipe, parse_recipe


def recipe(**changes: Any) -> Recipe:
    ladder = {"widths": [4, 8], "seeds": [0, 1], "chunks": 3, "regressions": 2, "layers": ["2"], "orders": 1}
    plain = {"model": "net.py:net", "data": "net.py:few", "train": {"epochs": 2, "batch": 32}}
    return Recipe.model_validate({**plain, "capacity": {**ladder, **changes}})


Plain = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    base = tmp_path_factory.mktemp("engines")
    (base / "net.py").write_text(NET)
    return base, run_capacity(recipe(), base, base / "plain")


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Trained with another number of threads, two networks are the same up to rounding."""
    assert [(r["setting"], r["width"], r["seed"]) for r in one["rungs"]] == [
        (r["setting"], r["width"], r["seed"]) for r in other["rungs"]
    ]
    for mine, theirs in zip(one["rungs"], other["rungs"], strict=True):
        for name in ("r95", "similar"):
            assert mine["measures"][name] == pytest.approx(theirs["measures"][name], abs=0.3)
        assert mine["measures"]["accuracy"]["test"] == pytest.approx(theirs["measures"]["accuracy"]["test"], abs=1.0)
        assert mine["nulls"]["white noise"]["r95"] == theirs["nulls"]["white noise"]["r95"]


def test_two_processes_make_the_same_study_and_any_engine_goes_on_with_it(plain: Plain, tmp_path: Path) -> None:
    base, alone = plain
    done: list[float] = []
    found = run_capacity(
        recipe(workers=2),
        base,
        tmp_path / "out",
        report=lambda stage, share: done.append(share) if stage == "rungs" else None,
    )
    same(alone, found)
    assert done == [0.25, 0.5, 0.75, 1.0]
    assert not multiprocessing.active_children()
    (tmp_path / "out" / "rungs" / "base-w4-s0.json").unlink()
    same(found, run_capacity(recipe(), base, tmp_path / "out", resume=True))


@pytest.mark.slow
def test_what_a_worker_meets_is_raised_here(plain: Plain, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="170 training samples"):
        run_capacity(recipe(workers=2, train_samples=900), plain[0], tmp_path / "out")
    for child in multiprocessing.active_children():
        child.join(20)
    assert not multiprocessing.active_children()


def test_errors_travel_between_processes() -> None:
    error = DataError("here", "this", "that", "do so")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.next_step) == (DataError, str(error), "do so")


def test_ray_that_is_not_installed_is_named(plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UsageError, match=r"compressor\[ray\]"):
        run_capacity(recipe(ray={"workers": 2}), plain[0], tmp_path / "out")


def test_ray_needs_a_cluster_or_a_number_of_workers() -> None:
    asked = recipe().model_dump(mode="json")
    asked["capacity"]["ray"] = {}
    with pytest.raises(UsageError, match="an address, or a number of workers"):
        parse_recipe(json.dumps(asked), "recipe")
    asked["capacity"]["ray"] = {"adress": "auto"}
    with pytest.raises(UsageError, match="address"):
        parse_recipe(json.dumps(asked), "recipe")


@pytest.mark.slow
def test_two_workers_of_a_local_ray(plain: Plain, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    base, alone = plain
    same(alone, run_capacity(recipe(ray={"workers": 2}), base, tmp_path / "out"))
    assert not ray.is_initialized()
    with pytest.raises(DataError, match="170 training samples"):
        run_capacity(recipe(ray={"workers": 2}, train_samples=900), base, tmp_path / "other")


@pytest.mark.slow
def test_a_ray_that_runs_already_is_used_and_stays(plain: Plain, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    base, alone = plain
    ray.init(num_cpus=2, log_to_driver=False, **LOCAL_RAY)
    try:
        same(alone, run_capacity(recipe(ray={"address": "auto"}), base, tmp_path / "out"))
        assert ray.is_initialized()
    finally:
        ray.shutdown()

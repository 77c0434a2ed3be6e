"""A whole study at the smallest size: two widths, two seeds, two settings."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Terminal
from tiny_ladder import NET

from compressor.capacity.settings import settings_of
from compressor.capacity.study import run_capacity, trials
from compressor.errors import DataError, UsageError
from compressor.recipe import Recipe, load_recipe
from compressor.report.capacity import capacity_view, refusals


def recipe(**changes: Any) -> Recipe:
    ladder = {
        "widths": [6, 12],
        "seeds": [0, 1],
        "chunks": 5,
        "regressions": 3,
        "layers": ["2"],
        "settings": {"true_labels": {}, "random": {"labels": "random", "initialisation": "he_normal"}},
    }
    plain = {"model": "net.py:net", "data": "net.py:few", "train": {"epochs": 3, "batch": 32}}
    plain["data_args"] = {"train": 300, "tune": 60, "judge": 400}
    return Recipe.model_validate({**plain, "capacity": {**ladder, **changes}})


WHOLE: dict[str, Any] = {"snapshots": [0.5], "by_layer": True, "random_labels": True}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    base = tmp_path_factory.mktemp("ladder")
    (base / "net.py").write_text(NET)
    out = base / "out"
    return base, out, run_capacity(recipe(**WHOLE), base, out)


Study = tuple[Path, Path, dict[str, Any]]


def test_every_rung_has_its_measures_beside_its_nulls(study: Study) -> None:
    found = json.loads((study[1] / "study.json").read_text())
    assert {(r["setting"], r["width"], r["seed"]) for r in found["rungs"]} == {
        (s, w, n) for s in ("true_labels", "random") for w in (6, 12) for n in (0, 1)
    }
    for rung in found["rungs"]:
        memorised = {"random labels"} if rung["setting"] == "true_labels" else set()
        assert set(rung["nulls"]) == {"untrained", "white noise", "permuted"} | memorised
        (layer,) = rung["measures"]["layers"]
        assert (layer["units"], layer["samples"]) == (rung["width"], 400)
        assert 0 < rung["nulls"]["white noise"]["r95"] < 0.3
        assert len(rung["measures"]["ablation"]["agreement"]) == 3
        assert rung["nulls"]["untrained"]["ablation"]["fractions"] == rung["measures"]["ablation"]["fractions"]
        chunks = rung["measures"]["chunks"]
        assert [len(row) for row in chunks["test_error"]] == [5] * len(chunks["sizes"])
        full = 1 - rung["measures"]["accuracy"]["test"] / 100
        assert chunks["test_error"][-1] == pytest.approx([full] * 5)  # all units: the network itself
        (early,) = rung["measures"]["snapshots"]
        assert early["share"] == 0.5
        assert rung["measures"]["by_layer"][0]["name"] == "2"


def test_random_labels_are_not_generalised(study: Study) -> None:
    accuracies = {r["setting"]: r["measures"]["accuracy"]["test"] for r in study[2]["rungs"] if r["width"] == 12}
    assert accuracies["true_labels"] > 50
    assert accuracies["random"] < 30


def test_networks_on_permuted_labels_stand_beside_the_others(study: Study) -> None:
    base, out, found = study
    for rung in found["rungs"]:
        if rung["setting"] == "true_labels":
            null, mine = rung["nulls"]["random labels"], rung["measures"]
            assert null["accuracy"]["test"] < 30
            assert rung["width"] == 6 or mine["accuracy"]["test"] > 50
            assert null["ablation"]["fractions"] == mine["ablation"]["fractions"]
            assert null["chunks"]["sizes"] == mine["chunks"]["sizes"]
            whole = 1 - null["accuracy"]["train"] / 100  # the labels that it was trained on are asked for
            assert null["chunks"]["train_error"][-1] == pytest.approx([whole] * 5)
            assert [layer["name"] for layer in null["by_layer"]] == ["2"]
    (setting, _) = settings_of(recipe(**WHOLE))
    fresh, other = (part(12, 1, out / "networks").initial(base) for part in (setting.wanted, setting.memorising))
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), other.parameters(), strict=True))
    kept = setting.memorising(12, 1, out / "networks").kept
    assert kept.is_file()
    assert kept != setting.wanted(12, 1, out / "networks").kept
    claims = {row["id"]: row for row in found["claims"]}
    assert {"untrained", "random labels"} <= set(claims["A-6"]["tests"][0]["null"])  # of true labels
    assert "random labels" not in claims["A-6"]["tests"][1]["null"]


def test_claims_say_why_they_are_undecided(study: Study) -> None:
    rows = {row["id"]: row for row in study[2]["claims"]}
    assert len(rows) == 25
    assert rows["A-11"]["reason"].startswith("not in this study")
    assert rows["A-9"]["reason"].startswith("not in this study")  # the settings differ in the initialisation too
    assert rows["A-1"]["effect"] is not None
    assert rows["A-13"]["reason"].startswith("not in this study: x* of a snapshot")  # a constant answer agrees as often


def test_every_raw_trial_is_kept(study: Study) -> None:
    rows = list(csv.DictReader(io.StringIO((study[1] / "trials.csv").read_text())))
    rung = next(r for r in study[2]["rungs"] if (r["setting"], r["width"], r["seed"]) == ("random", 12, 1))
    mine = [r for r in rows if (r["setting"], r["width"], r["seed"], r["network"]) == ("random", "12", "1", "trained")]
    curve = [float(r["value"]) for r in mine if r["quantity"] == "ablation_agreement" and r["trial"] == "2"]
    assert curve == rung["measures"]["ablation"]["agreement"][2]
    assert trials(study[2]["rungs"]) == (study[1] / "trials.csv").read_text()


def test_page_and_table_show_every_claim(study: Study) -> None:
    page = (study[1] / "report.html").read_text()
    assert page.count("<svg") == 12  # six pictures for each setting; stacks need two layers
    assert '<th scope="col">(random labels)</th>' in page
    assert all(f">{row['id']}<" in page for row in study[2]["claims"])
    assert capacity_view(study[2]).row_count == 25
    assert refusals(study[2]["rungs"]) == []


def test_resuming_runs_only_what_is_missing(study: Study) -> None:
    base, out, _ = study
    gone = out / "rungs" / "random-w12-s1.json"
    before = json.loads(gone.read_text())
    gone.unlink()
    times = {path: path.stat().st_mtime_ns for path in (out / "rungs").glob("*.json")}
    networks = {path: path.stat().st_mtime_ns for path in (out / "networks").iterdir()}
    run_capacity(recipe(**WHOLE), base, out, resume=True)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert {path: path.stat().st_mtime_ns for path in (out / "networks").iterdir()} == networks
    assert {**json.loads(gone.read_text()), "seconds": 0} == {**before, "seconds": 0}


def test_another_recipe_is_not_mixed_with_this_one(study: Study) -> None:
    with pytest.raises(UsageError, match="another recipe"):
        run_capacity(recipe(widths=[6, 24]), study[0], study[1], resume=True)


@pytest.mark.parametrize("name", ["own.safetensors", "few.npz"], ids=["checkpoint", "data"])
def test_rungs_of_other_inputs_are_not_mixed_with_these(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text(NET)
    for file in ("own.safetensors", "few.npz"):
        (tmp_path / file).write_text("some")
    asked = recipe().model_copy(update={"data": "npz:few.npz", "data_args": {}, "checkpoint": "own.safetensors"})
    monkeypatch.setattr("compressor.capacity.study._climb", lambda *_: sys.exit("stopped"))
    with pytest.raises(SystemExit):
        run_capacity(asked, tmp_path, tmp_path / "out")
    (tmp_path / name).write_text("others")
    with pytest.raises(UsageError, match="data or checkpoints that have changed"):
        run_capacity(asked, tmp_path, tmp_path / "out", resume=True)


def test_networks_can_be_taken_instead_of_trained(study: Study, tmp_path: Path) -> None:
    base, out, found = study
    taken = recipe(settings={"true_labels": {}}, seeds=[0])
    path = f"{out}/networks/{{setting}}-w{{width}}-s{{seed}}.safetensors"
    again = run_capacity(taken.model_copy(update={"checkpoint": path, "train": None}), base, tmp_path / "out")
    (one, other) = (
        next(r for r in rows["rungs"] if (r["setting"], r["width"], r["seed"]) == ("true_labels", 12, 0))
        for rows in (found, again)
    )
    assert other["weights"].startswith("checkpoint")
    assert other["measures"]["layers"] == one["measures"]["layers"]
    assert {row["verdict"] for row in again["claims"]} == {"undecided"}


def test_settings_are_checked_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="epohcs"):
        settings_of(recipe(settings={"a": {"train": {"epohcs": 3}}}))
    with pytest.raises(ValueError, match="rise"):
        recipe(widths=[8, 4])
    with pytest.raises(ValueError, match="names of letters"):
        recipe(settings={"a/b": {}})


def test_scale_and_samples_reach_the_training(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    (one,) = settings_of(recipe(settings={"quarter": {"scale": 0.25, "train_samples": 40}}))
    options = one.options(3)
    assert options is not None
    assert (options.batch, options.lr, options.seed) == (8, 0.025, 3)
    data = one.data(tmp_path, 0)
    assert data.train is not None
    assert len(data.train) == 40
    assert one.traits(data)["train_samples"] == 40


def test_the_best_learning_rate_stays(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    asked = {"settings": {"a": {}}, "seeds": [0], "widths": [6, 8]}
    good = run_capacity(recipe(**asked), tmp_path, tmp_path / "good")  # at 0.1
    best = run_capacity(recipe(**asked, learning_rates=[1e-9, 0.1]), tmp_path, tmp_path / "best")
    assert [rung["weights"] for rung in best["rungs"]] == [rung["weights"] for rung in good["rungs"]]


def test_units_are_found_where_no_layer_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    found = run_capacity(recipe(settings={"a": {}}, seeds=[0], layers=[]), tmp_path, tmp_path / "out")
    assert [r["measures"]["layers"][0]["units"] for r in found["rungs"]] == [6, 12]


def test_command_line_ends_with_0_whatever_the_claims_say(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    asked = recipe(settings={"a": {}}, seeds=[0]).model_dump(mode="json")
    (tmp_path / "ladder.yaml").write_text(json.dumps(asked))  # JSON is YAML
    assert terminal("capacity", tmp_path / "ladder.yaml", "--out", tmp_path / "out", "--json") == 0
    assert terminal.json() == json.loads((tmp_path / "out" / "study.json").read_text())
    assert {"width", "seed", "measures", "nulls"} <= set(terminal.json()["rungs"][0])
    keys = {"id", "proposition", "paper", "verdict", "effect", "interval", "null"}
    assert all(keys <= set(claim) for claim in terminal.json()["claims"])
    assert terminal("run", tmp_path / "ladder.yaml", "--out", tmp_path / "out", "--resume") == 0
    assert "undecided" in terminal.out


ODD = """
def odd(**counts):
    found = few(**counts)
    images, labels = found["judge"]
    return {**found, "judge": (images, labels + 5)}
"""


def test_judge_labels_that_the_network_has_no_class_for_are_refused_before_it_is_trained(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET + ODD)
    asked = recipe(settings={"a": {}}, seeds=[0]).model_copy(update={"data": "net.py:odd"})
    with pytest.raises(DataError, match=r"label 1\d.*0 to 9"):
        run_capacity(asked, tmp_path, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_recipe_without_the_section_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="capacity"):
        run_capacity(Recipe(model="torchvision:resnet18", data="digits"), tmp_path, tmp_path / "out")


def test_the_smoke_recipe_names_what_exists() -> None:
    smoke, base = load_recipe("capacity/smoke")
    assert smoke.capacity is not None
    (setting,) = settings_of(smoke)
    model = setting.wanted(8, 0, base).initial(base)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)

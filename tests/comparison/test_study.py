from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

from compressor.comparison.methods import BUILT_IN, width_for
from compressor.comparison.study import run_comparison
from compressor.comparison.task import Task, size
from compressor.errors import UsageError
from compressor.recipe import Recipe
from compressor.report.curves import comparison_picture, comparison_view
from compressor.sections import OWN_METHODS
from compressor.sources.checkpoint import file_sha256
from compressor.sources.contents import content
from compressor.sources.data import load_data
from compressor.studies import request_marks

ROOT = Path(__file__).parent.parent.parent
METHODS = {
    "ours": "ours",
    "small_from_scratch": "small_from_scratch",
    "broken": "methods.py:broken",
    "first": "methods.py:first_units",
}
PEER = """
from torch import nn
import copy

def broken(task):
    raise RuntimeError("out of order")

def first_units(task):
    # keeps the first hidden units: a bad method, but an honest one
    def build(share):
        model = copy.deepcopy(task.model)
        count = max(1, int(share * model[1].out_features))
        new = nn.Linear(64, count), nn.Linear(count, 10)
        new[0].weight.data, new[0].bias.data = model[1].weight.data[:count], model[1].bias.data[:count]
        new[1].weight.data, new[1].bias.data = model[3].weight.data[:, :count], model[3].bias.data
        return nn.Sequential(nn.Flatten(), new[0], nn.ReLU(), new[1])
    return build

def zero(task):
    # always the same network, whose answers say nothing
    def build(share):
        model = copy.deepcopy(task.model)
        for parameter in model.parameters():
            parameter.data.zero_()
        model[3].bias.data[0] = 1
        return model
    return build

def net(width=1.0):
    hidden = max(2, round(48 * width))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
"""


def recipe(**changes: object) -> Recipe:
    compare = {"methods": METHODS, "sizes": [0.6, 0.3], "seeds": [0, 1], "only": {"small_from_scratch": [0.3]}}
    plain = {"model": "methods.py:net", "data": "digits", "train": {"epochs": 4, "batch": 64}, "compare": compare}
    return Recipe.model_validate({**plain, **changes})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("recipe")
    (base / "methods.py").write_text(PEER)
    run_comparison(recipe(), base, base / "out")
    return base, base / "out"


def test_every_method_is_measured_at_every_size_of_every_seed(study: tuple[Path, Path]) -> None:
    found = json.loads((study[1] / "compare.json").read_text())
    ours = found["methods"]["ours"]["cells"]
    assert [(cell["seed"], cell["share"]) for cell in ours] == [(0, 0.6), (0, 0.3), (1, 0.6), (1, 0.3)]
    assert all(cell["params"] <= cell["share"] and cell["verdict"]["samples"] == 700 for cell in ours)
    assert [cell["share"] for cell in found["methods"]["small_from_scratch"]["cells"]] == [0.3, 0.3]
    assert found["against"]["best_peer"]["method"] == "first"
    assert found["against"]["best_peer"]["value"] > 1
    (both,) = found["against"]["small_from_scratch"]
    assert both["ours_lost"] == pytest.approx((ours[1]["lost"] + ours[3]["lost"]) / 2)


def test_a_fault_of_a_method_is_a_result(study: tuple[Path, Path]) -> None:
    cells = json.loads((study[1] / "compare.json").read_text())["methods"]["broken"]["cells"]
    assert [cell["error"] for cell in cells] == ["RuntimeError: out of order"] * 2  # once per seed, then no more


def test_picture_and_table_show_every_method(study: tuple[Path, Path]) -> None:
    found = json.loads((study[1] / "compare.json").read_text())
    assert (study[1] / "compare.svg").read_text() == comparison_picture(found)
    assert "first" in comparison_picture(found)
    assert comparison_view(found).row_count == len(METHODS)


def test_resuming_runs_only_what_is_missing(study: tuple[Path, Path]) -> None:
    base, out = study
    cells = sorted((out / "cells").glob("*.json"))
    gone = out / "cells" / "seed1-ours-0.3000.json"
    before = json.loads(gone.read_text())
    gone.unlink()
    times = {path: path.stat().st_mtime_ns for path in cells if path != gone}
    run_comparison(recipe(), base, out, resume=True)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    after = json.loads(gone.read_text())
    assert {**after, "seconds": 0} == {**before, "seconds": 0}


def test_cells_of_another_recipe_are_not_mixed_with_these(study: tuple[Path, Path]) -> None:
    base, out = study
    with pytest.raises(UsageError, match="another recipe"):
        run_comparison(recipe(train={"epochs": 5}), base, out, resume=True)


def cells_of(found: dict[str, Any], method: str) -> list[float]:
    return [cell["share"] for cell in found["methods"][method]["cells"]]


def test_a_comparison_grows(tmp_path: Path) -> None:
    put(tmp_path, 0, 0)
    out = tmp_path / "out"

    def run(**changes: Any) -> dict[str, Any]:
        asked = small(tmp_path)
        assert asked.compare is not None
        compare = asked.compare.model_copy(update=changes)
        return run_comparison(asked.model_copy(update={"compare": compare}), tmp_path, out, resume=True)

    first = run()
    stamp = (out / "cells" / "seed0-first-0.5000.json").stat().st_mtime_ns
    both = {"first": "methods.py:first_units", "zero": "methods.py:zero"}
    more = run(sizes=(0.7, 0.5), methods=both, stop_at=99.0)
    assert (out / "cells" / "seed0-first-0.5000.json").stat().st_mtime_ns == stamp
    assert cells_of(more, "first") == cells_of(more, "zero") == [0.7, 0.5]
    assert more["methods"]["first"]["cells"][1] == first["methods"]["first"]["cells"][0]
    fewer = run()
    assert "zero" not in fewer["methods"]
    assert cells_of(fewer, "first") == [0.5]
    again = run(methods={"first": "methods.py:zero"})  # another method of that name
    assert again["methods"]["first"]["cells"][0]["lost"] != first["methods"]["first"]["cells"][0]["lost"]


def test_a_folder_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    put(tmp_path, 0, 0)
    asked, out = small(tmp_path), tmp_path / "out"
    first = run_comparison(asked, tmp_path, out)
    assert asked.compare is not None
    data = load_data("npz:digits.npz", base=tmp_path)
    read = [data.calibrate.fingerprint, data.tune.fingerprint, data.judge.fingerprint]
    marks = request_marks(
        asked, [asked.model, *asked.compare.methods.values()], tmp_path, [*read, content("own0.safetensors", tmp_path)]
    )
    (out / "request.txt").write_text("\n".join(marks) + "\n")
    assert run_comparison(asked, tmp_path, out, resume=True)["methods"] == first["methods"]
    assert (out / "request.txt").read_text().split() == marks
    grown = asked.compare.model_copy(update={"sizes": (0.7, 0.5)})
    with pytest.raises(UsageError, match="another recipe"):
        run_comparison(asked.model_copy(update={"compare": grown}), tmp_path, out, resume=True)


def small(base: Path, **changes: object) -> Recipe:
    """One method, seed and size, on data and weights of its own."""
    (base / "methods.py").write_text(PEER)
    compare = {"methods": {"first": "methods.py:first_units"}, "sizes": [0.5], "seeds": [0]}
    plain = {"data": "npz:digits.npz", "train": None, "checkpoint": "own{seed}.safetensors", "compare": compare}
    return recipe(**{**plain, **changes})


def put(base: Path, shift: int, seed: int) -> None:
    images = torch.randn(90, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    np.savez(base / "digits.npz", x=images.numpy(), y=(np.arange(90) + shift) % 10)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    save_file(net.state_dict(), base / "own0.safetensors")


@pytest.mark.parametrize(("shift", "seed"), [(1, 0), (0, 1)], ids=["data", "checkpoint"])
def test_cells_of_other_inputs_are_not_mixed_with_these(tmp_path: Path, shift: int, seed: int) -> None:
    put(tmp_path, 0, 0)
    first = run_comparison(small(tmp_path), tmp_path, tmp_path / "out")
    put(tmp_path, shift, seed)
    with pytest.raises(UsageError, match="data or checkpoints that have changed"):
        run_comparison(small(tmp_path), tmp_path, tmp_path / "out", resume=True)
    put(tmp_path, 0, 0)
    assert run_comparison(small(tmp_path), tmp_path, tmp_path / "out", resume=True)["networks"] == first["networks"]


def test_force_trains_again_what_another_training_left(tmp_path: Path) -> None:
    def trained(epochs: int) -> str:
        asked = small(tmp_path, data="digits", checkpoint=None, train={"epochs": epochs, "batch": 64})
        found = run_comparison(asked, tmp_path, tmp_path / "out", force=True)
        return str(found["networks"][0]["weights"])

    assert trained(1) != trained(2)
    put(tmp_path, 0, 5)
    (tmp_path / "own0.safetensors").replace(tmp_path / "out" / "seed0.safetensors")
    mine = file_sha256(tmp_path / "out" / "seed0.safetensors")
    assert trained(3) == f"file {mine}"  # what was put there is taken, not trained


def test_size_is_what_torch_counts() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 10))
    assert size(model, torch.zeros(2, 1, 8, 8)) == {"params": 36 + 2570, "macs": 36 * 64 + 2560}


def test_attention_is_counted_where_a_fused_kernel_would_hide_it() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    linear, products = 4 * 8 * 8 + 2 * 8 * 16, 2 * 5 * 8
    assert size(layer, torch.zeros(3, 5, 8))["macs"] == 5 * (linear + products)


def test_the_narrow_network_is_the_widest_that_fits() -> None:
    def make(width: float) -> nn.Module:
        hidden = max(1, round(48 * width))
        return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    task = Task(make(1.0), load_data("digits"), "params", 0, make)
    target = 0.3 * task.size(task.model)
    width = width_for(task, 0.3)
    assert task.size(make(width)) <= target < task.size(make(width + 1 / 48))


def test_a_recipe_without_the_section_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="compare"):
        run_comparison(Recipe(model="torchvision:resnet18", data="digits"), tmp_path, tmp_path / "out")


def test_recovery_is_the_same_for_every_method(tmp_path: Path) -> None:
    (tmp_path / "methods.py").write_text(PEER)
    methods = {"ours": "ours", "first": "methods.py:first_units"}
    asked = recipe(compress={"recover": "2ep"}, compare={"methods": methods, "sizes": [0.2], "seeds": [0]})
    found = run_comparison(asked, tmp_path, tmp_path / "out")
    for method in found["methods"].values():
        (cell,) = method["cells"]
        assert cell["seconds"]["recover"] > 0
        assert cell["recovery"]["after"] <= cell["recovery"]["before"]
        assert cell["recovery"]["kept"] or cell["unrecovered"]["lost"] == cell["lost"]
        assert cell["recovery"]["budget"] == "2ep"
        assert cell["recovery"]["tune"]["before"]["samples"] > 0
    assert found["methods"]["first"]["cells"][0]["lost"] < found["methods"]["first"]["cells"][0]["unrecovered"]["lost"]


def measured(
    tmp_path: Path, compress: dict[str, object], methods: dict[str, str], sizes: list[float]
) -> dict[str, Any]:
    """A comparison on random labels' data and a network that was put there."""
    put(tmp_path, 0, 0)
    compare = {"methods": methods, "sizes": sizes, "seeds": [0]}
    return run_comparison(small(tmp_path, compress=compress, compare=compare), tmp_path, tmp_path / "out", force=True)


def test_no_method_stops_before_it_lost_what_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "methods.py").write_text(PEER)
    compare = {"methods": {"zero": "methods.py:zero"}, "sizes": [0.6, 0.3], "seeds": [0]}
    asked = recipe(compress={"max_drop": 95.0}, compare=compare)
    cells = run_comparison(asked, tmp_path, tmp_path / "out")["methods"]["zero"]["cells"]
    assert 3 < cells[0]["lost"] < 95
    assert len(cells) == 2, "it stopped at the 3 points that are the default"


def test_a_method_without_networks_is_not_said_to_reach_less(tmp_path: Path) -> None:
    methods = {"ours": "ours", "broken": "methods.py:broken", "first": "methods.py:first_units"}
    found = measured(tmp_path, {"max_drop": 95.0}, methods, [0.5])
    assert found["methods"]["broken"]["reached"]["0"] == {"share": 1.0, "censored": False}
    assert found["methods"]["first"]["reached"]["0"]["censored"]
    console = Console(width=120, file=io.StringIO())
    console.print(comparison_view(found))
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "no network" in shown
    words = " ".join(shown.split())
    assert "broken at 50%, seed 0: RuntimeError: out of order" in words
    assert "first / ours: about " in words, "neither curve came to the allowed loss"


def test_cells_of_a_network_that_was_replaced_are_measured_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def lost(seed: int, *, resume: bool) -> float:
        put(tmp_path, 0, seed)
        (tmp_path / "own0.safetensors").replace(out / "seed0.safetensors")
        asked = small(tmp_path, checkpoint=None)
        found = run_comparison(asked, tmp_path, out, resume=resume)
        (cell,) = found["methods"]["first"]["cells"]
        assert cell["weights"] == found["networks"][0]["weights"]
        return found["networks"][0]["accuracy"] - cell["verdict"]["original"]

    assert lost(0, resume=True) == lost(5, resume=True) == 0


def test_the_recipe_knows_the_built_in_methods() -> None:
    assert set(OWN_METHODS) == set(BUILT_IN)


@pytest.mark.parametrize("given", [{"keep": "params=0.5"}, {"recover": "1ep", "unlabelled": "digits"}, {"exact": True}])
def test_options_that_a_comparison_does_not_read_are_refused(tmp_path: Path, given: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"compress.{list(given)[-1]}"):
        run_comparison(recipe(compress=given), tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    "changed",
    [
        {"only": {"frist": [0.3]}},
        {"sizes": [0.3, 0.30001]},
        {"methods": {"a/b": "methods.py:broken"}},
        {"methods": {}},
        {"methods": {"ours": "methods.py:broken"}},
        {"methods": {"theirs": "ours"}},
    ],
)
def test_sections_that_would_compare_something_else_are_refused(changed: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        recipe(compare={"methods": METHODS, "sizes": [0.6, 0.3], **changed})

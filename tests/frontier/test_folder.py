"""A frontier in its folder: one bundle for each point, judged in order; resumed, replaced, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from runs import Terminal, results

import compressor
from compressor.errors import DataError, UsageError
from compressor.frontier import folder as folders
from compressor.frontier.folder import run
from compressor.options import Options, Sizes
from compressor.report.frontier import read_frontier
from compressor.report.record import read_record
from compressor.request import Job
from compressor.verification import verify_bundle

pytestmark = pytest.mark.usefixtures("no_page")
SIZES = Sizes("params", (0.5, 0.9, 0.7))
JOB = Job("net.py:net", "net.py:data", Options(20.0, align=1), onnx=False, sizes=SIZES)
COPIES = """

def wide():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 4))


def copies():
    generator = torch.Generator().manual_seed(0)
    first, other = torch.randn(400, 32, generator=generator), torch.randn(400, 32, generator=generator)
    near = torch.cat([first[:200] + 1e-3, torch.randn(200, 32, generator=generator)])
    parts = {"calibrate": first, "tune": other, "judge": near}
    with torch.no_grad():
        return {name: (rows, wide()(rows).argmax(1)) for name, rows in parts.items()}
"""
POINT = ["manifest.json", "model.safetensors", "record.json", "report.html"]


def test_one_run_makes_a_bundle_for_each_point(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compressor.sources.data import load_data

    found = run(JOB, "out")
    assert results(home / "out") == [
        "frontier.html", "frontier.json", "params_0.5", "params_0.7", "params_0.9", "request.txt",
    ]  # fmt: skip
    assert [point.folder for point in found.points] == ["params_0.9", "params_0.7", "params_0.5"]
    for point in found.points:
        assert point.params <= point.asked
        assert results(home / "out" / point.folder) == POINT
        record = read_record(home / "out" / point.folder / "record.json")
        assert record.verdict == point.verdict
        assert record.options["keep"] == f"params={point.asked:g}"
        assert record.compressed is not None
        assert record.compressed.params == pytest.approx(point.params * found.original.params)
        small = compressor.load(home / "out" / point.folder)
        assert sum(p.numel() for p in small.parameters()) == record.compressed.params
        judged = verify_bundle(home / "out" / point.folder, load_data("net.py:data").judge)
        assert judged.verdict.difference == pytest.approx(point.verdict.difference)
    monkeypatch.setattr(folders, "trace", None)
    assert run(JOB, "out", resume=True) == found
    (home / "out" / "params_0.7" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(TypeError):  # it would be done again
        run(JOB, "out", resume=True)


def test_a_half_done_frontier_is_made_again_and_says_so(home: Path) -> None:
    job, said = replace(JOB, sizes=Sizes("params", (0.9, 0.7))), []
    whole = run(job, "out")
    (home / "out" / "frontier.json").unlink()
    (home / "out" / "params_0.7" / "record.json").unlink()
    (home / "out" / "params_0.7" / ".scratch.12-0123abcd.partial").mkdir()  # as a killed process leaves it
    again = run(job, "out", resume=True, report=lambda stage, _done: said.append(stage))
    assert [stage for stage in said if "made again" in stage] == [
        "note: 1 network of an earlier try is made again: a frontier is built and judged as a whole"
    ]
    assert [point.verdict for point in again.points] == [point.verdict for point in whole.points]
    assert not list((home / "out" / "params_0.7").glob(".scratch*"))


def test_a_point_is_what_compress_gives(home: Path) -> None:
    from compressor import jobs

    run(replace(JOB, sizes=Sizes("params", (0.7,))), "out")
    jobs.run(replace(JOB, sizes=None, options=Options(20.0, keep=("params", 0.7), align=1)), "one")
    both = [(place / "model.safetensors").read_bytes() for place in (home / "out" / "params_0.7", home / "one")]
    assert both[0] == both[1]


def test_python_gives_the_same_networks(home: Path) -> None:
    from compressor.sources.data import load_data
    from compressor.sources.models import load_model

    model, data = load_model("net.py:net").model, load_data("net.py:data")
    parts = (data.calibrate, data.tune, data.judge)
    results = compressor.frontier(model, *parts, sizes=(0.5, 0.9), max_drop=20, align=1)
    run(replace(JOB, sizes=Sizes("params", (0.5, 0.9))), "out")
    for result, name in zip(results, ("params_0.9", "params_0.5"), strict=True):
        result.save(home / name, onnx=False)
        weights = [(place / "model.safetensors").read_bytes() for place in (home / name, home / "out" / name)]
        assert weights[0] == weights[1]
        records = [read_record(place / "record.json") for place in (home / name, home / "out" / name)]
        assert records[0].verdict == records[1].verdict
    assert [result.record["options"]["keep"] for result in results] == ["params=0.9", "params=0.5"]
    with pytest.raises(UsageError, match="recover"):
        compressor.frontier(model, *parts, unlabelled=data.calibrate)


def test_points_after_the_first_that_does_not_pass_are_not_covered(home: Path) -> None:
    job = replace(JOB, options=Options(0.01, align=1), sizes=Sizes("params", (0.95, 0.5, 0.3, 0.2)))
    found = run(job, "out")
    values = [point.verdict.value for point in found.points]
    stop = next(place for place, value in enumerate(values) if value != "passed")
    assert [point.covered for point in found.points] == [place <= stop for place in range(4)]
    last = found.points[-1]
    assert not last.covered
    record = read_record(home / "out" / last.folder / "record.json")
    assert any("not covered by the guarantee" in text for text in record.warnings)
    assert last.exported == (last.verdict.value != "failed")
    assert (home / "out" / last.folder / "model.safetensors").is_file() == last.exported
    assert found.best is None or found.points.index(found.best) == stop - 1


def test_every_point_is_warned_as_compress_warns(home: Path) -> None:
    """Half of the judge split is nearly the calibration data: one place opens that split, whoever judges."""
    with (home / "net.py").open("a") as file:
        file.write(COPIES)
    from compressor import jobs

    job = replace(JOB, model="net.py:wide", data="net.py:copies", sizes=Sizes("params", (0.9,)))
    run(job, "out")
    jobs.run(replace(job, sizes=None, options=Options(20.0, keep=("params", 0.9), align=1)), "one")
    both = [read_record(place / "record.json").warnings for place in (home / "out" / "params_0.9", home / "one")]
    assert both[0] == both[1]
    assert any("near-copies are in other splits" in text for text in both[0])


def test_sizes_are_spread_where_none_are_given(home: Path) -> None:
    found = run(replace(JOB, sizes=Sizes(points=3)), "out")
    asked = [point.asked for point in found.points]
    assert asked[0] == 0.7
    assert asked[1] ** 2 == pytest.approx(asked[0] * asked[2])
    assert found.points[-1].params <= asked[-1]


def test_a_size_without_a_network_of_its_own_is_told(home: Path) -> None:
    found = run(replace(JOB, sizes=Sizes("params", (0.7, 0.6999, 0.5))), "out")
    assert [point.asked for point in found.points] == [0.7, 0.5]
    said = "0.6999 of the params has no network of its own: the one made for 0.7 is that small."
    assert said in found.warnings
    assert said in read_record(home / "out" / "params_0.5" / "record.json").warnings


def test_another_request_is_refused_and_replaced_by_force(home: Path) -> None:
    run(JOB, "out")
    (home / "out" / "params_0.5" / "notes.txt").write_text("mine")
    other = replace(JOB, sizes=Sizes("macs", (0.8,)))
    with pytest.raises(UsageError, match="another request"):
        run(other, "out", resume=True)
    with pytest.raises(DataError):
        run(replace(other, data="net.py:nan"), "out", force=True)
    assert len(read_frontier(home / "out" / "frontier.json").points) == 3
    run(other, "out", force=True)
    assert results(home / "out") == ["frontier.html", "frontier.json", "macs_0.8", "params_0.5", "request.txt"]
    assert results(home / "out" / "params_0.5") == ["notes.txt"]


def test_an_error_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(folders, "write_frontier", fault)
    with pytest.raises(ZeroDivisionError):
        run(JOB, "out")
    assert not (home / "out").exists()


def test_no_space_for_pages_loses_no_network(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise UsageError("writing a page", "no space left", "space", "make some.")

    with monkeypatch.context() as patch:
        for place in ("deliver.write_html", "frontier.folder.write_html", "frontier.folder.write_frontier"):
            patch.setattr(f"compressor.{place}", full)
        with pytest.raises(UsageError, match="no space left"):
            run(JOB, "out")
    points = [point.folder for point in read_frontier(home / "out" / "frontier.json").points]
    assert not any((home / "out" / point / "report.html").exists() for point in points)
    monkeypatch.setattr(folders, "trace", None)  # nothing is made again
    run(JOB, "out", resume=True)
    assert (home / "out" / "frontier.html").is_file()
    assert all((home / "out" / point / "report.html").is_file() for point in points)


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--sizes", "0.5,half"), 2, "--sizes"),
        (("--sizes", "1.5"), 2, "--sizes"),
        (("--points", "1"), 2, "--points"),
        (("--measure", "bytes"), 2, "--measure"),
        (("--sizes", "0.5,0.0001", "--align", "1"), 2, "--sizes 0.0001 --measure params: got"),
    ],
)
def test_refusals(home: Path, terminal: Terminal, flags: tuple[str, ...], code: int, words: str) -> None:
    assert terminal("frontier", "net.py:net", "--data", "net.py:data", "--out", "out", *flags) == code
    assert words in terminal.err
    assert not (home / "out").exists()


def test_the_command(home: Path, terminal: Terminal) -> None:
    given = ("frontier", "net.py:net", "--data", "net.py:data", "--out", "out", "--sizes", "0.9,0.6", "--align", "1")
    assert terminal(*given, "--max-drop", "20") == 0
    assert "params_0.6" in terminal.out
    assert "PASSED down to" in terminal.out
    assert terminal(*given, "--max-drop", "20", "--resume", "--json") == 0
    assert terminal.json() == json.loads((home / "out" / "frontier.json").read_text())
    assert (home / "out" / "params_0.6" / "model.onnx").is_file()
    assert terminal("frontier", "net.py:lean", "--data", "net.py:data", "--out", "other") == 3
    assert "frozen" in terminal.err


def test_every_size_has_a_folder_of_its_own() -> None:
    shares = [0.99804, 0.99796, 0.5, 0.00001]
    made = folders.names("params", shares)
    assert made == ["params_0.99804", "params_0.99796", "params_0.5", "params_0.00001"]
    assert all(folders._POINT.fullmatch(name) for name in made)
    near = [0.1 + 0.2, 0.3]
    assert len(set(folders.names("macs", near))) == 2
    assert Sizes(points=5).spread(1.0) == [1.0]

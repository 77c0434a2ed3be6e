import io

import pytest
from report_samples import ENDINGS, LATENCY, nothing, passed
from rich.console import Console

from compressor.errors import SourceError
from compressor.report.judged import verify_view
from compressor.report.tables import cells, plain_table
from compressor.report.text import (
    MOST_ROWS,
    analyze_view,
    bench_view,
    doctor_view,
    inspect_view,
    summary,
    verdict_line,
)

DESCRIPTION = {
    "summary": "2 of 3 layers covered; 1 frozen: model output",
    "layers": {"seen": 3, "covered": 2, "frozen": 1},
    "units": {"all": 74, "live": 64, "frozen": 10},
    "uncovered": {"head[0]": "model output"},
    "groups": [
        {"name": "body", "units": 64, "producers": ["a", "b", "c", "d"], "carriers": [],
         "consumers": ["e"], "frozen": None},
        {"name": "head", "units": 10, "producers": ["head"], "carriers": [],
         "consumers": [], "frozen": "model output"},
    ],
}  # fmt: skip


def shown(renderable, width=100):
    """What a file or a pipe would receive."""
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


def test_verify_rounds_as_compress_does():
    verdict = {
        "value": "passed", "metric": "accuracy", "original": 97.0, "compressed": 95.8, "difference": -1.2,
        "interval": [-2.33322, -0.08576], "confidence": 0.95, "allowed": 5.0, "samples": 450,
    }  # fmt: skip
    said = shown(verify_view({"verdict": verdict}), 300)
    assert said.startswith("PASSED: network, accuracy 97.00 -> 95.80, difference -1.20 points [-2.34, -0.08] at 95 %")


LINES = {
    "passed": "PASSED: 2.91 M -> 0.35 M parameters (12.0 %), accuracy 90.00 -> 89.61, difference -0.39 "
    "points [-0.49, -0.29] at 95 %, allowed -1.00, 5000 samples",
    "failed": "FAILED: 2.91 M -> 0.35 M parameters (12.0 %), accuracy 90.00 -> 87.69, difference -2.31 "
    "points [-2.71, -1.91] at 95 %, allowed -1.00, 5000 samples, nothing exported",
    "undecided": "UNDECIDED: 2.91 M -> 0.35 M parameters (12.0 %), accuracy 90.00 -> 89.40, difference "
    "-0.60 points [-1.50, +0.30] at 95 %, allowed -1.00, 300 samples, too few samples to tell",
    "exact": "PASSED: 2.91 M -> 0.35 M parameters (12.0 %), outputs moved by 3.1e-15 of their spread "
    "(tolerance 1e-10), 128 samples",
    "nothing": "NOTHING TO COMPRESS: every unit is needed; the bundle is the original (2.91 M parameters)",
    "analyzed": "ANALYZED: 1,312 units: 410 needed, 540 removable, 116 repeated, 100 dependent, 50 silent; "
    "96 frozen; nothing was changed",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_one_line_says_how_it_ended(ending):
    assert verdict_line(ENDINGS[ending]()) == LINES[ending]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("width", [60, 200])
def test_the_summary_begins_with_the_verdict_and_is_plain(ending, width):
    text = shown(summary(ENDINGS[ending](), "out", ["record.json", "report.html"]), width)
    assert text.startswith(LINES[ending][:40])
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= width
    joined = " ".join(text.split())
    assert "4 of 5 layers covered; 1 frozen: attention heads" in joined
    assert "Written to out: record.json, report.html" in joined
    assert "Next: " in text


def test_the_summary_has_the_numbers():
    text = shown(summary(passed()), 120)
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.split()}
    assert rows["parameters"] == ["parameters", "2.91", "M", "0.35", "M", "12.0", "%"]
    assert rows["latency"][-2:] == ["26.8", "%"]
    assert rows["hidden"] == ["hidden", "1,024", "310", "300", "500", "100", "80", "44"]
    assert rows["repeated"] == ["repeated", "116", "8.8", "%"]
    assert rows["->"][:3] == ["->", "12.0", "%"]
    for words in (
        "341.01 k",
        "1.40 MB",
        "-9.80",
        "failed -1.31",
        "rank correlation",
        "0.93",
        "class 6: 71.9 -> 69.8 %",
        "97.42 %",
        "warning: Samples",
    ):
        assert words in text


def test_what_was_not_measured_is_not_shown():
    text = shown(summary(nothing() | {"onnx": None, "coverage": None, "groups": []}), 100)
    for words in ("Search", "ONNX", "latency", "Same answer", "warning", "Written", "Frozen"):
        assert words not in text


def test_analysis_shows_findings_only():
    text = shown(analyze_view(ENDINGS["analyzed"]()))
    assert text.startswith("ANALYZED")
    assert "kept" not in text
    assert "attention heads" in text


def test_many_groups_are_cut_and_said():
    group = passed()["groups"][0]
    groups = [{**group, "name": f"layer{i}"} for i in range(MOST_ROWS + 7)]
    text = shown(summary(passed(groups=groups)))
    assert f"layer{MOST_ROWS - 1} " in text
    assert f"layer{MOST_ROWS} " not in text
    assert "and 7 more groups" in text


def test_names_cannot_steer_the_terminal():
    group = {**passed()["groups"][0], "name": "[bold]x[/nope]\x1b[2J"}
    text = shown(summary(passed(groups=[group], warnings=["[red]\x07w"]), "o[/x]\x1b", ["f"]))
    assert "[bold]x[/nope]?[2J" in text
    assert "[red]?w" in text
    assert "\x1b" not in text
    assert "\x07" not in text


def test_a_terminal_gets_colour():
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard")
    console.print(summary(passed()))
    assert "\x1b[1;32mPASSED" in console.file.getvalue()


def test_views_refuse_what_is_no_record():
    for view in (summary, analyze_view, verdict_line):
        with pytest.raises(SourceError, match="schema_version"):
            view({"name": "x"})


def test_inspect_says_coverage_first():
    text = shown(inspect_view(DESCRIPTION))
    lines = text.splitlines()
    assert lines[0] == "2 of 3 layers covered; 1 frozen: model output"
    assert lines[1] == "74 units: 64 may go, 10 are frozen"
    assert "a, b +2" in text
    assert "head[0]" in text


def test_bench_names_the_faster_file():
    text = shown(bench_view(LATENCY))
    row = next(line for line in text.splitlines() if "model.onnx" in line)
    assert row.split() == ["model.onnx", "1.130", "1.050", "0.268", "[0.261,", "0.274]", "faster"]
    assert "200 interleaved rounds, batch 32, 2 thread(s)" in text
    slow = {**LATENCY, "files": [LATENCY["files"][0], {**LATENCY["files"][1], "interval": [0.9, 1.1]}]}
    assert "no clear difference" in shown(bench_view(slow))


def test_doctor_shows_what_is_there_and_what_is_not():
    facts = {
        "versions": {"torch": "2.14.1"},
        "devices": ["cpu"],
        "providers": ["CPUExecutionProvider"],
        "threads": 2,
        "block": {"block": 16, "gains": {"8": 0.1}, "seconds": 2.9},
        "data": {"fashion-mnist": "/usr/share/x", "cifar10": None, "digits": True},
        "problems": [],
    }
    text = shown(doctor_view(facts))
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines() if line.split()}
    assert rows["cifar10"] == "not found"
    assert rows["digits"] == "available"
    assert "16, measured in 2.9 s" in text
    assert "No problem found." in text
    assert "problem: no onnxruntime" in shown(doctor_view({"problems": ["no onnxruntime"]}))


@pytest.mark.parametrize("width", [20, 40, 60, 75, 120])
def test_no_width_of_a_terminal_cuts_a_figure_or_a_name(width):
    heads = ("layer", "units", "samples per unit", "prunable share", "R95 of noise", "interval")
    rows = [("stem.first", "1,024", "5.42 (few)", "31 %", "0.0825", "[-0.19, +1.26]"), ("b", "", "7", "", "", "[0, 1]")]
    table = plain_table(*heads)
    for row in rows:
        table.add_row(*cells(*row))
    said = shown(table, width)
    assert all(len(line) <= width for line in said.splitlines())
    joined = "".join(said.split())
    assert all("".join(cell.split()) in joined for row in rows for cell in row)
    assert width == 120 or "stem.first:units1,024,samplesperunit5.42(few)" in joined

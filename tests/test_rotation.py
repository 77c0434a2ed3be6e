"""`rotate` all the way: a stream with directions that nobody needs becomes narrower, beside everything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import stream_nets
import torch
from runs import Terminal
from stream_nets import Norm, Tower, planted, stirred
from torch import Tensor, nn

import compressor
from compressor.errors import UsageError
from compressor.jobs import Job, run
from compressor.options import Options
from compressor.replay import replay

FILE = """

def net():
    torch.manual_seed(0)
    return planted(stirred(Tower()), 4).float()


def plain():
    torch.manual_seed(0)
    return stirred(Tower()).float()


def no_stream():
    return nn.Sequential(nn.Flatten(), nn.Linear(30, 12), nn.ReLU(), nn.Linear(12, 3))


def data():
    torch.manual_seed(1)
    rows = torch.randn(900, 5, 6)
    with torch.no_grad():
        return rows, plain()(rows).argmax(1)
"""


@pytest.fixture
def tower(home: Path) -> Path:
    """A project whose network has a stream of 8 features of which 4 directions are written."""
    source = Path(stream_nets.__file__).read_text()
    (home / "tower.py").write_text(source + FILE)
    return home


def samples(model: nn.Module, count: int = 900) -> tuple[Tensor, Tensor]:
    rows = torch.randn(count, 5, 6)
    with torch.no_grad():
        return rows, model(rows).argmax(1)


def compressed(model: nn.Module, data: Any, **options: Any) -> Any:
    return compressor.compress(model, data, align=1, max_drop=5.0, **options)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_directions_that_nobody_writes_go_and_the_outputs_stay(norm: Norm) -> None:
    torch.manual_seed(0)
    model = planted(stirred(Tower(scale=True, norm=norm)), 4).float()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    data = samples(model)
    result = compressed(model, data, rotate=0.6, keep="params=1")
    told = result.record["rotation"]
    (stream,) = told["streams"]
    assert (stream["name"], stream["before"], stream["after"], told["refused"]) == ("stem", 8, 5, {})
    assert all(kept > 0.999 for kept in stream["kept_variance"].values())
    assert len(stream["kept_variance"]) == 3
    assert stream["predicted_loss"] < 1e-4
    with torch.no_grad():
        change = (result.model(data[0]) - model(data[0])).abs().max() / model(data[0]).abs().max()
    assert float(change) < 2e-3
    assert result.verdict.value == "passed"
    assert result.record["nothing_to_do"] is None
    assert type(result.model.get_submodule("norm")) is norm
    assert sum(p.numel() for p in result.model.parameters()) == result.record["compressed"]["params"]
    assert result.record["original"]["params"] == sum(p.numel() for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_size_is_counted_from_the_original_and_units_go_as_well() -> None:
    torch.manual_seed(0)
    model = planted(stirred(Tower()), 4).float()
    result = compressed(model, samples(model), rotate=0.7, keep="params=0.6")
    size = {name: result.record[name]["params"] for name in ("original", "compressed")}
    assert 0.5 < size["compressed"] / size["original"] <= 0.6
    kept = {group["name"]: len(group["kept"]) for group in result.record["groups"] if not group["frozen"]}
    assert min(kept.values()) < 16
    assert result.record["search"][0]["params"] == pytest.approx(size["compressed"] / size["original"])


def test_the_search_and_recovery_start_from_what_was_turned() -> None:
    torch.manual_seed(0)
    model = stirred(Tower()).float()
    result = compressed(model, samples(model), rotate=0.8, recover="5st")
    assert result.record["rotation"]["streams"][0]["after"] == 7
    assert result.record["recover"]["steps"] == 5
    assert result.record["compressed"]["params"] <= result.record["original"]["params"]


def test_a_narrow_stream_is_refitted_to_the_original() -> None:
    """Least squares make up for most of what the cut directions carried."""
    from compressor.rotation import rotate
    from compressor.sources.samples import as_samples
    from compressor.stages import CLASSES, find_units, silent
    from compressor.surgery.rotate import turned
    from compressor.units.streams import find_streams
    from compressor.units.trace import recorded_pair

    torch.manual_seed(0)
    model = stirred(Tower(), 0.2).float()
    data = as_samples(samples(model, 3000))
    graph = find_units(model, data, 0)
    made = rotate(model, graph, data, 0.75, lambda: 1, 0, CLASSES, silent)
    assert made.reference is not None
    (stream,), _ = find_streams(model, recorded_pair(model, data.batch([0, 1])[0]))
    rows = torch.randn(500, 5, 6)
    with torch.no_grad():
        wanted = model(rows)
        principal = torch.linalg.qr(torch.cat([torch.ones(8, 1), torch.randn(8, 7)], 1).double())[0][:, 1:6]
        errors = [
            float((net(rows) - wanted).norm())
            for net in (made.model, turned(made.reference.model, stream, principal, 6))
        ]
    assert errors[0] < 0.5 * errors[1]


def test_a_network_without_such_a_stream_is_compressed_as_it_is_and_that_is_said() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(30, 12), nn.ReLU(), nn.Linear(12, 3))
    result = compressed(model, samples(model), rotate=0.5, keep="params=0.7")
    assert result.record["rotation"] == {"share": 0.5, "streams": [], "refused": {}}
    assert any(text.startswith("Nothing was turned (--rotate)") for text in result.record["warnings"])
    assert result.record["compressed"]["params"] < result.record["original"]["params"]


def test_the_command_line_writes_replays_and_loads_it(tower: Path, terminal: Terminal, no_onnx: None) -> None:
    asked = (
        "compress tower.py:net --data tower.py:data --rotate 0.6 --keep params=0.7 --align 1 --max-drop 20 --out one"
    )
    done = terminal(*asked.split())
    assert done in (0, 4)
    assert "Rotated: the stream of 'stem', 8 -> 5 features" in terminal.out.replace("\n", " ")
    record = json.loads(Path("one/record.json").read_text())
    assert record["options"]["rotate"] == 0.6
    model = compressor.load("one", trust_source=True)
    assert sum(p.numel() for p in model.parameters()) == record["compressed"]["params"]
    assert terminal(*asked.split(), "--resume") == done
    assert replay("one").same
    assert terminal(*asked.replace("--rotate 0.6", "--rotate 0.7").split(), "--resume") == 2
    assert "another request" in terminal.err
    assert "--rotate 0.6" in terminal.err, "the command that began it is told"


def test_a_frontier_of_a_turned_network(tower: Path, terminal: Terminal, no_onnx: None) -> None:
    """Every point is what `compress` gives at that size."""
    asked = ["tower.py:net", "--data", "tower.py:data", "--rotate", "0.6", "--align", "1", "--max-drop", "20"]
    terminal("frontier", *asked, "--sizes", "0.7,0.5", "--out", "several")
    folders = sorted(path.parent for path in Path("several").rglob("record.json"))
    assert len(folders) == 2
    records = [json.loads((folder / "record.json").read_text()) for folder in folders]
    assert all(record["rotation"]["streams"][0]["after"] == 5 for record in records)
    assert terminal("compress", *asked, "--keep", "params=0.7", "--out", "one") in (0, 4), terminal.err
    one = json.loads(Path("one/record.json").read_text())
    assert one["compressed"] in [record["compressed"] for record in records]
    assert replay(folders[0]).same
    assert terminal("frontier", *asked, "--measure", "latency", "--out", "late") == 2
    assert "use --measure macs" in terminal.err


def test_the_report_says_what_was_not_turned(tower: Path, no_onnx: None) -> None:
    job = Job("tower.py:no_stream", "tower.py:data", Options(5.0, keep=("params", 0.7), rotate=0.5))
    assert run(job, "two").rotation is not None
    assert "Nothing was turned" in Path("two/report.html").read_text()


@pytest.mark.parametrize(
    "wrong",
    [{"rotate": 0.0}, {"rotate": 1.0}, {"rotate": True}, {"rotate": 0.5, "exact": True},
     {"rotate": 0.5, "keep": ("latency", 0.5)}],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--rotate"):
        Options(**wrong)

"""Attacks tried and stopped, parsers fuzzed, kills survived, networks cut or refused: figures as JSON.

Run in a checkout: `python recipes/trust.py --out recipes/results/trust.json`
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), *(str(HERE.parent / "tests" / name) for name in ("attacks", "report", "units", "."))]


def attacked() -> dict[str, Any]:
    """Attacks tried and stopped, by family."""
    from attempts import attempts

    with tempfile.TemporaryDirectory() as folder:
        rows = attempts(Path(folder))
    tried: dict[str, list[bool]] = collections.defaultdict(list)
    for row in rows:
        tried[row["family"]].append(row["stopped"])
    return {
        "families": {name: {"tried": len(found), "stopped": sum(found)} for name, found in sorted(tried.items())},
        "tried": len(rows), "stopped": sum(row["stopped"] for row in rows),
        "most_grown_mib": max(row.get("grown_mib", 0) for row in rows),
        "not_stopped": [{key: row.get(key) for key in ("family", "name", "code", "said")}
                        for row in rows if not row["stopped"]],
    }  # fmt: skip


def kills_survived(count: int) -> dict[str, Any]:
    """Kills at random moments of a tiny job; each is checked and resumed, or AssertionError."""
    import os

    import kills
    from runs import project

    with tempfile.TemporaryDirectory() as name:
        home = project(Path(name))
        os.chdir(home)
        os.environ["XDG_CACHE_HOME"] = str(home / "cache")
        hit = kills.killed_at(home, count, seed=0)
        os.chdir(HERE)
    return {"tried": count, "before_the_end": hit, "survived": hit}


def networks(count: int) -> dict[str, Any]:
    """Outcomes of every wiring pattern of the tests and of `count` random networks: exact, refused or wrong."""
    import torch
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st
    from outcomes import PATTERNS, built, outcome
    from test_random_networks import STEPS, Random, even

    patterns = collections.Counter(outcome(*built(name), seeds=(11, 12)) for name in PATTERNS)
    random: collections.Counter[str] = collections.Counter()
    slow = (HealthCheck.too_slow, HealthCheck.data_too_large)

    @settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=slow)
    @given(steps=STEPS.map(even), seed=st.integers(0, 9999))
    def counted(steps: list[tuple[str, int]], seed: int) -> None:
        torch.manual_seed(seed)
        model = Random(steps).double().eval()
        random[outcome(model, torch.randn(2, 3, 4, 4, dtype=torch.float64), (seed,))] += 1

    counted()
    return {"patterns": dict(patterns), "random": dict(random)}


def main() -> None:
    """Attacks, then fuzzing, then kills, then networks; what a part has found is kept if another is run alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "trust.json")
    parser.add_argument("--inputs", type=int, default=2000, help="inputs for each fuzzed parser")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--networks", type=int, default=1000, help="random networks")
    parser.add_argument("--parts", nargs="*", default=["attacks", "fuzzed", "kills", "networks"])
    options = parser.parse_args()
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    commands = record.setdefault("commands", {})
    commands |= dict.fromkeys(options.parts, " ".join(["python recipes/trust.py", *sys.argv[1:]]))
    if "attacks" in options.parts:
        record["attacks"] = attacked()
    if "fuzzed" in options.parts:
        from parsers import fuzzed

        record["fuzzed"] = fuzzed(options.inputs)
    if "kills" in options.parts:
        record["kills"] = kills_survived(options.kills)
    if "networks" in options.parts:
        record["networks"] = networks(options.networks)
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

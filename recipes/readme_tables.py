"""The README's tables, made from recipes/results: `python recipes/readme_tables.py` writes them into README.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from columns import columns
from comparison_table import compare

from compressor.report.words import interval, points

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "recipes" / "results"
NAMES = (
    *("strength", "recovered", "frontier", "compare", "exact_zoo", "latency", "costs", "capacity_costs", "capacity"),
    *("trust", "verdict_rates", "encoders", "real_files", "coverage", "throughput", "plan_cost"),
)


def strength(content: dict[str, Any]) -> str:
    """Kept share and accuracy lost, per network and way of asking."""
    lines = columns("network | asked | parameters | MACs | accuracy lost | first | second | verdict at 95 % | seconds")
    for row in content["runs"]:
        if row.get("recover"):
            continue
        asked = row["options"].get("keep") or f"max-drop {row['options']['max_drop']:g}"
        verdict, lost = row["verdict"], row["lost"]
        low, high = verdict["interval"]
        shares = f"{100 * row['params']:.1f} % | {100 * row['macs']:.1f} %"
        losses = f"{lost['all']:.2f} | {lost['first']:.2f} | {lost['second']:.2f}"
        bounds = f"{verdict['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
        judged = f"{verdict['value']} (allowed {verdict['allowed']:g}): {bounds}"
        wall = f"{row['seconds']['wall']:.0f}"
        lines.append(f"| {row['network']} | {asked} | {shares} | {losses} | {judged} | {wall} |")
    return "\n".join(lines)


def recovered(content: dict[str, Any]) -> str:
    """Smaller sizes with label-free recovery."""
    lines = columns("network | unlabelled images | parameters | accuracy lost | first | second | verdict | steps")
    for row in content["runs"]:
        if not row.get("recover"):
            continue
        lost, verdict = row["lost"], row["verdict"]
        low, high = verdict["interval"]
        judged = f"{verdict['value']}: {verdict['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
        losses = f"{lost['all']:.2f} | {lost['first']:.2f} | {lost['second']:.2f}"
        steps = f"{row['recover']['steps']}{'' if row['recover'].get('kept', True) else ', not kept'}"
        size, samples = f"{100 * row['params']:.1f} %", f"{row['recover']['samples']:,}"
        lines.append(f"| {row['network']} | {samples} | {size} | {losses} | {judged} | {steps} |")
    return "\n".join(lines)


def frontier(content: dict[str, Any]) -> str:
    """Size against accuracy, judged from the largest to the smallest size."""
    lines = columns("network | original accuracy | parameters | MACs | accuracy lost | verdict at 95 %")
    for row in content["rows"]:
        verdict, lost = row["verdict"], 0.0 - row["verdict"]["difference"]
        value = verdict["value"] if row["covered"] else f"({verdict['value']})"
        bounds = f"{points(verdict['difference'])} {interval(*verdict['interval'])}"
        judged = f"{value} (allowed {verdict['allowed']:g}): {bounds}"
        size = f"{100 * row['params']:.1f} % | {100 * row['macs']:.1f} % | {lost:.2f}"
        lines.append(f"| {row['network']} | {row['accuracy']:.2f} | {size} | {judged} |")
    return "\n".join(lines)


def exact_zoo(content: dict[str, Any]) -> str:
    """Surplus units planted and removed, and how far outputs moved."""
    lines = columns(
        "network | weights | surplus | removed | others removed | outputs moved | in float64 | by batch size | s"
    )
    for row in content["rows"]:
        moves = ("outputs_moved", "outputs_moved_computed_in_float64", "original_moved_by_another_batch_size")
        lines.append(
            f"| {row['network']} | {row['dtype']} | {row['surplus_units']} | {row['surplus_removed']} | "
            f"{row['other_units_removed']} | {' | '.join(f'{row[key]:.1e}' for key in moves)} | "
            f"{row['seconds_exact']:.0f} |"
        )
    return "\n".join(lines)


def latency(content: dict[str, Any]) -> str:
    """Measured latency against multiply-accumulates, aligned and not."""
    lines = columns("network | asked | align | parameters | MACs | latency predicted | latency | latency / MACs")
    for row in content["rows"]:
        for made in row["results"]:
            low, high = made["interval"]
            shares = f"{100 * made['params']:.1f} % | {100 * made['macs']:.1f} %"
            time = f"{100 * made['latency']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
            block = f"{made['align']} ({made['block']})" if made["align"] == "auto" else made["align"]
            first = f"{row['network']} | {made.get('keep', 'macs=0.5')} | {block}"
            told = f"{100 * made['predicted']:.1f} %" if made.get("predicted") else "-"
            lines.append(f"| {first} | {shares} | {told} | {time} | {made['latency_over_macs']:.2f} |")
    return "\n".join(lines)


def costs(content: dict[str, Any]) -> str:
    """What the stages cost, as ratios of interleaved repeats."""
    lines = columns("network | statistics / forward + backward | all paths / statistics")
    for row in content["stages"]:
        lines.append(f"| {row['network']} | {row['statistics_over_plain']:.2f} | {row['paths_over_statistics']:.2f} |")
    lines += ["", *columns("`compress` | seconds | of these, in the stages that take most")]
    for row in content["compress"]:
        asked = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in row["options"].items())
        stages = {name: value for name, value in row["seconds"].items() if name != "total"}
        most = sorted(stages, key=lambda name: -stages[name])[:4]
        parts = ", ".join(f"{name} {stages[name]:.0f}" for name in most)
        lines.append(f"| {row['network']} {asked} | {row['seconds']['total']:.0f} | {parts} |")
    wide = content["path_of_4096_units_seconds"]
    return "\n".join([*lines, "", f"The path of a layer of 4,096 units: {wide:.0f} s ({content['threads']} threads)."])


def capacity_costs(content: dict[str, Any]) -> str:
    """What the regressions of a full chunk ladder cost, against refitting on the data."""
    ours, theirs, ratio = (content[k] for k in ("ladder", "scikit_learn_ladder_extrapolated", "times_faster"))
    layer = (
        f"{content['samples']:,} × {content['units']:,}, {len(content['sizes'])} sizes × {content['repeats']} chunks"
    )
    return "\n".join(
        [
            *columns(
                "layer | threads | from the Gram matrix | scikit-learn (extrapolated) | ratio | numbers differ by"
            ),
            f"| {layer} | {content['threads']} | {ours['processor']:.0f} s | {theirs['processor']:,.0f} s | "
            f"{ratio['processor']:.0f} | {content['largest_difference']:.0e} |",
        ]
    )


def capacity(contents: dict[str, dict[str, Any]]) -> str:
    """Every claim that a committed study could test: verdict, effect with its interval over seeds, its null."""
    lines = columns("study | claim | proposition | verdict | effect [95 %] | nulls")
    for name, content in sorted(contents.items()):
        for row in content["claims"]:
            if row["effect"] is None:
                continue
            low, high = (f"{end:.2f}" for end in row["interval"])
            also = " (its null too)" if row["verdict"] == "supported" and row["reproduced"] else ""
            beside = {name: one["effect"] for name, one in nulls_of(row).items() if one["effect"] is not None}
            null = ", ".join(f"{value:.2f} ({name})" for name, value in beside.items())
            effect = f"{row['effect']:.2f} [{low}, {high}]"
            lines.append(
                f"| {name} | {row['id']} | {row['proposition']} | {row['verdict']}{also} | {effect} | {null} |"
            )
    lines.append("")
    for name, content in sorted(contents.items()):
        ladder, seeds = content["recipe"]["capacity"], {rung["seed"] for rung in content["rungs"]}
        untested = [row["id"] for row in content["claims"] if row["effect"] is None]
        widths = ", ".join(f"{width:g}" for width in ladder["widths"])
        about = f"*{name}*: {content['recipe']['description']}; widths {widths}; {len(seeds)} seeds"
        lines.append(f"{about}. It says nothing of {', '.join(untested)}.\n")
    return "\n".join(lines).rstrip()


def nulls_of(row: dict[str, Any]) -> dict[str, Any]:
    """Every null of a claim; studies of before there were several have one."""
    return row["nulls"] if "nulls" in row else {row["null"]["name"]: row["null"]} if row["null"] else {}


def trust(content: dict[str, Any]) -> str:
    """Attacks tried and stopped, inputs of the fuzzed parsers, kills survived."""
    lines = columns("what | tried | as it must be")
    attacks = content.get("attacks")
    if attacks:
        kinds = ", ".join(f"{name} {found['tried']}" for name, found in attacks["families"].items())
        lines.append(f"| hostile files ({kinds}) | {attacks['tried']} | {attacks['stopped']} stopped |")
    if content.get("fuzzed"):
        fuzzed = content["fuzzed"]
        inputs = sum(row["inputs"] for row in fuzzed.values())
        sound = sum("error" not in row for row in fuzzed.values())
        lines.append(f"| inputs to {len(fuzzed)} parsers ({', '.join(fuzzed)}) | {inputs:,} | {sound} parsers sound |")
    if content.get("kills"):
        kills = content["kills"]
        lines.append(
            f"| kill -9 at random moments | {kills['before_the_end']} | {kills['survived']} survived and resumed |"
        )
    for name, words in (("patterns", "wiring patterns"), ("random", "random networks")):
        found = content.get("networks", {}).get(name)
        if found:
            said = ", ".join(f"{found.get(kind, 0):,} {kind}" for kind in ("exact", "refused", "wrong"))
            lines.append(f"| {words} whose live groups were cut at random | {sum(found.values()):,} | {said} |")
    return "\n".join(lines)


def verdict_rates(content: dict[str, Any]) -> str:
    """How often a network that loses exactly what is allowed was passed: the worst setting of each kind."""
    lines = columns(
        "pairs of networks | settings | confidence | promised | worst measured | worst exact | where the worst"
    )
    kinds = {"settings": "one pair", "sequences": "search over five", "maps": "maps (betting bound)"}
    for part, words in kinds.items():
        rows = content.get(part, [])
        for confidence in sorted({row["confidence"] for row in rows}):
            mine = [row for row in rows if row["confidence"] == confidence]
            worst = max(mine, key=lambda row: row["rate"])
            low, high = worst["interval"]
            rate = f"{100 * worst['rate']:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"
            exact = max((row["exact"] for row in mine if "exact" in row), default=None)
            setting = f"{worst.get('truth') or worst.get('candidates')}, {worst['samples']:,} samples"
            lines.append(
                f"| {words} | {len(mine)} | {100 * confidence:g} % | {100 * worst['promised']:g} % | {rate} | "
                f"{'' if exact is None else f'{100 * exact:.2f} %'} | {setting} |"
            )
    copies = content.get("near_copies", [])
    if copies:
        lines += ["", *columns("near-copies of calibration images in the judge split | data | noticed | warned")]
        for row in copies:
            warned = "yes" if row["warned"] else "no"
            lines.append(f"| {row['copies']} | {row['data']} | {100 * row['noticed']:.1f} % | {warned} |")
    return "\n".join(lines)


def real_files(content: dict[str, Any]) -> str:
    """What became of files that packages ship."""
    lines = columns("file | parameters | asked | kept | MACs kept | same answer | verdict | outputs moved | ONNX file")
    for row in content["rows"]:
        found = row["verdict"]
        change = found["details"].get("max_relative_change")
        low, high = found["interval"]
        words = f"{found['value']}" if change is not None else f"{found['value']} [{low:+.2f}, {high:+.2f}]"
        file = "-" if row["onnx_verdict"] is None else row["onnx_verdict"]["value"]
        lines.append(
            f"| {row['source']} | {row['parameters']:,} | {row['asked']} | {100 * row['params']:.1f} % | "
            f"{100 * row['macs']:.1f} % | {found['compressed']:.2f} % | {words} | "
            f"{'' if change is None else f'{change:.1e}'} | {file} |"
        )
    return "\n".join(lines)


def encoders(content: dict[str, Any]) -> str:
    """Transformers cut to shares of their blocks."""
    names = {"vit": "ViT, Fashion-MNIST", "bert": "BERT, WordNet's definitions in 26 fields"}
    names["llama"] = "Llama, the next word of WordNet's definitions"
    lines = columns(
        "network | original accuracy | stream | blocks | parameters | MACs | accuracy lost | verdict at 95 %"
    )
    order = lambda row: (-len(row["network"]), row["network"], -row["share"], -(row.get("rotate") or 1))  # noqa: E731
    for row in sorted(content["rows"], key=order):
        found = row["verdict"]
        low, high = found["interval"]
        shares = " | ".join(f"{100 * row[key]:.1f} %" for key in ("blocks_kept", "params_kept", "macs_kept"))
        judged = (
            f"{found['value']} (allowed {found['allowed']:g}): {found['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
        )
        lines.append(
            f"| {names[row['network']]} | {found['original']:.2f} | {100 * (row.get('rotate') or 1):.0f} % "
            f"| {shares} | {-found['difference']:.2f} | {judged} |"
        )
    return "\n".join(lines)


def coverage(content: dict[str, Any]) -> str:
    """One line for each network that was measured."""
    lines = columns(
        "network | layers covered | parameters coverable | planted | removed | outputs moved | ONNX error | frozen"
    )
    for row in content["rows"]:
        name = f"{row['family']}: {row['network']}"
        if "refused" in row:
            lines.append(f"| {name} | refused: {row['refused'].replace('|', '/')[:90]} | | | | | | |")
            continue
        onnx = "" if row.get("onnx") is None else f"{row['onnx']:.0e}"
        frozen = ", ".join(row["uncovered"]).replace("|", "/")[:90]
        moved = "" if "moved" not in row else f"{row['moved']:.0e}"
        lines.append(
            f"| {name} | {row['covered']} of {row['layers']} | {100 * row['coverable']:.0f} % | "
            f"{row.get('surplus', '')} | {row.get('surplus_removed', '')} | {moved} | {onnx} | {frozen} |"
        )
    wrong = sum(row["silently_wrong"] for row in content["rows"])
    half = sum(row.get("coverable", 0) > 0.5 for row in content["rows"])
    lines += ["", f"{len(content['rows'])} networks so far: {half} with more than half of their parameters coverable, "
                  f"{wrong} silently wrong."]  # fmt: skip
    return "\n".join(lines)


def throughput(content: dict[str, Any]) -> str:
    """The statistics pass in one and in two processes."""
    lines = columns(
        "network | images | images a second, one process | two processes | ratio | least, most | by processor time | "
        "two that share nothing"
    )
    for row in content["rows"]:
        rates = " | ".join(f"{row['images_per_second'][count]:,.0f}" for count in ("one", "two"))
        span = f"{row['ratio_least']:.2f}, {row['ratio_most']:.2f}"
        ratios = f"{row['ratio']:.2f} | {span} | {row['work_ratio']:.2f} | {row['ceiling']:.2f}"
        lines.append(f"| {row['network']} | {row['images']:,} | {rates} | {ratios} |")
    return "\n".join(lines)


def plan_cost(content: dict[str, Any]) -> str:
    """Predicted against taken, and what large networks would cost."""
    stages = list(content["rows"][0]["stages"])
    lines = columns(" | ".join(["predicted / taken, seconds", *stages, "ratio of the sums"]))
    for row in content["rows"]:
        pairs = " | ".join(f"{row['stages'][s]['predicted']:.1f} / {row['stages'][s]['taken']:.1f}" for s in stages)
        lines.append(f"| {row['network']}, {row['samples']:,} images | {pairs} | {row['ratio']:.2f} |")
    plan = content.get("planned")
    if plan is not None:
        said = f"predicted hours on {plan['rates']['threads']} thread(s), {plan['samples']:,} samples"
        lines += ["", *columns(" | ".join([said, *stages, "all", "memory"]))]
        for one in plan["models"]:
            hours = " | ".join(f"{seconds / 3600:,.2f}" for seconds in one["seconds"].values())
            peak = f"{one['bytes']['peak'] / 1e9:,.0f} GB"
            lines.append(f"| {one['model']} | {hours} | {one['hours']:,.1f} | {peak} |")
    return "\n".join(lines)


def table(name: str) -> str:
    """One table, or a line that says that it has not been measured."""
    if name == "compare":
        found = {p.stem.removeprefix("compare_"): json.loads(p.read_text()) for p in RESULTS.glob("compare_*.json")}
        return compare(found) if found else "*(not measured yet)*"
    if name == "capacity":
        paths = [path for path in RESULTS.glob("capacity_*.json") if path.stem != "capacity_costs"]
        studies = {path.stem.removeprefix("capacity_"): json.loads(path.read_text()) for path in paths}
        return capacity(studies) if studies else "*(not measured yet)*"
    path = RESULTS / f"{'strength' if name == 'recovered' else name}.json"
    if not path.is_file():
        return "*(not measured yet)*"
    write = {
        "strength": strength,
        "recovered": recovered,
        "frontier": frontier,
        "exact_zoo": exact_zoo,
        "latency": latency,
        "costs": costs,
        "capacity_costs": capacity_costs,
        "trust": trust,
        "verdict_rates": verdict_rates,
        "encoders": encoders,
        "real_files": real_files,
        "coverage": coverage,
        "throughput": throughput,
        "plan_cost": plan_cost,
    }[name]
    return write(json.loads(path.read_text()))


def filled(text: str) -> str:
    """The README with all tables as the results say."""
    for name in NAMES:
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, name=name: m.group(1) + table(name) + "\n" + m.group(2), text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))

"""The README's table of a comparison: ours, the best peer, and what recovery does to both."""

from __future__ import annotations

import statistics
from typing import Any

from columns import columns


def compare(contents: dict[str, dict[str, Any]]) -> str:
    """Share kept at the allowed loss: ours, the best peer's, a narrow network trained from scratch; over seeds."""
    lines = columns("network | measure | seeds | ours | best peer | peer / ours | trained small: lost (ours)")
    for name, content in sorted(contents.items()):
        against, seeds = content["against"], len(content["networks"])
        best = against["best_peer"]
        rows = against.get("small_from_scratch", [])
        ours, peer = _shares(content, "ours"), _shares(content, best["method"])
        low, high = best["interval"] or (None, None)
        bounds = "" if low is None else f" [{low:.2f}, {high:.2f}]"
        ratio = f"**{best['value']:.2f}**{bounds}"
        narrow = ", ".join(f"{row['lost']:.2f} ({row['ours_lost']:.2f}) at {row['share']:.0%}" for row in rows)
        recipe = content["recipe"]
        network = name.replace("_macs", "").replace("_lean", f" ({recipe['model_args'].get('width')} as wide)")
        network = network.replace("_recovered", f" (recovered, {recipe['compress']['recover']})")
        head = f"| {network} | {content['measure']} | {seeds}"
        lines.append(f"{head} | {ours} | {peer} ({best['method']}) | {ratio} | {narrow} |")
    other = ("_recovered", "_lean")
    plain = [c for name, c in contents.items() if c["measure"] == "params" and not name.endswith(other)]
    mean = statistics.geometric_mean(content["against"]["best_peer"]["value"] for content in plain)
    lines += ["", f"Geometric mean of peer / ours by parameters over these {len(plain)} networks: {mean:.2f}."]
    lines += ["", *(_with_recovery(name, contents) for name in sorted(contents) if name.endswith("_recovered"))]
    return "\n".join(lines)


def _with_recovery(name: str, contents: dict[str, dict[str, Any]]) -> str:
    """What ours and the best peer still need without and with recovery, as geometric means over the same seeds."""
    plain, seeds = name.removesuffix("_recovered"), [str(one["seed"]) for one in contents[name]["networks"]]
    both = contents[plain], contents[name]
    ours = " to ".join(_mean(one, "ours", seeds) for one in both)
    peer = " to ".join(_mean(one, one["against"]["best_peer"]["method"], seeds) for one in both)
    return f"- *{plain}*: recovery takes ours from {ours}, the best peer from {peer} (means of the seeds)."


def _mean(content: dict[str, Any], method: str, seeds: list[str]) -> str:
    """The mean share of some seeds; `<` where the curve of one ended before its crossing."""
    ends = [content["methods"][method]["reached"][seed] for seed in seeds]
    mark = "<" if any(end["censored"] for end in ends) else ""
    return f"{mark}{100 * statistics.geometric_mean(end['share'] for end in ends):.1f} %"


def _shares(content: dict[str, Any], method: str) -> str:
    """One share per seed: `<` where the curve ended before its crossing, `~` where it crossed before its first size."""
    found = content["methods"][method]
    coarse = {seed for seed in found["reached"] if _lost_at_once(found["cells"], int(seed), content["allowed"])}
    marks = {seed: "<" if end["censored"] else "~" if seed in coarse else "" for seed, end in found["reached"].items()}
    return ", ".join(f"{marks[seed]}{100 * end['share']:.1f}" for seed, end in found["reached"].items()) + " %"


def _lost_at_once(cells: list[dict[str, Any]], seed: int, allowed: float) -> bool:
    """Whether the largest size already lost too much: the share is read between it and the original itself."""
    mine = [cell for cell in cells if cell["seed"] == seed and "error" not in cell]
    return bool(mine) and max(mine, key=lambda cell: cell["share"])["lost"] > allowed

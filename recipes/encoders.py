"""Transformers made smaller: a ViT on Fashion-MNIST, Hugging Face's BERT and Llama on a text set, all trained here.

    apt-get install wordnet-base && pip install transformers
    python recipes/encoders.py CHECKPOINTS --out recipes/results/encoders.json

Networks whose weights are not in the folder CHECKPOINTS are trained first (some 10 minutes each). Every one is then
cut to shares of the parameters of its blocks (embeddings and heads cannot be cut), without any training after it, and
judged on samples that took no part. Results are written after every run; runs that are there are not repeated.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measuring
from torch import nn

import compressor
from compressor.sources.data import load_data
from compressor.sources.splits import Data
from compressor.studies import Wanted, network
from compressor.training.loop import TrainOptions

HERE = Path(__file__).resolve().parent
SHARES = (0.6, 0.45, 0.3)
_BERT = {
    **{"weights": "none", "auto": "BertForSequenceClassification", "hidden_size": 96, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "intermediate_size": 384, "vocab_size": 8003, "max_position_embeddings": 24},
    "num_labels": 26,
}


_LLAMA = {
    **{"weights": "none", "auto": "LlamaForCausalLM", "hidden_size": 96, "num_hidden_layers": 3, "vocab_size": 4003},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 256, "max_position_embeddings": 24},
}


def _named(kind: str, settings: dict[str, object]) -> str:
    return f"hf:{kind}?{'&'.join(f'{name}={value}' for name, value in settings.items())}"


@dataclass(frozen=True)
class Encoder:
    """A network, its data and how to train it; `blocks` is the module that holds what can be cut."""

    model: str
    data: str
    blocks: str
    options: TrainOptions


ENCODERS = {
    "vit": Encoder(
        f"{HERE / 'more_networks.py'}:vit_heads", "fashion-mnist", "blocks",
        TrainOptions(6, 256, 2e-3, optimizer="adamw", weight_decay=5e-2, flip=True),
    ),
    "bert": Encoder(
        _named("bert", _BERT), f"{HERE / 'wordnet.py'}:glosses", "bert.encoder",
        TrainOptions(2, 64, 1e-3, optimizer="adamw", weight_decay=1e-2),
    ),
    "llama": Encoder(
        _named("llama", _LLAMA), f"{HERE / 'wordnet.py'}:sentences", "model.layers",
        TrainOptions(3, 64, 2e-3, optimizer="adamw", weight_decay=1e-2),
    ),
}  # fmt: skip


def count(module: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def run(name: str, model: nn.Module, data: Data, share: float, rotate: float | None) -> dict[str, Any]:
    """One cut to `share` of the blocks, with what it cost; with `rotate` (the residual stream first, to that share of
    its width), to the same parameters in all.
    """
    blocks, whole = count(model.get_submodule(ENCODERS[name].blocks)), count(model)
    keep = round(1 - (1 - share) * blocks / whole, 6)
    started = time.perf_counter()
    splits = (data.calibrate, data.tune, data.judge)
    result = compressor.compress(model, *splits, keep=f"params={keep}", align=1, rotate=rotate)
    record = result.record
    return {
        "network": name,
        "class": type(model).__name__,
        "share": share,
        "rotate": rotate,
        "rotation": record.get("rotation"),
        "blocks": blocks,
        "params": whole,
        "blocks_kept": count(result.model.get_submodule(ENCODERS[name].blocks)) / blocks,
        "params_kept": record["compressed"]["params"] / whole,
        "macs_kept": record["compressed"]["macs"] / record["original"]["macs"],
        "verdict": record["verdict"],
        "groups": {g["name"]: [g["units"], len(g["kept"])] for g in record["groups"] if not g["frozen"]},
        "frozen": sorted({g["frozen"] for g in record["groups"] if g["frozen"]}),
        "samples": data.described["samples"],
        "stages": record["seconds"],
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    """Train what has no weights, run what is not there yet."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--networks", nargs="*", default=list(ENCODERS), choices=list(ENCODERS))
    parser.add_argument("--shares", nargs="*", type=float, default=SHARES)
    parser.add_argument("--rotate", nargs="*", type=float, default=[], help="stream widths to try as well, as shares")
    given = measuring.parsed(parser)
    given.checkpoints.mkdir(parents=True, exist_ok=True)
    rows = json.loads(given.out.read_text())["rows"] if given.out.is_file() else []
    for name in given.networks:
        done = {(row["network"], row["share"], row.get("rotate")) for row in rows}
        asked = [(share, width) for width in (None, *given.rotate) for share in given.shares]
        encoder, weights = ENCODERS[name], given.checkpoints / f"{name}.safetensors"
        data = load_data(encoder.data)
        model, _ = network(Wanted(encoder.model, 0, weights, None, encoder.options), HERE, data.train, _tell)
        for share, width in asked:
            if (name, share, width) in done:
                continue
            rows.append(run(name, model, data, share, width))
            measuring.write({"rows": rows}, given.out)
            print(json.dumps({key: value for key, value in rows[-1].items() if key != "groups"}), flush=True)


def _tell(stage: str, done: float) -> None:
    print(f"\r{stage} {done:.1%}", end="", flush=True)


if __name__ == "__main__":
    main()

"""Which networks are covered: layers, parameters, exact removal of planted copies, ONNX. Figures as JSON, resumable.

    pip install "compressor[timm,hf]"
    python recipes/coverage.py --out recipes/results/coverage.json

Random weights in float64 at a small input size; copies are planted into all kinds of units but heads and their
dimensions (`tests/attention` does that), by making layers wider. Where a network's own code allows no other widths,
that is said, and the dry run (copies in the units that are there) is all that was asked of it. Networks that the file
has are not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "tests")]

import measuring  # noqa: E402
import planted  # noqa: E402

from compressor.errors import CompressorError  # noqa: E402
from compressor.export.inputs import as_float  # noqa: E402
from compressor.export.onnx import export_onnx  # noqa: E402
from compressor.sources.models import load_model  # noqa: E402
from compressor.surgery.exact import exact_compress, moved  # noqa: E402
from compressor.units.check import checked  # noqa: E402
from compressor.units.dense import in_dense_form  # noqa: E402
from compressor.units.graph import UnitGraph  # noqa: E402
from compressor.units.program import example_pair, forward  # noqa: E402
from compressor.units.trace import trace  # noqa: E402

SAMPLES = 24
WRONG = 1e-8
"""Outputs of float64 networks that move by more than this share of their spread are called wrong."""
TORCHVISION = {
    "squeezenet1_1": 64, "mobilenet_v2": 32, "shufflenet_v2_x0_5": 32, "mnasnet0_5": 32, "mobilenet_v3_small": 32,
    "resnet18": 32, "regnet_y_400mf": 32, "regnet_x_400mf": 32, "efficientnet_b0": 32, "googlenet": 32,
    "densenet121": 32, "resnext50_32x4d": 32, "convnext_tiny": 32, "vgg11_bn": 32, "alexnet": 64, "swin_t": 32,
    "vit_b_16": 32, "efficientnet_v2_s": 32, "inception_v3": 80, "wide_resnet50_2": 32,
}  # fmt: skip
TIMM = {
    "lcnet_050": 32, "tinynet_e": 32, "mobilenetv3_small_050": 32, "mnasnet_small": 32, "mobilenetv2_050": 32,
    "mobilenetv4_conv_small": 32, "convnext_atto": 32, "convnextv2_atto": 32, "regnetx_002": 32, "regnety_002": 32,
    "resnet10t": 32, "ghostnet_100": 32, "fbnetc_100": 32, "efficientnet_lite0": 32, "rexnet_100": 32, "repvgg_a0": 32,
    "mobileone_s0": 32, "seresnext26t_32x4d": 32, "ecaresnet26t": 32, "skresnet18": 32, "resnest14d": 32, "dla34": 32,
    "hrnet_w18_small": 32, "selecsls42": 32, "ese_vovnet19b_dw": 32, "cspdarknet53": 32, "poolformer_s12": 32,
    "edgenext_xx_small": 64, "mobilevit_xxs": 64, "inception_next_atto": 64, "starnet_s1": 32, "nf_regnet_b0": 32,
    "res2net50_26w_4s": 32, "efficientformer_l1": 224, "levit_128s": 224,
    "nfnet_l0": 32, "resnetv2_50x1_bit": 32,
}  # fmt: skip
TRANSFORMERS_OF_TIMM = ("vit_tiny_patch16_224", "deit_tiny_patch16_224", "mixer_s32_224", "gmlp_ti16_224",
                        "resmlp_12_224", "cait_xxs24_224", "xcit_nano_12_p16_224", "swin_tiny_patch4_window7_224",
                        "swinv2_tiny_window8_256")  # fmt: skip
_HEADS = "weights=none&hidden_size=32&num_hidden_layers=2&num_attention_heads=4"
_SMALL = f"{_HEADS}&intermediate_size=64"
_TABLES = "vocab_size=60&max_position_embeddings=40"  # as small a part of the whole as in the full-sized networks
_ENDS = "bos_token_id=0&eos_token_id=0"
_SPOKEN = "decoder_start_token_id=0&bos_token_id=0&eos_token_id=1&pad_token_id=1"
_T5 = f"weights=none&d_model=32&d_kv=8&d_ff=64&num_layers=2&num_heads=4&vocab_size=60&{_SPOKEN}"
_BART = (
    "weights=none&d_model=32&encoder_layers=1&decoder_layers=1&encoder_attention_heads=4&decoder_attention_heads=4"
    f"&encoder_ffn_dim=64&decoder_ffn_dim=64&{_TABLES}&{_SPOKEN}"
)
HF = {
    "bert": f"{_SMALL}&{_TABLES}", "roberta": f"{_SMALL}&{_TABLES}", "electra": f"{_SMALL}&{_TABLES}&embedding_size=32",
    "distilbert": f"weights=none&dim=32&n_layers=2&n_heads=4&hidden_dim=64&{_TABLES}",
    "albert": f"{_SMALL}&{_TABLES}&embedding_size=16", "mpnet": f"{_SMALL}&{_TABLES}",
    "vit": f"{_SMALL}&image_size=32&patch_size=8", "deit": f"{_SMALL}&image_size=32&patch_size=8",
    "gpt2": f"weights=none&auto=GPT2LMHeadModel&n_embd=32&n_layer=2&n_head=4&n_positions=40&vocab_size=60&{_ENDS}",
    "opt": f"{_SMALL}&{_TABLES}&auto=OPTForCausalLM&ffn_dim=64&word_embed_proj_dim=32",
    "llama": f"{_SMALL}&{_TABLES}&auto=LlamaForCausalLM&num_key_value_heads=2",
    "qwen3": f"{_SMALL}&{_TABLES}&auto=Qwen3ForCausalLM&num_key_value_heads=2&head_dim=8",
    "gemma": f"{_SMALL}&{_TABLES}&auto=GemmaForCausalLM&num_key_value_heads=2&head_dim=8",
    "granite": f"{_SMALL}&{_TABLES}&auto=GraniteForCausalLM&num_key_value_heads=2",
    "phi3": f"{_SMALL}&{_TABLES}&auto=Phi3ForCausalLM&num_key_value_heads=2&pad_token_id=0",
    "gpt_neox": f"{_SMALL}&{_TABLES}&auto=GPTNeoXForCausalLM",
    "phi": f"{_SMALL}&{_TABLES}&auto=PhiForCausalLM&num_key_value_heads=2",
    "stablelm": f"{_SMALL}&{_TABLES}&auto=StableLmForCausalLM&num_key_value_heads=2",
    "olmo2": f"{_SMALL}&{_TABLES}&auto=Olmo2ForCausalLM&num_key_value_heads=2&pad_token_id=0",
    "smollm3": f"{_SMALL}&{_TABLES}&auto=SmolLM3ForCausalLM&num_key_value_heads=2&pad_token_id=0",
    "falcon": f"{_SMALL}&{_TABLES}&auto=FalconForCausalLM&new_decoder_architecture=true&num_kv_heads=2&alibi=false",
    "dinov2": f"{_HEADS}&image_size=28&patch_size=14",
    "dinov2_with_registers": f"{_HEADS}&image_size=28&patch_size=14",
    **dict.fromkeys(("clip_vision_model", "siglip_vision_model", "vit_msn", "beit"),
                    f"{_SMALL}&image_size=32&patch_size=8"),
    "clip_text_model": f"{_SMALL}&{_TABLES}&{_ENDS}",
    **dict.fromkeys(("layoutlm", "megatron-bert", "ernie", "data2vec-text", "xlm-roberta", "roformer", "convbert",
                     "mobilebert", "deberta-v2"), f"{_SMALL}&{_TABLES}"),
    "modernbert": f"{_SMALL}&{_TABLES}&pad_token_id=0&cls_token_id=1&sep_token_id=2&{_ENDS}",
    "mistral": f"{_SMALL}&{_TABLES}&auto=MistralForCausalLM&num_key_value_heads=2",
    "qwen2": f"{_SMALL}&{_TABLES}&auto=Qwen2ForCausalLM&num_key_value_heads=2",
    "gemma2": f"{_SMALL}&{_TABLES}&auto=Gemma2ForCausalLM&num_key_value_heads=2&head_dim=8",
    "t5": f"{_T5}&auto=T5ForConditionalGeneration", "t5 encoder": f"{_T5}&auto=T5EncoderModel",
    "mt5": f"{_T5}&auto=MT5ForConditionalGeneration",
    "bart": f"{_BART}&auto=BartForConditionalGeneration", "marian": f"{_BART}&auto=MarianMTModel",
    "whisper": f"{_BART}&auto=WhisperForConditionalGeneration&num_mel_bins=8&max_source_positions=12"
               "&max_target_positions=40",
    **dict.fromkeys(("swin", "swinv2"), "weights=none&image_size=32&patch_size=2&embed_dim=24&window_size=2"),
    "layoutlmv3": f"{_SMALL}&{_TABLES}&visual_embed=false&coordinate_size=4&shape_size=8",
    "beit biased": f"{_SMALL}&image_size=32&patch_size=8&use_relative_position_bias=true",
    "deberta-v2 relative": f"{_SMALL}&{_TABLES}&relative_attention=true&share_att_key=true&position_buckets=8"
                           "&norm_rel_ebd=layer_norm&pos_att_type=c2p|p2c",
    "bloom": "weights=none&auto=BloomForCausalLM&hidden_size=32&n_layer=2&n_head=4&vocab_size=60",
    "mpt": "weights=none&auto=MptForCausalLM&d_model=32&n_layers=2&n_heads=4&vocab_size=60&max_seq_len=40",
    "gpt_neo": f"weights=none&auto=GPTNeoForCausalLM&hidden_size=32&num_heads=4&window_size=4&{_TABLES}&{_ENDS}",
}  # fmt: skip
"""What is asked for of a kind of transformers' network; behind the kind's name a word tells two of a kind apart."""


class Detector(nn.Module):
    """SSDLite's backbone and heads: the part of a detector that is a network (boxes are sorted out after it)."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models.detection import ssdlite320_mobilenet_v3_large

        whole = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
        self.backbone, self.head = whole.backbone, whole.head

    def forward(self, images: Tensor) -> Tensor:
        """Class scores of all boxes."""
        return self.head(list(self.backbone(images).values()))["cls_logits"]


class Segmenter(nn.Module):
    """LR-ASPP with MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models.segmentation import lraspp_mobilenet_v3_large

        self.network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores of all pixels."""
        return self.network(images)["out"]


def listed() -> Iterator[tuple[str, str, int | None]]:
    """Family, name and image size (None: as the network says) of every network."""
    rows = [("torchvision", list(TORCHVISION.items())), ("timm", list(TIMM.items()))]
    for place in range(max(len(some) for _, some in rows)):
        yield from ((family, *some[place]) for family, some in rows if place < len(some))
    yield from (("timm", name, 64) for name in TRANSFORMERS_OF_TIMM)
    yield from (("hf", name, None) for name in HF)
    yield from (("detection", "ssdlite320_mobilenet_v3_large", 128), ("segmentation", "lraspp_mobilenet_v3_large", 64))


def built(family: str, name: str, size: int | None) -> tuple[nn.Module, Any]:
    """The network in float64 with signal at its outputs, and inputs."""
    generator = torch.Generator().manual_seed(0)
    if family in ("detection", "segmentation"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: nn.Module = Detector() if family == "detection" else Segmenter()
        shape: tuple[int, ...] = (3, size or 64, size or 64)
        vocabulary = None
    else:
        extra = "&num_classes=10" if family != "hf" else ""
        if name in TRANSFORMERS_OF_TIMM:
            extra += f"&img_size={size}"
        elif name == "vit_b_16":
            extra += f"&image_size={size}"
        elif name in ("googlenet", "inception_v3"):
            extra += "&aux_logits=False"
        kind = name.partition(" ")[0]
        loaded = load_model(
            f"{family}:{kind}?{HF.get(name, 'weights=none') if family == 'hf' else 'weights=none'}{extra}"
        )
        model, vocabulary = loaded.model, loaded.vocabulary
        shape = loaded.input_shape or (16,)
        shape = (3, size, size) if size is not None else shape
    first, inputs = (drawn(model, vocabulary, shape, generator) for _ in range(2))
    if vocabulary is not None:
        return planted.awake(model, first).double(), as_float(inputs, torch.float64)
    return planted.awake(model, first).double().eval(), as_float(first, torch.float64)


def drawn(model: Any, vocabulary: int | None, shape: tuple[int, ...], generator: torch.Generator) -> Any:
    """Random images or texts; for a network of two streams, what its decoder has said as well."""
    config: Any = getattr(model, "config", None)
    if getattr(model, "main_input_name", "") == "input_features":
        sounds = torch.randn(SAMPLES, config.num_mel_bins, 2 * config.max_source_positions, generator=generator)
        said = torch.randint(config.vocab_size, (SAMPLES, 12), generator=generator)
        return {"input_features": sounds, "decoder_input_ids": said}
    if vocabulary is None:
        return torch.randn(SAMPLES, *shape, generator=generator)
    texts = torch.randint(vocabulary, (SAMPLES, *shape), generator=generator)
    if not getattr(config, "is_encoder_decoder", False):
        return texts
    return {"input_ids": texts, "decoder_input_ids": torch.randint(vocabulary, (SAMPLES, 12), generator=generator)}


def coverable(model: nn.Module, graph: UnitGraph) -> float:
    """Share of the parameters in tensors that some live group is laid out along."""
    live = {int(unit) for group in graph.groups if group.frozen is None for unit in group.units}
    tensors = {axis.tensor for axis in graph.axes if live & {int(unit) for unit in axis.units}}
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(sizes.get(name, 0) for name in tensors) / max(sum(sizes.values()), 1)


def measured(family: str, name: str, size: int | None) -> dict[str, Any]:
    """One network."""
    start = time.perf_counter()
    model, inputs = built(family, name, size)
    model = in_dense_form(model, example_pair(inputs))
    graph = checked(model, trace(model, inputs), example_pair(inputs))
    reasons = Counter(group.frozen for group in graph.groups if group.frozen is not None)
    row: dict[str, Any] = {
        "layers": graph.layers,
        "covered": graph.layers - len(graph.uncovered),
        "parameters": sum(p.numel() for p in model.parameters()),
        "coverable": coverable(model, graph),
        "units": graph.n_units,
        "live_units": sum(len(group.units) for group in graph.groups if group.frozen is None),
        "frozen": dict(reasons.most_common(4)),
        "uncovered": dict(Counter(graph.uncovered.values()).most_common(4)),
        "seconds_units": round(time.perf_counter() - start, 1),
    }
    if row["live_units"]:
        row |= exact(model, graph, inputs)
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def exact(model: nn.Module, graph: UnitGraph, inputs: Any) -> dict[str, Any]:
    """Planted copies through exact mode, and the result as an ONNX file."""
    wide = planted.split(model, graph, planted.choose(graph, 0), 0)
    try:
        found = trace(wide.model, inputs)
    except CompressorError as error:  # its forward pass counts on the widths that it was built with
        return {"not_widened": str(error)[:300]}
    small, plan = exact_compress(wide.model, checked(wide.model, found, example_pair(inputs)), inputs, effort=0.0)
    with torch.no_grad():
        before, after = (forward(network, inputs) for network in (wide.model, small))
    before, after = ([answer if isinstance(answer, Tensor) else answer[0]] for answer in (before, after))
    gone = {fold.group: len(fold.dropped) for fold in plan.folds}
    row: dict[str, Any] = {
        "surplus": sum(wide.surplus.values()),
        "surplus_removed": sum(min(gone.get(group, 0), count) for group, count in wide.surplus.items()),
        "removed": plan.removed,
        "moved": moved(before, after),
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            sent = export_onnx(small.float(), as_float(inputs, torch.float32), Path(folder) / "a.onnx")
            row |= {"onnx": sent.relative_error, "onnx_holds": sent.parity.holds, "exporter": sent.exporter}
        except CompressorError as error:
            row["onnx_error"] = str(error)[:300]
    return row


def main() -> None:
    """Network by network; written after each, so that a stopped run keeps what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further network after this time")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = json.loads(given.out.read_text())["rows"] if given.out.is_file() else []
    begun = time.monotonic()
    for family, name, size in listed():
        if any((row["family"], row["network"]) == (family, name) for row in rows):
            continue
        if time.monotonic() - begun > given.seconds:
            break
        row: dict[str, Any] = {"family": family, "network": name, "input": size}
        try:
            row |= measured(family, name, size)
            row["silently_wrong"] = row.get("moved", 0.0) > WRONG
        except Exception as error:  # noqa: BLE001 (the table says which network cannot be taken, and why)
            row |= {"refused": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", "silently_wrong": False}
        rows.append(row)
        print(json.dumps(row), flush=True)
        measuring.write({"wrong_above": WRONG, "rows": rows}, given.out)


if __name__ == "__main__":
    main()

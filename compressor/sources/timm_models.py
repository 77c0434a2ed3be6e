"""`timm:NAME`: networks of timm, with the input size, mean and deviation that their weights were trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from compressor.errors import SourceError
from compressor.sources.built import Built, bounded, needed, short, spelled
from compressor.sources.factories import Argument, meant
from compressor.sources.network import impatient

_FOREIGN = frozenset(
    {
        *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable"),
        *("exportable", "no_jit", "model_name"),
    }
)
"""Arguments of `timm.create_model` that name files and places to read from, and none that shape the network."""


def load(spec: str, name: str, given: dict[str, Argument], pretrained: bool, _base: Path) -> Built:
    """The network `name`, with the weights that timm has under that name unless `?weights=none`.

    Raises SourceError where timm is not installed, has no such name, refuses the arguments, or cannot get the weights.
    """
    timm = needed("timm", "timm", f"model {spec!r}")
    arguments = {key: value for key, value in given.items() if key != "weights"}
    if "weights" in given and given["weights"] is not None:
        raise SourceError(
            f"model {spec!r}", f"weights={given['weights']!r}", "the weights in the name, or weights=none",
            f"for example timm:{name.partition('.')[0]}.TAG; see timm.list_pretrained().",
        )  # fmt: skip
    wanted = pretrained and "weights" not in given
    _refuse_unknown(timm, spec, name, arguments)
    if wanted and not timm.is_model_pretrained(name):
        raise _unavailable(spec, name, "timm has no trained weights for this name")
    try:
        with impatient():
            model: nn.Module = timm.create_model(name, pretrained=wanted, **arguments)
    except OSError as error:  # among them those of huggingface_hub
        raise _unavailable(spec, name, short(error)) from error
    except Exception as error:
        if wanted and type(error).__module__.partition(".")[0] in ("httpx", "httpcore", "requests", "huggingface_hub"):
            raise _unavailable(spec, name, short(error)) from error
        raise _refused(f"model {spec!r}", error, arguments) from error
    size = {"img_size": arguments.get("img_size"), "in_chans": arguments.get("in_chans")}
    config = timm.data.resolve_data_config(size, model=model)
    whole = "num_classes" not in arguments or arguments["num_classes"] == getattr(model, "pretrained_cfg", {}).get(
        "num_classes"
    )
    return Built(
        model.eval(),
        name,
        arguments,
        f"timm:{name}{spelled(given)}",
        input_shape=tuple(config["input_size"]),
        transform=timm.data.create_transform(**config, is_training=False),
        trained=(wanted and whole) or not pretrained,
    )


def empty(name: str, arguments: dict[str, Argument]) -> nn.Module:
    """The same network without trained weights; measured before memory is taken for it. SourceError."""
    where = f"model 'timm:{name}'"
    timm = needed("timm", "timm", where)
    _refuse_unknown(timm, f"timm:{name}", name, arguments)

    def build() -> nn.Module:
        return timm.create_model(name, pretrained=False, **arguments)

    try:
        return bounded(build).eval()
    except Exception as error:
        raise _refused(where, error, arguments) from error


def _refuse_unknown(timm: Any, spec: str, name: str, arguments: dict[str, Argument]) -> None:
    """SourceError for names that timm would look for elsewhere (a hub, a folder), and for arguments that do."""
    if ":" in name or "/" in name or not timm.is_model(name):
        known = timm.list_models()
        raise SourceError(
            f"model {spec!r}", f"no such name among {len(known)} networks", "a name of timm.list_models()",
            meant(name.partition(".")[0], known) or "for example timm:resnet18.",
        )  # fmt: skip
    tags = timm.list_pretrained(f"{name.partition('.')[0]}.*") if "." in name else [name]
    if name not in tags:
        raise SourceError(
            f"model {spec!r}", "no weights of that tag", f"one of {', '.join(tags) or 'none'}",
            meant(name, tags) or "pick one.",
        )  # fmt: skip
    foreign = sorted(_FOREIGN & set(arguments))
    if foreign:
        raise SourceError(
            f"model {spec!r}", f"argument {foreign[0]!r}", "arguments that shape the network",
            "give weights with --checkpoint, or by the name.",
        )  # fmt: skip


def _unavailable(spec: str, name: str, why: str) -> SourceError:
    return SourceError(
        f"model {spec!r}", f"no weights, neither in the local cache nor from the network: {why}", "its trained weights",
        f"give --checkpoint FILE, or timm:{name}?weights=none for untrained ones.",
    )  # fmt: skip


def _refused(where: str, error: Exception, arguments: dict[str, Argument]) -> SourceError:
    said = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return SourceError(
        where, f"{short(error)} (arguments {said[:200]})", "arguments that timm's builder accepts",
        "change the arguments (`?name=value`).",
    )  # fmt: skip

"""`hf:NAME_OR_FOLDER`: networks of Hugging Face transformers, from a folder, a cache, or a configuration alone.

No code of a hub ever runs: configurations are stripped of what names code or kernels, and `trust_remote_code` is off.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from compressor.errors import SourceError
from compressor.sources.built import Built, bounded, needed, short, spelled
from compressor.sources.factories import Argument, meant
from compressor.sources.network import impatient
from compressor.sources.words import Following, library_tokens, resized

_CONFIG_LIMIT = 2**20
_ATTENTION = ("sdpa", "eager")
"""How transformers may compute attention here; other names are kernels that it fetches from a hub and runs."""
_PREDICTORS = ("ForCausalLM", "LMHeadModel")
"""Endings of the names of classes that predict the next token."""
_FOREIGN = frozenset(
    {
        *("auto_map", "custom_pipelines", "_name_or_path", "name_or_path", "quantization_config", "use_kernels"),
        *("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_experts_implementation"),
        *("_attn_implementation_autoset", "transformers_version", "_commit_hash"),
    }
)
"""Keys of a configuration that name code, kernels or places, and nothing of the network's shape."""


def load(spec: str, name: str, given: dict[str, Argument], pretrained: bool, base: Path) -> Built:
    """The network in the folder `name` (or of a cached name), of the class that its configuration names.

    `?weights=none` takes the configuration alone; NAME may then also be a kind of transformers' (`bert`). `?auto=`
    names another class (`AutoModelForImageClassification`), other arguments change the configuration. Raises
    SourceError where transformers is not installed or refuses, and for networks whose code lies on a hub.
    """
    where = f"model {spec!r}"
    transformers = needed("transformers", "hf", where)
    changes = {key: value for key, value in given.items() if key not in ("weights", "auto")}
    wanted = pretrained and "weights" not in given
    folder = base / Path(name).expanduser()
    local = folder.is_dir()
    named = str(folder.resolve()) if local else name
    config = _config(transformers, where, named, changes, kind_suffices=not wanted)
    made = _class(transformers, where, config, given.get("auto"))
    missing: Any = ()
    if wanted:
        model, missing = _with_weights(transformers, where, made, named, config)
    else:
        model = _built(where, lambda: made(config))
    if _attention(model.config) not in (*_ATTENTION, None):
        raise SourceError(where, f"attention {_attention(model.config)!r}", " or ".join(_ATTENTION), "do not use it.")
    reads_tokens = getattr(model, "main_input_name", "") == "input_ids"
    return Built(
        model.eval(),
        named,
        {"config": json.dumps(_plain(config.to_dict()), sort_keys=True), "auto": made.__name__},
        f"hf:{named}{spelled(given)}",
        input_shape=_shape(config) if not reads_tokens else (min(16, _longest(config)),),
        vocabulary=getattr(config, "vocab_size", None) if reads_tokens else None,
        transform=_transform(transformers, where, folder, config, made, reads_tokens) if local else None,
        trained=(wanted and not missing) or not pretrained,
    )


def empty(name: str, arguments: dict[str, Argument]) -> nn.Module:
    """The network of a manifest's configuration, without trained weights. SourceError for one that is not sound."""
    where = f"model 'hf:{name}'"
    transformers = needed("transformers", "hf", where)
    text, auto = arguments.get("config"), arguments.get("auto")
    try:
        if not isinstance(text, str) or len(text) > _CONFIG_LIMIT:
            raise ValueError("no configuration")
        plain = json.loads(text)
        if not isinstance(plain, dict) or not isinstance(auto, str) or auto.startswith("Auto"):
            raise ValueError("no configuration of a network, or no class")
        config = transformers.AutoConfig.for_model(**_plain(plain))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
        raise SourceError(
            where, short(error), "the configuration that transformers wrote", "get the bundle again from its maker."
        ) from None
    made = _class(transformers, where, config, auto)
    return _built(where, lambda: made(config)).eval()


def _config(transformers: Any, where: str, name: str, changes: dict[str, Argument], kind_suffices: bool) -> Any:
    kinds = list(transformers.CONFIG_MAPPING)
    try:
        if kind_suffices and name in kinds:
            return transformers.AutoConfig.for_model(name, **changes)
        with _quiet(transformers), impatient():
            found = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        plain = {**_plain(found.to_dict()), **changes}
        return transformers.AutoConfig.for_model(**plain)
    except Exception as error:
        hint = meant(name, kinds)
        raise SourceError(
            where, short(error), "a folder with config.json, or a name in the local cache (or on a hub in reach)",
            f"{hint} As a kind of network: hf:{name}?weights=none." if hint or name in kinds
            else "save_pretrained(FOLDER) where the network is, and give that folder.",
        ) from error  # fmt: skip


def _class(transformers: Any, where: str, config: Any, auto: Argument) -> Any:
    """The class that builds the network: the one asked for, the one that the configuration names, or AutoModel's."""
    architectures = getattr(config, "architectures", None) or []
    name = str(auto or (architectures[0] if architectures else "AutoModel"))
    found = getattr(transformers, name, None) if name.isidentifier() else None
    if found is not None and name.startswith("AutoModel"):
        mapping = getattr(found, "_model_mapping", {})
        found = mapping.get(type(config), None)
        found = found[0] if isinstance(found, (tuple, list)) else found
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise SourceError(
            where, f"class {name!r}", f"a class of transformers for a configuration of kind {config.model_type!r}",
            "name another with ?auto=AutoModelFor...",
        )  # fmt: skip
    return found


def _with_weights(transformers: Any, where: str, made: Any, name: str, config: Any) -> tuple[Any, Any]:
    """The network with its weights, and the names of those that were not there."""
    try:
        with _quiet(transformers), impatient():
            model, said = made.from_pretrained(name, config=config, trust_remote_code=False, output_loading_info=True)
    except Exception as error:
        raise SourceError(
            where, f"no weights: {short(error)}", "model.safetensors beside config.json, in the folder or the cache",
            "give --checkpoint FILE, or ?weights=none for untrained ones.",
        ) from error  # fmt: skip
    return model, said["missing_keys"]


def _built(where: str, build: Callable[[], nn.Module]) -> Any:
    try:
        return bounded(build)
    except Exception as error:
        raise SourceError(
            where, short(error), "a configuration that transformers can build", "change it (`?name=value`)."
        ) from error


def _plain(config: Any) -> Any:
    """A configuration without what names code or places; ValueError for one that fetches a part of the network."""
    if isinstance(config, list):
        return [_plain(value) for value in config]
    if not isinstance(config, dict):
        return config
    if config.get("use_pretrained_backbone"):
        raise ValueError("a configuration that fetches its backbone (use_pretrained_backbone)")
    return {key: _plain(value) for key, value in config.items() if key not in _FOREIGN}


def _attention(config: Any) -> Any:
    return getattr(config, "_attn_implementation", None)


def _shape(config: Any) -> tuple[int, ...] | None:
    """One sample's shape, of configurations that say it."""
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    if isinstance(size, int):
        return (channels, size, size)
    return (channels, *size) if isinstance(size, (list, tuple)) and len(size) == 2 else None


def _longest(config: Any, otherwise: int = 16) -> int:
    """Most tokens of a text, of configurations that say it; Roberta's kin count from behind the padding's number."""
    found = getattr(config, "max_position_embeddings", None)
    if not isinstance(found, int) or found <= 0:
        return otherwise
    kin = ("roberta", "xlm-roberta", "camembert")
    return found - 1 - (config.pad_token_id or 0) if getattr(config, "model_type", "") in kin else found


@dataclass(frozen=True)
class Pictures:
    """Image -> input by transformers' own processor; `classes` are the numbers of the network's, by their words."""

    processor: Any
    classes: Mapping[str, int] | None

    def __call__(self, image: Any) -> Any:
        """The input of one image."""
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]


def _transform(
    transformers: Any, where: str, folder: Path, config: Any, made: type, reads_tokens: bool
) -> Callable[[Any], Any] | None:
    """Image -> input as the folder's preprocessor_config.json says; of a network that reads tokens text -> input by the
    folder's tokenizer, with the next tokens where its class predicts them."""
    if reads_tokens:
        try:
            tokens = library_tokens(str(folder), None, where)
        except SourceError:  # told where texts ask for it: the network runs on other data without it
            return None
        tokens.classes = _classes(config)
        tokens = resized(tokens, min(tokens.length, _longest(config, tokens.length)))
        return Following(tokens) if made.__name__.endswith(_PREDICTORS) else tokens
    if not (folder / "preprocessor_config.json").is_file():
        return None
    try:
        with _quiet(transformers):
            processor = transformers.AutoImageProcessor.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:
        raise SourceError(
            where, f"preprocessor_config.json: {short(error)}", "one that transformers reads", "repair or remove it."
        ) from error
    return Pictures(processor, _classes(config))


def _classes(config: Any) -> Mapping[str, int] | None:
    """Numbers of the network's classes by their words; None where the configuration names none."""
    names = {str(word): number for number, word in (getattr(config, "id2label", None) or {}).items()}
    return None if all(word == f"LABEL_{number}" for word, number in names.items()) else names


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No bars of another library on the terminal."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()

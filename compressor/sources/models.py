"""MODEL specs -> a network with its weights, and a Source from which it can be built again."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from torch import nn

from compressor.errors import ModelError, SourceError, UsageError
from compressor.sources import hf_models, onnx_models, timm_models
from compressor.sources.accept import same_random_state
from compressor.sources.built import Built, bounded
from compressor.sources.checkpoint import apply_state, file_sha256, load_state, refuse_changed
from compressor.sources.consent import named_by_user
from compressor.sources.factories import Argument, Factory, find_factory, meant, split_query
from compressor.sources.network import impatient
from compressor.sources.refused import refuse_form

_WHEN_PRETRAINED: Mapping[str, dict[str, Argument]] = {
    "googlenet": {"transform_input": True, "aux_logits": False},
    "inception_v3": {"transform_input": True},
}
"""What torchvision's builders set aside when they load weights, and an empty rebuild has to repeat."""
_LIBRARIES: Mapping[str, Any] = {"timm": timm_models, "hf": hf_models, "onnx": onnx_models}

Kind = Literal["torchvision", "timm", "hf", "onnx", "file", "package", "bundle"]

FORMS = "torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER, onnx:FILE, path/file.py:factory, package.module:factory"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a network's code comes from: all that a manifest keeps, without any weights."""

    spec: str
    kind: Kind
    place: str
    """The library's name for it, the absolute path of the Python or ONNX file, the module, or the bundle's folder."""
    name: str = ""
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    sha256: str | None = None
    """Of the Python or ONNX file."""

    def as_dict(self) -> dict[str, Any]:
        """The JSON form; `Source.from_dict` reads it back."""
        return {**asdict(self), "arguments": dict(self.arguments)}

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> Source:
        """Inverse of `as_dict`."""
        return Source(**plain)

    def rebuild(self, factory: Callable[..., nn.Module] | None = None) -> nn.Module:
        """The network with its original widths, arbitrary weights, in eval mode; `factory` replaces its code.

        Raises SourceError if the Python file is gone or has changed since.
        """
        with same_random_state():
            if factory is not None:
                return _checked_module(factory(**self.arguments), self.spec)
            if self.kind == "torchvision":
                return _empty_torchvision(self.place, self.arguments)
            refuse_changed_file(self.kind, self.place, self.sha256)
            if self.kind in _LIBRARIES:
                return _LIBRARIES[self.kind].empty(self.place, dict(self.arguments))
            if self.kind == "bundle":
                raise UsageError(self.spec, "a bundle", "a source of code", "load the bundle itself.")
            code = Factory(self.place, self.name, self.sha256)
            return _checked_module(code.call(self.arguments), self.spec)


def refuse_changed_file(
    kind: object, place: object, sha256: object,
    next_step: str = "restore it, or give the code yourself: load(DIR, factory=callable).",
) -> None:  # fmt: skip
    """SourceError if the file that a network was built from is gone or has changed since; for sources without a file
    of code nothing. Runs nothing."""
    if kind in ("file", "onnx"):
        refuse_changed(Path(str(place)), sha256, "the file that the network was built from", next_step)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A network in eval mode, where it came from, and what is known about its inputs."""

    model: nn.Module
    source: Source
    input_shape: tuple[int, ...] | None = None
    """One sample's shape, without the batch."""
    transform: Callable[[Any], Any] | None = None
    """Image -> input, as the weights were trained with."""
    checkpoint_sha256: str | None = None
    """Of the checkpoint file that was loaded into it."""
    checkpoint_note: str | None = None
    """Which of its sets of weights was taken, where it holds several."""
    trained: bool = True
    """False if the weights are as initialised: no checkpoint was given, none comes with the name."""
    vocabulary: int | None = None
    """Of a network that reads token numbers: how many there are."""
    answers: Callable[[Any], Any] | None = None
    """Inputs -> what the given ONNX file answers: the verdict is on that, not on the network rebuilt from it."""


def load_model(
    spec: str,
    checkpoint: str | Path | None = None,
    *,
    base: Path | None = None,
    seed: int = 0,
    load_bundle: Callable[[Path], nn.Module] | None = None,
) -> LoadedModel:
    """The network that a MODEL spec names, with `checkpoint` loaded into it.

    Relative paths start from `base`. Weights that a factory draws depend on `seed` only; the caller's random
    numbers are left alone. Raises UsageError for a spec of no known form, SourceError for what cannot be
    found or read, ModelError for weights that are not finite.
    """
    head, arguments = split_query(spec)
    scheme, _, rest = head.partition(":")
    with same_random_state():
        torch.manual_seed(seed)
        if scheme == "torchvision":
            loaded = _from_torchvision(spec, rest, arguments, pretrained=checkpoint is None)
        elif scheme in _LIBRARIES and rest:
            loaded = _from_library(spec, scheme, rest, arguments, checkpoint is None, base or Path.cwd())
        elif is_bundle(path := (base or Path.cwd()) / Path(head).expanduser()):
            loaded = _from_bundle(spec, path, load_bundle)
        else:
            loaded = _from_factory(spec, head, arguments, base, trained=checkpoint is not None)
    if checkpoint is not None:
        path = (base or Path.cwd()) / Path(checkpoint).expanduser()
        state = load_state(path)
        apply_state(loaded.model, state, where=f"checkpoint {path}")
        loaded = replace(loaded, checkpoint_sha256=file_sha256(path), checkpoint_note=state.note)
    refuse_infinite_weights(loaded.model, spec)
    return loaded


def is_bundle(path: str | Path) -> bool:
    """Whether this is a folder that `compress` wrote: a manifest beside its weights."""
    return (Path(path) / "manifest.json").is_file()


def refuse_infinite_weights(model: nn.Module, where: str) -> None:
    """ModelError that names the parameters and buffers holding NaN or infinity."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    broken = [name for name, value in tensors if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ModelError(
            f"model {where}",
            f"NaN or infinite values in {len(broken)} tensors: {', '.join(broken[:4])}",
            "finite weights",
            "use a checkpoint from before the divergence.",
        )


def _from_torchvision(spec: str, name: str, given: dict[str, Argument], pretrained: bool) -> LoadedModel:
    builder = _torchvision_builder(name)
    arguments = {key: value for key, value in given.items() if key != "weights"}
    weights = given.get("weights", "DEFAULT") if pretrained else None
    choice: Any = None
    if weights is not None:
        names = [one.name for one in torchvision.models.get_model_weights(name)]
        if str(weights) not in [*names, "DEFAULT"]:
            raise SourceError(
                f"model {spec!r}",
                f"weights {weights!r}",
                f"one of DEFAULT, {', '.join(names)}, none",
                "pick one.",
            )
        choice = torchvision.models.get_model_weights(name)[str(weights)]
    kwargs: dict[str, Any] = dict(arguments) if choice else _plain_arguments(name, arguments, draw=True)
    with impatient():
        try:
            model = builder(weights=choice, progress=False, **kwargs) if choice else builder(**kwargs)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise SourceError(
                f"model {spec!r}",
                f"no weights: {type(error).__name__}: {error}",
                "torchvision's weights in its cache or over the network",
                f"`torchvision:{name}?weights=none` for untrained weights, or `--checkpoint FILE`.",
            ) from error
        except (TypeError, ValueError) as error:
            raise SourceError(
                f"model {spec!r}", str(error), "arguments that torchvision's builder accepts", "see its help."
            ) from error
    transform = choice.transforms() if choice else None
    arguments = {**_WHEN_PRETRAINED.get(name, {}), **arguments} if choice else arguments
    source = Source(spec, "torchvision", name, arguments=arguments)
    size = 299 if name == "inception_v3" else 224
    return LoadedModel(model.eval(), source, (3, size, size), transform, trained=choice is not None or not pretrained)


def _from_library(
    spec: str, kind: Any, name: str, arguments: dict[str, Argument], pretrained: bool, base: Path
) -> LoadedModel:
    made: Built = _LIBRARIES[kind].load(spec, name, arguments, pretrained, base)
    source = Source(made.spec, kind, made.place, arguments=made.arguments, sha256=made.sha256)
    return LoadedModel(
        made.model, source, made.input_shape, made.transform, trained=made.trained, vocabulary=made.vocabulary,
        answers=made.answers,
    )  # fmt: skip


def _torchvision_builder(name: str) -> Callable[..., nn.Module]:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise SourceError(
            f"model 'torchvision:{name}'",
            f"no such name among {len(known)} classification models",
            "a name of torchvision.models.list_models()",
            meant(name, known) or "for example torchvision:resnet18.",
        )
    return torchvision.models.get_model_builder(name)


def _empty_torchvision(name: str, arguments: Mapping[str, Argument]) -> nn.Module:
    """A network of torchvision without trained weights; measured before memory is taken for it. SourceError."""
    builder, kwargs = _torchvision_builder(name), _plain_arguments(name, arguments, draw=False)
    where = f"model 'torchvision:{name}'"
    try:
        if {"weights", "weights_backbone", "progress"} & set(arguments):
            raise ValueError("weights among the arguments that shape the network")
        return bounded(lambda: builder(**kwargs)).eval()
    except (TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError, LookupError, MemoryError) as error:
        said = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise SourceError(
            where, f"{' '.join(str(error).split())[:200]} (arguments {said[:200]})",
            "arguments that torchvision's builder accepts", "get the bundle again from where it was made.",
        ) from error  # fmt: skip


def _plain_arguments(name: str, arguments: Mapping[str, Argument], draw: bool) -> dict[str, Any]:
    """For a builder without weights; two of them warn unless told whether to draw initial weights."""
    return {"weights": None, **arguments, **({"init_weights": draw} if name in _WHEN_PRETRAINED else {})}


def _from_bundle(spec: str, path: Path, load: Callable[[Path], nn.Module] | None) -> LoadedModel:
    if load is None:
        raise UsageError(f"model {spec!r}", "a bundle", "a network's source here", "use compressor.load(DIR).")
    model = _checked_module(load(path), spec)
    return LoadedModel(model, Source(spec, "bundle", str(path.resolve())), _shape_of(model))


def _from_factory(
    spec: str, head: str, arguments: dict[str, Argument], base: Path | None, trained: bool
) -> LoadedModel:
    factory = find_factory(head, base)
    if factory is None:
        raise _not_a_model(spec, head, base)
    named_by_user(factory, arguments)
    model = _checked_module(factory.call(arguments), spec)
    kind: Kind = "file" if factory.is_file else "package"
    source = Source(spec, kind, factory.place, factory.name, arguments, factory.sha256)
    shape = _shape_of(factory.load()) or _shape_of(model)
    return LoadedModel(model, source, shape, trained=trained)


def _not_a_model(spec: str, head: str, base: Path | None) -> SourceError | UsageError:
    path = (base or Path.cwd()) / Path(head).expanduser()
    forms = f"{FORMS} or a bundle's folder"
    if path.is_dir():
        return SourceError(f"model {spec!r}", "a folder without manifest.json", "a bundle", "check the path.")
    if path.is_file() and path.suffix == ".py":
        return UsageError(f"model {spec!r}", "a file without a factory", f"`{head}:factory`", "name the function.")
    if path.is_file():
        return UsageError(
            f"model {spec!r}",
            "a file",
            f"{forms}",
            "give the network's code here and this file as --checkpoint.",
        )
    names = torchvision.models.list_models(module=torchvision.models)
    hint = f"did you mean 'torchvision:{head}'?" if head in names else "see `compressor compress --help`."
    return SourceError(f"model {spec!r}", "nothing of that name", forms, hint)


def _checked_module(made: Any, spec: str) -> nn.Module:
    if isinstance(made, nn.Module):
        refuse_form(made, f"model {spec!r}")
        return made.eval()
    raise SourceError(
        f"model {spec!r}",
        f"a {type(made).__name__} from the factory",
        "a torch.nn.Module",
        "return the network.",
    )


def _shape_of(thing: Any) -> tuple[int, ...] | None:
    """The optional attribute `input_shape` of a factory or model: one sample's shape."""
    shape = getattr(thing, "input_shape", None)
    if isinstance(shape, tuple | list) and shape and all(isinstance(size, int) and size > 0 for size in shape):
        return tuple(shape)
    return None

"""A residual stream turned into other coordinates, and cut to fewer of them, with the layers' classes kept.

LayerNorm(x) does not see the mean of x over its features, so the part of a stream x (d) that counts lies in the space
orthogonal to the vector of ones, and what the layers write may be turned there (SliceGPT, Ashkboos et al. 2024, arXiv
2401.15024, section 3, which turns RMSNorm networks). Q (d, k) is an orthonormal basis in that space, B (w, k) has
orthonormal columns orthogonal to the ones of R^w, and the new stream is z = √(w/d) B Qᵀ x: its mean is 0 and its mean
square that of Q Qᵀ x, so that a plain LayerNorm of w features and the same eps gives √(w/d) B Qᵀ times what the
original's gave. Whoever reads it multiplies by Q Bᵀ √(d/w). With k = d - 1 nothing is lost, whatever w ≥ d; with fewer
the rest of x is gone. RMSNorm sees the mean: behind it Q and B need not be orthogonal to the ones, and nothing is lost
with k = d.

Shape letters: d features before, w after, k directions that stay (at most min(d, w), less 1 behind LayerNorms), O
outputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compressor.attention.dense import DenseAttention
from compressor.units.cut import set_widths
from compressor.units.dense import Probe
from compressor.units.streams import Stream

WIDE = 3
"""The dry run makes streams wider by so many features: every width is another one, and nothing is lost."""
ROUNDED = 1e-5
"""RMSNorms of language models compute in float32, whatever the network's dtype."""
ATTRIBUTES = ("hidden_dim", "hidden_size", "embed_dim", "num_features", "head_hidden_size")
"""Integers by which modules around the layers say how wide the stream is."""


def spread_basis(width: int, size: int, centred: bool = True) -> Tensor:
    """(width, size) orthonormal columns: cosines of the DCT-II; if `centred` without the first one, the ones.

    Every direction is spread over all features, so that none of them carries outliers.
    """
    places = torch.arange(width, dtype=torch.float64) + 0.5
    waves = torch.arange(size, dtype=torch.float64) + (1 if centred else 0)
    found = (torch.outer(places, waves) * math.pi / width).cos() * math.sqrt(2 / width)
    found[:, waves == 0] = math.sqrt(1 / width)
    return found


def writing(basis: Tensor, width: int, centred: bool = True) -> Tensor:
    """(w, d) what turns features into the new ones: √(w/d) B Qᵀ, for `basis` Q (d, k)."""
    features, size = basis.shape
    return math.sqrt(width / features) * spread_basis(width, size, centred) @ basis.T.double().cpu()


def reading(basis: Tensor, width: int, centred: bool = True) -> Tensor:
    """(d, w) what gives the features back, as far as they are there: √(d/w) Q Bᵀ."""
    features, size = basis.shape
    return math.sqrt(features / width) * basis.double().cpu() @ spread_basis(width, size, centred).T


def folded(model: nn.Module, streams: Sequence[Stream]) -> nn.Module:
    """A copy of the same function whose norms and scales of the streams are plain: their numbers are in the layers."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for stream in streams:
            for name, layers in stream.scales:
                factor = _tensor(made, name)
                for layer in layers:
                    _scale_rows(made.get_submodule(layer), factor.detach().flatten())
                factor.fill_(1.0)
            for read in stream.reads:
                _fold_norms(made.get_submodule(read.module), [made.get_submodule(n) for n in read.norms])
            for name in stream.norms:
                norm: Any = made.get_submodule(name)
                norm.weight.fill_(1.0)
                if getattr(norm, "bias", None) is not None:
                    norm.bias.zero_()
    return made


def turned(plain: nn.Module, stream: Stream, basis: Tensor, width: int, attributes: bool = True) -> nn.Module:
    """A copy of a model (`folded` before) whose stream has `width` features: the directions of `basis` (d, k).

    The columns of `basis` are orthonormal, and of a centred stream orthogonal to the ones. With k as large as it can be
    the function is the same. `attributes`: integers of the modules around that say the width follow.
    """
    made = copy.deepcopy(plain)
    write, read = writing(basis, width, stream.centred), reading(basis, width, stream.centred)
    for layer in stream.layers:
        module: Any = made.get_submodule(layer)
        weight: Any = module.weight
        _replace(module, "weight", _along(weight, 1 if isinstance(module, nn.Embedding) else 0, write))
        bias: Any = getattr(module, "bias", None)
        if bias is not None:
            _replace(module, "bias", _along(bias, 0, write))
        set_widths(module)
        if isinstance(module, nn.Embedding):
            module.embedding_dim = width
    for name, axis in stream.constants:
        owner, leaf = _owner(made, name)
        _replace(owner, leaf, _along(_tensor(made, name), axis, write))
    for name, _ in stream.scales:
        owner, leaf = _owner(made, name)
        factor = _tensor(made, name)
        shape = [width if size == stream.width else size for size in factor.shape]
        _replace(owner, leaf, factor.new_ones(shape))
    for norm in stream.norms:
        _widen(made.get_submodule(norm), width)
    for part in stream.reads:
        reader: Any = made.get_submodule(part.module)
        blocks = reader.weight.detach().double().unflatten(1, (len(part.norms), -1))
        _replace(reader, "weight", (blocks @ read.to(blocks)).flatten(1))
        set_widths(reader)
    if attributes:
        _tell(made, stream, width)
    return made


def refusal(model: nn.Module, stream: Stream, inputs: Any) -> str | None:
    """Why the stream cannot be turned, from dry runs: in double precision, on the CPU, on two samples of `inputs`.

    The stream is turned by a random rotation and made wider, which leaves the outputs as they are (to 1e-9 of the
    largest, behind RMSNorms to ROUNDED) if everything about it was understood; once with the model's own numbers, once
    with others, so that no number that happens to be 0 or 1 hides anything. None where the outputs stay.
    """
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(stream.width, stream.width, generator=generator, dtype=torch.float64)
    draw[:, 0] = 1.0
    basis = torch.linalg.qr(draw)[0][:, int(stream.centred) :]
    exact = copy.deepcopy(model).cpu().double()
    for stirred in (False, True):
        if stirred:
            _stir(exact, generator)
        probe = Probe(exact, inputs, None if stream.centred else ROUNDED)
        try:
            wide = turned(folded(exact, [stream]), stream, basis, stream.width + WIDE)
        except (RuntimeError, AttributeError, TypeError) as error:
            return f"dry run: {str(error).splitlines()[0][:120]}"
        changed = probe.changed(wide)
        if changed is not None:
            return f"dry run: {changed}"
    return None


def _stir(model: nn.Module, generator: torch.Generator) -> None:
    """Move every parameter a little (in place)."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                size = 0.1 * (float(parameter.std()) if parameter.numel() > 1 else 0.0) + 0.02
                parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def _fold_norms(reader: Any, norms: Sequence[Any]) -> None:
    weight = reader.weight.detach().double()
    slope = torch.cat([norm.weight.detach().double() for norm in norms])
    biases = [getattr(norm, "bias", None) for norm in norms]
    constants = [
        n.weight.new_zeros(len(n.weight)) if b is None else b.detach() for n, b in zip(norms, biases, strict=True)
    ]
    gain = weight @ torch.cat(constants).to(weight)
    reader.weight.copy_(weight * slope.to(weight))
    if reader.bias is not None:
        reader.bias.add_(gain.to(reader.bias))
    elif bool((gain != 0).any()):
        reader.bias = nn.Parameter(gain.to(reader.weight), reader.weight.requires_grad)


def _scale_rows(layer: Any, factor: Tensor) -> None:
    layer.weight.mul_(factor.reshape([-1] + [1] * (layer.weight.dim() - 1)))
    if layer.bias is not None:
        layer.bias.mul_(factor)


def _along(tensor: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """The tensor with `matrix` applied along one axis, in double precision."""
    old = tensor.detach().double()
    return (old.movedim(axis, -1) @ matrix.to(old).T).movedim(-1, axis)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, leaf = _owner(model, name)
    return getattr(owner, leaf)


def _replace(owner: nn.Module, leaf: str, value: Tensor) -> None:
    """Put a tensor of another shape in the place of a parameter or buffer, in its dtype."""
    old: Tensor = getattr(owner, leaf)
    new = value.to(old).contiguous()
    if isinstance(old, nn.Parameter):
        setattr(owner, leaf, nn.Parameter(new, old.requires_grad))
    else:
        owner.register_buffer(leaf, new, persistent=leaf not in owner._non_persistent_buffers_set)


def _widen(norm: Any, width: int) -> None:
    _replace(norm, "weight", norm.weight.new_ones(width))
    if getattr(norm, "bias", None) is not None:
        _replace(norm, "bias", norm.bias.new_zeros(width))
    if hasattr(norm, "normalized_shape"):
        norm.normalized_shape = (width,)


def _tell(model: nn.Module, stream: Stream, width: int) -> None:
    """Modules that hold norms of the stream (none of torch's layers) say how wide it is."""
    inside = [*stream.norms, *stream.layers]
    for name, module in model.named_modules():
        if isinstance(module, DenseAttention) or not any(n.startswith(f"{name}." if name else "") for n in inside):
            continue
        known: Mapping[str, Any] = vars(module)
        for attribute in ATTRIBUTES:
            if type(known.get(attribute)) is int and known[attribute] == stream.width:
                setattr(module, attribute, width)

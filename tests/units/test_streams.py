"""Streams that only norms read are found with everything that writes and reads them; all else is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stream_nets import Block, HandMade, Norm, Tower, torchvision_vit
from torch import Tensor, nn

from compressor.units.streams import Stream, find_streams
from compressor.units.trace import recorded_pair


def found(model: nn.Module, inputs: Any) -> tuple[list[Stream], dict[str, str]]:
    return find_streams(model.eval(), recorded_pair(model.eval(), inputs))


def rows(count: int = 2) -> Tensor:
    return torch.randn(count, 5, 6)


def test_a_vision_transformer_has_one_stream_with_all_its_norms_layers_and_constants() -> None:
    (stream,), refused = found(torchvision_vit(), torch.randn(2, 3, 16, 16))
    blocks = [f"encoder.layers.encoder_layer_{i}" for i in range(2)]
    assert refused == {}
    assert (stream.width, stream.name) == (12, "conv_proj")
    assert stream.norms == (*(f"{b}.ln_{i}" for b in blocks for i in (1, 2)), "encoder.ln")
    assert (stream.layers[0], len(stream.layers)) == ("conv_proj", 5)
    assert dict(stream.constants) == {"class_token": 2, "encoder.pos_embedding": 2}
    readers = {read.module: read.norms for read in stream.reads}
    assert readers[f"{blocks[1]}.self_attention.k"] == (f"{blocks[1]}.ln_1",)
    assert len(readers) == 9
    assert readers["heads.head"] == ("encoder.ln",)


def test_layer_scales_belong_to_the_layer_whose_output_they_scale() -> None:
    (stream,), _ = found(Tower(scale=True), rows())
    assert stream.scales == tuple((f"blocks.{i}.scale", (f"blocks.{i}.down",)) for i in range(2))


def test_features_of_two_norms_read_side_by_side() -> None:
    (stream,), _ = found(Tower(beside=True), rows())
    assert next(read for read in stream.reads if read.module == "head").norms == ("norm", "norm")


def test_a_network_without_layer_norms_has_no_stream() -> None:
    assert found(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), rows()) == ([], {})


@pytest.mark.parametrize("norm", [nn.RMSNorm, HandMade])
def test_rms_norms_are_read_off_the_operations(norm: Norm) -> None:
    (stream,), refused = found(Tower(norm=norm), rows())
    assert (refused, stream.centred, stream.norms) == ({}, False, ("blocks.0.norm", "blocks.1.norm", "norm"))
    assert [read.module for read in stream.reads] == ["blocks.0.up", "blocks.1.up", "head"]


class Squared(HandMade):
    """Divides by the mean square, not its root."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * (x.pow(2).mean(-1, keepdim=True) + self.eps).reciprocal())


class OneMore(HandMade):
    """Its weight counts from one."""

    def forward(self, x: Tensor) -> Tensor:
        return (1 + self.weight) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class OverTokens(HandMade):
    """Over the wrong dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + self.eps))


@pytest.mark.parametrize("norm", [Squared, OneMore, OverTokens])
def test_what_only_looks_like_an_rms_norm_is_none(norm: Norm) -> None:
    assert found(Tower(norm=norm), rows()) == ([], {})


def test_norms_of_two_kinds_on_one_stream_are_refused() -> None:
    model = Tower(norm=nn.RMSNorm)
    model.norm = nn.LayerNorm(8)
    assert found(model, rows())[1] == {"stem": "`norm` and `blocks.0.norm` are norms of two kinds"}


class PostNorm(Block):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens + self.down(torch.relu(self.up(tokens))))


class Gated(Block):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + torch.sigmoid(tokens) * self.down(self.up(self.norm(tokens)))


class Bare(Block):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.down(self.up(tokens) + self.up(self.norm(tokens)))


class Cooled(Block):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.down(torch.relu(self.norm(tokens)).repeat(1, 1, 2))


class Feature(Block):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.down(self.up(self.norm(tokens.flip(-1))))


class Added(Block):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + 0.1 + self.down(self.up(self.norm(tokens)))


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (PostNorm, "post-norm: what `blocks.0.norm` gives is added up"),
        (Gated, "`sigmoid` reads the stream, without a linear layer"),
        (Bare, "`blocks.0.up` reads the stream without a norm"),
        (Cooled, "`relu` reads what `blocks.0.norm` gives, without a linear layer"),
        (Feature, "norms over different sets of its features"),
        (Added, "a number is added to it"),
    ],
)
def test_a_stream_that_is_read_otherwise_is_refused_by_name(block: type[Block], reason: str) -> None:
    streams, refused = found(Tower(block=block), rows())
    assert streams == []
    assert reason in refused.values()


def test_a_stream_that_leaves_the_model_is_refused() -> None:
    bare = Tower()
    bare.head = nn.Identity()  # type: ignore[assignment]
    assert found(bare, rows())[1] == {"stem": "what `norm` gives is an output of the model"}
    bare.norm = nn.Identity()  # type: ignore[assignment]
    assert found(bare, rows())[1] == {"stem": "the stream itself is an output of the model"}


def test_tied_and_repeated_layers_are_refused() -> None:
    tied = Tower()
    first, second = tied.blocks
    assert isinstance(first, Block)
    assert isinstance(second, Block)
    second.down.weight = first.down.weight
    assert "`blocks.0.down.weight` is tied to another tensor" in found(tied, rows())[1]["stem"]
    again = Tower()
    again.blocks = nn.Sequential(again.blocks[0], again.blocks[0])
    assert found(again, rows())[1]["stem"] == "`blocks.0.norm` runs 2 times"

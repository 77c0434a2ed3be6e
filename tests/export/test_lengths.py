"""Files of networks that read tokens: any number of them, where the network takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from compressor.errors import UsageError
from compressor.export.latency import compare_latency
from compressor.export.lengths import cut_short, tokens_of
from compressor.export.onnx import export_onnx
from compressor.export.precision import write_variant
from compressor.export.session import OnnxModel
from compressor.sources.models import load_model
from compressor.sources.samples import as_samples

TOKENS = 12


class Words(nn.Module):
    """A text classifier; `places` adds what belongs to each of so many places."""

    def __init__(self, places: int = 0, two_ways: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.words, self.head = nn.Embedding(40, 16), nn.Linear(16, 5)
            self.places = nn.Parameter(torch.randn(places, 16)) if places else None
        self.two_ways = two_ways

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = torch.relu(self.words(ids) * mask[..., None])
        x = x if self.places is None else x + self.places
        x = 2 * x if self.two_ways and ids.shape[1] > 8 else x
        return self.head(x.sum(1) / mask.sum(1, keepdim=True))


def texts(count: int = 20, tokens: int = TOKENS) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(1)
    mask = torch.ones(count, tokens, dtype=torch.long)
    mask[::2, -1] = 0
    return {"ids": torch.randint(0, 40, (count, tokens), generator=draws), "mask": mask}


def test_a_file_takes_texts_of_any_length(tmp_path: Path) -> None:
    network = Words().eval()
    made = export_onnx(network, texts(), tmp_path / "words.onnx")
    assert (made.exporter, made.notes) == ("dynamo", ())
    file = OnnxModel(tmp_path / "words.onnx")
    for tokens in (1, 5, TOKENS, 40):
        given = texts(3, tokens)
        given["mask"][:, 0] = 1
        assert torch.allclose(file(given), network(**given), atol=1e-5)
    assert file.length == TOKENS
    found = compare_latency([tmp_path / "words.onnx"] * 2, batch=3, seconds=0.1)
    assert found.batch == 3


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_variants_say_the_length_too(tmp_path: Path, kind: Any) -> None:
    export_onnx(Words().eval(), texts(), tmp_path / "words.onnx")
    write_variant(
        kind,
        tmp_path / "words.onnx",
        tmp_path / "small.onnx",
        as_samples((texts(), torch.zeros(20, dtype=torch.long)), "texts"),
    )
    assert OnnxModel(tmp_path / "small.onnx").length == TOKENS


class Places(nn.Module):
    """Adds what belongs to each place, looked up for every text."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(40, 16), nn.Embedding(30, 16), nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)[None].expand(ids.shape)
        return self.head(torch.relu(self.words(ids) + self.places(places)).mean(1))


@pytest.mark.parametrize("asked", ["", "?input=7"])
def test_a_file_is_a_network_again(tmp_path: Path, asked: str) -> None:
    network = Places().eval()
    export_onnx(network, texts()["ids"], tmp_path / "places.onnx")
    again = load_model(f"onnx:{tmp_path / 'places.onnx'}{asked}").model
    given = texts(4, 7 if asked else TOKENS)["ids"]
    assert torch.allclose(again(given), network(given), atol=1e-5)


def test_one_length_where_the_network_has_one(tmp_path: Path) -> None:
    made = export_onnx(Words(TOKENS).eval(), texts(), tmp_path / "words.onnx")
    assert (made.exporter, made.notes) == ("dynamo", ())
    assert OnnxModel(tmp_path / "words.onnx").signature[0][2] == ("batch", TOKENS)


def test_one_length_and_why_where_the_code_asks_for_it(tmp_path: Path) -> None:
    made = export_onnx(Words(two_ways=True).eval(), texts(), tmp_path / "words.onnx")
    assert made.exporter == "dynamo"
    assert OnnxModel(tmp_path / "words.onnx").signature[0][2] == ("batch", TOKENS)
    assert [note[:25] for note in made.notes] == ["inputs of 12 tokens only:"]


def test_files_that_do_not_say_their_length_are_not_timed(tmp_path: Path) -> None:
    export_onnx(Words().eval(), texts(), tmp_path / "words.onnx")
    model = onnx.load(str(tmp_path / "words.onnx"))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(UsageError, match="give the inputs to time on"):
        compare_latency([tmp_path / "other.onnx"] * 2, seconds=0.1)
    assert compare_latency([tmp_path / "other.onnx", tmp_path / "words.onnx"], seconds=0.1).batch


@pytest.mark.parametrize(
    ("inputs", "count"),
    [
        (torch.zeros(3, 7, dtype=torch.long), 7),
        (torch.zeros(3, 7), None),
        (torch.zeros(3, 1, dtype=torch.long), None),
        (torch.zeros(3, dtype=torch.long), None),
        ((torch.zeros(3, 7, dtype=torch.long), torch.zeros(3)), 7),
        ((torch.zeros(3, 7, dtype=torch.long), torch.zeros(3, 6, dtype=torch.long)), None),
        ((torch.zeros(3, 7, dtype=torch.long), torch.zeros(3, 7, 7)), None),
    ],
)
def test_what_counts_as_tokens(inputs: Any, count: int | None) -> None:
    assert tokens_of(inputs) == count
    if count:
        assert tokens_of(cut_short(inputs)) == count // 2

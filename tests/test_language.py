"""A network that answers at every token, from a file of texts to a bundle, judged by the tokens that follow."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from runs import Terminal
from safetensors.torch import save_file
from torch import Tensor, nn

from compressor.sources.data import load_data
from compressor.training.loop import TrainOptions, accuracy, train

WORDS, LENGTH = 12, 9
NETWORK = """
from torch import nn

class Speaker(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.hidden, self.out = nn.Embedding(15, 12), nn.Linear(12, 48), nn.Linear(48, 15)

    def forward(self, input_ids, attention_mask):
        return {"logits": self.out(self.hidden(self.embed(input_ids)).relu())}
"""


def write_texts(path: Path, count: int = 900) -> None:
    """Words that mostly follow each other in a circle, texts of several lengths."""
    draw, lines = random.Random(0), []
    for place in range(count):
        word, said = draw.randrange(WORDS), []
        for _ in range(2 + place % LENGTH):
            said.append(f"w{word}")
            word = draw.randrange(WORDS) if draw.random() < 0.2 else (word + 1) % WORDS
        lines.append(" ".join(said))
    path.write_text("text\n" + "\n".join(lines) + "\n")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "speaker.py").write_text(NETWORK)
    (tmp_path / "words.txt").write_text("\n".join(f"w{n}" for n in range(WORDS)))
    write_texts(tmp_path / "said.csv")
    scope: dict[str, type[nn.Module]] = {}
    exec(NETWORK, scope)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = scope["Speaker"]()
    data = load_data(DATA, base=tmp_path)
    model, report = train(model, data.calibrate, TrainOptions(40, 32, 5e-3, optimizer="adamw"))
    assert report.train_accuracy is not None
    assert 60 < report.train_accuracy <= 100  # the share of tokens, not of texts
    assert 60 < accuracy(model, data.judge) <= 100
    save_file(model.state_dict(), tmp_path / "speaker.safetensors")
    return tmp_path


DATA = f"text:said.csv?tokenizer=words.txt&length={LENGTH}&label=next"


def test_a_language_model_from_texts_to_a_bundle(folder: Path, terminal: Terminal) -> None:
    model = ["speaker.py:Speaker", "--checkpoint", "speaker.safetensors", "--data", DATA]
    options = ("--keep", "params=0.7", "--align", "1", "--max-drop", "3")
    assert terminal("compress", *model, "--out", "small", *options) == 0, terminal.err
    record = json.loads((folder / "small" / "record.json").read_text())
    verdict = record["verdict"]
    assert (verdict["metric"], verdict["value"]) == ("accuracy", "passed")
    assert verdict["details"]["judged"].endswith("classes in its last dimension")
    assert verdict["details"]["bound"].startswith("betting")  # a text is right in parts
    assert 60 < verdict["original"] < 95
    assert record["onnx"]["agreement"] == 100
    assert terminal("verify", "small", "--data", DATA) == 0


def test_labels_that_do_not_fit_are_refused_before_any_work(folder: Path, terminal: Terminal) -> None:
    (folder / "plain.py").write_text(NETWORK.replace('{"logits": self', "(self").replace("relu())}", "relu()))"))
    model = ["plain.py:Speaker", "--checkpoint", "speaker.safetensors", "--keep", "params=0.7", "--out", "small"]
    assert terminal("compress", *model, "--data", DATA) == 3
    assert "calibrate data, labels: got shape" in " ".join(terminal.err.split())
    assert "'logits' of (n, positions, classes)" in " ".join(terminal.err.split())
    unlabelled = f"text:said.csv?tokenizer=words.txt&length={LENGTH}"
    terminal("compress", *model, "--data", unlabelled, "--keep-failed", "--align", "1")
    assert "Agreement says little here" in " ".join((terminal.out + terminal.err).split())


def test_its_accuracy_is_that_of_a_plain_loop(folder: Path) -> None:
    from compressor.sources.checkpoint import load_state
    from compressor.verify.accuracy import accuracy as judged
    from compressor.verify.accuracy import outputs_of

    scope: dict[str, type[nn.Module]] = {}
    exec(NETWORK, scope)
    model = scope["Speaker"]()
    model.load_state_dict(load_state(folder / "speaker.safetensors"))
    judge = load_data(DATA, base=folder).judge
    shares = []
    for place in range(len(judge)):
        inputs, labels = judge[place]
        with torch.no_grad():
            answers: Tensor = model(**{name: leaf[None] for name, leaf in inputs.items()})["logits"][0].argmax(-1)
        last = int(inputs["attention_mask"].sum())
        shares.append(float((answers[: last - 1] == inputs["input_ids"][1:last]).double().mean()))
        assert labels.tolist()[last - 1 :] == [-100] * (LENGTH - last + 1)
    assert judged(outputs_of(model, judge)) == pytest.approx(100 * sum(shares) / len(shares))

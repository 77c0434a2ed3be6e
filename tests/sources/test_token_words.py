from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest
import torch

from compressor.algebra.answers import LEFT_OUT
from compressor.errors import DataError, SourceError, UsageError
from compressor.sources.data import load_data
from compressor.sources.models import load_model
from compressor.sources.words import Following, Words, common_words, resized, words_of

SUBJECTS = ("the cat", "a small dog", "my neighbour", "this old engine", "nobody")
GOOD = ("sings beautifully", "is a delight", "works well", "made us happy")
BAD = ("broke again", "is a disaster", "smells bad", "made us sad")


def write_reviews(path: Path, count: int = 80) -> None:
    """Texts that are good or bad, all different."""
    draw = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for place in range(count):
            good = draw.random() < 0.5
            writer.writerow(
                [f"{draw.choice(SUBJECTS)} {draw.choice(GOOD if good else BAD)}, number {place}.", int(good)]
            )


def write_words(path: Path, texts: list[str]) -> None:
    path.write_text("\n".join(common_words(texts, 40)) + "\n", encoding="utf-8")


def test_words_are_numbered_padded_and_cut():
    tokens = Words(["the", "cat", ","], 6)
    assert words_of("The CAT, don't") == ["the", "cat", ",", "don", "'", "t"]
    found = tokens("The cat, meow")
    assert found["input_ids"].tolist() == [2, 3, 4, 5, 1, 0]
    assert found["attention_mask"].tolist() == [1, 1, 1, 1, 1, 0]
    assert tokens("the " * 9)["input_ids"].tolist() == [2, 3, 3, 3, 3, 3]
    assert tokens.size == 6


def test_the_label_of_each_token_is_the_one_that_follows():
    tokens = Following(Words(["the", "cat"], 5))
    inputs, labels = tokens("the cat the")
    assert inputs["input_ids"].tolist() == [2, 3, 4, 3, 0]
    assert labels.tolist() == [3, 4, 3, LEFT_OUT, LEFT_OUT]
    assert resized(tokens, 3)("the cat the")[1].tolist() == [3, 4, LEFT_OUT]


def test_texts_that_are_their_own_labels(tmp_path: Path):
    (tmp_path / "said.csv").write_text(
        "text,label\n" + "".join(f"word {n} and more,{n}\n" for n in range(60)) + "alone,1\n"
    )
    write_words(tmp_path / "words.txt", ["word and more", *map(str, range(60))])
    data = load_data("text:said.csv?tokenizer=words.txt&length=4&label=next", base=tmp_path)
    inputs, labels = data.judge.batch([0, 1])
    assert labels is not None
    assert torch.equal(labels[:, :3], inputs["input_ids"][:, 1:])
    assert labels[:, 3].tolist() == [LEFT_OUT] * 2
    assert sum(data.described["samples"].values()) == 60  # one word has nothing to predict
    model = Following(Words(["word", *map(str, range(60))], 9))  # of a model that predicts the next token
    assert load_data("text:said.csv?length=4", base=tmp_path, transform=model).judge.batch([0])[1].shape == (1, 4)  # type: ignore[union-attr]
    other = load_data("text:said.csv?tokenizer=words.txt", base=tmp_path, transform=model)
    assert other.judge.batch([0])[1].shape == (1, 128)  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="label=next"):
        load_data("text:said.csv?tokenizer=words.txt&label=kind", base=tmp_path)
    (tmp_path / "alone.csv").write_text("text\nalone\n")
    with pytest.raises(DataError, match="two words"):
        load_data("text:alone.csv?tokenizer=words.txt&label=next", base=tmp_path)


def test_common_words_do_not_depend_on_the_order_of_texts():
    texts = ["b a", "a b c", "d"]
    assert common_words(texts, 3) == common_words(texts[::-1], 3) == ["a", "b", "c"]


def test_texts_of_a_table(tmp_path: Path):
    write_reviews(tmp_path / "reviews.csv")
    write_words(tmp_path / "words.txt", ["the cat is a small dog"])
    data = load_data("text:reviews.csv?tokenizer=words.txt&length=12", base=tmp_path)
    inputs, labels = data.judge.batch([0, 1])
    assert {name: tuple(leaf.shape) for name, leaf in inputs.items()} == {
        "input_ids": (2, 12), "attention_mask": (2, 12)
    }  # fmt: skip
    assert labels is not None
    assert sum(data.described["samples"].values()) == 80


def test_texts_without_a_tokenizer_and_broken_vocabularies(tmp_path: Path):
    write_reviews(tmp_path / "reviews.csv", 8)
    with pytest.raises(UsageError, match="no tokenizer"):
        load_data("text:reviews.csv", base=tmp_path)
    for name, content in (("twice", b"a\na\n"), ("empty", b""), ("bytes", b"\xff\xfe\n"), ("gap", b"a\n\nb\n")):
        (tmp_path / f"{name}.txt").write_bytes(content)
        with pytest.raises(SourceError, match="vocabulary"):
            load_data(f"text:reviews.csv?tokenizer={name}.txt", base=tmp_path)
    with pytest.raises(SourceError, match="vocabulary"):
        load_data("text:reviews.csv?tokenizer=gone.txt", base=tmp_path)
    with pytest.raises(UsageError, match="positive"):
        load_data("text:reviews.csv?tokenizer=twice.txt&length=0", base=tmp_path)
    (tmp_path / "other.csv").write_text("words,label\na,1\n")
    write_words(tmp_path / "words.txt", ["a b"])
    with pytest.raises(DataError, match="columns"):
        load_data("text:other.csv?tokenizer=words.txt", base=tmp_path)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DistilBERT with its tokenizer, as users have them in a folder."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("classifier")
    words = ["[PAD]", "[UNK]", *common_words([*SUBJECTS, *GOOD, *BAD], 60)]
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=512
    ).save_pretrained(folder)
    config = transformers.DistilBertConfig(
        vocab_size=len(words), dim=16, n_layers=1, n_heads=2, hidden_dim=24, max_position_embeddings=10, num_labels=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.DistilBertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_the_tokenizer_of_a_model_s_folder(classifier: Path, tmp_path: Path):
    write_reviews(tmp_path / "reviews.csv")
    model = load_model(f"hf:{classifier}")
    data = load_data("text:reviews.csv", base=tmp_path, transform=model.transform)
    inputs, _ = data.judge.batch([0, 1, 2])
    assert inputs["input_ids"].shape == (3, 10)  # no longer than the network's positions
    assert bool((inputs["input_ids"][inputs["attention_mask"] == 0] == 0).all())
    assert model.model(**inputs).logits.shape == (3, 2)
    named = load_data(f"text:reviews.csv?tokenizer={classifier}&length=7", base=tmp_path)
    assert named.judge.batch([0])[0]["input_ids"].shape == (1, 7)
    with pytest.raises(SourceError, match="tokenizer"):
        load_data(f"text:reviews.csv?tokenizer={tmp_path}", base=tmp_path)


def test_a_text_classifier_from_a_folder_to_a_bundle(classifier: Path, tmp_path: Path):
    from compressor.jobs import Job, run
    from compressor.options import Options
    from compressor.verification import verify_bundle

    write_reviews(tmp_path / "reviews.csv", 160)
    spec = f"text:{tmp_path / 'reviews.csv'}"
    record = run(Job(f"hf:{classifier}", spec, Options(50, keep=("params", 0.9), align=1)), tmp_path / "small")
    assert record.verdict is not None
    assert record.onnx is not None
    assert record.onnx.agreement == 100
    assert any(group.kept and len(group.kept) < group.units for group in record.groups)
    assert verify_bundle(tmp_path / "small", load_data(spec, transform=load_model(f"hf:{classifier}").transform).judge)

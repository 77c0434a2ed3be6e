from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compressor.errors import DataError, SourceError, UsageError
from compressor.sources.data import load_data
from compressor.sources.words import Following, Words

datasets = pytest.importorskip("datasets")

TEXTS = [f"text number {place} about {'cats' if place % 3 else 'dogs'}" for place in range(60)]
WORDS = "?tokenizer=words.txt&length=8"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "words.txt").write_text("text\nnumber\nabout\ncats\ndogs\n" + "\n".join(map(str, range(60))))
    return tmp_path


def table(places: range, **more: Any) -> Any:
    texts = [TEXTS[place] for place in places]
    return datasets.Dataset.from_dict(
        {"text": texts, "label": ["cat" if "cats" in text else "dog" for text in texts], **more}
    )


def test_a_saved_data_set_with_words_as_labels(folder: Path):
    table(range(60)).save_to_disk(folder / "saved")
    data = load_data(f"hfdata:saved{WORDS}", base=folder)
    assert sum(data.described["samples"].values()) == 60
    inputs, labels = data.judge.batch(range(len(data.judge)))
    assert inputs["input_ids"].shape == (30, 8)
    assert labels is not None
    dogs = inputs["input_ids"] == 3 + 4
    assert labels.tolist() == dogs.any(1).int().tolist()  # cat 0, dog 1


def test_texts_whose_next_tokens_are_the_labels(folder: Path):
    rows = datasets.Dataset.from_dict({"text": [*TEXTS, "", "alone"], "label": ["x"] * 62})
    rows.save_to_disk(folder / "said")
    data = load_data(f"hfdata:said{WORDS}&label=next", base=folder)
    assert sum(data.described["samples"].values()) == 60
    inputs, labels = data.judge.batch([0])
    assert labels is not None
    assert torch.equal(labels[0, :4], inputs["input_ids"][0, 1:5])
    speaker = Following(
        Words((folder / "words.txt").read_text().split(), 8)
    )  # of a model that predicts the next token: a column that is named wins
    assert load_data("hfdata:said", base=folder, transform=speaker).judge.batch([0])[1].shape == (1, 8)  # type: ignore[union-attr]
    table(range(60)).save_to_disk(folder / "sorted")
    named = load_data(f"hfdata:sorted{WORDS}&label=label", base=folder, transform=speaker)
    assert named.judge.batch([0])[1].shape == (1,)  # type: ignore[union-attr]
    datasets.Dataset.from_dict({"text": ["alone"] * 9}).save_to_disk(folder / "short")
    with pytest.raises(DataError, match="two words"):
        load_data(f"hfdata:short{WORDS}&label=next", base=folder)


def test_its_splits_are_the_parts_of_a_run(folder: Path):
    splits = {"train": table(range(30)), "validation": table(range(30, 45)), "test": table(range(45, 60))}
    datasets.DatasetDict(splits).save_to_disk(folder / "saved")
    data = load_data(f"hfdata:saved{WORDS}", base=folder)
    assert (len(data.tune), len(data.judge)) == (15, 15)
    assert data.train is not None
    one = load_data(f"hfdata:saved{WORDS}&split=test", base=folder)
    assert sum(one.described["samples"].values()) == 15
    with pytest.raises(SourceError, match="one of train, validation, test"):
        load_data(f"hfdata:saved{WORDS}&split=dev", base=folder)


def test_images_and_columns_that_are_named(folder: Path):
    random = np.random.RandomState(0)
    images = [Image.fromarray(random.randint(0, 255, (20, 24, 3), np.uint8)) for _ in range(12)]
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"])})
    rows = {"photo": images, "kind": [place % 2 for place in range(12)]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder / "saved")
    data = load_data("hfdata:saved?size=16&label=kind", base=folder)
    assert data.judge[0][0].shape == (3, 16, 16)
    assert data.judge.labels is not None
    assert load_data("hfdata:saved?size=16", base=folder).judge.labels is None
    with pytest.raises(DataError, match="no column 'sort'"):
        load_data("hfdata:saved?label=sort", base=folder)


def test_files_in_a_folder(folder: Path):
    (folder / "files").mkdir()
    table(range(40)).to_csv(folder / "files" / "train.csv")
    data = load_data(f"hfdata:files{WORDS}", base=folder)
    assert sum(data.described["samples"].values()) == 40


def test_what_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    table(range(6), title=["t"] * 6).remove_columns("text").add_column("body", ["b"] * 6).save_to_disk(folder / "two")
    with pytest.raises(DataError, match="name it"):
        load_data(f"hfdata:two{WORDS}", base=folder)
    (folder / "script").mkdir()
    (folder / "script" / "script.py").write_text("raise SystemExit('code of a data set ran')")
    with pytest.raises(SourceError):
        load_data(f"hfdata:script{WORDS}", base=folder)
    with pytest.raises(UsageError, match="argument 'colum'"):
        load_data("hfdata:two?colum=body", base=folder)
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(SourceError, match="4 or newer"):
        load_data(f"hfdata:two{WORDS}", base=folder)


def test_numbers_with_words_become_those_of_the_network(folder: Path):
    rows = table(range(60)).cast_column("label", datasets.ClassLabel(names=["dog", "cat"]))
    rows.save_to_disk(folder / "saved")
    tokens = Words((folder / "words.txt").read_text().split(), 8)
    setattr(tokens, "classes", {"cat": 0, "dog": 1, "fox": 2})  # noqa: B010 (as a library's tokens have them)
    inputs, labels = load_data("hfdata:saved", base=folder, transform=tokens).judge.batch(range(30))
    assert labels is not None
    assert labels.tolist() == (inputs["input_ids"] == 3 + 4).any(1).int().tolist()

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compressor.errors import CompressorError, DataError, SourceError, UsageError
from compressor.sources.data import load_data
from compressor.sources.tables import numbered

RANDOM = np.random.RandomState(0)


def test_npz_as_a_whole_and_in_parts(tmp_path: Path):
    x, y = RANDOM.randn(60, 4), RANDOM.randint(0, 3, 60)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    data = load_data("npz:a.npz", base=tmp_path)
    assert sum(data.described["samples"].values()) == 60
    assert data.judge.labels is not None
    assert data.judge[0][0].dtype == torch.float32
    np.savez(tmp_path / "b.npz", calibrate_x=x[:30], tune_x=x[30:45], tune_y=y[30:45], judge_x=x[45:], judge_y=y[45:])
    data = load_data("npz:b.npz", base=tmp_path)
    assert [len(part) for part in (data.calibrate, data.tune, data.judge)] == [30, 15, 15]
    assert data.calibrate.labels is None


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04." * 9])
def test_files_that_are_no_archive(tmp_path: Path, content: bytes):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(SourceError):
        load_data("npz:a.npz", base=tmp_path)


def test_npz_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], object))
    np.savez(tmp_path / "named.npz", images=np.zeros((4, 2)))
    np.savez(tmp_path / "labels.npz", y=np.zeros(4))
    np.savez(tmp_path / "both.npz", x=np.zeros((4, 2)), judge_x=np.ones((4, 2)))
    for name, kind in (("pickled", SourceError), ("named", DataError), ("labels", DataError), ("both", DataError)):
        with pytest.raises(kind):
            load_data(f"npz:{name}.npz", base=tmp_path)
    with pytest.raises(SourceError, match="no such file"):
        load_data("npz:gone.npz", base=tmp_path)
    with pytest.raises(UsageError):
        load_data("npz:named.npz?size=3", base=tmp_path)
    monkeypatch.setattr("compressor.sources.tables.NPZ_LIMIT", 10)
    with pytest.raises(SourceError, match="at most 10"):
        load_data("npz:named.npz", base=tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for place in range(24):
        Image.fromarray(RANDOM.randint(0, 255, (20, 30, 3)).astype(np.uint8)).save(tmp_path / f"photos/{place}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("labels", "seen"), [(["cat", "dog"], {0, 1}), (["3", "0"], {0, 3}), (["0.5", "2"], {0.5, 2.0}), (None, None)]
)
def test_csv_of_pictures(photos: Path, labels: list[str] | None, seen: set[float] | None):
    rows = [f"photos/{i}.png" + (f",{labels[i % 2]}" if labels else "") for i in range(24)]
    (photos / "list.csv").write_text("\n".join(["path,label" if labels else "path", *rows]) + "\n")
    data = load_data("csv:list.csv?size=16", base=photos)
    assert data.judge[0][0].shape == (3, 16, 16)
    found = data.judge.labels
    assert seen == (None if found is None else set(found.tolist()))
    own = load_data("csv:list.csv", base=photos, transform=lambda image: torch.ones(2) * np.asarray(image).mean())
    assert own.judge[0][0].shape == (2,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "columns none"),
        ("file,label\na,1\n", "columns file, label"),
        ("path,label\n", "0 rows"),
        ("path,label\nphotos/0.png,\n", "line 2.*no label"),
        ("path\nphotos/0.png\nphotos/99.png\n", "line 3.*no file"),
    ],
)
def test_csv_refusals(photos: Path, text: str, words: str):
    (photos / "list.csv").write_text(text)
    with pytest.raises(CompressorError, match=words):
        load_data("csv:list.csv", base=photos)
    with pytest.raises(SourceError):
        load_data("csv:gone.csv", base=photos)


def test_npz_with_labels_of_another_number(tmp_path: Path):
    np.savez(tmp_path / "a.npz", judge_x=np.zeros((10, 2)), judge_y=np.zeros(9), calibrate_x=np.zeros((5, 2)))
    with pytest.raises(DataError, match=r"a.npz': got 10 rows of judge_x and 9 of judge_y"):
        load_data("npz:a.npz", base=tmp_path)


def test_words_are_numbered_as_the_network_numbers_its_classes():
    classes = {"positive": 0, "negative": 1, "neutral": 2}
    assert numbered("here", ["negative", "neutral", "positive"], classes) == [1, 2, 0]
    assert numbered("here", ["Negative", "POSITIVE"], classes) == [1, 0]
    assert numbered("here", ["1", "2"], classes) == [1, 2]
    assert numbered("here", ["negative", "positive"]) == [0, 1]
    with pytest.raises(DataError, match=r"got the label 'bad'; expected .*\(positive, negative, neutral\)"):
        numbered("here", ["negative", "bad"], classes)


@pytest.mark.parametrize("kind", ["csv", "imagefolder"])
def test_classes_are_those_of_what_prepares_the_images(photos: Path, kind: str):
    class Prepare:
        classes = {"cat": 1, "dog": 0}

        def __call__(self, picture: Image.Image) -> torch.Tensor:
            return torch.as_tensor(np.array(picture, dtype=np.float32))

    said = ["cat" if place < 20 else "dog" for place in range(24)]
    rows = [f"photos/{place}.png,{word}" for place, word in enumerate(said)]
    (photos / "list.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    for place, word in enumerate(said):
        (photos / "sorted" / word).mkdir(parents=True, exist_ok=True)
        (photos / f"photos/{place}.png").rename(photos / f"sorted/{word}/{place}.png") if kind != "csv" else None
    spec = "csv:list.csv" if kind == "csv" else "imagefolder:sorted"
    data = load_data(spec, base=photos, transform=Prepare())
    labels = [part.labels for part in (data.calibrate, data.tune, data.judge)]
    assert sum(int(found.sum()) for found in labels if found is not None) == 20

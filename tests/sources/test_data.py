import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.errors import DataError, SourceError, UsageError
from compressor.sources.data import data_of, load_data
from compressor.sources.named import image_folder
from compressor.sources.samples import as_samples, shared
from compressor.sources.splits import complete, refuse_labels, split_by_content

FACTORIES = """
import torch
from torch.utils.data import TensorDataset

def _pair(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=generator), torch.arange(count) % 4

def whole(count=100):
    return TensorDataset(*_pair(count))

def pair(count=100):
    return _pair(count)

def parts():
    return {"calibrate": _pair(40, 1), "judge": _pair(60, 2)}

def trained():
    return {"train": _pair(200, 1), "judge": _pair(60, 2)}

def overlapping():
    inputs, labels = _pair(60)
    return {"calibrate": (inputs[:40], labels[:40]), "judge": (inputs[30:], labels[30:])}

def misspelt():
    return {"calibrat": _pair(40)}

def only_train():
    return {"train": _pair(40)}

def nothing():
    return _pair(0)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data.py").write_text(FACTORIES)
    return tmp_path


def pair(count=100, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=generator), torch.arange(count) % 4


def disjoint(data):
    return not len(shared(data.calibrate, data.judge)) and not len(shared(data.tune, data.judge))


def test_split_is_disjoint_and_ignores_order():
    inputs, labels = pair(300)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(3))
    data, again = data_of((inputs, labels)), data_of((inputs[order], labels[order]))
    assert [len(data.calibrate), len(data.tune), len(data.judge)] == [105, 45, 150]
    assert disjoint(data)
    assert not len(shared(data.tune, data.calibrate))
    assert data.described == again.described
    assert torch.equal(data.judge.batch(range(9))[0], again.judge.batch(range(9))[0])
    assert data_of((inputs, labels), seed=1).judge.fingerprint != data.judge.fingerprint


def test_equal_inputs_are_never_in_two_parts():
    inputs, labels = pair(20)
    repeated = as_samples((inputs.repeat(30, 1), labels.repeat(30)))
    parts = split_by_content(repeated, {"one": 250, "two": 250, "three": 600})
    sizes = [len(part) for part in parts.values()]
    assert sum(sizes) == 600
    assert all(size % 30 == 0 for size in sizes)
    assert not len(shared(parts["one"], parts["two"]))
    assert not len(shared(parts["two"], parts["three"]))


def test_missing_parts_come_from_the_named_donor():
    data = complete({"calibrate": pair(100, 1), "judge": pair(50, 2)}, "test")
    assert (len(data.calibrate), len(data.tune), len(data.judge)) == (70, 30, 50)
    assert data.described["split_off"] == {"tune": "calibrate"}
    data = complete({"train": pair(500, 1), "judge": pair(50, 2)}, "test")
    assert (len(data.train), len(data.calibrate), len(data.tune)) == (400, 70, 30)
    assert not len(shared(data.train, data.tune))
    data = complete({"judge": pair(100, 1)}, "test")
    assert (len(data.calibrate), len(data.tune), len(data.judge)) == (35, 15, 50)
    assert disjoint(data)


def test_overlap_is_refused_where_both_were_given():
    inputs, labels = pair(60)
    with pytest.raises(DataError, match=r"calibrate data: got 10 inputs .*first: sample 30"):
        data_of((inputs[:40], labels[:40]), judge=(inputs[30:], labels[30:]))
    with pytest.raises(DataError, match="tune data: got 60"):
        data_of(pair(30, 5), tune=inputs, judge=(inputs, labels))


def test_judge_inputs_leave_the_training_data():
    inputs, labels = pair(60)
    data = data_of(pair(30, 5), judge=(inputs[30:], labels[30:]), train=(inputs[:40], labels[:40]), tune=pair(30, 6))
    assert len(data.train) == 30
    assert data.described["dropped"] == {"train": 10}


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        ("data.py:whole?count=40", (14, 6, 20)),
        ("data.py:pair", (35, 15, 50)),
        ("data.py:parts", (28, 12, 60)),
    ],
)
def test_factories(folder: Path, spec, sizes):
    data = load_data(spec, base=folder)
    assert (len(data.calibrate), len(data.tune), len(data.judge)) == sizes
    assert data.described["source"] == spec
    assert data.described["judge"] == data.judge.fingerprint


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("data.py:overlapping", DataError, "10 inputs that are also in the judge"),
        ("data.py:misspelt", DataError, "did you mean 'calibrate'"),
        ("data.py:only_train", DataError, "give 'judge'"),
        ("data.py:nothing", DataError, "0 samples"),
        ("data.py:whole?count=2", DataError, "leave none for"),
        ("data.py:wholes", SourceError, "did you mean 'whole'"),
        ("absent.py:whole", SourceError, "no file"),
        ("digit", SourceError, "did you mean 'digits'"),
        ("digits?size=3", UsageError, "arguments for digits"),
        ("imagefolder:absent", SourceError, "no such folder"),
        ("imagefolder:.?size=big", UsageError, "positive whole number"),
        ("imagefolder:.?sise=8", UsageError, "did you mean 'size'"),
        ("imagefolder:.", SourceError, "class folders"),
    ],
)
def test_refusals_of_specs(folder: Path, spec, kind, words):
    with pytest.raises(kind, match=words):
        load_data(spec, base=folder)


def test_labels_are_checked_against_the_outputs():
    samples = as_samples((pair(8)[0], torch.tensor([0, 1, 2, 0, 7, 1, -1, 2])), name="judge data")
    with pytest.raises(DataError, match=r"judge data, sample 4: got label 7 \(2 such samples\); expected 0\.\.2"):
        refuse_labels(samples, 3)
    refuse_labels(as_samples(pair(8)), 4)
    for unlabelled in (as_samples(pair(8)[0]), as_samples((pair(8)[0], torch.rand(8)))):
        with pytest.raises(DataError, match="label"):
            refuse_labels(unlabelled, 3)


def test_digits():
    data = load_data("digits")
    assert len(data.judge) >= 600
    assert disjoint(data)
    assert not len(shared(data.train, data.judge))
    assert not len(shared(data.train, data.tune))
    assert data.judge[0][0].shape == (1, 8, 8)
    whole = torch.cat([data.judge.batch(range(700))[0], data.train.batch(range(len(data.train)))[0]])
    assert abs(float(whole.mean())) < 0.02
    assert abs(float(whole.std()) - 1) < 0.02
    refuse_labels(data.judge, 10)


def write_fashion(folder: Path, train=5040, test=30) -> None:
    random = np.random.RandomState(1)
    for kind, count in (("train", train), ("t10k", test)):
        pixels = random.randint(0, 256, (count, 28, 28), np.uint8)
        head = np.array([2051, count, 28, 28], ">u4").tobytes()
        (folder / f"{kind}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pixels.tobytes(), 1))
        head = np.array([2049, count], ">u4").tobytes()
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{kind}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + labels.tobytes(), 1))


def test_fashion_mnist_from_a_folder(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("FASHION_MNIST", str(tmp_path))
    with pytest.raises(SourceError, match="FileNotFoundError"):
        load_data("fashion-mnist")
    write_fashion(tmp_path)
    data = load_data("fashion-mnist")
    assert (len(data.train), len(data.calibrate), len(data.tune), len(data.judge)) == (40, 3500, 1500, 30)
    held = np.random.RandomState(0).permutation(5040)[40:]
    counted = torch.bincount(torch.cat([data.calibrate.labels, data.tune.labels]), minlength=10)
    assert torch.equal(counted, torch.bincount(torch.from_numpy(held % 10), minlength=10))
    assert data.judge.labels.tolist() == [place % 10 for place in range(30)]
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(SourceError, match="train-images"):
        load_data("fashion-mnist")


def test_downloads_fail_politely(tmp_path: Path, monkeypatch):
    def no_network(*arguments, **more):
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("compressor.sources.named._DEBIAN", tmp_path / "absent")
    monkeypatch.delenv("FASHION_MNIST", raising=False)
    for name in ("fashion-mnist", "cifar10"):
        with pytest.raises(SourceError, match="no download") as caught:
            load_data(name)
        assert caught.value.exit_code == 3


def test_cifar10(monkeypatch, tmp_path: Path):
    class Fake:
        def __init__(self, root, train, download):
            random = np.random.RandomState(int(train))
            self.data = random.randint(0, 256, (5040 if train else 30, 32, 32, 3), np.uint8)
            self.targets = [place % 10 for place in range(len(self.data))]

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Fake)
    monkeypatch.setenv("CIFAR10", str(tmp_path))
    data = load_data("cifar10")
    assert (len(data.train), len(data.calibrate), len(data.tune), len(data.judge)) == (40, 3500, 1500, 30)
    first = np.random.RandomState(0).randint(0, 256, (30, 32, 32, 3), np.uint8)[0]
    wanted = (first[5, 6, 2] / 255 - 0.4465) / 0.2616
    assert abs(float(data.judge[0][0][2, 5, 6]) - wanted) < 1e-5
    assert data.judge.name == "judge data"


def test_cifar100(monkeypatch, tmp_path: Path):
    (tmp_path / "cifar-100-python").mkdir()
    for name, count in (("train", 5040), ("test", 30)):
        pixels = np.random.RandomState(count).randint(0, 256, (count, 3072), np.uint8)
        labels = [place % 100 for place in range(count)]
        (tmp_path / "cifar-100-python" / name).write_bytes(pickle.dumps({"data": pixels, "fine_labels": labels}))
    monkeypatch.setattr("torchvision.datasets.CIFAR100._check_integrity", lambda self: True)  # it knows the real files
    monkeypatch.setattr("torchvision.datasets.CIFAR100._load_meta", lambda self: None)
    monkeypatch.setenv("CIFAR100", str(tmp_path))
    data = load_data("cifar100")
    assert (len(data.train), len(data.judge), int(data.judge.labels.max())) == (40, 30, 29)
    assert int(data.calibrate.labels.max()) == 99
    red = np.random.RandomState(30).randint(0, 256, (30, 3072), np.uint8)[0, 5 * 32 + 6]
    assert float(data.judge[0][0][0, 5, 6]) == pytest.approx((red / 255 - 0.5071) / 0.2673, abs=1e-5)


def paint(folder: Path, count: int, seed: int, size=40) -> None:
    from PIL import Image

    random = np.random.RandomState(seed)
    for kind in ("cat", "dog"):
        (folder / kind).mkdir(parents=True)
        for place in range(count):
            Image.fromarray(random.randint(0, 256, (size, size, 3), np.uint8)).save(folder / kind / f"{place}.png")


def test_image_folder(tmp_path: Path):
    paint(tmp_path / "flat", 10, 0)
    data = load_data("imagefolder:flat?size=32", base=tmp_path)
    assert (len(data.calibrate), len(data.tune), len(data.judge)) == (7, 3, 10)
    assert data.judge[0][0].shape == (3, 32, 32)
    assert load_data("imagefolder:flat?limit=8", base=tmp_path).described["samples"]["judge"] == 4
    paint(tmp_path / "split" / "val", 6, 1)
    paint(tmp_path / "split" / "train", 10, 2)
    mean = lambda image: torch.full((1,), float(np.asarray(image).mean()))  # noqa: E731
    data = load_data("imagefolder:split", base=tmp_path, transform=mean)
    assert data.described["samples"] == {"train": 16, "calibrate": 3, "tune": 1, "judge": 12}
    assert data.judge[0][0].shape == (1,)
    for place in ("flat", "split"):
        parts = image_folder(tmp_path / place, mean, classes={"dog": 0, "cat": 1})
        for part in parts.values() if isinstance(parts, dict) else [parts]:
            half = len(part) // 2
            assert [part[at][1] for at in range(len(part))] == [1] * half + [0] * half
    (tmp_path / "split" / "val" / "cat" / "0.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(DataError, match="can be read"):
        load_data("imagefolder:split?size=16", base=tmp_path)
    (tmp_path / "split" / "val" / "dog").rename(tmp_path / "split" / "val" / "dogs")
    with pytest.raises(DataError, match="different class folders"):
        load_data("imagefolder:split", base=tmp_path)

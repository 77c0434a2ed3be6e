"""Datasets that have a name: digits, Fashion-MNIST, CIFAR-10 and -100, a folder of images."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from compressor.errors import DataError, SourceError
from compressor.sources.network import cache_folder, impatient
from compressor.sources.samples import Samples, as_samples
from compressor.sources.splits import split_by_content

DIGITS_JUDGE, DIGITS_TUNE = 700, 250
HELD_OUT = 5_000
"""Training images of Fashion-MNIST and CIFAR that stay out of training, for calibrate and tune."""

IMAGE_LIMIT = 20_000
"""Images that are taken from one folder at most, chosen by a hash of their paths."""

_IDX_LIMIT = 2**28
"""Bytes of an IDX file behind its header at most."""

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_CIFAR_MEAN, _CIFAR_DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_CIFAR100_MEAN, _CIFAR100_DEVIATION = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Parts = dict[str, Any]


def digits(seed: int = 0) -> Parts:
    """scikit-learn's 1,797 handwritten digits, (N, 1, 8, 8), normalised to mean 0 and deviation 1.

    700 judge, 250 tune; the others train and calibrate (which uses no labels).
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(np.asarray(pixels, np.float32).reshape(-1, 1, 8, 8))
    whole = as_samples(((images - 4.884) / 6.017, torch.from_numpy(np.asarray(labels, np.int64))), name="digits")
    rest = len(whole)
    parts = split_by_content(whole, {"judge": DIGITS_JUDGE, "tune": DIGITS_TUNE, "calibrate": rest}, seed)
    return {**parts, "train": parts["calibrate"]}


def fashion_mnist(seed: int = 0) -> Parts:
    """Fashion-MNIST, (N, 1, 28, 28), normalised: 55,000 train, 5,000 calibrate and tune, 10,000 judge.

    From `$FASHION_MNIST` (a folder of the four .gz files), Debian's dataset-fashion-mnist, or torchvision's
    download, in this order. The 55,000 are the same for every seed.
    """
    folder = _fashion_folder()
    images, labels = _idx_pair(folder, "train")
    return _with_held_out(images, labels, _idx_pair(folder, "t10k"))


def cifar10(seed: int = 0) -> Parts:
    """CIFAR-10, (N, 3, 32, 32), normalised: 45,000 train, 5,000 calibrate and tune, 10,000 judge.

    From `$CIFAR10` (a folder with cifar-10-batches-py in it) or torchvision's download.
    """
    from torchvision.datasets import CIFAR10

    return _cifar(CIFAR10, "cifar10", "cifar-10-batches-py", _CIFAR_MEAN, _CIFAR_DEVIATION)


def cifar100(seed: int = 0) -> Parts:
    """CIFAR-100 (100 classes), otherwise as `cifar10`; from `$CIFAR100` (with cifar-100-python in it) or a download."""
    from torchvision.datasets import CIFAR100

    return _cifar(CIFAR100, "cifar100", "cifar-100-python", _CIFAR100_MEAN, _CIFAR100_DEVIATION)


def _cifar(kind: Any, name: str, inner: str, means: tuple[float, ...], deviations: tuple[float, ...]) -> Parts:
    root = Path(os.environ.get(name.upper()) or cache_folder() / name)

    def read(train: bool) -> tuple[Tensor, Tensor]:
        with _downloading(name, name.upper()):
            found = kind(str(root), train=train, download=not (root / inner).is_dir())
        images = torch.from_numpy(np.asarray(found.data)).permute(0, 3, 1, 2).float() / 255
        mean, deviation = (torch.tensor(row).view(1, 3, 1, 1) for row in (means, deviations))
        return (images - mean) / deviation, torch.tensor(found.targets, dtype=torch.int64)

    images, labels = read(train=True)
    return _with_held_out(images, labels, read(train=False))


def image_folder(
    folder: Path,
    transform: Callable[[Any], Any] | None = None,
    size: int | None = None,
    limit: int = IMAGE_LIMIT,
    classes: Mapping[str, int] | None = None,
) -> Parts | Any:
    """A folder of class folders, or one with `train`, `val` and / or `test` in it.

    `test` judges and `val` tunes; a lone one of them judges and gives what is missing.

    Preprocessing: `size` (ImageNet's way at that size), else `transform` (of the model's weights), else
    ImageNet's at 224: shorter side to size * 256 / 224, the centre cut out, ImageNet's mean and deviation. Class
    folders are numbered as in `classes` (the network's, by their words) where all have their names, else in order.
    """
    if not folder.is_dir():
        kind = "a file" if folder.exists() else "no such folder"
        raise SourceError(f"data 'imagefolder:{folder}'", kind, "a folder of classes", "check the path.")
    transform = transform if transform is not None and size is None else imagenet_transform(size or 224)
    inner = {name: folder / name for name in ("train", "val", "test") if (folder / name).is_dir()}
    if not inner:
        return _one_folder(folder, transform, limit, classes)[0]
    sets: dict[str, Subset[Any]] = {}
    found: dict[str, list[str]] = {}
    for name, path in inner.items():
        sets[name], found[name] = _one_folder(path, transform, limit, classes)
    if any(names != next(iter(found.values())) for names in found.values()):
        raise DataError(
            f"data 'imagefolder:{folder}'",
            f"different class folders in {', '.join(found)}",
            "the same classes in each, as labels are numbered by them",
            "remove empty or foreign folders.",
        )
    return parts_of_splits(sets)


def parts_of_splits(sets: Mapping[str, Any]) -> Parts:
    """`train`, `val` and `test` as parts of a run's data: `test` judges and `val` tunes; a lone one of them judges."""
    parts = {"train": sets["train"]} if "train" in sets else {}
    if "test" in sets and "val" in sets:
        return {**parts, "tune": sets["val"], "judge": sets["test"]}
    held = sets.get("test") or sets.get("val")
    return parts if held is None else {**parts, "judge": held}


def _one_folder(
    folder: Path, transform: Callable[[Any], Any], limit: int, classes: Mapping[str, int] | None
) -> tuple[Subset[Any], list[str]]:
    """Its images, and the names of its classes."""
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(folder), transform=transform)
    except (FileNotFoundError, OSError) as error:
        raise SourceError(
            f"data 'imagefolder:{folder}'",
            str(error).splitlines()[0],
            "a folder of class folders with images",
            "put the images of each class into a folder of its own.",
        ) from error
    if classes is not None and set(found.classes) <= set(classes):
        numbers = [classes[name] for name in found.classes]
        found.target_transform = numbers.__getitem__
    names = [Path(path).relative_to(folder).as_posix() for path, _ in found.samples]
    order = sorted(range(len(names)), key=lambda place: hashlib.sha256(names[place].encode()).digest())
    return Subset(found, sorted(order[:limit])), found.classes


def imagenet_transform(size: int) -> Callable[[Any], Any]:
    """Shorter side to size * 256 / 224, the centre cut out, ImageNet's mean and deviation."""
    from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

    steps = [Resize(round(size * 256 / 224)), CenterCrop(size), ToTensor()]
    return Compose([*steps, Normalize(_IMAGENET_MEAN, _IMAGENET_DEVIATION)])


def _with_held_out(images: Tensor, labels: Tensor, test: tuple[Tensor, Tensor]) -> Parts:
    order = np.random.RandomState(0).permutation(len(images))
    whole: Samples = as_samples((images, labels), name="training images")
    train, held = order[:-HELD_OUT], order[-HELD_OUT:]
    return {"train": whole.take(train), "calibrate": whole.take(held), "judge": test}


def _fashion_folder() -> Path:
    given = os.environ.get("FASHION_MNIST")
    if given or _DEBIAN.is_dir():
        return Path(given) if given else _DEBIAN
    from torchvision.datasets import FashionMNIST

    root = cache_folder() / "fashion-mnist"
    with _downloading("fashion-mnist", "FASHION_MNIST"):
        FashionMNIST(str(root), download=True)
    return root / "FashionMNIST" / "raw"


def _idx_pair(folder: Path, kind: str) -> tuple[Tensor, Tensor]:
    images = _idx(folder / f"{kind}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
    labels = _idx(folder / f"{kind}-labels-idx1-ubyte.gz", 8)
    if len(images) != len(labels):
        raise SourceError(f"data {folder}", f"{len(images)} images, {len(labels)} labels", "pairs", "reinstall it.")
    normalised = (torch.from_numpy(images.copy()).float() / 255 - 0.2860) / 0.3530
    return normalised, torch.from_numpy(labels.astype(np.int64))


def _idx(path: Path, header: int) -> np.ndarray:
    """The bytes of a gzipped IDX file behind its header, which must say how many there are."""
    try:
        with gzip.open(path) as file:
            content = file.read(header)
            count = math.prod(int(size) for size in np.frombuffer(content[4:], ">u4"))
            content += file.read(min(count, _IDX_LIMIT) + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise SourceError(
            f"data file {path}",
            f"{type(error).__name__}: {error}",
            "the four .gz files of Fashion-MNIST in one folder",
            "apt install dataset-fashion-mnist, or set FASHION_MNIST to their folder.",
        ) from error
    if len(content) != header + count:
        raise SourceError(f"data file {path}", f"{len(content)} bytes", "an IDX file as its header says", "reinstall.")
    return np.frombuffer(content, np.uint8, offset=header)


@contextmanager
def _downloading(name: str, variable: str) -> Iterator[None]:
    try:
        with impatient():
            yield
    except (OSError, RuntimeError, EOFError) as error:
        raise SourceError(
            f"data {name!r}",
            f"no files, and no download: {type(error).__name__}: {error}",
            "the dataset on this machine, or a network",
            f"set {variable} to a folder that holds it.",
        ) from error


NAMED: Mapping[str, Callable[..., Parts]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
}

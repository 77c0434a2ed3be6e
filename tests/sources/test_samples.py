import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset

from compressor.errors import DataError
from compressor.sources.samples import as_samples, batches, runs, shared
from compressor.sources.stores import READ_LIMIT, MemoryStore, read_stream


class Listed(Dataset):
    """A map-style dataset that counts how often it was read."""

    def __init__(self, inputs, labels=None, change=None):
        self.inputs, self.labels, self.change, self.reads = inputs, labels, change, 0

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, place):
        self.reads += 1
        image = self.inputs[place]
        image = image if self.change is None else self.change(image)
        return image if self.labels is None else (image, int(self.labels[place]))


def images(count=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 4, 4, generator=generator), torch.arange(count) % 3


def test_pair_dataset_and_loader_are_the_same_samples():
    inputs, labels = images()
    forms = [
        (inputs, labels),
        (inputs.numpy(), labels.numpy()),
        TensorDataset(inputs, labels),
        Listed(inputs, labels),
        [(image, int(label)) for image, label in zip(inputs, labels, strict=True)],
        DataLoader(TensorDataset(inputs, labels), batch_size=7, shuffle=True),
        DataLoader(Listed(inputs, labels), batch_size=7, shuffle=True, drop_last=True),
        ((inputs[i : i + 8], labels[i : i + 8]) for i in range(0, 50, 8)),
    ]
    for form in forms:
        samples = as_samples(form)
        assert len(samples) == 50
        read = list(batches(samples, 16))
        assert torch.equal(torch.cat([batch.ids for batch in read]), torch.arange(50))
        assert torch.equal(torch.cat([batch.inputs for batch in read]), inputs)
        assert torch.equal(torch.cat([batch.labels for batch in read]), labels)
        assert samples.fingerprint == as_samples((inputs, labels)).fingerprint
        image, label = samples[3]
        assert torch.equal(image, inputs[3])
        assert int(label) == 0


def test_fingerprint_ignores_order_and_sees_content():
    inputs, labels = images()
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    whole = as_samples((inputs, labels)).fingerprint
    assert as_samples((inputs[order], labels[order])).fingerprint == whole
    assert as_samples((inputs, labels)).take(order).fingerprint == whole
    assert as_samples((inputs, (labels + 1) % 3)).fingerprint != whole
    changed = inputs.clone()
    changed[7, 0, 0, 0] += 1e-6
    assert as_samples((changed, labels)).fingerprint != whole


def test_shared_samples_are_found_without_labels():
    inputs, labels = images()
    judge = as_samples((inputs[:20], labels[:20]))
    assert shared(judge, as_samples(inputs[15:])).tolist() == [15, 16, 17, 18, 19]


def test_trees_of_inputs():
    first, labels = images(10)
    second = torch.arange(20).reshape(10, 2)
    named = as_samples([{"a": first[i], "b": second[i], "label": int(labels[i])} for i in range(10)])
    paired = as_samples(((first, second), labels))
    (batch,) = batches(named, 10, dtype=torch.float64)
    assert batch.inputs["a"].dtype == torch.float64
    assert batch.inputs["b"].dtype == torch.int64
    assert torch.equal(next(batches(paired, 4)).inputs[1], second[:4])
    assert len(set(named.hashes.tolist())) == 10


def test_subset_sampler_means_its_subset():
    inputs, labels = images()
    loader = DataLoader(Listed(inputs, labels), batch_size=4, sampler=SubsetRandomSampler([9, 2, 5]))
    assert torch.equal(as_samples(loader).batch([0, 1, 2])[0], inputs[[2, 5, 9]])


def test_own_collate_is_used():
    def collate(items):
        return torch.stack([image * 2 for image, _ in items]), torch.tensor([label for _, label in items])

    inputs, labels = images(6)
    samples = as_samples(DataLoader(Listed(inputs, labels), batch_size=3, collate_fn=collate))
    assert torch.equal(samples.batch(range(6))[0], inputs * 2)


def test_small_dataset_is_read_once_and_kept():
    inputs, labels = images()
    dataset = Listed(inputs, labels)
    samples = as_samples(dataset)
    samples.hashes
    reads = dataset.reads
    list(batches(samples, 8))
    samples.take([1, 2]).fingerprint
    assert dataset.reads == reads


def test_random_augmentation_is_refused_and_random_state_kept():
    inputs, labels = images()
    state, python_state = torch.get_rng_state(), random.getstate()
    for noise in (
        lambda image: image + 0.1 * torch.randn_like(image),
        lambda image: image.flip(-1) if random.random() < 0.5 else image,
        lambda image: image * float(np.random.rand()),
    ):
        with pytest.raises(DataError, match="a different input when read a second time"):
            as_samples(Listed(inputs, labels, noise), name="judge data")
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state


def test_late_change_is_noticed(monkeypatch):
    monkeypatch.setattr("compressor.sources.samples.KEEP_LIMIT", 1)
    inputs, labels = images()
    samples = as_samples(Listed(inputs, labels))
    samples.hashes
    inputs[20] += 1
    samples.batch([19])
    with pytest.raises(DataError, match="sample 20"):
        samples.batch([19, 20])


def test_nan_names_the_sample():
    inputs, labels = images()
    inputs[33, 0, 1, 1] = float("nan")
    with pytest.raises(DataError, match="judge, sample 33: got NaN"):
        as_samples((inputs, labels), name="judge").hashes


class Stream(IterableDataset):
    def __init__(self, inputs):
        self.inputs = inputs

    def __iter__(self):
        return ((image, place % 2) for place, image in enumerate(self.inputs))


def test_streams_are_read_once_under_a_limit():
    inputs, _ = images(12)
    assert len(as_samples(Stream(inputs))) == 12
    samples = as_samples(DataLoader(Stream(inputs), batch_size=5))
    assert samples.labels.tolist() == [0, 1] * 6
    with pytest.raises(DataError, match="GiB"):
        read_stream(Stream(inputs), batched=False, limit=100)
    assert READ_LIMIT >= 1024**3


def test_refusals():
    inputs, labels = images(6)
    cases = [
        (Listed([]), "0 samples"),
        ((inputs, labels[:5]), "one and the same number"),
        ((inputs.to(torch.uint8), labels), "uint8"),
        (Listed([torch.zeros(1, 4, 4), torch.zeros(1, 4, 5)]), r"\(1, 4, 5\)"),
        ([(inputs[0], 1, 2)], "3 parts"),
        (["a.png", "b.png"], "a str"),
        (7, "a int"),
        ({"a": inputs}, "a dict"),
    ]
    for data, words in cases:
        with pytest.raises(DataError, match=words):
            as_samples(data).hashes


def test_unreadable_sample_is_named():
    def broken(image):
        raise OSError("truncated image")

    with pytest.raises(DataError, match="sample 0: got OSError: truncated image"):
        as_samples(Listed(images(3)[0], None, broken))


def test_medmnist_like_labels_and_regression():
    inputs, labels = images(6)
    assert as_samples((inputs, labels[:, None])).labels.shape == (6,)
    assert as_samples((inputs, torch.rand(6, 2))).labels.shape == (6, 2)
    assert isinstance(as_samples(inputs)._store, MemoryStore)
    assert as_samples(inputs).labels is None


@pytest.mark.parametrize(("count", "size"), [(33, 16), (33, 32), (34, 16), (7, 3), (1, 4), (3, 1), (5, 2), (4, 3)])
def test_batches_cover_all_samples_and_none_is_single_if_that_can_be_helped(count, size):
    found = list(runs(count, size))
    assert [place for start, stop in found for place in range(start, stop)] == list(range(count))
    sizes = [stop - start for start, stop in found]
    assert max(sizes) <= size
    assert count == 1 or size < 3 or min(sizes) > 1


def test_samples_where_batches_are_expected_are_refused():
    with pytest.raises(DataError, match="one label to an item"):
        as_samples((torch.zeros(1, 4), number) for number in range(5))


class Drawn(IterableDataset):
    """A stream that draws its samples from the global generators."""

    def __iter__(self):
        for _ in range(4):
            yield torch.randn(2) + float(np.random.rand()) + random.random()


def drawn_batches():
    yield from DataLoader(Drawn(), batch_size=2)


@pytest.mark.parametrize("made", [Drawn, lambda: DataLoader(Drawn(), batch_size=2), drawn_batches])
def test_streams_draw_from_generators_of_their_own(made):
    reads = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        reads.append(as_samples(made()).batch(range(4))[0])
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    assert torch.equal(*reads)

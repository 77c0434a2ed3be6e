from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor.algebra.answers import class_scores, hits
from compressor.errors import DataError, ModelError
from compressor.sources.samples import as_samples
from compressor.verify.accuracy import (
    accuracy,
    check_signal,
    checked_labels,
    out_of_memory,
    outputs_of,
)


def data(n: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator), torch.randint(0, 4, (n,), generator=generator)


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))


def test_outputs_are_those_of_a_plain_loop_and_nothing_is_changed() -> None:
    inputs, labels = data()
    model = network().train()
    model[3].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = network().eval()(inputs).detach()
    torch.manual_seed(5)
    random_state = torch.get_rng_state()
    found = outputs_of(model, as_samples((inputs, labels)), batch_size=7)
    torch.testing.assert_close(found.logits, expected)
    assert found.labels is not None
    assert torch.equal(found.labels, labels)
    assert found.judged == "the output"
    assert not found.logits.requires_grad
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model] == [True, True, True, False, True]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_modes_come_back_after_an_error() -> None:
    model = network().train()
    with pytest.raises(ModelError, match="30 samples of shape"):
        outputs_of(model, as_samples(torch.randn(30, 5)))
    assert model.training
    assert all(module.training for module in model)


def test_a_double_network_takes_float_inputs() -> None:
    inputs, _ = data()
    found = outputs_of(network().double(), as_samples(inputs))
    assert found.logits.dtype == found.dtype == torch.float64
    assert found.labels is None


def test_half_outputs_are_widened_but_remembered() -> None:
    found = outputs_of(lambda x: x.to(torch.bfloat16), as_samples(data()[0]))
    assert (found.logits.dtype, found.dtype) == (torch.float32, torch.bfloat16)


def test_class_numbers_are_refused() -> None:
    with pytest.raises(ModelError, match=r"torch.int64 of shape \(30,\)"):
        outputs_of(lambda x: x.argmax(1), as_samples(data()[0]))


def test_dict_and_tuple_inputs_reach_the_network() -> None:
    class Two(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left - 2 * right

    left, right = data(seed=1)[0], data(seed=2)[0]
    for inputs in ({"right": right, "left": left}, (left, right)):
        samples = as_samples([(inputs_at(inputs, place), 0) for place in range(len(left))])
        torch.testing.assert_close(outputs_of(Two(), samples).logits, left - 2 * right)


def test_a_network_that_takes_one_dict_is_told_how_to_be_wrapped() -> None:
    class OneDict(nn.Module):
        def forward(self, x: dict[str, Tensor]) -> Tensor:
            return x["left"] - 2 * x["right"]

    rows = data(seed=1)[0]
    samples = as_samples([({"left": row, "right": row}, 0) for row in rows])
    with pytest.raises(ModelError, match=r"left, right by keyword.*self\.network\({'left': left, 'right': right}\)"):
        outputs_of(OneDict(), samples)


def inputs_at(inputs: Any, place: int) -> Any:
    if isinstance(inputs, dict):
        return {name: value[place] for name, value in inputs.items()}
    return tuple(value[place] for value in inputs)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
        type("RuntimeException", (Exception,), {})("Failed to allocate memory for requested buffer"),
    ],
)
def test_a_batch_that_does_not_fit_is_halved(error: Exception) -> None:
    inputs, labels = data(33)
    sizes: list[int] = []

    def hungry(x: Tensor) -> Tensor:
        sizes.append(len(x))
        if len(x) > 5:
            raise error
        return x * 2

    found = outputs_of(hungry, as_samples((inputs, labels)), batch_size=16)
    torch.testing.assert_close(found.logits, inputs * 2)
    assert sizes[:3] == [16, 8, 4]
    assert max(sizes[3:]) == 4
    assert found.batch_size == 4
    assert found.labels is not None
    assert torch.equal(found.labels, labels)


def test_not_even_one_sample_fits() -> None:
    def never(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(ModelError, match="not even a single sample"):
        outputs_of(never, as_samples(data()[0]), batch_size=4)
    assert not out_of_memory(RuntimeError("shapes do not match"))


def test_nan_inputs_name_the_sample() -> None:
    inputs, _ = data()
    samples = as_samples(inputs)
    inputs[17, 2] = float("nan")
    with pytest.raises(DataError, match="sample 17: got NaN"):
        outputs_of(network(), samples, batch_size=8)


def test_empty_data_is_refused() -> None:
    with pytest.raises(DataError, match="no samples"):
        outputs_of(network(), as_samples(data()[0]).take([]))


def test_outputs_without_signal_are_refused() -> None:
    samples = as_samples(data()[0])
    with pytest.raises(ModelError, match="the same output for all 30 samples"):
        outputs_of(lambda x: torch.ones(len(x), 4) * 3 + 1e-7 * x[:, :4], samples)
    with pytest.raises(ModelError, match=r"sample 4: got NaN or infinity \(in 1 of 30"):
        outputs_of(lambda x: torch.where(torch.arange(len(x))[:, None] == 4, torch.inf, x), samples)
    small = outputs_of(lambda x: 1e-9 * x, samples)  # small outputs are outputs
    check_signal(small)
    compressed = outputs_of(lambda x: torch.full((len(x), 4), torch.nan), samples, check=False)
    assert hits(compressed.logits, torch.zeros(30, dtype=torch.int64)).sum() == 0


def test_rows_must_be_samples() -> None:
    with pytest.raises(ModelError, match=r"of shape \(1, 6\) for 30 samples"):
        outputs_of(lambda x: x.mean(0, keepdim=True), as_samples(data()[0]))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([0, 1, 4, 9]), "sample 2: got label 4; expected 0 to 3"),
        (torch.tensor([0, -100, 1, 1]), "sample 1: got label -100"),
        (torch.tensor([0.0, 1.5, 2.0, 1.0]), "torch.float32"),
        (torch.eye(4, dtype=torch.int64), "not one-hot"),
        (torch.tensor([0, 1]), r"shape \(2,\) for outputs of shape \(4, 4\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        checked_labels(labels, torch.randn(4, 4))


def test_labels_may_have_a_column() -> None:
    labels = torch.tensor([[0], [3], [1]])
    assert checked_labels(labels, torch.randn(3, 4)).tolist() == [0, 3, 1]
    assert checked_labels(labels.int(), torch.randn(3, 4)).dtype == torch.int64


def test_one_score_is_a_class_of_two() -> None:
    for logits in (torch.tensor([[-2.0], [0.5], [3.0]]), torch.tensor([-2.0, 0.5, 3.0])):
        assert class_scores(logits).argmax(1).tolist() == [0, 1, 1]
        labels = checked_labels(torch.tensor([0, 0, 1]), logits)
        assert hits(logits, labels).tolist() == [1, 0, 1]
        with pytest.raises(DataError, match="label 2; expected 0 to 1"):
            checked_labels(torch.tensor([0, 1, 2]), logits)


def test_maps_score_the_share_of_positions() -> None:
    logits = torch.zeros(2, 3, 2, 2)
    logits[:, 1] = 1
    labels = torch.ones(2, 2, 2, dtype=torch.int64)
    labels[1, 0, 0] = 2
    assert hits(logits, checked_labels(labels, logits)).tolist() == [1.0, 0.75]
    pooled = torch.randn(5, 3, 1, 1)
    assert checked_labels(torch.tensor([0, 1, 2, 0, 1]), pooled).shape == (5,)
    with pytest.raises(DataError, match="one class number per sample and position"):
        checked_labels(torch.tensor([0, 1]), logits)


def test_hits_agree_with_numpy() -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(200, 5)), generator.integers(0, 5, 200)
    found = hits(torch.from_numpy(logits), torch.from_numpy(labels))
    np.testing.assert_array_equal(found.numpy(), logits.argmax(1) == labels)
    both = outputs_of(lambda x: x, as_samples((torch.from_numpy(logits), torch.from_numpy(labels))))
    assert accuracy(both) == pytest.approx(100 * np.mean(logits.argmax(1) == labels))
    with pytest.raises(DataError, match="no labels"):
        accuracy(outputs_of(lambda x: x, as_samples(torch.from_numpy(logits))))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_a_copy_runs_on_the_device() -> None:
    inputs, labels = data()
    model = network()
    state = torch.cuda.get_rng_state()
    here, there = (outputs_of(model, as_samples((inputs, labels)), device=place) for place in ("cpu", "cuda"))
    assert next(model.parameters()).device.type == "cpu"
    assert there.logits.device.type == "cpu"
    torch.testing.assert_close(here.logits, there.logits, rtol=1e-3, atol=1e-3)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    moved = outputs_of(model.cuda(), as_samples((inputs, labels)))
    torch.testing.assert_close(moved.logits, there.logits)


def test_a_network_that_ends_in_a_sigmoid_answers_two_classes() -> None:
    odds = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    labels = (odds[:, 0] > 0).long()
    worse = odds.clone()
    worse[:40] = -odds[:40]
    for answers in (odds, odds.sigmoid()):
        assert float(hits(answers, labels).mean()) == 1.0
    assert float(hits(worse.sigmoid(), labels).mean()) == 0.8


def test_labels_of_positions_may_be_left_out_but_not_of_a_whole_sample() -> None:
    logits, labels = torch.randn(4, 3, 6), torch.zeros(4, 6, dtype=torch.int64)
    labels[1, 2:], labels[2, 0] = -100, 255
    assert torch.equal(checked_labels(labels, logits), labels)
    with pytest.raises(DataError, match=r"sample 1: got label 7; expected 0 to 2"):
        checked_labels(labels.masked_fill(torch.arange(6) == torch.tensor([9, 1, 9, 9])[:, None], 7), logits)
    labels[3] = -100
    with pytest.raises(DataError, match="sample 3: got no position that counts"):
        checked_labels(labels, logits)
    with pytest.raises(DataError, match="label -100"):
        checked_labels(torch.tensor([0, -100]), torch.randn(2, 3))


def test_shapes_that_change_from_batch_to_batch_are_refused() -> None:
    def growing(x: Tensor) -> Tensor:
        return x[:, : 2 + int(x[0, 0])]

    inputs = torch.arange(40.0)[:, None].expand(40, 6).clamp(max=3)
    with pytest.raises(ModelError, match=r"shape \(5,\) for a sample, and \(2,\)"):
        outputs_of(growing, as_samples(inputs), batch_size=4)


def test_answers_larger_than_memory_wait_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, labels = data(100)
    plain = outputs_of(network(), as_samples((inputs, labels)))
    monkeypatch.setattr("compressor.verify.accuracy.free_of", lambda _: 100.0)
    found = outputs_of(network(), as_samples((inputs, labels)))
    assert found.logits.untyped_storage().filename is not None
    assert plain.logits.untyped_storage().filename is None
    assert torch.equal(found.logits, plain.logits)
    assert accuracy(found) == accuracy(plain)


def test_large_answers_come_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def wide(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x.repeat(1, 100)

    monkeypatch.setattr("compressor.verify.accuracy.memory_of", lambda _: 64 * 8.0 * 600 * 4)
    outputs_of(wide, as_samples(data(60)[0]))
    assert sizes == [32, 8, 8, 8, 4]


def test_a_score_of_one_s_own_reads_answers_as_the_network_gave_them() -> None:
    from compressor.verify.judge import judge
    from compressor.verify.scores import Score

    targets = torch.randn(20, 3, 5)
    found = outputs_of(lambda x: {"logits": x}, as_samples((targets, targets)))
    assert found.logits.shape == (20, 5, 3)
    assert torch.equal(found.answers, targets)
    score = Score("near", lambda a, b: 1.0 - (a - b).abs().flatten(1).amax(1).clamp(max=1), 0.0, 1.0)
    assert judge(found, found, metric=score).original == 100
    assert score.pair(found, found)[0].tolist() == [1.0] * 20


def test_single_answers_of_all_shapes_have_signal() -> None:
    assert outputs_of(lambda x: x[:, 0], as_samples(data()[0])).logits.shape == (30,)

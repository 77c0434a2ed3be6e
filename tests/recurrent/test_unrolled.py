"""Recurrent layers in a loop of linear layers, and in torch's layers of one width each: the same as torch's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.recurrent.known import recurrent_names, rolled_again, unrolled, unrolled_form
from compressor.recurrent.layers import Last
from compressor.recurrent.rolled import Rolled, rolled
from compressor.recurrent.unrolled import MOST_STEPS, Unrolled

MODES = {
    "LSTM": lambda **options: nn.LSTM(3, 4, **options),
    "GRU": lambda **options: nn.GRU(3, 4, **options),
    "RNN_TANH": lambda **options: nn.RNN(3, 4, **options),
    "RNN_RELU": lambda **options: nn.RNN(3, 4, nonlinearity="relu", **options),
}


def layer(mode: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return MODES[mode](**{"dtype": torch.float64, "batch_first": True, **options}).eval()


def sequences(count: int = 2, steps: int = 5) -> Tensor:
    return torch.randn(count, steps, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def parts(made: tuple[Tensor, Any]) -> list[Tensor]:
    out, last = made
    return [out, *(torch.stack(list(state)) for state in (last if isinstance(last, tuple) else (last,)))]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("num_layers", "bidirectional"), [(1, False), (1, True), (2, True)])
def test_both_forms_are_torchs_layer(
    mode: str, batch_first: bool, bias: bool, num_layers: int, bidirectional: bool
) -> None:
    given = layer(mode, batch_first=batch_first, bias=bias, num_layers=num_layers, bidirectional=bidirectional)
    x = sequences(2, 5)
    loop = unrolled_form(given)
    assert [loop.num_layers, loop.bidirectional, loop.hidden_size] == [num_layers, bidirectional, 4]
    with torch.no_grad():
        wanted = parts(given(x))
        for form in (loop, rolled(loop)):
            form.flatten_parameters()
            for found, expected in zip(parts(form(x)), wanted, strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
            zero = torch.zeros(num_layers * (1 + bidirectional), x.shape[0 if batch_first else 1], 4)
            again = form(x, (zero, zero) if mode == "LSTM" else zero)
            assert torch.equal(again[0], form(x)[0])
    assert sum(p.numel() for p in loop.parameters()) == sum(p.numel() for p in given.parameters())


def test_what_is_as_wide_as_before_comes_back_bit_by_bit() -> None:
    model = nn.ModuleDict({"a": layer("LSTM", num_layers=2), "b": layer("GRU", dropout=0.0)})
    small: Any = unrolled(copy.deepcopy(model), ["a", "b"])
    small.get_parameter("b.layers.0.inner").data.add_(1.0)
    assert all(isinstance(small[name], Unrolled) for name in "ab")
    back: Any = rolled_again(small, model)
    assert type(back["a"]) is nn.LSTM
    assert all(
        torch.equal(value, model.state_dict()[name]) for name, value in back["a"].state_dict(prefix="a.").items()
    )
    torch.testing.assert_close(back.get_parameter("b.bias_hh_l0"), model.get_parameter("b.bias_hh_l0") + 1)


def test_dropout_between_layers_stays() -> None:
    given = layer("GRU", num_layers=2, dropout=0.5).train()
    form = rolled(unrolled_form(given))
    assert form.training
    x = sequences()
    assert not torch.equal(form(x)[0], form(x)[0])
    assert torch.equal(form.eval()(x)[0], form(x)[0])


def test_layers_that_are_not_worked_on() -> None:
    hooked, shared = layer("GRU"), layer("RNN_TANH")
    hooked.register_forward_hook(lambda *_: None)
    tied, twin = layer("GRU"), layer("GRU")
    twin.weight_hh_l0 = tied.weight_hh_l0
    model = nn.ModuleDict({
        "plain": layer("LSTM"), "projected": layer("LSTM", proj_size=2), "hooked": hooked, "one": shared, "two": shared,
        "tied": tied, "twin": twin,
    })  # fmt: skip
    assert recurrent_names(model) == ["plain"]
    assert recurrent_names(layer("LSTM")) == []


@pytest.mark.parametrize("form", [unrolled_form, lambda given: rolled(unrolled_form(given))])
def test_states_that_are_not_zero_and_other_inputs_are_refused(form: Any) -> None:
    made, x = form(layer("LSTM")), sequences()
    with pytest.raises(ModelError, match="states to begin with that are not zero"):
        made(x, (torch.zeros(1, 2, 9), torch.ones(1, 2, 9)))
    with pytest.raises(ModelError, match="a batch of sequences"):
        made(x[0])
    with pytest.raises(ModelError, match="PackedSequence"):
        made(nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True))


def test_long_sequences_are_not_unrolled() -> None:
    with pytest.raises(ModelError, match="steps"):
        unrolled_form(layer("GRU"))(torch.zeros(1, MOST_STEPS + 1, 3, dtype=torch.float64))


def test_last_states_are_read_as_torchs_tensor_is() -> None:
    whole = torch.randn(4, 2, 3)
    last: Any = Last(list(whole))
    assert torch.equal(last[-1], whole[-1])
    assert torch.equal(last[1, :, 2], whole[1, :, 2])
    assert torch.equal(last[-2:].transpose(0, 1), whole[-2:].transpose(0, 1))
    assert torch.equal(torch.cat([last[-2], last[-1]], 1), torch.cat([whole[-2], whole[-1]], 1))
    assert torch.equal(torch.cat([*last], 1), torch.cat([*whole], 1))
    assert torch.equal(torch.relu(last), whole.relu())
    assert torch.equal(torch.cat([last, last]), torch.cat([whole, whole]))
    assert torch.equal(last[:, 0], whole[:, 0])
    assert last.shape == whole.shape
    uneven: Any = Last([torch.zeros(2, 3), torch.zeros(2, 5)])
    assert uneven[-1].shape == (2, 5)
    with pytest.raises(ModelError, match="widths 3, 5"):
        uneven.view(-1)


def test_a_narrower_layer_takes_the_last_states_of_each_width() -> None:
    loop = unrolled_form(layer("LSTM", num_layers=2))
    first: Any = loop.layers[0]
    keep = torch.tensor([0, 2, 3])
    rows = (torch.arange(4)[:, None] * 4 + keep).reshape(-1)
    first.x.weight, first.x.bias = nn.Parameter(first.x.weight[rows]), nn.Parameter(first.x.bias[rows])
    first.h.weight, first.h.in_features = nn.Parameter(first.h.weight[rows][:, keep]), 3
    first.inner = nn.Parameter(first.inner[rows])
    second: Any = loop.layers[1]
    second.x.weight = nn.Parameter(second.x.weight[:, keep])
    x = sequences()
    small = rolled(loop)
    assert isinstance(small, Rolled)
    for form in (loop, small):
        _, (h, c) = form(x)
        assert [state.shape[-1] for state in h] == [state.shape[-1] for state in c] == [3, 4]
    torch.testing.assert_close(small(x)[0], loop(x)[0])
    torch.testing.assert_close(small(x)[1][0][-1], loop(x)[1][0][-1])

"""The caller's process is as it was after `load`, `verify` and `save`, and after they failed or were interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Terminal, break_midway
from test_contracts import made, state

import compressor
from compressor.errors import SourceError
from compressor.sources import consent

pytestmark = pytest.mark.usefixtures("no_page", "no_onnx")


@pytest.fixture
def bundle(home: Path) -> Path:
    """A bundle of the user's own file."""
    from kills import JOB

    from compressor.jobs import run

    run(JOB, home / "out")
    return home / "out"


def calls(bundle: Path) -> dict[str, Callable[[], Any]]:
    inputs = torch.randn(300, 6, generator=torch.Generator().manual_seed(2))
    return {
        "load": lambda: compressor.load(bundle),
        "verify": lambda: compressor.verify(bundle, (inputs, torch.arange(300) % 4)),
        "faulty": lambda: compressor.load(bundle / "nowhere"),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loading_and_judging_again_change_nothing(bundle: Path, dtype: torch.dtype) -> None:
    model, _ = made("training")
    torch.set_default_dtype(dtype)
    try:
        before = state(model)
        for name, call in calls(bundle).items():
            try:
                call()
            except compressor.CompressorError:
                assert name == "faulty" or dtype == torch.float64
            assert state(model) == before, name
    finally:
        torch.set_default_dtype(torch.float32)


class Counting(torch.nn.Module):
    """Counts and keeps what it is shown, and writes into its input."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(6, 12), torch.nn.Linear(12, 3)
        self.kept: list[int] = []
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        self.kept.append(len(x))
        return self.b(self.a(x.mul_(2.0)).relu())


@pytest.mark.parametrize("options", [{"exact": True}, {"keep": "params=0.6", "align": 1}])
def test_a_network_that_counts_what_it_is_shown_has_seen_nothing(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, inputs = Counting(), torch.randn(120, 6)
    with torch.no_grad():
        model.a.weight[1], model.a.bias[1] = model.a.weight[0], model.a.bias[0]
    before = inputs.clone()
    result = compressor.compress(model, (inputs, torch.arange(120) % 3), **options)
    small: Any = result.model
    assert small.a.out_features < 12
    assert model.kept == []
    assert int(model.seen) == int(small.seen) == 0
    assert torch.equal(inputs, before)


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["verification.load_bundle", "verification.outputs_of", "verification.load_model"])
def test_nothing_is_changed_by_a_failure(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, place: str, fault: type[BaseException]
) -> None:
    model, _ = made("training")
    break_midway(monkeypatch, place, fault)
    before = state(model)
    with pytest.raises(fault, match="midway"):
        calls(bundle)["verify"]()
    assert state(model) == before


def test_saving_changes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = made("training")
    result = compressor.compress(model, data, keep="params=0.7", max_drop=60, align=1)
    before = state(model)
    result.save(home / "saved")
    assert state(model) == before

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("compressor.deliver.save_bundle", stopped)
    with pytest.raises(KeyboardInterrupt):
        result.save(home / "again")
    assert state(model) == before


def test_consent_ends_with_the_call(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consent, "_named", set())
    monkeypatch.setattr(consent, "_remembered", lambda: [])
    with pytest.raises(SourceError, match=r"net\.py:net\(\), sha256 [0-9a-f]{64}.*--trust-source"):
        compressor.load(bundle)
    assert compressor.load(bundle, trust_source=True) is not None
    consent._named.clear()
    with pytest.raises(SourceError):
        compressor.load(bundle)


def test_consent_on_the_command_line(bundle: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consent, "_named", set())
    monkeypatch.setattr(consent, "_remembered", lambda: [])
    asked = ("export", bundle, "--input", "6")
    assert terminal(*asked) == 3
    assert "--trust-source" in terminal.err
    assert terminal(*asked, "--trust-source") == 0
    assert "Runs the code that you trusted" in terminal.err
    consent._named.clear()
    assert terminal(*asked) == 3  # it was for one command only


def test_who_compressed_here_needs_no_consent(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consent, "_named", set())  # as in another process
    assert compressor.load(bundle) is not None
    with (bundle.parent / "net.py").open("a") as file:
        file.write("\nprint('other code')\n")
    with pytest.raises(SourceError, match="changed since"):
        compressor.load(bundle)


def test_other_arguments_are_other_code(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consent, "_named", set())
    from compressor.sources.factories import find_factory

    factory = find_factory("net.py:net", home)
    consent.remember(factory, {"width": 9})
    assert factory is not None
    source = {
        "kind": "file",
        "place": factory.place,
        "name": "net",
        "arguments": {"width": 9},
        "sha256": factory.sha256,
    }
    consent.refuse_unknown_code(source, "manifest")
    with pytest.raises(SourceError, match="width=8"):
        consent.refuse_unknown_code({**source, "arguments": {"width": 8}}, "manifest")
    told: list[str] = []
    with consent.trusting(True, told.append):
        consent.refuse_unknown_code({**source, "arguments": {"width": 8}}, "manifest")
    assert len(told) == 1


def test_a_caller_without_gradients_gets_the_same_network() -> None:
    """Torch's attention runs in one piece then, and its layers are still found and cut."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
    model, inputs = torch.nn.Sequential(layer, torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval(), torch.randn(60, 3, 4)

    def asked() -> dict[str, Any]:
        parts = (inputs[:30], inputs[30:40], inputs[40:])
        return compressor.compress(model, *parts, keep="params=0.8", align=1, max_drop=90, recover="2st").record

    plain = asked()
    with torch.inference_mode():
        record = asked()
    assert sum(group["frozen"] is None for group in plain["groups"]) > 1
    assert record["groups"] == plain["groups"]
    assert record["recover"]["checks"] == plain["recover"]["checks"]

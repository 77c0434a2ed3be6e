import hashlib
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from compressor.errors import CompressorError, ModelError, SourceError, UsageError
from compressor.sources.factories import split_query
from compressor.sources.models import Source, is_bundle, load_model

NET = """
import torch
from torch import nn
from neighbour import HIDDEN

def net(width=1, deep=False, name="x"):
    "A factory with arguments."
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, HIDDEN * width), nn.ReLU(), nn.Linear(8 * width, 3))
    model.note = (width, deep, name)
    return model
net.input_shape = (1, 4, 4)

def nan():
    model = nn.Linear(2, 2)
    model.weight.data[0, 0] = float("nan")
    return model

def breaks():
    raise ValueError("no such width")

def number():
    return 3

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))

needs_more = lambda width: None
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "neighbour.py").write_text("HIDDEN = 8\n")
    return tmp_path


def test_query_values():
    head, arguments = split_query("a.py:f?width=2&rate=0.5&deep=true&name=abc&none=none&minus=-3&quoted='1'")
    assert head == "a.py:f"
    assert arguments == {
        "width": 2, "rate": 0.5, "deep": True, "name": "abc", "none": None, "minus": -3, "quoted": "1"
    }  # fmt: skip
    for broken in ("f?width", "f?=2", "f?a b=2"):
        with pytest.raises(UsageError, match="argument"):
            split_query(broken)


def test_file_factory_with_arguments_and_checkpoint(folder: Path):
    loaded = load_model("net.py:net?width=2&deep=True&name=y", base=folder)
    assert loaded.model.note == (2, True, "y")
    assert not loaded.model.training
    assert loaded.input_shape == (1, 4, 4)
    assert not loaded.trained
    torch.save({"state_dict": {k: v + 1 for k, v in loaded.model.state_dict().items()}}, folder / "c.pt")
    again = load_model("net.py:net?width=2", checkpoint="c.pt", base=folder)
    assert again.trained
    assert again.checkpoint_sha256 == hashlib.sha256((folder / "c.pt").read_bytes()).hexdigest()
    assert torch.equal(again.model[1].weight, loaded.model[1].weight + 1)


def test_weights_depend_on_the_seed_only(folder: Path):
    state = torch.get_rng_state()
    one, two, three = (load_model("net.py:net", base=folder, seed=seed).model[1].weight for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    assert torch.equal(torch.get_rng_state(), state)


def test_source_rebuilds_and_notices_changes(folder: Path):
    loaded = load_model("net.py:net?width=3", base=folder)
    source = Source.from_dict(loaded.source.as_dict())
    assert source == loaded.source
    source.rebuild().load_state_dict(loaded.model.state_dict())
    (folder / "net.py").write_text(NET + "\n# changed\n")
    with pytest.raises(SourceError, match="changed since"):
        source.rebuild()
    own = source.rebuild(factory=lambda width: nn.Sequential(nn.Flatten(), nn.Linear(16, width)))
    assert own[1].out_features == 3
    (folder / "net.py").unlink()
    with pytest.raises(SourceError, match="no such file"):
        source.rebuild()


def test_package_factory():
    loaded = load_model("torch.nn:Linear?in_features=3&out_features=2")
    assert loaded.source.kind == "package"
    assert loaded.source.rebuild().out_features == 2


def test_torchvision_without_weights_rebuilds():
    loaded = load_model("torchvision:mobilenet_v3_small?weights=none&num_classes=7")
    assert loaded.input_shape == (3, 224, 224)
    assert not loaded.trained
    loaded.source.rebuild().load_state_dict(loaded.model.state_dict())


def test_torchvision_offline_says_what_next(monkeypatch, tmp_path: Path):
    def no_network(*arguments, **more):
        raise OSError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    with pytest.raises(SourceError) as caught:
        load_model("torchvision:resnet18")
    assert caught.value.exit_code == 3
    assert "weights=none" in caught.value.next_step
    assert "--checkpoint" in caught.value.next_step


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "size"), [("inception_v3", 299), ("googlenet", 224), ("squeezenet1_1", 224)])
def test_torchvision_cached_weights_are_used_and_rebuilt(monkeypatch, tmp_path: Path, name, size):
    builder = torchvision.models.get_model_builder(name)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        full = builder(weights=None, **({} if name == "squeezenet1_1" else {"init_weights": False}))
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(full.state_dict(), tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1])
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    loaded = load_model(f"torchvision:{name}")
    assert loaded.trained
    assert loaded.transform is not None
    assert loaded.input_shape == (3, size, size)
    rebuilt = loaded.source.rebuild()
    rebuilt.load_state_dict(loaded.model.state_dict())
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(rebuilt(images), loaded.model(images))


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("torchvision:resnet19", SourceError, "did you mean 'resnet1"),
        ("torchvision:resnet18?weights=best", SourceError, "IMAGENET1K_V1"),
        ("torchvision:resnet18?weights=none&wide=3", SourceError, "wide"),
        ("resnet18", SourceError, "torchvision:resnet18"),
        ("net.py", UsageError, "without a factory"),
        ("neighbour.txt", SourceError, "nothing of that name"),
        ("nowhere.py:net", SourceError, "no file"),
        ("net.py:nett", SourceError, "did you mean 'net'"),
        ("net.py:breaks", SourceError, "ValueError: no such width"),
        ("net.py:needs_more", SourceError, "TypeError"),
        ("net.py:net?wdith=2", SourceError, "wdith"),
        ("net.py:number", SourceError, "a int from the factory"),
        ("net.py:nan", ModelError, "weight"),
        ("net.py:lazy", ModelError, "net.py:lazy.*lazy layers.*'1'.*run it once"),
        ("no_such_package.models:net", SourceError, "No module named"),
        (".", SourceError, "without manifest.json"),
    ],
)
def test_refusals(folder: Path, spec, kind, words):
    with pytest.raises(CompressorError, match=words) as caught:
        load_model(spec, base=folder)
    assert type(caught.value) is kind


def test_broken_file_is_named(folder: Path):
    (folder / "broken.py").write_text("import nothing_like_this\n")
    with pytest.raises(SourceError, match=r"broken\.py.*ModuleNotFoundError"):
        load_model("broken.py:net", base=folder)


def test_bundle_hook(folder: Path):
    (folder / "out").mkdir()
    assert not is_bundle(folder / "out")
    (folder / "out" / "manifest.json").write_text("{}")
    assert is_bundle(folder / "out")
    made = nn.Linear(2, 2)
    loaded = load_model("out", base=folder, load_bundle=lambda path: made)
    assert loaded.model is made
    assert loaded.source.kind == "bundle"

import importlib.util
from pathlib import Path

import pytest
import torch

from compressor import recipe as recipes
from compressor.errors import SourceError, UsageError
from compressor.recipe import load_recipe, parse_recipe, recipe_schema, resolved, shipped_recipes
from compressor.sources.consent import trusting
from compressor.sources.models import load_model
from compressor.training.loop import TrainOptions

MINIMAL = "model: net.py:net\ndata: digits\n"


def test_minimal_recipe_has_the_defaults():
    recipe = parse_recipe(MINIMAL, "r.yaml")
    assert recipe.train is None
    assert (recipe.compress.max_drop, recipe.compress.confidence, recipe.compress.align) == (
        0.5,
        0.95,
        "auto",
    )
    assert parse_recipe(MINIMAL + "train: {}\n", "r.yaml").train.options() == TrainOptions()


def test_arguments_join_the_spec():
    recipe = parse_recipe(MINIMAL + "model_args: {width: 2, deep: true}\n", "r.yaml")
    assert recipe.model_spec == "net.py:net?width=2&deep=True"
    assert recipe.data_spec == "digits"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {epohcs: 3}", r"train\.epohcs: got an unknown key.*did you mean 'epochs'"),
        ("chekpoint: a.pt", "did you mean 'checkpoint'"),
        ("compress: {max_dorp: 1}", "did you mean 'max_drop'"),
        ("train: {epochs: 0}", "train.epochs: got 0; expected greater than or equal to 1"),
        ("train: {optimizer: adma}", "'sgd', 'adamw'"),
        ("compress: {keep: params=1.5}", r"compress\.keep"),
        ("compress: {recover: soon}", r"compress\.recover"),
        ("compress: {align: 0}", r"compress\.align"),
        ("compress: {confidence: 0.4}", "greater than 0.5"),
        ("train: [1]", "train: got"),
        ("compress: {max_drop: yes}", r"compress\.max_drop: got True; expected a number"),
        ("compress: {seed: on}", r"compress\.seed: got True"),
        ("compress: {max_drop: .nan}", r"compress\.max_drop: got nan"),
        ("out: " + "[" * 5_000, "recursion"),
        ("model: other.py:net", "more than once"),
        ("seeds: &a [1]\nmore: *a", "alias"),
        ("out: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("out: [", "while parsing"),
        ("out: \x00", "special characters"),
    ],
)
def test_refusals(text, words):
    with pytest.raises(UsageError, match=words) as caught:
        parse_recipe(f"{MINIMAL}{text}\n", "r.yaml")
    assert caught.value.exit_code == 2
    assert "r.yaml" in caught.value.where


def test_not_even_a_mapping():
    for text in ("", "- 1", "hello"):
        with pytest.raises(UsageError, match="keys and values"):
            parse_recipe(text, "r.yaml")
    with pytest.raises(UsageError, match=r"model: got nothing .*add `model"):
        parse_recipe("out: there", "r.yaml")


def test_files_names_and_sizes(tmp_path: Path):
    (tmp_path / "net.py").write_text("")
    (tmp_path / "mine.yaml").write_text(MINIMAL)
    recipe, base = load_recipe(tmp_path / "mine.yaml")
    assert recipe.model == "net.py:net"
    assert base == tmp_path
    with pytest.raises(UsageError, match="did you mean 'quickstart'"):
        load_recipe("quikstart")
    with pytest.raises(UsageError, match="a folder"):
        load_recipe(tmp_path)
    (tmp_path / "huge.yaml").write_text("#" * (recipes.SIZE_LIMIT + 1))
    with pytest.raises(UsageError, match="bytes"):
        load_recipe(tmp_path / "huge.yaml")


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_build_their_network(name):
    recipe, base = load_recipe(name)
    loaded = load_model(recipe.model_spec, base=base)
    with torch.no_grad():
        scores = loaded.model(torch.randn(2, *(loaded.input_shape or (3, 96, 96))))  # ImageNet's take any size
    assert len(scores) == 2
    assert scores.shape[1] in (2, 10, 100, 1000)
    assert len(shipped_recipes()[name].read_text().splitlines()) < 45
    assert recipe.train is not None
    assert recipe.description


def test_all_networks_are_shipped():
    names = {"quickstart", *(f"fashion_mnist/{name}" for name in ("mlp", "vgg", "resnet", "inception"))}
    assert names <= set(shipped_recipes())


def networks():
    path = shipped_recipes()["quickstart"].parent / "networks.py"
    spec = importlib.util.spec_from_file_location("recipe_networks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "count"), [("mlp", 2913290), ("vgg", 1737802), ("resnet", 696042), ("inception", 390258)]
)
def test_networks_have_the_stated_sizes(name, count):
    model = getattr(networks(), name)()
    assert sum(weight.numel() for weight in model.parameters()) == count
    half = getattr(networks(), name)(width=0.5, num_classes=7)
    assert half(torch.randn(2, 1, 28, 28)).shape == (2, 7)


def test_schema_and_resolved_form():
    schema = recipe_schema()
    assert {"model", "data", "train", "compress"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False
    plain = resolved(load_recipe("quickstart")[0])
    assert recipes.Recipe.model_validate(plain) == load_recipe("quickstart")[0]


def test_code_that_is_not_beside_the_recipe_needs_consent(tmp_path, monkeypatch):
    (tmp_path / "deep" / "recipes").mkdir(parents=True)
    for place in ("nets.py", "deep/nets.py", "deep/recipes/nets.py"):
        (tmp_path / place).write_text("def net():\n    raise AssertionError\n")
    recipe = tmp_path / "deep" / "recipes" / "r.yaml"
    for near in ("nets.py:net", "../nets.py:net"):
        recipe.write_text(f"model: {near}\ndata: digits\n")
        assert load_recipe(recipe)[0].model == near
    recipe.write_text("model: ../../nets.py:net?width=2\ndata: digits\n")
    with pytest.raises(SourceError, match=r"not named yourself.*nets.py:net.*width=2.*sha256.*--trust-source"):
        load_recipe(recipe)
    told: list[str] = []
    with trusting(True, told.append):
        load_recipe(recipe)
    assert "sha256" in told[0]
    load_recipe(recipe)  # named now, in this process
    recipe.write_text("model: ../../nets.py:net?width=3\ndata: digits\n")
    with pytest.raises(SourceError):
        load_recipe(recipe)
    monkeypatch.chdir(tmp_path)
    assert load_recipe(recipe)[0].model_spec.endswith("width=3")

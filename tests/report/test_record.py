import json
import math

import numpy as np
import pytest
import torch
from report_samples import ENDINGS, VERDICT, passed

from compressor.errors import SourceError
from compressor.export.files import write_json
from compressor.records import Verdict
from compressor.report.record import read_record, record_schema, validate


def changed(path, value, record=None):
    """A record with one value replaced; `path` is dotted, list places are numbers."""
    record = record or passed()
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place = record
    for step in steps:
        place = place[step]
    place[last] = value
    return record


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_is_a_record(ending):
    given = ENDINGS[ending]()
    record = validate(given)
    assert record.original.params == given["original"]["params"]
    assert [group.kept for group in record.groups] == [group["kept"] for group in given["groups"]]
    assert validate(record) is record


def test_a_verdict_of_ours_is_a_verdict_of_the_record():
    verdict = Verdict("failed", "accuracy", 90.0, 80.0, -10.0, (-12.0, -8.0), 1.0, 0.95, 200, {"losses": 20})
    record = validate(passed(verdict=verdict.as_dict()))
    assert record.verdict is not None
    assert record.verdict.value == "failed"
    assert record.verdict.interval == [-12.0, -8.0]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("schema_version", 2, "schema_version: got 2; expected 1"),
        ("schema_version", True, "schema_version: got True"),
        ("original.params", -1, "original.params: got -1"),
        ("original.macs", "12", "original.macs: got '12'; expected a valid integer"),
        ("verdict.value", "fine", "verdict.value: got 'fine'"),
        ("verdict.interval", [0.1, -0.2], "must not fall"),
        ("verdict.interval", [0.1], "verdict.interval: got"),
        ("verdict.compressed", 230.0, "verdict.compressed: got 230.0"),
        ("verdict.confidence", math.nan, "verdict.confidence: nan cannot be written"),
        ("verdict", None, "has a verdict"),
        ("compressed", None, "compressed network"),
        ("findings.silent", 51, "sum to 1313, not 1312"),
        ("groups.0.kept", [3, 2], "sorted, each once"),
        ("groups.0.kept", [2, 2], "sorted, each once"),
        ("groups.0.kept", [1, 64], "keeps unit 64 of 64"),
        ("groups.1.needed", 71, "'features.4' sum to 129, not 128"),
        ("groups.3.kept", [0, 1], "must keep all 96"),
        ("search.0.selected", True, "more than one candidate"),
        ("search.0.params", 50.0, "search.0.params: got 50.0"),
        ("onnx.agreement", 101.0, "onnx.agreement: got 101.0"),
        ("seconds", {"judge": "fast"}, "seconds.judge: got 'fast'"),
        ("warnings", "one", "warnings: got 'one'"),
        ("mode", "quick", "mode: got 'quick'"),
    ],
)
def test_what_is_wrong_is_named(path, value, words):
    with pytest.raises(SourceError) as caught:
        validate(changed(path, value))
    assert words in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("key", ["findings", "verdict", "onnx", "data", "seed", "groups", "command"])
def test_stable_keys_may_not_be_missing(key):
    record = passed()
    del record[key]
    with pytest.raises(SourceError, match=f"record: {key}: got nothing; expected a value"):
        validate(record)


def test_later_additions_are_kept():
    record = validate(changed("verdict.later", 3, passed(added={"a": 1})))
    assert record.model_extra == {"added": {"a": 1}}
    assert record.verdict is not None
    assert record.verdict.model_extra == {"later": 3}


def test_scalars_of_numpy_and_torch_count_as_numbers():
    record = passed(seed=np.int64(4), original={"params": torch.tensor(2_911_754), "macs": np.int32(5)})
    assert validate(record).seed == 4
    assert validate(record).original.params == 2_911_754


def test_a_written_record_is_read_back(tmp_path):
    write_json(tmp_path / "record.json", passed())
    assert read_record(tmp_path / "record.json") == validate(passed())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "a record.json that compressor wrote"),
        (b"[1]", "got a list; expected an object"),
        (b"\xff\xfe\x00", "a record.json that compressor wrote"),
        (b"{}", "schema_version: got None"),
        (b"[" * 100_000, "a record.json that compressor wrote"),
        (None, "No such file"),
    ],
)
def test_files_that_are_no_record(tmp_path, content, words):
    path = tmp_path / "record.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=words) as caught:
        read_record(path)
    assert str(path) in str(caught.value)


def test_the_schema_names_what_users_rely_on():
    schema = json.dumps(record_schema())
    for key in (*VERDICT, "latency_ratio", "max_abs_error", "opset", "calibrate", "tune", "judge", "frozen"):
        assert f'"{key}"' in schema


def test_exported_follows_the_verdict():
    assert validate(passed()).exported
    assert not validate(ENDINGS["failed"]()).exported
    assert validate(ENDINGS["failed"](keep_failed=True)).exported
    assert validate(ENDINGS["undecided"]()).exported
    assert not validate(ENDINGS["analyzed"]()).exported

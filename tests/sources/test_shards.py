from __future__ import annotations

import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compressor.errors import CompressorError, DataError, SourceError, UsageError
from compressor.sources import shards
from compressor.sources.data import load_data
from compressor.sources.samples import batches

RANDOM = np.random.RandomState(0)


def png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.RandomState(seed).randint(0, 255, (9, 12, 3), np.uint8)).save(out, "png")
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def write(path: Path, members: list[tuple[str, bytes]], pax: bool = False) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT if pax else tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def images(start: int, stop: int) -> list[tuple[str, bytes]]:
    rows = [((f"{i:04}.png", png(i)), (f"{i:04}.cls", str(i % 3).encode())) for i in range(start, stop)]
    return [member for row in rows for member in row]


def test_images_and_classes_of_several_shards(tmp_path: Path):
    write(tmp_path / "a-0.tar", images(0, 20))
    write(tmp_path / "a-1.tar", images(20, 40), pax=True)
    for spec in ("webdataset:.?size=8", "webdataset:a-*.tar?size=8"):
        data = load_data(spec, base=tmp_path)
        assert sum(data.described["samples"].values()) == 40
        assert data.judge[0][0].shape == (3, 8, 8)
        assert data.judge.labels is not None
        assert set(data.judge.labels.tolist()) == {0, 1, 2}
    assert sum(load_data("webdataset:a-1.tar?size=8", base=tmp_path).described["samples"].values()) == 20


def test_arrays_texts_and_words_as_labels(tmp_path: Path):
    rows = RANDOM.randn(12, 5).astype(np.float32)
    members = [(f"x/{i}.{kind}", content) for i, row in enumerate(rows) for kind, content in
               (("npy", npy(row)), ("json", b'{"label": "%s"}' % (b"dog" if row[0] > 0 else b"cat")))]  # fmt: skip
    write(tmp_path / "rows.tar", [("README", b"words"), *members])
    found = next(batches(load_data("webdataset:rows.tar", base=tmp_path).judge, 12))
    assert found.labels is not None
    assert found.labels.tolist() == (found.inputs[:, 0] > 0).int().tolist()
    write(tmp_path / "texts.tar", [(f"{i}.txt", f"text {i}".encode()) for i in range(12)])
    (tmp_path / "words.txt").write_text("text\n" + "\n".join(map(str, range(12))))
    data = load_data("webdataset:texts.tar?tokenizer=words.txt&length=4", base=tmp_path)
    assert data.judge.batch([0])[0]["input_ids"].shape == (1, 4)
    assert data.judge.labels is None
    write(tmp_path / "said.tar", [*((f"{i}.txt", f"text {i}".encode()) for i in range(12)), ("12.txt", b"alone")])
    data = load_data("webdataset:said.tar?tokenizer=words.txt&length=4&label=next", base=tmp_path)
    inputs, labels = data.judge.batch([0])
    assert sum(data.described["samples"].values()) == 12
    assert labels is not None
    assert labels.tolist() == [[*inputs["input_ids"][0, 1:3].tolist(), -100, -100]]
    with pytest.raises(UsageError, match="label=next, and no texts"):
        load_data("webdataset:rows.tar?label=next", base=tmp_path)
    write(tmp_path / "short.tar", [(f"{i}.txt", b"alone") for i in range(12)])
    with pytest.raises(DataError, match="two words"):
        load_data("webdataset:short.tar?tokenizer=words.txt&label=next", base=tmp_path)


def test_samples_are_read_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing but headers is read at first, and nothing stays in memory beyond the limit."""
    write(tmp_path / "a.tar", [(f"{i}.npy", npy(np.full(500, i, np.float32))) for i in range(40)])
    asked: list[int] = []
    plain = shards.Member.read
    monkeypatch.setattr(shards.Member, "read", lambda self: asked.append(self.offset) or plain(self))
    made = shards.read("data", tmp_path / "a.tar", lambda: str, lambda: bytes)
    assert not asked
    assert float(made[7][0]) == 7
    assert len(asked) == 1
    monkeypatch.setattr("compressor.sources.samples.KEEP_LIMIT", 1000)
    data = load_data("webdataset:a.tar", base=tmp_path)
    before = len(asked)
    data.judge.batch([0, 1])
    data.judge.batch([0, 1])
    assert len(asked) == before + 4


def link(kind: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("0.txt")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    return out.getvalue()


def sized(size: int) -> bytes:
    """One header that says a size which is not there (negative ones loop in some versions of tarfile)."""
    info = tarfile.TarInfo("0.txt")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = struct.pack(">b", -1 if size < 0 else -128) + size.to_bytes(11, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(2048)


HOSTILE = {
    "no_tar": b"\x80\x04.",
    "empty": b"",
    "gzip": b"\x1f\x8b" + bytes(600),
    "symlink": link(tarfile.SYMTYPE),
    "hardlink": link(tarfile.LNKTYPE),
    "device": link(tarfile.CHRTYPE),
    "fifo": link(tarfile.FIFOTYPE),
    "huge": sized(2**60),
    "negative": sized(-512),
    "cut": sized(1000)[:700],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(tmp_path: Path, name: str):
    (tmp_path / "a.tar").write_bytes(HOSTILE[name])
    with pytest.raises(CompressorError):
        load_data("webdataset:a.tar?tokenizer=words.txt", base=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_members_that_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "pickle.tar", [("0.pyd", pickle.dumps(1)), ("0.cls", b"1")])
    with pytest.raises(DataError, match="members cls, pyd"):
        load_data("webdataset:pickle.tar", base=tmp_path)
    objects = io.BytesIO()
    np.save(objects, np.array([{}], object), allow_pickle=True)
    write(tmp_path / "objects.tar", [(f"{i}.npy", objects.getvalue()) for i in range(4)])
    with pytest.raises(DataError, match=r"object of shape \(1,\)"):
        load_data("webdataset:objects.tar", base=tmp_path)
    large = npy(np.zeros((2, 3), np.float32)).replace(b"(2, 3), ", b"(2**9,3)").replace(b"2**9", b"9999")
    write(tmp_path / "large.tar", [(f"{i}.npy", large) for i in range(4)])
    with pytest.raises(DataError, match=r"shape \(9999, 3\)"):
        load_data("webdataset:large.tar", base=tmp_path)
    write(tmp_path / "half.tar", [("0.png", png(0)), ("0.cls", b"1"), ("1.png", png(1))])
    with pytest.raises(DataError, match="no label"):
        load_data("webdataset:half.tar", base=tmp_path)
    write(tmp_path / "other.tar", [("0.png", png(0)), ("1.npy", npy(np.zeros(3)))])
    with pytest.raises(DataError, match=r"no \.png"):
        load_data("webdataset:other.tar", base=tmp_path)
    write(tmp_path / "twice.tar", [("0.png", png(0)), ("0.png", png(1))])
    with pytest.raises(DataError, match="twice"):
        load_data("webdataset:twice.tar", base=tmp_path)
    with pytest.raises(SourceError, match="no such file"):
        load_data("webdataset:gone-*.tar", base=tmp_path)
    monkeypatch.setattr(shards, "PIXELS_LIMIT", 50)
    write(tmp_path / "large.tar", images(0, 4))
    with pytest.raises(DataError, match="12 x 9 pixels"):
        load_data("webdataset:large.tar", base=tmp_path)


def test_names_that_lead_elsewhere_are_only_names(tmp_path: Path):
    write(tmp_path / "a.tar", [(f"../../{i}.txt", f"text {i}".encode()) for i in range(8)])
    (tmp_path / "words.txt").write_text("\n".join(map(str, range(8))))
    before = sorted(path.name for path in tmp_path.parent.rglob("*"))
    load_data("webdataset:a.tar?tokenizer=words.txt&length=3", base=tmp_path)
    assert sorted(path.name for path in tmp_path.parent.rglob("*")) == before

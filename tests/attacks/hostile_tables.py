"""Archives of arrays and lists of pictures that lie about their sizes, hold objects, or point elsewhere."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
from corpus import CANARY, added, attack
from hostile_models import png
from runs import project


def _analysed(folder: Path, data: str) -> list[str]:
    project(folder)
    return ["analyze", "net.py:net", "--data", data, "--out", "out"]


def _array(header: str, content: bytes = bytes(96)) -> bytes:
    """A .npy file with this header."""
    text = header.encode() + b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def _said(shape: str, kind: str = "<f4", order: str = "False") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}"


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (CANARY,)


def _archive(folder: Path, members: dict[str, bytes]) -> list[str]:
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return _analysed(folder, "npz:a.npz")


_OBJECTS = _array(_said("(1,)", "|O"), pickle.dumps([_Evil()]))
for _name, _members in {
    "objects": {"x.npy": _OBJECTS},
    "objects as labels": {"x.npy": _array(_said("(4, 6)")), "y.npy": _OBJECTS},
    "a pickle under an array's name": {"x.npy": pickle.dumps(_Evil())},
    "petabytes by its header": {"x.npy": _array(_said(f"({2**40}, {2**10})"))},
    "a size that overflows": {"x.npy": _array(_said(f"({2**62}, {2**62})"))},
    "a negative size": {"x.npy": _array(_said("(-4, 6)"))},
    "a header that calls": {"x.npy": _array(f"__import__('os').mkdir('{CANARY}')")},
    "a header of brackets": {"x.npy": _array("(" * 5000)},
    "a kind that is none": {"x.npy": _array(_said("(4, 6)", "<f4'*99999+'"))},
    "words": {"x.npy": _array(_said("(4,)", "<U6"))},
    "names with path parts": {"../../x.npy": _array(_said("(4, 6)"))},
    "names of control characters": {"\x1b]0;owned\x07.npy": _array(_said("(4, 6)"))},
    "labels without inputs": {"judge_y.npy": _array(_said("(24,)"))},
    "no numbers": {"x.npy": _array(_said("(4, 6)"), np.full(24, np.nan, "<f4").tobytes())},
    "nothing": {},
}.items():
    added("tables", f"an archive of {_name}", partial(_archive, members=_members))


@attack("tables")
def an_archive_that_says_it_holds_terabytes(folder: Path) -> list[str]:
    words = _archive(folder, {"x.npy": _array(_said("(4, 6)"))})
    content = bytearray((folder / "a.npz").read_bytes())
    place = content.rindex(b"PK\x01\x02")
    content[place + 24 : place + 28] = struct.pack("<I", 2**32 - 2)
    (folder / "a.npz").write_bytes(content)
    return words


@attack("tables")
def an_archive_of_a_few_kilobytes_that_unfolds(folder: Path) -> list[str]:
    many = io.BytesIO(_array(_said(f"({300 * 2**18},)"), b""))
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("x", *(f"{part}_x" for part in ("calibrate", "tune", "judge", "train"))):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(many.getvalue())
                for _ in range(300):
                    member.write(bytes(2**20))
    return _analysed(folder, "npz:a.npz")


def _list(folder: Path, content: bytes) -> list[str]:
    (folder / "a.csv").write_bytes(content)
    (folder / "huge.png").write_bytes(png(60_000, 60_000))
    return _analysed(folder, "csv:a.csv?size=8")


for _name, _content in {
    "nothing": b"", "nulls": b"path,label\n\x00\x00,1\n", "no text": b"\xff\xfe\xfd",
    "one field of a megabyte": b"path,label\n" + b"x" * 2**20 + b",1\n",
    "a device": b"path,label\n/dev/zero,1\n", "a folder": b"path,label\n.,1\n",
    "a file that is no picture": b"path,label\n/etc/passwd,1\n",
    "a picture of 60,000 x 60,000 pixels": b"path,label\nhuge.png,1\n",
    "a label of many digits": b"path,label\nhuge.png," + b"9" * 9000 + b"\n",
    "columns of one name": b"path,path,label\nhuge.png,/dev/zero,1\n",
    "control characters": b"path,label\n\x1b]0;owned\x07,1\n",
}.items():  # fmt: skip
    added("tables", f"a list of {_name}", partial(_list, content=_content))


def _shard(folder: Path, members: dict[str, bytes], mode: str = "w", **odd: object) -> list[str]:
    """A tar file of these members; `odd` are attributes of the first one's header."""
    with tarfile.open(folder / "a.tar", mode) as archive:  # pyright: ignore[reportArgumentType, reportCallIssue]
        for place, (name, content) in enumerate(members.items()):
            found = tarfile.TarInfo(name)
            found.size = len(content)
            for key, value in odd.items() if place == 0 else ():
                setattr(found, key, value)
            archive.addfile(found, io.BytesIO(content))
    return _analysed(folder, "webdataset:a.tar")


_ROW = _array(_said("(6,)"), bytes(24))
for _name, _members, _odd in (
    ("a link to a file outside", {"1.npy": b""}, {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
    ("a hard link", {"1.npy": b""}, {"type": tarfile.LNKTYPE, "linkname": "../../secret"}),
    ("a device", {"1.npy": b""}, {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}),
    ("a pipe", {"1.npy": b""}, {"type": tarfile.FIFOTYPE}),
    ("objects", {"1.npy": _OBJECTS, "2.npy": _OBJECTS}, {}),
    ("pickles", {"1.pkl": pickle.dumps(_Evil()), "1.cls": b"0"}, {}),
    ("deep JSON", {"1.npy": _ROW, "1.json": b"[" * 100_000}, {}),
    ("a label of megabytes", {"1.npy": _ROW, "1.cls": b"9" * 2**21}, {}),
    ("a picture of 60,000 x 60,000 pixels", {"1.png": png(60_000, 60_000), "1.cls": b"0"}, {}),
    ("control characters", {"\x1b]0;owned\x07.npy": b"", "1.cls": b"0"}, {}),
):
    added("tables", f"a shard of {_name}", partial(_shard, members=_members, **_odd))


@attack("tables")
def a_shard_that_unfolds(folder: Path) -> list[str]:
    words = _shard(folder, {"1.npy": _ROW})
    content = (folder / "a.tar").read_bytes()
    with gzip.open(folder / "a.tar", "wb", compresslevel=1) as file:
        file.write(content)
        for _ in range(300):
            file.write(bytes(2**20))
    return words


@attack("tables")
def a_shard_whose_member_says_it_is_terabytes(folder: Path) -> list[str]:
    words = _shard(folder, {"1.npy": _ROW, "2.npy": _ROW})
    header = tarfile.TarInfo("1.npy")
    header.size = 2**42
    content = (folder / "a.tar").read_bytes()
    (folder / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + content[512:])
    return words

"""Checkpoints: pickles with code, archives and headers that lie, weights that are no numbers."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from corpus import CANARY, added, attack, with_checkpoint
from runs import project

MIB = 1024**2


class Call:
    """Pickled, it asks the reader to call something."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def _pickle_calls() -> dict[str, bytes]:
    import os
    import subprocess

    nested: Any = Call(os.mkdir, CANARY)
    for _ in range(50):
        nested = [nested]
    return {
        "makes a folder": pickle.dumps({"0.weight": Call(os.mkdir, CANARY)}),
        "opens a file": pickle.dumps(Call(open, CANARY, "w")),
        "starts a process": pickle.dumps(Call(subprocess.check_call, ["touch", CANARY])),
        "evaluates text": pickle.dumps(Call(eval, f"open('{CANARY}', 'w')")),
        "executes text": pickle.dumps(Call(exec, f"open('{CANARY}', 'w')")),
        "imports by name": pickle.dumps(Call(getattr, Call(__import__, "os"), "mkdir")),
        "deep inside lists": pickle.dumps({"state_dict": nested}),
        "written by hand": f"cos\nsystem\n(S'touch {CANARY}'\ntR.".encode(),
        "an old instance": f"(S'touch {CANARY}'\nios\nsystem\n.".encode(),
        "by a build": f"c__builtin__\nset\n(tR(dS'x'\ncos\nsystem\n(S'touch {CANARY}'\ntRsb.".encode(),
        "unpickles again": pickle.dumps(Call(pickle.loads, pickle.dumps(Call(os.mkdir, CANARY)))),
        "loads with torch": pickle.dumps(Call(torch.load, "inner.pt")),
    }


def _zipped(content: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    return stream.getvalue()


for _name, _content in _pickle_calls().items():
    added("pickle", _name, partial(with_checkpoint, name="w.pt", content=_content))
    added("pickle", f"{_name}, zipped", partial(with_checkpoint, name="w.pt", content=_zipped(_content)))

_LIES = {
    "recursion": b"(" * 200_000 + b"t" * 200_000 + b".",
    "nested lists": b"]" * 100_000 + b"a" * 99_999 + b".",
    "an endless string": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"x.",
    "endless bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "an endless frame": b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b"N.",
    "a long number": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x00.",
    "a negative long": b"\x80\x02\x8b" + struct.pack("<i", -5) + b"\x00.",
    "memo of nothing": b"\x80\x02h\x05.",
    "a laughing memo": b"\x80\x02]q\x00" + b"".join(b"(h%ch%clq%c" % (i, i, i + 1) for i in range(60)) + b".",
    "nothing at all": b"",
}  # fmt: skip
for _name, _content in _LIES.items():
    added("pickle", _name, partial(with_checkpoint, name="w.pt", content=_content))


@attack("archive")
def zip_bomb(folder: Path) -> list[str]:
    """Some hundred kilobytes of zeros that unfold to 100 MiB."""
    return with_checkpoint(folder, "w.pt", _zipped(bytes(100 * MIB), zipfile.ZIP_DEFLATED))


@attack("archive")
def zip_that_lies_about_its_sizes(folder: Path) -> list[str]:
    content = bytearray(_zipped(b"\x80\x02}q\x00."))
    for place in range(len(content) - 4):
        if content[place : place + 4] == b"PK\x01\x02":
            content[place + 20 : place + 28] = struct.pack("<II", 2**32 - 2, 2**32 - 2)
    return with_checkpoint(folder, "w.pt", bytes(content))


@attack("archive")
def zip_with_paths(folder: Path) -> list[str]:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("../../ran", "x")
        archive.writestr("../data.pkl", pickle.dumps({}))
    return with_checkpoint(folder, "w.pt", stream.getvalue())


@attack("archive")
def tar_bomb(folder: Path) -> list[str]:
    """The oldest format of torch is a tar; its sizes say terabytes, and a link leaves the folder."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = 2**40 if name == "storages" else 0
            archive.addfile(entry)
        link = tarfile.TarInfo("../../ran")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return with_checkpoint(folder, "w.pt", stream.getvalue())


@attack("archive")
def storage_smaller_than_its_tensor(folder: Path) -> list[str]:
    """A tensor of 2^40 numbers over 4 bytes."""
    small = torch.zeros(1)
    stream = io.BytesIO()
    torch.save({"0.weight": small}, stream)
    content = stream.getvalue().replace(b"K\x01\x85", b"M\xff\xff\x85", 1)
    return with_checkpoint(folder, "w.pt", content)


@attack("archive")
def tensor_of_a_million_million_repeated_zeros(folder: Path) -> list[str]:
    stream = io.BytesIO()
    torch.save({"0.weight": torch.zeros(1).expand(2**20, 2**20)}, stream)
    return with_checkpoint(folder, "w.pt", stream.getvalue())


def _tensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(shape: list[Any], start: int, end: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


_HEADERS = {
    "offsets beyond the file": _tensors({"a": _entry([2], 0, 8 * 2**40)}, bytes(8)),
    "offsets that fall": _tensors({"a": _entry([2], 8, 0)}, bytes(8)),
    "negative offsets": _tensors({"a": _entry([2], -8, 0)}, bytes(8)),
    "overlapping tensors": _tensors({"a": _entry([2], 0, 8), "b": _entry([2], 4, 12)}, bytes(12)),
    "the same bytes twice": _tensors({"a": _entry([2], 0, 8), "b": _entry([2], 0, 8)}, bytes(8)),
    "a hole": _tensors({"a": _entry([1], 0, 4), "b": _entry([1], 8, 12)}, bytes(12)),
    "a shape that lies": _tensors({"a": _entry([2**40], 0, 8)}, bytes(8)),
    "a shape that overflows": _tensors({"a": _entry([2**62, 2**62], 0, 8)}, bytes(8)),
    "a negative shape": _tensors({"a": _entry([-2, -1], 0, 8)}, bytes(8)),
    "an unknown type": _tensors({"a": _entry([2], 0, 8, "F33")}, bytes(8)),
    "a duplicate name": _tensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                                 b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', bytes(8)),
    "a gigantic header": _tensors(b"{}", length=2**62),
    "a header of 99 MB that is not there": _tensors(b"{}", length=99_000_000),
    "a header of many names": _tensors({f"a{i}": _entry([0], 0, 0) for i in range(30_000)}),
    "a deep header": _tensors(b'{"a":' * 20_000 + b"1" + b"}" * 20_000),
    "no JSON": _tensors(b"{" * 64),
    "eight bytes": bytes(8),
    "a header that is a list": _tensors(b"[]      "),
    "names with path parts": _tensors({"../../ran": _entry([1], 0, 4)}, bytes(4)),
    "names with control characters": _tensors({"a\x1b]0;owned\x07\x00b": _entry([1], 0, 4)}, bytes(4)),
    "names with surrogates": _tensors(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "trailing bytes": _tensors({"a": _entry([1], 0, 4)}, bytes(400)),
}  # fmt: skip
for _name, _content in _HEADERS.items():
    added("safetensors", _name, partial(with_checkpoint, name="w.safetensors", content=_content))


def _with_weight(folder: Path, value: float, name: str) -> list[str]:
    """The user's own network, one weight of it replaced."""
    from torch import nn

    layers = [nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 4)]
    state = nn.Sequential(*layers).state_dict()
    state["2.weight"][1, 2] = value
    stream = io.BytesIO()
    torch.save(state, stream)
    return with_checkpoint(folder, name, stream.getvalue())


for _value in (float("nan"), float("inf"), float("-inf")):
    added("weights", f"a weight of {_value}", partial(_with_weight, value=_value, name="w.pt"))
added("weights", "a denormal weight (harmless)", partial(_with_weight, value=1e-42, name="w.pt"), 0)


def _named(folder: Path, key: Any) -> list[str]:
    return with_checkpoint(folder, "w.pt", _saved({key: torch.zeros(1)}))


def _saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


for _name, _key in {
    "path parts": "../../ran", "an absolute path": "/etc/passwd", "control characters": "a\x1b[2J\r\x00b",
    "a lone surrogate": "\ud800", "a megabyte": "x" * MIB, "dots": "." * 5000, "a number": 7,
}.items():  # fmt: skip
    added("names", f"a tensor named by {_name}", partial(_named, key=_key))


def _idx(folder: Path, content: bytes) -> list[str]:
    """Fashion-MNIST's files, as an environment variable names them."""
    project(folder)
    for kind in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{kind}-ubyte.gz").write_bytes(content)
    return ["FASHION_MNIST", "analyze", "net.py:net", "--data", "fashion-mnist", "--out", "out"]


_IDX_HEADER = struct.pack(">IIII", 0x803, 60_000, 28, 28)
for _name, _content in {
    "bomb": gzip.compress(_IDX_HEADER + bytes(100 * MIB), 1),
    "sizes that lie": gzip.compress(struct.pack(">IIII", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(100)),
    "cut": gzip.compress(_IDX_HEADER + bytes(1000))[:40],
    "short header": gzip.compress(b"\x00\x00\x08"),
    "no gzip": b"P" * 100,
}.items():
    added("IDX", _name, partial(_idx, content=_content))

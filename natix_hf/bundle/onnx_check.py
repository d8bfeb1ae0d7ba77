"""The check of an ONNX file before any runtime opens it. It walks the protobuf fields and reads no weight.

An ONNX tensor may name another file for its values, and a runtime would read that file, wherever it lies. A bundle's
`model.onnx` must hold its weights itself. The check needs no package, so its result does not depend on what is
installed.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

# Field numbers of onnx.proto3 by message: the fields whose messages may contain a tensor.
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_GRAPH, _EXTERNAL_DATA, _DATA_LOCATION = 7, 13, 14
# A model of 48 layers has some 60,000 fields. Without a limit a few hundred megabytes of junk would take an hour.
_MOST_FIELDS = 1_000_000
_DEEPEST = 20


def onnx_problems(path: Path) -> list[str]:
    """One line if a file is not an ONNX model or keeps weights in another file; otherwise an empty list."""
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return [f"{path} is not an ONNX file: it is empty"]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return [f"{path} keeps weights in another file, which is never read"] if _looks_elsewhere(data) else []
        except (ValueError, IndexError) as error:
            return [f"{path} is not an ONNX file ({error})"]


def _looks_elsewhere(data: mmap.mmap) -> bool:
    waiting, fields, graphs = [("model", 0, len(data), 0)], 0, 0
    while waiting:
        message, begin, end, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ValueError(f"its messages are nested more than {_DEEPEST} deep")
        for number, value in _fields(data, begin, end):
            fields += 1
            if fields > _MOST_FIELDS:
                raise ValueError(f"it has more than {_MOST_FIELDS:,} fields")
            if message == "tensor" and number in (_EXTERNAL_DATA, _DATA_LOCATION) and value != 0:
                return True
            if number in _MESSAGES[message] and isinstance(value, tuple):
                waiting.append((_MESSAGES[message][number], *value, depth + 1))
                graphs += message == "model" and number == _GRAPH
    if not graphs:
        raise ValueError("it has no graph")
    return False


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int | tuple[int, int]]]:
    """The fields of a message between two positions: the number, and an integer or the two ends of the content."""
    while at < end:
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
        elif kind == 2:
            length, at = _varint(data, at)
            yield number, (at, at + length)
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"no field begins at byte {at}")
    if at != end:
        raise ValueError(f"a field runs past the end of its message at byte {end}")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"the number before byte {at} has no end")

"""The header of a safetensors file, read and checked before anything maps or allocates a tensor."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from natix_hf.errors import VerificationError, cut
from natix_hf.provenance.strict import parse_strictly, regular_size

Shapes = dict[str, tuple[int, ...]]
# 200 layers of 25 tensors fill a megabyte.
_LONGEST_HEADER = 4 * 2**20
_MOST_DIMENSIONS = 8


def tensor_shapes(path: Path, most: int) -> Shapes:
    """The shapes of the tensors in a file, by name. All are float32, and they fill the file without gap or overlap.

    Args:
        most: The number of bytes that such a file may have.

    Raises:
        VerificationError: if the file is missing, too large, or anything else. The message names it.
    """
    size = regular_size(path)
    if size > most:
        raise VerificationError(f"{path} has {size:,} bytes, and such a file has at most {most:,}")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        body = size - 8 - length
        if not 2 <= length <= _LONGEST_HEADER or body < 0:
            raise VerificationError(f"{path} says that its header has {length:,} bytes: it is not a safetensors file")
        content = file.read(length)
    header = parse_strictly(content, path, "a file with the header of safetensors")
    if not isinstance(header, dict) or not content.startswith(b"{"):
        raise VerificationError(f"{path} does not have the header of a safetensors file")
    metadata = header.pop("__metadata__", {})
    texts = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    if not texts or metadata.get("format", "pt") != "pt":
        raise VerificationError(f"{path} has the metadata {cut(metadata)}: it is not a PyTorch file")
    at, shapes = 0, {}
    for name, facts in sorted(header.items(), key=lambda item: _begin(item[1])):
        shape, begin, end = _checked(name, facts, path)
        if begin != at:
            raise VerificationError(f"{path}: tensor {cut(name)} begins at byte {begin:,}, but {at:,} is free")
        at, shapes[name] = end, shape
    if at != body:
        raise VerificationError(f"{path} holds {body} bytes of tensors, but its header says {at}")
    return shapes


def _begin(facts: Any) -> int:
    offsets = facts.get("data_offsets") if isinstance(facts, dict) else None
    first = offsets[0] if isinstance(offsets, list) and offsets else None
    return first if type(first) is int else -1


def _checked(name: str, facts: Any, path: Path) -> tuple[tuple[int, ...], int, int]:
    """Shape, begin and end of a tensor."""
    if not isinstance(facts, dict) or set(facts) != {"dtype", "shape", "data_offsets"}:
        raise VerificationError(f"{path}: tensor {cut(name)} is {cut(facts)}")
    shape, offsets = facts["shape"], facts["data_offsets"]
    if facts["dtype"] != "F32":
        raise VerificationError(f"{path}: tensor {cut(name)} is of type {cut(facts['dtype'])}, not of F32")
    if not _whole(shape, 1) or len(shape) > _MOST_DIMENSIONS or not _whole(offsets, 0) or len(offsets) != 2:
        raise VerificationError(f"{path}: tensor {cut(name)} has shape {cut(shape)} and bytes {cut(offsets)}")
    begin, end = offsets
    if end - begin != 4 * math.prod(shape):
        raise VerificationError(f"{path}: tensor {cut(name)} of shape {cut(shape)} has bytes {begin} to {end}")
    return tuple(shape), begin, end


def _whole(values: Any, least: int) -> bool:
    """True for a list of whole numbers that a file can have."""
    return isinstance(values, list) and all(type(value) is int and least <= value < 2**48 for value in values)

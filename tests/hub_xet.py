"""What huggingface_hub 2 uploads where hf_xet is installed: xorbs of compressed chunks, and shards that say which
chunks of which xorbs make a file. https://huggingface.co/docs/xet has the formats. Files leave the Hub without Xet.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

_VERIFIED, _NAMED = 1 << 31, 1 << 30  # flags of a file in a shard: a verification row for each segment, a sha256 row


def files_of(shard: bytes, xorbs: Mapping[str, bytes]) -> Iterator[bytes]:
    """The contents of the files that a shard registers. Its rows have 48 bytes each; 32 of 0xff end the files."""
    at, chunks = 48, {}
    while shard[at : at + 32] != b"\xff" * 32:
        flags, segments = struct.unpack_from("<II", shard, at + 32)
        content = b""
        for row in range(at + 48, at + 48 * (segments + 1), 48):
            words = struct.unpack_from("<4Q", shard, row)
            name = "".join(f"{word:016x}" for word in words)
            _, size, first, end = struct.unpack_from("<4I", shard, row + 32)
            if name not in chunks:
                chunks[name] = list(chunks_of(xorbs[name]))
            part = b"".join(chunks[name][first:end])
            assert len(part) == size
            content += part
        yield content
        at += 48 * (1 + segments * (2 if flags & _VERIFIED else 1) + (1 if flags & _NAMED else 0))


def chunks_of(xorb: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(xorb) and xorb[at : at + 7] != b"XETBLOB":
        packed, scheme = int.from_bytes(xorb[at + 1 : at + 4], "little"), xorb[at + 4]
        size, data = int.from_bytes(xorb[at + 5 : at + 8], "little"), xorb[at + 8 : at + 8 + packed]
        if scheme:
            data = lz4(data)
        if scheme == 2:  # the bytes of the numbers are grouped: all first ones, all second ones, ...
            mixed, start = bytearray(size), 0
            for lane in range(4):
                length = (size - lane + 3) // 4
                mixed[lane::4] = data[start : start + length]
                start += length
            data = bytes(mixed)
        assert len(data) == size
        yield data
        at += 8 + packed


def lz4(frame: bytes) -> bytes:
    """An LZ4 frame, unpacked. Checksums are not looked at: whoever has the content compares its sha256."""
    flags, at, out = frame[4], 7, bytearray()
    at += (8 if flags & 8 else 0) + (4 if flags & 1 else 0)
    while size := int.from_bytes(frame[at : at + 4], "little"):
        packed, size = not size >> 31, size & 0x7FFFFFFF
        block = frame[at + 4 : at + 4 + size]
        at += 4 + size + (4 if flags & 16 else 0)
        if packed:
            _unpack(block, out)
        else:
            out += block
    return bytes(out)


def _unpack(block: bytes, out: bytearray) -> None:
    at = 0

    def length(nibble: int) -> int:
        nonlocal at
        total, more = nibble, nibble == 15
        while more:
            total, more = total + block[at], block[at] == 255
            at += 1
        return total

    while at < len(block):
        token = block[at]
        at += 1
        literal = length(token >> 4)
        out += block[at : at + literal]
        at += literal
        if at >= len(block):
            return
        back = int.from_bytes(block[at : at + 2], "little")
        at += 2
        copied = length(token & 15) + 4
        start = len(out) - back
        while copied > 0:
            piece = out[start : start + copied]
            out += piece
            copied -= len(piece)

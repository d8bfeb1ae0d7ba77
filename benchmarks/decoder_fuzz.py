"""Damaged pictures against the decoder: only `DataError`, no hang, no crash, and nothing refused that Pillow shows.

    python benchmarks/decoder_fuzz.py [--files 20000] [--seed 0] [--processes 2] [--limit 5]

Good files of 20 formats are damaged, each by one to three of: cutting off, flipped bits, runs of bytes, extreme
integers near the beginning, pieces (chunks, segments, blocks) taken out, doubled or swapped, another file appended.
Half of the PNGs get good checksums again, so that damage goes deeper. Files are read in processes of their own with
6 GB of memory, so that a hang (`--limit` seconds) or a crash of a library is seen and counted. Whether Pillow shows a
file is asked of `Image.open(file).convert("RGB")`. File n is a function of the seed and n.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import time
import warnings
from collections import Counter
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from damaged_pictures import damaged, good_files
from PIL import Image

from natix_hf.data.images import open_image
from natix_hf.errors import DataError

_NAME = "frames/0017.bin"


def ours(content: bytes) -> str:
    """What the decoder makes of a file: `read`, `refused` or the fault."""
    try:
        image = open_image(content, _NAME)
    except DataError as error:
        message = str(error)
        good = _NAME in message and message.isprintable() and len(message) < 400
        return "refused" if good else f"fault: bad message {message!r}"
    except BaseException as error:  # also what is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"fault: {type(error).__name__}: {error}"
    return "read" if image.mode == "RGB" and min(image.size) > 0 else f"fault: {image.mode}, {image.size}"


def pillow_shows(content: bytes) -> bool:
    """Whether Pillow alone shows a file."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.convert("RGB")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return False
    return True


def _work(pipe: Connection, seed: int) -> None:
    with suppress(ImportError, ValueError):  # no limits of memory on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30,) * 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff talks
    warnings.simplefilter("ignore")
    good_files()
    pipe.send("ready")
    while (number := pipe.recv()) is not None:
        kind, content = damaged(number, seed)
        begin = time.perf_counter()
        pipe.send((kind, ours(content), time.perf_counter() - begin))
        pipe.send(pillow_shows(content))


class _Worker:
    """A process that reads files, started anew after a hang or a crash."""

    def __init__(self, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, far = context.Pipe()
        self.process = context.Process(target=_work, args=(far, seed), daemon=True)
        self.process.start()
        far.close()
        self.pipe.recv()

    def answer(self, limit: float) -> Any:
        """The next answer, or `hang` or `crash`, after which this worker is over."""
        try:
            if self.pipe.poll(limit):
                return self.pipe.recv()
            fault = "hang"
        except (EOFError, ConnectionError):
            fault = "crash"
        self.process.kill()
        self.process.join()
        return fault


def _share(numbers: range, seed: int, limit: float) -> tuple[Counter[str], list[str], float]:
    """Read some files. Returns counts, lines about faults and the longest time of a file in seconds."""
    counts: Counter[str] = Counter()
    lines: list[str] = []
    slowest, worker = 0.0, _Worker(seed)
    for number in numbers:
        worker.pipe.send(number)
        answer = worker.answer(limit)
        if answer in ("hang", "crash"):
            counts[answer] += 1
            lines.append(f"{number}: {answer} of the decoder")
            worker = _Worker(seed)
            continue
        kind, outcome, seconds = answer
        slowest = max(slowest, seconds)
        counts[outcome if outcome in ("read", "refused") else "fault"] += 1
        if outcome.startswith("fault"):
            lines.append(f"{number}: {kind}: {outcome}")
        shown = worker.answer(limit)
        if shown in ("hang", "crash"):
            counts[f"{shown} of Pillow alone"] += 1
            lines.append(f"{number}: {kind}: {shown} of Pillow alone")
            worker = _Worker(seed)
        elif shown and outcome != "read":
            counts["refused but shown by Pillow"] += 1
            lines.append(f"{number}: {kind}: refused but shown by Pillow")
        elif outcome == "read" and not shown:
            counts["read, and Pillow alone refuses"] += 1
    worker.pipe.send(None)
    return counts, lines, slowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--limit", type=float, default=5.0, help="seconds a file")
    options = parser.parse_args()
    from multiprocessing.pool import ThreadPool

    from results import record

    shares = [range(first, options.files, options.processes) for first in range(options.processes)]
    with ThreadPool(options.processes) as pool:
        parts = pool.starmap(_share, [(share, options.seed, options.limit) for share in shares])
    counts: Counter[str] = sum((part[0] for part in parts), Counter())
    for line in sorted(line for part in parts for line in part[1]):
        print(line)
    kinds = list(good_files())
    formats = len({kind.split()[0] for kind in kinds})
    asked = ("read", "refused", "fault", "hang", "crash", "refused but shown by Pillow")
    named = [*asked, *sorted(set(counts) - set(asked))]
    record(
        "decoder_fuzz",
        f"{options.files:,} damaged files of {formats} formats ({len(kinds)} kinds): "
        + ", ".join(f"{name} {counts[name]:,}" for name in named)
        + f"; slowest {max(part[2] for part in parts):.1f} s of {options.limit:g} allowed",
        ("pillow", "numpy"),
    )


if __name__ == "__main__":
    main()

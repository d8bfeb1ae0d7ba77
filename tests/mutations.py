"""Files that a stranger has changed, and what to watch while they are read: for the fault tests."""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import signal
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 5
_ODD_KEYS = (
    "auto_map", "custom_pipelines", "quantization_config", "transformers_weights", "configuration_files",
    "attn_implementation", "per_layer_config", "return_dict", "output_attentions", "num_labels", "torch_dtype",
    "__class__", "crop_size", "do_center_crop", "data_format", "../../etc/passwd", "", "\ud800", "schema",
)  # fmt: skip
_DEEP, _BLANKS = 20_000, 2 * 2**20


# Mutations of a value of JSON. A raw text that JSON cannot hold stands as "@raw:TEXT@".


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


def _strange(rng: random.Random, value: Any) -> Any:
    """A value that nobody wrote there."""
    raw = ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "-0", "1E400", "[" * _DEEP + "]" * _DEEP)
    made: list[Callable[[], Any]] = [
        lambda: f"@raw:{rng.choice(raw)}@",
        lambda: rng.choice([None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 10**300, 0.0, 1e308, 5e-324, 1e-9]),
        lambda: rng.choice(["", "x", "None", "../../x", "/etc/passwd", "a" * 100_000, "\ud800", "\u202e\x1b[2J\n"]),
        lambda: rng.choice([[], {}, [[]], [value], {"x": value}, [1] * 1000, {str(i): i for i in range(1000)}]),
        lambda: str(value),
    ]
    if isinstance(value, int | float) and not isinstance(value, bool):
        numbers = (value + 1, value - 1, -value, value * 2, value * 1000, float(value), value + 1e-7, value * 1.01)
        made += [lambda: rng.choice(numbers)] * 3
    if isinstance(value, str) and value:
        made += [lambda: value[:-1], lambda: value.upper(), lambda: value[::-1], lambda: value[:5] + "0" + value[6:]]
    if isinstance(value, list):
        made += [lambda: value[::-1], lambda: value[:-1], lambda: value + value, lambda: [None, *value]]
    return rng.choice(made)()


def mutate_json(rng: random.Random, content: dict[str, Any]) -> bytes:
    """A file of JSON in which one to three things were changed."""
    content = copy.deepcopy(content)
    twice = ""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = list(_places(content))
        if not places:
            break
        *above, key = rng.choice(places)
        holder = content
        for step in above:
            holder = holder[step]
        act = rng.choice(["set", "set", "set", "delete", "rename", "add", "swap", "twice"])
        if act == "set":
            holder[key] = _strange(rng, holder[key])
        elif act == "delete":
            del holder[key]
        elif act == "swap":
            *other_above, other = rng.choice(places)
            place = content
            for step in other_above:
                place = place[step]
            holder[key], place[other] = copy.deepcopy(place[other]), copy.deepcopy(holder[key])
        elif isinstance(holder, dict) and act == "rename":
            holder[rng.choice([*_ODD_KEYS, f"{key}_", key.upper()])] = holder.pop(key)
        elif isinstance(holder, dict) and act == "add":
            holder[rng.choice(_ODD_KEYS)] = _strange(rng, 1)
        elif act == "twice":
            twice = rng.choice(sorted(map(str, content)))
    try:
        text = json.dumps(content, indent=rng.choice([None, 2]))
    except (ValueError, RecursionError):  # a swap made a circle
        return b"{"
    for part in text.split('"@raw:')[1:]:
        raw = part.split('@"')[0]
        text = text.replace(f'"@raw:{raw}@"', raw, 1)
    if twice:
        text = f'{{"{twice}": {json.dumps(_plain(_strange(rng, 1)))}, {text[1:]}'
    if rng.random() < 0.01:
        text += " " * _BLANKS
    return text.encode("utf-8", "surrogatepass" if rng.random() < 0.5 else "replace")


def _plain(value: Any) -> Any:
    return None if isinstance(value, str) and value.startswith("@raw") else value


def mutate_bytes(rng: random.Random, content: bytes, end: int | None = None) -> bytes:
    """A file of which one to four places before `end` were changed."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(min(end or len(data), len(data)) or 1)
        act = rng.randrange(6)
        if act == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif act == 1:
            data[at:at] = rng.randbytes(rng.choice([1, 2, 100]))
        elif act == 2:
            del data[at : at + rng.choice([1, 8, 1000])]
        elif act == 3:
            del data[at:]
        elif act == 4:
            data[at : at + 8] = rng.randbytes(8)
        else:
            data[at:at] = data[: rng.choice([1, 10, 1000])]
    return bytes(data)


def mutate_header(rng: random.Random, content: bytes) -> bytes:
    """A safetensors file with a changed header, or with a length that is none."""
    (length,) = struct.unpack("<Q", content[:8])
    header, body = content[8 : 8 + length], content[8 + length :]
    act = rng.randrange(4)
    if act == 0:
        return mutate_bytes(rng, content, 8 + length)
    if act == 1:
        wrong = (0, 1, length - 1, length + 1, length + 8, 2**20, 2**32, 2**63, 2**64 - 1)
        return struct.pack("<Q", rng.choice(wrong)) + header + body
    made = mutate_json(rng, json.loads(header))
    if act == 2:
        made += b" " * (-len(made) % 8)
    return struct.pack("<Q", len(made)) + made + body


class Slow(BaseException):
    """An answer took too long. No handler of the package takes it for one of its own."""


# What is watched while a file is read.

_watched: dict[str, Any] = {"folder": None, "outside": []}


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched["folder"] is None:
        return
    if event == "open":
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and isinstance(path, str) and not path.startswith((_watched["folder"], "/dev/", "/proc/")):
            _watched["outside"].append(f"wrote {path}")
    elif event in ("subprocess.Popen", "os.system", "os.exec", "pickle.find_class", "socket.connect", "os.remove"):
        _watched["outside"].append(f"{event} {str(arguments)[:80]}")


@contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """Collects what is opened for writing, started or unpickled, and ends what takes too long."""

    def late(*_: object) -> None:
        raise Slow

    _watched.update(folder=str(folder), outside=[])
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 2 * SECONDS)
    try:
        yield _watched["outside"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        _watched["folder"] = None


def rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class Tally:
    """What became of each try, and a line for every miss."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.misses: list[str] = []
        self.slowest = 0.0

    def count(self, kind: str, outcome: str, told: str = "") -> None:
        self.counts.setdefault(kind, Counter())[outcome] += 1
        if outcome == "missed":
            self.misses.append(f"{kind}: {told}")

    def lines(self) -> list[str]:
        return [
            f"{kind:44s} tried {found.total():6d}  refused {found['refused']:6d}  same answers {found['same']:5d}  "
            f"other answers of a forgery {found['other']:4d}  missed {found['missed']}"
            for kind, found in self.counts.items()
        ]

    def report(self, grown: float) -> int:
        """Print everything, with the MB by which the memory grew. Returns the exit code."""
        for line in (*self.lines(), *self.misses[:50]):
            print(line)
        print(f"slowest {self.slowest:.2f} s, memory grew by {grown:.0f} MB, {len(self.misses)} missed")
        return 1 if self.misses else 0


sys.addaudithook(_audit)

"""The server under load: does every good picture get `predict`'s answer, is memory flat, what does a request cost.

    python benchmarks/serve.py BUNDLE [--clients 32] [--requests 2000] [--kill-requests 600]

Clients send drawn street scenes as multipart, JSON and bare bytes, one or several at a time. A third of the requests
are bad: bodies beyond the limit, truncated files, decompression bombs, wrong types, wrong JSON, base64 that is none,
clients that hang up. Every answer is compared with `bundle.predict` on the same bytes, bit by bit, and every refusal
with the status that the docs give it. A client that is told 503 waits and sends again. The memory is the server's
resident set.

Then the server is killed (SIGKILL) in the middle of a second load and started again on its port: clients that got no
answer send the same again, and the answers are compared in the same way.

Times: one client alone and all clients at once, beside the time of `bundle.predict` on one picture in a process of its
own, taken before and after in the same run.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from results import record

import natix_hf
from natix_hf.synthetic import SyntheticConfig, render

MIB = 1 << 20
MEGABYTES = 2  # the server's limit, so that a huge body is soon sent
PATIENCE_S = 120


def scenes(count: int, px: int = 160) -> list[bytes]:
    """Drawn pictures as JPEG and PNG files, no two alike."""
    found = []
    for number in range(count):
        buffer = io.BytesIO()
        render(SyntheticConfig(image_size=px), number, 0).save(buffer, "JPEG" if number % 2 else "PNG")
        found.append(buffer.getvalue())
    return found


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 px in some hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    side = (60_000).to_bytes(4, "big")
    header = chunk(b"IHDR", side + side + b"\x01\x00\x00\x00\x00")
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 10_000)) + chunk(b"IEND", b"")


def multipart(pictures: list[bytes]) -> tuple[str, bytes]:
    edge = "edge-of-the-parts"
    parts = [
        f'--{edge}\r\nContent-Disposition: form-data; name="images"; filename="{number}.jpg"\r\n\r\n'.encode() + data
        for number, data in enumerate(pictures)
    ]
    return f"multipart/form-data; boundary={edge}", b"\r\n".join(parts) + f"\r\n--{edge}--\r\n".encode()


def in_json(pictures: list[bytes]) -> tuple[str, bytes]:
    images = [base64.b64encode(data).decode() for data in pictures]
    return "application/json", json.dumps({"images": images}).encode()


@dataclass
class Wanted:
    """A request, and what it must come to: a status, and for each picture its probability or None for an error."""

    kind: str
    content_type: str
    body: bytes
    status: int
    answers: list[int | None] = field(default_factory=list)  # numbers of pictures
    hangs_up: bool = False


def draw(pictures: list[bytes], rng: random.Random, huge: int) -> Wanted:
    """One request of the load: two in three are good."""
    number = rng.randrange(len(pictures))
    if rng.random() < 2 / 3:
        way = rng.choice(("multipart", "json", "bytes", "several", "mixed"))
        if way == "multipart":
            return Wanted(way, *multipart([pictures[number]]), 200, [number])
        if way == "json":
            return Wanted(way, *in_json([pictures[number]]), 200, [number])
        if way == "bytes":
            return Wanted(way, "image/jpeg", pictures[number], 200, [number])
        numbers = [rng.randrange(len(pictures)) for _ in range(rng.randint(2, 5))]
        given: list[bytes] = [pictures[n] for n in numbers]
        told: list[int | None] = [*numbers]
        if way == "mixed":
            at = rng.randrange(len(given) + 1)
            given.insert(at, rng.choice((bomb(), b"no picture", pictures[number][:100])))
            told.insert(at, None)
        return Wanted(way, *rng.choice((multipart, in_json))(given), 200, told)
    junk = rng.randbytes(400)
    cases: dict[str, Callable[[], Wanted]] = {
        "huge": lambda: Wanted("huge", *multipart([b"\xff" * huge]), 413),
        "truncated": lambda: Wanted("truncated", *multipart([pictures[number][: len(pictures[number]) // 3]]), 422),
        "bomb": lambda: Wanted("bomb", "image/png", bomb(), 422),
        "type": lambda: Wanted("type", "text/plain", pictures[number], 415),
        "no picture": lambda: Wanted("no picture", *multipart([junk]), 422),
        "cut json": lambda: Wanted("cut json", "application/json", b'{"images": ["' + junk, 400),
        "other json": lambda: Wanted("other json", "application/json", b'{"picture": 1}', 400),
        "base64": lambda: Wanted(
            "base64", "application/json", json.dumps({"images": [junk.hex() + "?"]}).encode(), 422
        ),
        "number": lambda: Wanted("number", "application/json", b'{"images": [7]}', 422),
        "cut multipart": lambda: Wanted("cut multipart", *_cut(multipart([pictures[number]])), 400),
        "hangs up": lambda: Wanted("hangs up", *multipart([pictures[number]]), 0, hangs_up=True),
    }
    return rng.choice(list(cases.values()))()


def _cut(given: tuple[str, bytes]) -> tuple[str, bytes]:
    return given[0], given[1][:-60]


@dataclass
class Load:
    """What came of the requests."""

    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of good requests that were answered at once
    counts: Counter[str] = field(default_factory=Counter)
    again: int = 0


def send(port: int, wanted: Wanted) -> tuple[int, bytes, float]:
    """Status, body and the seconds that `Retry-After` asks for."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        if wanted.hangs_up:
            connection.putrequest("POST", "/predict")
            connection.putheader("Content-Type", wanted.content_type)
            connection.putheader("Content-Length", str(len(wanted.body)))
            connection.endheaders()
            connection.send(wanted.body[: len(wanted.body) // 2])
            return 0, b"", 0.0
        connection.request("POST", "/predict", wanted.body, {"Content-Type": wanted.content_type})
        response = connection.getresponse()
        return response.status, response.read(), float(response.getheader("Retry-After") or 0)
    finally:
        connection.close()


def problem_with(wanted: Wanted, status: int, body: bytes, exact: list[float]) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    if status != wanted.status:
        return f"{wanted.kind}: status {status}, not {wanted.status}: {body[:200]!r}"
    if wanted.hangs_up:
        return None
    content = json.loads(body)
    if re.search(r"Traceback|/home/|/tmp/|/usr/|site-packages", body.decode()):
        return f"{wanted.kind}: the answer shows a path: {body[:200]!r}"
    if status != 200:
        return None if isinstance(content.get("error"), str) else f"{wanted.kind}: no error line: {body[:200]!r}"
    told = [answer.get("probability") for answer in content["answers"]]
    right = [None if number is None else exact[number] for number in wanted.answers]
    return None if told == right else f"{wanted.kind}: {told} is not {right}"


def run_load(port: Callable[[], int], pictures: list[bytes], exact: list[float], clients: int, requests: int,
             seed: int = 0, huge: int = 3 * MIB, at: Callable[[int], None] = lambda done: None) -> Load:  # fmt: skip
    """Send the load with so many clients at once. A client that is refused with 503, or that loses its connection,
    sends the same request again.

    Args:
        port: Where the server is now.
        exact: The probability of each picture.
        at: Called after every request with the number of those that are done.
    """
    load, lock, left = Load(), threading.Lock(), iter(range(requests))

    def client() -> None:
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                return
            wanted, end, first = (
                draw(pictures, random.Random(f"{seed} {number}"), huge),
                time.monotonic() + PATIENCE_S,
                True,
            )
            while True:
                begun = time.perf_counter()
                try:
                    status, body, wait = send(port(), wanted)
                except (OSError, http.client.HTTPException) as error:
                    status, body, wait = -1, repr(error).encode(), 0.2
                spent = time.perf_counter() - begun
                if status not in (-1, 503) or time.monotonic() > end:
                    break
                first = False
                with lock:
                    load.again += 1
                time.sleep(min(wait, 1.0))
            problem = problem_with(wanted, status, body, exact)
            with lock:
                load.counts[wanted.kind] += 1
                if problem is not None:
                    load.wrong.append(problem)
                elif first and wanted.status == 200 and len(wanted.answers) == 1:
                    load.seconds.append(spent)
                at(sum(load.counts.values()))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return load


class Server:
    """`natix-hf serve` in a process of its own."""

    def __init__(self, bundle: str, log: Path, *options: str, port: int = 0) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "natix_hf", "serve", bundle, "--port", str(port), *options],
                stdout=file,
                stderr=file,
            )
        end = time.monotonic() + PATIENCE_S
        while not (found := re.search(r"serving +http://127\.0\.0\.1:(\d+)", log.read_text(encoding="utf-8"))):
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the server did not start:\n{log.read_text(encoding='utf-8')}")
            time.sleep(0.05)
        self.port = int(found[1])

    def memory_mib(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss / MIB)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it in order. Its exit code."""
        self.process.send_signal(signal.SIGTERM if os.name != "nt" else signal.SIGINT)
        return self.process.wait(PATIENCE_S)


def milliseconds(seconds: list[float]) -> str:
    low, high = np.quantile(seconds, (0.5, 0.95)) * 1000
    return f"p50 {low:.1f} ms, p95 {high:.1f} ms"


def _bad(load: Load) -> int:
    good = ("multipart", "json", "bytes", "several", "mixed")
    return sum(count for kind, count in load.counts.items() if kind not in good)


def bare(bundle: Any, pictures: list[bytes], count: int = 60) -> list[float]:
    seconds = []
    for number in range(count):
        begun = time.perf_counter()
        bundle.predict(pictures[number % len(pictures)])
        seconds.append(time.perf_counter() - begun)
    return seconds


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("bundle")
    asked.add_argument("--clients", type=int, default=32)
    asked.add_argument("--requests", type=int, default=2000)
    asked.add_argument("--kill-requests", type=int, default=600)
    given = asked.parse_args()
    pictures = scenes(100)
    bundle = natix_hf.load_bundle(given.bundle)
    exact = [answer.probability for answer in bundle.predict(pictures)]
    alone = bare(bundle, pictures)
    options = ("--max-megabytes", str(MEGABYTES), "--queue", "128")
    with tempfile.TemporaryDirectory() as folder:
        server = Server(given.bundle, Path(folder) / "log", *options)
        memory: dict[int, float] = {}
        marks = (given.requests // 4, given.requests // 2, given.requests)

        def look(done: int) -> None:
            if done in marks:
                memory[done] = server.memory_mib()

        one = run_load(lambda: server.port, pictures, exact, 1, 60, seed=1)
        begun = time.perf_counter()
        load = run_load(lambda: server.port, pictures, exact, given.clients, given.requests, at=look)
        spent = time.perf_counter() - begun
        alone += bare(bundle, pictures)
        code = server.stop()

        places = [Server(given.bundle, Path(folder) / "log", *options)]

        def kill(done: int) -> None:
            if done == given.kill_requests // 2:
                places[0].kill()
                places.append(Server(given.bundle, Path(folder) / "again", *options, port=places[0].port))

        killed = run_load(lambda: places[0].port, pictures, exact, given.clients, given.kill_requests, seed=2, at=kill)
        places[-1].stop()
    wrong = one.wrong + load.wrong + killed.wrong
    for line in wrong[:20]:
        print(line)
    grown = memory[marks[-1]] / memory[marks[0]]
    print(f"kinds     {dict(sorted(load.counts.items()))}, {load.again} sent again after 503")
    print(f"memory    {', '.join(f'{mib:.0f} MiB after {done}' for done, mib in sorted(memory.items()))}")
    print(f"rate      {given.requests / spent:.0f} requests a second")
    print(f"1 client  {np.median(one.seconds) / np.median(alone):.2f} times predict of one picture (p50)")
    print(f"stopped   exit code {code}")
    record(
        "serve",
        f"{given.clients} clients, {given.requests} requests, {_bad(load)} of them bad: {len(load.wrong)} wrong, "
        f"memory x {grown:.3f} from request {marks[0]} to {marks[-1]}; one client {milliseconds(one.seconds)}, "
        f"{given.clients} clients {milliseconds(load.seconds)}, predict of one picture {milliseconds(alone)}; killed "
        f"in the middle of {given.kill_requests}: {len(killed.wrong)} wrong, {killed.again} sent again",
        ("torch", "fastapi", "uvicorn"),
    )
    raise SystemExit(bool(wrong) or grown > 1.1)


if __name__ == "__main__":
    main()

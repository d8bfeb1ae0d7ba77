"""`natix-hf serve` as a process: what it prints, how it ends, and that a kill loses nothing."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import REPO, Command, png_bytes, striped_image
from facts import tells
from local_hub import LocalHub

for needed in ("fastapi", "uvicorn", "python_multipart"):
    pytest.importorskip(needed)
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import numpy as np  # noqa: E402
import serve as load  # noqa: E402  (benchmarks/serve.py)

from natix_hf.bundle.load import load_bundle  # noqa: E402

PICTURES = [png_bytes(striped_image(number % 2, np.random.default_rng(number))) for number in range(8)]


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGTERM")
def test_a_kill_loses_nothing_and_an_end_is_in_order(bundle: Path, tmp_path: Path) -> None:
    """Clients that got no answer ask the new server, and get the same answers; SIGTERM answers what was accepted."""
    exact = [answer.probability for answer in load_bundle(bundle).predict(PICTURES)]
    places = [load.Server(str(bundle), tmp_path / "log")]

    def kill(done: int) -> None:
        if done == 30:
            places[0].kill()
            places.append(load.Server(str(bundle), tmp_path / "again", port=places[0].port))

    done = load.run_load(
        lambda: places[0].port, PICTURES, exact, clients=4, requests=60, at=kill, huge=100_000_000 // 3
    )
    assert done.wrong == [] and done.again > 0
    last = places[-1]
    got: list[int] = []
    wanted = load.Wanted("several", *load.multipart(PICTURES * 6), 200, [*range(8)] * 6)
    thread = threading.Thread(target=lambda: got.append(load.send(last.port, wanted)[0]))
    thread.start()
    time.sleep(0.1)
    assert last.stop() == 143
    thread.join()
    assert got == [200]
    log = (tmp_path / "again").read_text(encoding="utf-8")
    assert "Traceback" not in log and log.count("POST /predict") >= 30 and "SIGTERM" in log


def test_a_port_that_is_taken_and_an_address_of_nobody(bundle: Path, command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = command("serve", bundle, "--port", port)
        assert code == 2 and tells(err.strip(), str(port), "--port")
    for host in ("no.such.host.invalid", "192.0.2.1"):  # the second is of no machine: RFC 5737
        code, _, err = command("serve", bundle, "--host", host)
        assert code == 2 and tells(err.strip(), "--host", host)


def test_without_the_extra(bundle: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "uvicorn" else real(name, *more)
    )
    code, _, err = command("serve", bundle)
    assert code == 2 and tells(err.strip(), "uvicorn", "pip install 'natix_hf[serve]'")


def test_a_token_that_is_none(bundle: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATIX_HF_SERVE_TOKEN", "short")
    code, _, err = command("serve", bundle)
    assert code == 2 and tells(err.strip(), "NATIX_HF_SERVE_TOKEN") and "short" not in err


def test_from_the_cache_without_the_hub(
    bundle: Path, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from natix_hf.bundle.push import push_bundle

    done = push_bundle(bundle, REPO)
    exact = load_bundle(REPO, revision=done.commit).predict(PICTURES)
    hub.stop()
    server = load.Server(REPO, tmp_path / "log", "--revision", done.commit)
    try:
        wanted = load.Wanted("several", *load.multipart(PICTURES), 200, [*range(8)])
        status, body, _ = load.send(server.port, wanted)
        assert load.problem_with(wanted, status, body, [answer.probability for answer in exact]) is None
    finally:
        server.kill()


def test_nobody_is_warned_about_this_machine_alone(bundle: Path, tmp_path: Path) -> None:
    server = load.Server(str(bundle), tmp_path / "log", "--host", "127.0.0.1")
    server.kill()
    assert "warning" not in (tmp_path / "log").read_text(encoding="utf-8")

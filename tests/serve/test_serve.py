"""The server: the same answers as `predict`, whatever comes beside them; limits while a body arrives."""

from __future__ import annotations

import http.client
import json
import random
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import png_bytes, striped_image
from facts import tells

for needed in ("fastapi", "uvicorn", "python_multipart"):
    pytest.importorskip(needed)
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import serve as load  # noqa: E402  (benchmarks/serve.py, whose small form this is)

from natix_hf.bundle.load import Bundle, load_bundle  # noqa: E402
from natix_hf.serve import reading, server  # noqa: E402
from natix_hf.serve.batching import Model, batch_sizes  # noqa: E402
from natix_hf.serve.limits import Limits  # noqa: E402
from natix_hf.serve.server import running  # noqa: E402
from natix_hf.serve.service import Service  # noqa: E402

Answer = tuple[int, dict[str, Any], http.client.HTTPMessage]
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
SMALL = Limits(megabytes=1, megapixels=4, images=6, queue=64, timeout_s=5, body_s=5, batch_size=8)


@pytest.fixture(scope="module")
def bundle(_finished_run: Path) -> Bundle:
    return load_bundle(_finished_run, device="cpu", backend="torch")


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    return [png_bytes(striped_image(number % 2, rng, (40 + number, 36))) for number in range(24)]


@pytest.fixture(scope="module")
def place(bundle: Bundle) -> Iterator[tuple[int, Service]]:
    service = Service(bundle, SMALL)
    with running(service) as url:
        yield int(url.rpartition(":")[2]), service


@pytest.fixture
def port(place: tuple[int, Service]) -> int:
    return place[0]


def ask(port: int, method: str, path: str, body: bytes = b"", kind: str = "", **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    given = ({"Content-Type": kind} if kind else {}) | {name.replace("_", "-"): v for name, v in headers.items()}
    connection.request(method, path, body or None, given)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, json.loads(content), response.headers


def post(port: int, kind: str, body: bytes, **headers: str) -> Answer:
    return ask(port, "POST", "/predict", body, kind, **headers)


def exact(bundle: Bundle, pictures: list[bytes]) -> list[dict[str, Any]]:
    found = bundle.predict(pictures)
    return [{name: getattr(answer, name) for name in answer.__slots__} for answer in found]


def bare(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in answer.items() if key != "image"} for answer in answers]


def test_every_way_in_gives_the_answers_of_predict(port: int, bundle: Bundle, pictures: list[bytes]) -> None:
    wanted = exact(bundle, pictures[:5])
    for kind, body in (load.multipart(pictures[:5]), load.in_json(pictures[:5])):
        status, told, _ = post(port, kind, body)
        assert status == 200 and bare(told["answers"]) == wanted
    status, told, _ = post(port, "image/png", pictures[0])
    assert status == 200 and bare(told["answers"]) == wanted[:1]
    text = json.loads(load.in_json(pictures[:1])[1])["images"][0]
    lines = "\n".join(text[at : at + 76] for at in range(0, len(text), 76))  # as the command base64 writes it
    for form in (f"data:image/png;base64,{text}", f"data:;base64,{text}", lines):
        status, told, _ = post(port, "application/json", json.dumps({"images": [form]}).encode())
        assert status == 200 and bare(told["answers"]) == wanted[:1]


def test_under_load_with_bad_requests(port: int, bundle: Bundle, pictures: list[bytes]) -> None:
    """The small form of benchmarks/serve.py."""
    probabilities = [answer.probability for answer in bundle.predict(pictures)]
    done = load.run_load(lambda: port, pictures, probabilities, clients=8, requests=120, huge=2_000_000)
    assert done.wrong == [] and sum(done.counts.values()) == 120 and len(done.counts) > 12


def test_batches_form_and_change_no_answer(bundle: Bundle, pictures: list[bytes]) -> None:
    """Held against one forward pass a picture, with every order and number of what waits."""
    sizes, difference = batch_sizes(bundle, 6)
    assert sizes == (1, 2, 4, 6) and difference == 0
    views = [bundle.preprocess(reading.open_image(picture)) for picture in pictures]
    alone = [bundle._answers([view])[0] for view in views]
    model, seen = Model(bundle, sizes), []
    real = bundle._answers
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                bundle, "_answers", lambda batch: (seen.append(len(batch)), time.sleep(0.02), real(batch))[2]
            )
            order = random.Random(0).sample(range(len(views)), len(views))
            futures = [(number, model.answer(views[number])) for number in order]
            assert [future.result(30) for number, future in futures] == [alone[number] for number, _ in futures]
    finally:
        model.close()
    assert set(seen) <= set(sizes) and max(seen) == 6 and sum(seen) == len(views)


def test_sizes_that_change_an_answer_are_not_used(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Bundle.logits
    monkeypatch.setattr(
        Bundle, "logits", lambda self, images, batch_size: real(self, images, batch_size) + 1e-9 * (batch_size == 4)
    )
    sizes, difference = batch_sizes(bundle, 8)
    assert sizes == (1,) and difference == pytest.approx(1e-9, rel=1e-3)


def test_a_failing_pass_ends_its_requests_and_not_the_thread(bundle: Bundle, pictures: list[bytes]) -> None:
    service = Service(bundle, SMALL)
    with running(service) as url, pytest.MonkeyPatch.context() as patch:
        port = int(url.rpartition(":")[2])

        def fail(batch: Any) -> Any:
            raise RuntimeError("/secret/place: out of memory")

        patch.setattr(service.model._bundle, "_answers", fail)
        status, told, _ = post(port, "image/png", pictures[0])
        assert status == 500 and "secret" not in json.dumps(told)
        patch.undo()
        assert post(port, "image/png", pictures[0])[0] == 200
        assert service.pictures == service.requests == service.held.now == 0


def test_an_answer_that_is_no_number_takes_no_other_with_it(
    bundle: Bundle, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, real = exact(bundle, pictures[:4]), bundle._inference.answer
    bad = np.asarray(bundle.preprocess(reading.open_image(pictures[2])))

    def broken(pixels: Any) -> Any:
        logits, features = real(pixels)
        logits[[np.array_equal(each, bad) for each in np.asarray(pixels)]] = np.nan
        return logits, features

    monkeypatch.setattr(bundle._inference, "answer", broken)
    with running(Service(bundle, SMALL)) as url:
        status, told, _ = post(int(url.rpartition(":")[2]), *load.multipart(pictures[:4]))
    assert status == 200 and tells(told["answers"][2].pop("error"), told["answers"][2]["image"], "no number")
    assert [*bare(told["answers"][:2]), *bare(told["answers"][3:])] == wanted[:2] + wanted[3:]

    monkeypatch.setattr(bundle._inference, "answer", lambda pixels: (real(pixels)[0] + np.nan, real(pixels)[1]))
    with running(Service(bundle, SMALL)) as url:
        port = int(url.rpartition(":")[2])
        assert ask(port, "GET", "/health")[0] == 200 and post(port, "image/png", pictures[0])[0] == 422


CASES = {
    "no body": ("image/png", b"", 422, "empty"),
    "no type": ("", b"x", 415, "multipart"),
    "a text": ("text/plain", b"x", 415, "text/plain"),
    "no JSON": ("application/json", b"{", 400, "JSON"),
    "deep JSON": ("application/json", b"[" * 200_000, 400, "JSON"),
    "another JSON": ("application/json", b'{"images": [], "more": 1}', 400, "images"),
    "no images": ("application/json", b'{"images": []}', 400, "no picture"),
    "a number": ("application/json", b'{"images": [1]}', 422, "base64"),
    "no base64": ("application/json", '{"images": ["ä%"]}'.encode(), 422, "base64"),
    "a path": ("application/json", b'{"images": ["/etc/passwd"]}', 422, ""),
    "a URL": ("application/json", b'{"images": ["https://example.org/x.jpg"]}', 422, "base64"),
    "too many": ("application/json", json.dumps({"images": ["QUJD"] * 7}).encode(), 413, "6"),
    "no boundary": ("multipart/form-data", b"x", 400, "boundary"),
    "no parts": ("multipart/form-data; boundary=x", b"--x--\r\n", 400, "no picture"),
    "a bomb": ("image/png", load.bomb(), 422, "4 megapixels"),
    "huge": ("image/png", b"\0" * 1_500_000, 413, "1 MB"),
    "zipped": ("image/png", b"x", 415, "encoding"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_request_has_its_status_and_one_line(case: str, port: int) -> None:
    kind, body, status, fact = CASES[case]
    begun = time.monotonic()
    got, told, headers = post(port, kind, body, **({"Content_Encoding": "gzip"} if case == "zipped" else {}))
    assert time.monotonic() - begun < 2.5  # nobody waits for a body that has come
    assert got == status and tells(told["error"], fact) and headers["Content-Type"] == "application/json"


def test_a_field_or_file_of_another_name_is_told(port: int, pictures: list[bytes]) -> None:
    kind, body = load.multipart(pictures[:1])
    assert post(port, kind, body.replace(b'name="images"', b'name="pics"'))[0] == 400
    assert post(port, kind, re.sub(rb'; filename="[^"]*"', b"", body))[0] == 400
    kind, body = load.multipart(pictures[:3])
    status, told, _ = post(port, kind, body[:-40])  # the last part is cut off: nothing is dropped in silence
    assert status == 400 and tells(told["error"], "boundary")


@pytest.mark.parametrize("charset", ["undefined", "punycode", "nowhere"])
def test_a_charset_is_no_error_of_the_server(charset: str, port: int, pictures: list[bytes]) -> None:
    kind, body = load.multipart(pictures[:1])
    status, told, _ = post(port, f"{kind}; charset={charset}", body)
    assert status == 200 if charset == "nowhere" else status == 400 and tells(told["error"], "charset", "UTF-8")


def test_a_malformed_body_has_no_line_but_that_of_its_request(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert post(port, "multipart/form-data; boundary=x", b"garbage")[0] == 400
    told = "".join(capfd.readouterr()).splitlines()
    assert [line for line in told if not re.match(r"\d{4}-\d\d-\d\dT", line)] == []


def test_names_of_files_are_harmless(port: int, pictures: list[bytes]) -> None:
    kind, body = load.multipart(pictures[:1])
    for given, shown in ((rb"C:\dir\a.jpg", "a.jpg"), (b"../../x.png", "x.png"), (b"\xe2\x80\xaegpj.exe", "\\u202e")):
        _, told, _ = post(port, kind, body.replace(b'filename="0.jpg"', b'filename="' + given + b'"'))
        assert shown in told["answers"][0]["image"] and "/" not in told["answers"][0]["image"]


def test_a_length_that_lies_and_a_body_without_one(port: int, pictures: list[bytes]) -> None:
    """A chunked body is counted while it comes, and one that was announced as too large is not read."""
    with socket.create_connection(("127.0.0.1", port), 20) as made:
        made.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 99999999999\r\n\r\n")
        assert made.recv(4000).startswith(b"HTTP/1.1 413")
    with socket.create_connection(("127.0.0.1", port), 20) as made:
        made.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b"\0" * 0x10000 + b"\r\n"
        for _ in range(20):
            made.sendall(chunk)
        made.sendall(b"0\r\n\r\n")
        assert made.recv(4000).startswith(b"HTTP/1.1 413")
    assert post(port, "image/png", pictures[0])[0] == 200


def test_the_bodies_of_all_together_are_bounded(bundle: Bundle, pictures: list[bytes]) -> None:
    limits = Limits(megabytes=1, bodies_megabytes=1, body_s=5)
    service = Service(bundle, limits)
    with running(service) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 20) as made:
            made.sendall(HEAD + b"Content-Length: 990000\r\n\r\n")
            made.sendall(b"\0" * 980_000)
            _until(lambda: service.held.now > 900_000)
            status, told, headers = post(port, "image/png", b"\0" * 200_000)
            assert status == 503 and int(headers["Retry-After"]) >= 1 and tells(told["error"], "again")
        _until(lambda: service.held.now == 0)  # it hung up
        assert post(port, "image/png", pictures[0])[0] == 200


def test_slow_clients_are_ended_and_starve_nobody(
    bundle: Bundle, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_HEAD_S", 1.0)
    service = Service(bundle, Limits(body_s=1.0))
    with running(service) as url:
        port = int(url.rpartition(":")[2])
        silent = [socket.create_connection(("127.0.0.1", port), 20) for _ in range(20)]
        heads = [socket.create_connection(("127.0.0.1", port), 20) for _ in range(20)]
        bodies = [socket.create_connection(("127.0.0.1", port), 20) for _ in range(20)]
        for made in heads:
            made.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\n")
        for made in bodies:
            made.sendall(HEAD + b"Content-Length: 9999\r\n\r\n")
        begun = time.monotonic()
        assert post(port, "image/png", pictures[0])[0] == 200 and time.monotonic() - begun < 5
        for made in heads:
            made.sendall(b"X")  # a byte now and then buys no time
        assert all(made.recv(100) == b"" for made in silent + heads)
        assert all(made.recv(100).startswith(b"HTTP/1.1 408") for made in bodies)
        for made in silent + heads + bodies:
            made.close()
        _until(lambda: service.requests == 0)


def test_a_picture_that_takes_too_long(bundle: Bundle, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    held, real = threading.Event(), reading.open_image

    def slow(content: bytes, name: str) -> Any:
        if content == pictures[1]:
            held.wait(30)
        return real(content, name)

    monkeypatch.setattr(reading, "open_image", slow)
    service = Service(bundle, Limits(timeout_s=0.3))
    with running(service) as url:
        port = int(url.rpartition(":")[2])
        for _ in range(4):  # more often than there are threads
            status, told, _ = post(port, "image/png", pictures[1])
            assert status == 504 and tells(told["error"], "0.3 s")
        status, told, _ = post(port, *load.multipart(pictures[:3]))
        assert status == 200 and ["error" in answer for answer in told["answers"]] == [False, True, False]
        assert ask(port, "GET", "/health")[1]["slow_pictures"] == 5
        held.set()
        _until(lambda: service.readers.left_behind == 0)


def test_a_full_queue(bundle: Bundle, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    held, real = threading.Event(), bundle._answers
    service = Service(bundle, Limits(queue=2, images=8))
    monkeypatch.setattr(bundle, "_answers", lambda batch: (held.wait(30), real(batch))[1])
    with running(service) as url:
        port, got = int(url.rpartition(":")[2]), []
        threads = [
            threading.Thread(target=lambda: got.append(post(port, "image/png", pictures[0])[0])) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        _until(lambda: service.pictures == 2)
        status, told, headers = post(port, "image/png", pictures[0])
        assert status == 503 and int(headers["Retry-After"]) >= 1 and tells(told["error"], "2")
        assert ask(port, "GET", "/health")[0] == 200  # it lives
        held.set()
        for thread in threads:
            thread.join()
        assert got == [200, 200] and post(port, *load.multipart(pictures[:3]))[0] == 413


def test_health_policy_and_the_description(place: tuple[int, Service], bundle: Bundle) -> None:
    port, _ = place
    status, health, _ = ask(port, "GET", "/health")
    assert status == 200 and health["ready"] and health["backend"] == "torch" and len(health["manifest_sha256"]) == 64
    _, policy, _ = ask(port, "GET", "/policy")
    assert policy["labels"] == {"no": bundle.policy.labels.no, "yes": bundle.policy.labels.yes}
    assert policy["threshold"] == bundle.predict(np.zeros((9, 9, 3), np.uint8))[0].threshold
    assert policy["promise"]["in_words"] == bundle.policy.promise.guarantee
    _, described, _ = ask(port, "GET", "/openapi.json")
    example = described["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    status, told, _ = post(port, "application/json", json.dumps(example).encode())
    assert status == 200 and "error" not in told["answers"][0]  # the example works
    everything = json.dumps([health, policy, described])
    assert str(bundle.folder) not in everything and not re.search(r"/(tmp|home|usr|root)/", everything)
    assert ask(port, "GET", "/nowhere")[0] == 404 and ask(port, "GET", "/predict")[0] == 405


def test_the_page_asks_nobody_else(port: int) -> None:
    for path in ("/", "/docs"):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read().decode()
        assert response.status == 200 and "{{" not in text
        assert "default-src 'none'" in str(response.headers["Content-Security-Policy"])
        assert not re.search(r'(src|href)="(https?:)?//', text)


def test_a_token(bundle: Bundle, pictures: list[bytes]) -> None:
    with running(Service(bundle, SMALL, token="s3cret-token")) as url:
        port = int(url.rpartition(":")[2])
        for given in ("", "Bearer other", "Basic s3cret-token", "Bearer \xe9"):
            status, told, headers = post(port, "image/png", pictures[0], Authorization=given)
            assert status == 401 and headers["WWW-Authenticate"] == "Bearer" and "s3cret" not in json.dumps(told)
        assert ask(port, "GET", "/policy")[0] == 401 and ask(port, "GET", "/health")[0] == 200
        assert post(port, "image/png", pictures[0], Authorization="Bearer s3cret-token")[0] == 200


def _until(holds: Any) -> None:
    end = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)

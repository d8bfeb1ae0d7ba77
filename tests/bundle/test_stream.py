"""Answers as they come: in order, a bad image in its place, never more than two batches of the images in memory."""

from __future__ import annotations

import io
import itertools
import os
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARED, TINY, png_bytes, refused, striped_image
from facts import tells
from PIL import Image

from natix_hf.bundle import stream
from natix_hf.bundle.flips import Flips, count_flips
from natix_hf.bundle.inference import Inference, torch_forward
from natix_hf.bundle.load import Bundle, Prediction, load_bundle
from natix_hf.bundle.stream import BadImage, batches
from natix_hf.errors import DataError, UsageError
from natix_hf.intake.formats import readable_endings
from natix_hf.models.classifier import ARCHITECTURES, build_classifier
from natix_hf.models.config import ModelConfig


@pytest.fixture(scope="module")
def bundle(_finished_run: Path) -> Bundle:
    return load_bundle(_finished_run, device="cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twenty pictures; the fourth is no image and the twelfth is not there."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(1)
    paths = [folder / f"{n:02}.png" for n in range(20)]
    for n, path in enumerate(paths):
        striped_image(n % 2, rng).save(path)
    paths[3].write_text("no image", encoding="utf-8")
    paths[11].unlink()
    return paths


# What it gives.


@pytest.mark.parametrize("batch_size", [1, 3, 20, 64])
def test_a_bad_image_is_reported_in_its_place(batch_size: int, bundle: Bundle, files: list[Path]) -> None:
    good = [path for n, path in enumerate(files) if n not in (3, 11)]
    expected = [bundle.predict(path)[0] for path in good]
    found = list(bundle.stream(iter(files), batch_size))
    assert len(found) == len(files)
    for n in (3, 11):
        bad = found[n]
        assert isinstance(bad, BadImage) and bad.name == str(files[n]) and tells(bad.problem, bad.name)
        assert not hasattr(bad, "decision") and not hasattr(bad, "probability")  # nobody takes it for an answer
    answers = [answer for answer in found if isinstance(answer, Prediction)]
    assert [answer.decision for answer in answers] == [answer.decision for answer in expected]
    np.testing.assert_allclose([a.probability for a in answers], [e.probability for e in expected], atol=1e-6)
    assert len({round(answer.probability, 5) for answer in answers}) > 12  # else the order could not be seen


def test_predict_and_logits_name_the_first_bad_one(bundle: Bundle, files: list[Path]) -> None:
    for ask in (bundle.predict, bundle.logits):
        with refused(DataError, "03.png"):
            ask(files)
    np.testing.assert_allclose(
        bundle.policy.probability(bundle.logits(files[4:11], 3)),
        [answer.probability for answer in bundle.predict(files[4:11])], atol=1e-6,
    )  # fmt: skip
    assert bundle.logits([]).shape == (0,)


def test_nothing_but_bad_images(bundle: Bundle, files: list[Path]) -> None:
    found = list(bundle.stream([files[3], b"x", {"bytes": None, "path": None}, np.zeros((3, 3, 3)), None], 2))
    assert [bad.name for bad in found if isinstance(bad, BadImage)] == [
        str(files[3]), "image 1", "image 2", "image 3", "image 4",
    ]  # fmt: skip
    assert list(bundle.stream([])) == []


@pytest.mark.shared
def test_the_others_are_answered_beside_what_people_bring(bundle: Bundle, tmp_path: Path) -> None:
    """Pictures from phones and programs, beside a folder, an empty file and a pipe that nobody writes to."""
    brought = sorted((SHARED / "data" / "field_cases" / "single_files").iterdir())
    odd = [tmp_path, tmp_path / "empty.jpg", tmp_path / "pipe.jpg", tmp_path / "nowhere.jpg"]
    odd[1].touch()
    if hasattr(os, "mkfifo"):
        os.mkfifo(odd[2])
    found = list(bundle.stream([*brought, *odd], 3))
    refused_names = {Path(answer.name).name for answer in found if isinstance(answer, BadImage)}
    unreadable = {"bad.avif", "phone.heic"} | (set() if ".avif" in readable_endings() else {"ok.avif"})
    assert refused_names == unreadable | {path.name for path in odd}  # this HEIC is made up
    assert all(tells(answer.problem, answer.name) for answer in found if isinstance(answer, BadImage))


# What it holds.


class Name(str):
    """A path whose life can be watched."""


def test_ten_thousand_paths_never_sit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "open_image", lambda value, name: value)
    alive: weakref.WeakSet[Name] = weakref.WeakSet()
    taken, most = 0, 0

    def names() -> Iterator[Name]:
        nonlocal taken
        for n in range(10_000):
            name = Name(n)
            alive.add(name)
            taken += 1
            yield name

    given = 0
    for batch in batches(names(), lambda image: torch.tensor(int(image)), 32):  # type: ignore[arg-type, call-overload]
        if given % 3200 == 0:
            most = max(most, len(alive))
        assert taken - given <= 64
        assert [int(value) for value in batch] == list(range(given, given + len(batch)))  # type: ignore[arg-type]
        given += len(batch)
    assert given == 10_000
    assert most <= 64 + 16  # what a thread has just put down counts for a moment


def test_answers_come_before_the_images_end(bundle: Bundle, files: list[Path]) -> None:
    endless = bundle.stream(itertools.cycle(files[:3]), 4)
    assert all(isinstance(answer, Prediction) for answer in itertools.islice(endless, 30))
    endless.close()  # type: ignore[attr-defined]
    live = bundle.stream(iter([np.zeros((9, 9, 3), dtype=np.uint8), Bomb()]), 1)
    assert isinstance(next(live), Prediction)  # of a camera's first picture, before its second is asked for


class Bomb:
    """Nobody may look at it."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError


def test_whoever_stops_listening_leaves_no_thread(bundle: Bundle, files: list[Path]) -> None:
    before = threading.active_count()
    for _ in range(5):
        listening = bundle.stream(itertools.cycle(files[:3]), 2)
        next(listening)
        listening.close()  # type: ignore[attr-defined]
    assert threading.active_count() <= before


class Stuck:
    """An open file whose disk does not answer until the test ends."""

    def __init__(self, ends: threading.Event) -> None:
        self.ends = ends

    def read(self, size: int = -1) -> bytes:
        self.ends.wait(60)
        return b""


@pytest.mark.parametrize("stuck", [1, 20])
def test_a_picture_that_does_not_come_is_a_bad_one_and_the_stream_goes_on(stuck: int) -> None:
    ends, good = threading.Event(), png_bytes(Image.new("RGB", (9, 9)))
    brought = [good, *[Stuck(ends) for _ in range(stuck)], *[good] * 30]
    begin = time.monotonic()
    found = list(itertools.chain(*batches(iter(brought), lambda _: torch.zeros(1), 4, timeout_s=0.2)))
    spent = time.monotonic() - begin
    late = [n for n, answer in enumerate(found) if isinstance(answer, BadImage)]
    assert late == list(range(1, stuck + 1)) and len(found) == len(brought)
    assert all(tells(answer.problem, answer.name, "0.2 s") for answer in found if isinstance(answer, BadImage))
    assert spent < 30  # and not the minute that one of them takes
    ends.set()


def test_a_stream_that_is_left_waits_for_no_picture() -> None:
    ends = threading.Event()
    listening = batches(iter([b"x", *[Stuck(ends) for _ in range(9)]]), lambda _: torch.zeros(1), 1, timeout_s=None)
    next(listening)
    begin = time.monotonic()
    listening.close()  # type: ignore[attr-defined]
    assert time.monotonic() - begin < 30
    ends.set()


@pytest.mark.parametrize("seconds", [0, -1, True, "9", float("nan")])
def test_a_time_that_is_none_is_refused(seconds: Any) -> None:
    with refused(UsageError, "timeout_s"):
        next(batches([b"x"], lambda _: torch.zeros(1), 1, timeout_s=seconds))


def test_an_error_of_the_images_own_passes_through(bundle: Bundle, files: list[Path]) -> None:
    def failing() -> Iterator[Path]:
        yield from files[:3]
        raise RuntimeError("the camera is gone")

    with refused(RuntimeError, "the camera is gone"):
        list(bundle.stream(failing(), 2))


def test_a_generator_may_use_its_buffer_again_or_close_its_file(bundle: Bundle, files: list[Path]) -> None:
    some = [path for n, path in enumerate(files) if n not in (3, 11)]

    def frames() -> Iterator[np.ndarray]:
        buffer = np.zeros((30, 36, 3), dtype=np.uint8)
        for path in some:
            buffer[:] = np.asarray(Image.open(path))
            yield buffer

    def opened() -> Iterator[Image.Image]:
        for path in some:
            with Image.open(path) as image:
                yield image

    expected = bundle.predict(some, 4)
    assert bundle.predict(frames(), 4) == expected
    assert bundle.predict(opened(), 4) == expected


def test_files_are_decoded_while_the_model_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second batch is being opened when the first is given out."""
    started = [threading.Event() for _ in range(8)]

    def opened(value: Any, name: str) -> Any:
        started[int(value)].set()
        return value

    monkeypatch.setattr(stream, "open_image", opened)
    coming = batches([str(n) for n in range(8)], lambda image: torch.zeros(1), 4)
    next(coming)
    assert all(event.wait(5) for event in started)


# One way to a logit.


def test_many_threads_share_a_bundle(bundle: Bundle, files: list[Path]) -> None:
    some = [path for n, path in enumerate(files) if n not in (3, 11)] * 3
    expected = [bundle.predict(path)[0] for path in some]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda path: bundle.predict(path)[0], some)) == expected


def test_threads_preprocess_as_one_does(bundle: Bundle) -> None:
    rng = np.random.default_rng(0)
    pictures = [png_bytes(striped_image(n % 2, rng, (40 + n, 30))) for n in range(60)]
    at_once = torch.cat([torch.stack(batch) for batch in batches(pictures, bundle.preprocess, 7)])  # type: ignore[arg-type]
    alone = torch.stack([bundle.preprocess(Image.open(io.BytesIO(picture))) for picture in pictures])
    assert torch.equal(at_once, alone)


def test_the_bare_forward_pass_gives_the_same_logits(bundle: Bundle, files: list[Path]) -> None:
    pixels = torch.stack([bundle.preprocess(Image.open(path)) for path in files[4:11]])
    with torch.inference_mode():
        logits = bundle._inference.model(pixel_values=pixels).logits.double().numpy()
    z, features = bundle._inference.answer(pixels)
    # All but the classifier layer's sum is the same; that is in float64, row by row.
    np.testing.assert_allclose(z, logits[:, 1] - logits[:, 0], rtol=0, atol=1e-6)
    assert not torch.is_inference_mode_enabled()
    assert features.shape == (7, 64) and bundle._inference._forward(pixels)[0].dtype == np.float32


# bfloat16, on request.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_rounds_all_but_the_classifier_layer(architecture: str) -> None:
    config = ModelConfig(None, None, {"initializer_range": 0.3} | TINY[architecture], image_size=28)
    exact, model = build_classifier(config, 0).eval(), build_classifier(config, 0).eval()
    pixels = torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    logits, features = torch_forward(model, torch.device("cpu"), "bfloat16")(pixels)
    expected = torch_forward(exact, torch.device("cpu"))(pixels)
    assert logits.dtype == features.dtype == np.float32
    differences = np.abs(logits - expected[0])
    assert 1e-4 < differences.max() < 0.5
    head = model.classifier
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16, torch.float32}
    assert head.weight.dtype == torch.float32 and torch.equal(head.weight, exact.classifier.weight)
    by_hand = features @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    np.testing.assert_allclose(logits, by_hand, atol=1e-5)


def test_flips_are_counted(_finished_run: Path, bundle: Bundle, files: list[Path]) -> None:
    rounded = load_bundle(_finished_run, device="cpu", precision="bfloat16")
    assert (rounded.precision, rounded.backend, bundle.precision) == ("bfloat16", "torch", "float32")
    some = [path for n, path in enumerate(files) if n not in (3, 11)]
    one, other = rounded.predict(some), bundle.predict(some)
    assert one != other
    found = count_flips(rounded.stream_beside(bundle, iter(files), 7))
    assert found == Flips(
        images=18, bad=2, labels=sum(a.label != b.label for a, b in zip(one, other, strict=True)),
        decisions=sum(a.decision != b.decision for a, b in zip(one, other, strict=True)),
        max_difference=pytest.approx(max(abs(a.probability - b.probability) for a, b in zip(one, other, strict=True)),
                                     abs=1e-3),
    )  # fmt: skip
    yes, no = Prediction(0.9, "Roadwork", True, "Roadwork", 0.5), Prediction(0.2, "None", True, "None", 0.5)
    unsure = Prediction(0.85, "Roadwork", False, "abstain", 0.5)
    pairs = [(yes, no), (yes, unsure), (no, no), (BadImage("a", "a"), BadImage("a", "a"))]
    assert count_flips(pairs) == Flips(3, 1, labels=1, decisions=2, max_difference=pytest.approx(0.7))


def test_one_image_costs_no_loader(bundle: Bundle, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The way around the model, in its parts: no worker process, no second pass."""
    passes: list[int] = []
    real = Inference.answer
    monkeypatch.setattr(Inference, "answer", lambda self, pixels: passes.append(len(pixels)) or real(self, pixels))
    monkeypatch.setattr(torch.utils.data, "DataLoader", None)
    bundle.predict(files[0])
    assert passes == [1]
    passes.clear()
    list(bundle.stream(files, 8))
    assert passes == [7, 7, 4]


def test_an_answer_does_not_depend_on_its_batch(bundle: Bundle) -> None:
    """Alone, in pairs and among many, bit for bit: the classifier layer takes row by row."""
    pictures = list(np.random.default_rng(0).integers(0, 256, (17, 40, 36, 3), dtype=np.uint8))
    alone = [bundle.predict(picture)[0] for picture in pictures]
    for size in (3, 5, 16):
        assert bundle.predict(pictures, batch_size=size) == alone

"""Every backend answers alike within what is stated, or says in one line why it cannot; "auto" takes the fastest."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import refused
from facts import tells
from onnx_bundles import make_onnx_bundle, pictures

from natix_hf.bundle import asked, compiled, fastest
from natix_hf.bundle.asked import candidate_backends
from natix_hf.bundle.inference import Inference
from natix_hf.bundle.load import load_bundle
from natix_hf.errors import UsageError, VerificationError

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_onnx_bundle(tmp_path_factory.mktemp("backends"))


@pytest.fixture
def no_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)


# OpenVINO.


def test_openvino_answers_as_torch_does(bundle: Path) -> None:
    pytest.importorskip("openvino")
    found, exact = load_bundle(bundle, backend="openvino"), load_bundle(bundle, backend="torch")
    assert (found.backend, found.precision) == ("openvino", "float32")
    for batch_size in (1, 5, 32):
        np.testing.assert_allclose(found.logits(pictures(), batch_size), exact.logits(pictures()), atol=2e-5, rtol=0)
    told = [(p.decision, p.accepted) for p in found.predict(pictures())]
    assert told == [(p.decision, p.accepted) for p in exact.predict(pictures())]


def test_openvino_in_bfloat16_keeps_the_classifier_layer(bundle: Path) -> None:
    pytest.importorskip("openvino")
    try:
        found = load_bundle(bundle, backend="openvino", precision="bf16")
    except UsageError as error:
        pytest.skip(f"this CPU: {error}")
    assert found.precision == "bfloat16"
    pixels = np.stack([found.preprocess.pixels(image) for image in pictures()])
    z, features = found._inference.answer(pixels)
    exact, exact_features = load_bundle(bundle, backend="torch")._inference.answer(pixels)
    assert 0 < np.abs(features - exact_features).max() < 0.1  # it did compute in bfloat16
    from safetensors.numpy import load_file

    head = load_file(bundle / "model.safetensors")
    by_hand = features.astype(np.float64) @ head["classifier.weight"].T.astype(float) + head["classifier.bias"]
    np.testing.assert_allclose(z, by_hand[:, 1] - by_hand[:, 0], atol=1e-5)
    assert np.abs(z - exact).max() < 0.1


def test_threads_share_one_openvino(bundle: Path) -> None:
    pytest.importorskip("openvino")
    found = load_bundle(bundle, backend="openvino")
    images, answers = pictures(), {}

    def ask(number: int) -> None:
        answers[number] = [found.predict([images[number]] * 3, 2) for _ in range(10)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, told in answers.items():
        assert all(row == told[0] for row in told), number
        assert told[0][0].probability == pytest.approx(found.predict([images[number]])[0].probability, abs=1e-6)


def test_openvino_that_is_not_here_is_one_line(bundle: Path, no_openvino: None) -> None:
    with refused(UsageError, "pip install 'natix_hf[openvino]'"):
        load_bundle(bundle, backend="openvino")


# torch.compile.


@pytest.fixture(scope="module")
def fused(bundle: Path) -> Inference:
    if not any(map(shutil.which, ("g++", "clang++"))):
        pytest.skip("there is no C++ compiler")
    return Inference(bundle, backend="compile")


def test_compiled_answers_as_torch_does_in_any_batch(bundle: Path, fused: Inference) -> None:
    pixels = np.stack([fused.preprocess.pixels(image) for image in pictures()])
    z, features = fused.answer(pixels)
    exact, exact_features = Inference(bundle, "cpu").answer(pixels)
    np.testing.assert_allclose(z, exact, atol=2e-5, rtol=0)
    np.testing.assert_allclose(features, exact_features, atol=2e-5, rtol=1e-5)
    for part in (pixels[:1], pixels[3:8]):  # bit for bit, whatever the batch
        at = 0 if len(part) == 1 else 3
        np.testing.assert_array_equal(fused.answer(part)[0], z[at : at + len(part)])
    import torch._inductor.config

    assert not torch._inductor.config.freezing, "only this model is frozen"


def test_the_settings_of_the_caller_change_no_answer(bundle: Path, fused: Inference) -> None:
    """And nothing is compiled once more amid an answer, which takes as long as the first time."""
    import torch

    exact = Inference(bundle, "cpu")
    pixels = np.stack([fused.preprocess.pixels(image) for image in pictures()])
    settings = {"inference": torch.inference_mode, "autocast": lambda: torch.autocast("cpu", torch.bfloat16)}
    for found in (exact, fused):
        z, features = found.answer(pixels)
        for name, setting in settings.items():
            with torch._dynamo.config.patch(error_on_recompile=True), setting():
                again, of_it = found.answer(pixels)
            assert again.tobytes() == z.tobytes() and of_it.tobytes() == features.tobytes(), (found.backend, name)


def test_any_number_of_bundles_is_compiled_in_a_process(bundle: Path, fused: Inference) -> None:
    import torch

    pixels = np.stack([fused.preprocess.pixels(image) for image in pictures()])
    with torch._dynamo.config.patch(recompile_limit=1):  # 8 by default, of which the fixture took one
        other = Inference(bundle, backend="compile")
    assert other.answer(pixels)[0].tobytes() == fused.answer(pixels)[0].tobytes()


class _Broken:
    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def __call__(self, function: Any, **_: Any) -> Any:
        def run(pixels: Any) -> Any:
            if self.error is not None:
                raise self.error
            return function(pixels) + 2e-2

        return run


def test_without_a_compiler_it_is_one_line(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "compile", _Broken(RuntimeError("No working C++ compiler found\nlook here")))
    with refused(UsageError, "compile", "No working C++ compiler", "g++"):
        load_bundle(bundle, backend="compile")


def test_a_compiled_model_that_answers_otherwise_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "compile", _Broken(None))
    with refused(VerificationError, "compiled", "torch"):
        load_bundle(bundle, backend="compile")
    monkeypatch.setattr(compiled, "COMPILED_TOLERANCE", 1.0)
    assert load_bundle(bundle, backend="compile").backend == "compile"


# Which one.


def test_what_cannot_be_asked_for(bundle: Path) -> None:
    for options, facts in (
        ({"backend": "tensorrt"}, ("tensorrt", "auto", "openvino", "compile")),
        ({"backend": "auto", "precision": "int8"}, ("precision", "int8", "bfloat16")),
        ({"backend": "compile", "precision": "bf16"}, ("compile", "float32")),
        ({"backend": "compile", "device": "cuda"}, ("compile", "CPU")),
        ({"backend": "openvino", "device": "cuda"}, ("model.onnx", "CPU")),
        ({"expected_images": 5}, ("expected_images", "auto")),
        ({"backend": "auto", "expected_images": 0}, ("expected_images", "0")),
        ({"backend": "auto", "expected_images": True}, ("expected_images", "True")),
        ({"backend": "auto", "expected_images": 1e6}, ("expected_images", "whole number")),
    ):
        with refused(UsageError, *facts):
            load_bundle(bundle, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("has_onnx", "here", "torch_loaded", "precision", "expected", "wanted"),
    [
        (True, "onnxruntime openvino torch", False, "float32", None, "onnx openvino"),
        (True, "onnxruntime openvino torch", True, "float32", None, "onnx openvino torch"),
        (True, "onnxruntime openvino torch", False, "float32", 999, "onnx openvino"),
        (True, "onnxruntime openvino torch", False, "float32", 1000, "onnx openvino torch compile"),
        (True, "openvino", False, "float32", 10**6, "openvino"),
        (True, "openvino", False, "bfloat16", None, "openvino"),
        (True, "onnxruntime torch", False, "bfloat16", 10**6, "torch"),
        (False, "onnxruntime openvino torch", False, "float32", None, "torch"),
        (False, "torch", False, "float32", 10**6, "torch compile"),
        (False, "openvino", False, "float32", None, None),
    ],
)
def test_auto_looks_at_what_is_here_and_pays(
    has_onnx: bool, here: str, torch_loaded: bool, precision: Any, expected: int | None, wanted: str | None,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(asked, "is_installed", lambda name: name in here.split())
    monkeypatch.setattr(asked, "kind_of_device", lambda device: "cpu")
    if not torch_loaded:
        monkeypatch.delitem(sys.modules, "torch")
    if wanted is None:
        with refused(UsageError, "phase6.onnx=true"):
            candidate_backends(tmp_path, has_onnx, None, "auto", precision, expected)
        return
    assert candidate_backends(tmp_path, has_onnx, None, "auto", precision, expected) == tuple(wanted.split())
    monkeypatch.setattr(asked, "kind_of_device", lambda device: "cuda")
    if "torch" in here.split():
        assert candidate_backends(tmp_path, has_onnx, None, "auto", precision, expected) == ("torch",)


class _Fake:
    """A backend that takes so long for a picture and answers so."""

    def __init__(self, backend: str, seconds: dict[str, float], answers: dict[str, float]) -> None:
        self.backend, self.seconds, self.answers = backend, seconds, answers

    def timed(self, _: Any, batch: int) -> tuple[float, np.ndarray]:
        return self.seconds[self.backend] * batch, np.full(batch, self.answers.get(self.backend, 0.5))


def _choose(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], expected: int | None, **answers: float) -> str:
    asked_for: list[str] = []

    def make(folder: Path, device: Any, name: str, precision: str) -> Any:
        asked_for.append(name)
        if seconds[name] < 0:
            raise UsageError(f"there is no {name}")
        return _Fake(name, seconds, answers)

    monkeypatch.setattr(fastest, "Inference", make)
    monkeypatch.setattr(fastest, "_measure", lambda found, batch: found.timed(None, batch))
    return fastest.fastest(Path("b"), None, list(seconds), "float32", expected).backend  # type: ignore[arg-type]


def test_auto_takes_the_fastest_that_answers_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _choose(monkeypatch, {"onnx": 0.3, "openvino": 0.1, "torch": 0.2}, None) == "openvino"
    with pytest.warns(UserWarning) as heard:
        assert _choose(monkeypatch, {"onnx": 0.3, "openvino": 0.1, "torch": 0.2}, None, openvino=0.6) == "torch"
    assert tells(heard[0].message, "openvino", "torch", "1.0e-01")
    for broken in (0.6, float("nan")):  # of three the one that is not as the weights, whichever comes first
        with pytest.warns(UserWarning) as heard:
            assert _choose(monkeypatch, {"onnx": 0.1, "openvino": 0.3, "torch": 0.2}, None, onnx=broken) == "torch"
        assert len(heard) == 1 and tells(heard[0].message, "onnx", "torch")
    with pytest.warns(UserWarning) as heard:
        assert _choose(monkeypatch, {"onnx": 0.3, "openvino": -1}, None) == "onnx"
    assert tells(heard[0].message, "openvino")
    with pytest.warns(UserWarning):
        assert _choose(monkeypatch, {"onnx": 0.3, "openvino": 0.1}, None, openvino=float("nan")) == "onnx"
    with pytest.warns(UserWarning), refused(UsageError, "there is no onnx"):
        _choose(monkeypatch, {"onnx": -1, "torch": -1}, None)


def test_compiling_must_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"torch": 0.1, "compile": 0.05}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _choose(monkeypatch, times, 2999) == "torch"  # 299.9 s of work
        assert _choose(monkeypatch, times, 3001) == "compile"
        assert _choose(monkeypatch, {"torch": 0.1, "compile": 0.2}, 10**6) == "torch"
    with pytest.warns(UserWarning, match="compile"):
        assert _choose(monkeypatch, {"torch": 0.1, "compile": -1}, 10**6) == "torch"


def test_auto_answers_as_the_others(bundle: Path) -> None:
    found, exact = load_bundle(bundle, backend="auto"), load_bundle(bundle, backend="torch")
    assert found.backend in ("onnx", "openvino", "torch")
    np.testing.assert_allclose(found.logits(pictures()), exact.logits(pictures()), atol=2e-5, rtol=0)


def test_openvino_needs_no_torch(bundle: Path) -> None:
    pytest.importorskip("openvino")
    code = """
import sys
for name in ("torch", "transformers", "onnxruntime"):
    sys.modules[name] = None
import natix_hf
print(natix_hf.load_bundle(sys.argv[1], backend=sys.argv[2], precision=sys.argv[3]).backend)
"""
    for backend in ("openvino", "auto"):
        done = subprocess.run(
            [sys.executable, "-c", code, bundle, backend, "float32"], capture_output=True, text=True, timeout=300
        )
        assert done.stdout.strip() == "openvino", done.stderr

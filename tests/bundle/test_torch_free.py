"""A bundle answers in full without torch: the pixels, the gate and the checks, in a process that cannot import it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import describe, edit
from conftest import refused
from facts import tells
from onnx_bundles import make_onnx_bundle, pictures
from PIL import Image
from transformers import ViTImageProcessorPil

from natix_hf.bundle import backends
from natix_hf.bundle.confidence import Confidence
from natix_hf.bundle.load import load_bundle
from natix_hf.data.images import centre_square, to_rgb
from natix_hf.errors import UsageError, VerificationError
from natix_hf.models.architectures import ARCHITECTURES
from natix_hf.models.fields import FIELDS
from natix_hf.models.gate import Gate, gate_inputs, load_gate, save_gate
from natix_hf.models.gate_file import read_gate
from natix_hf.models.preprocess import Preprocess
from natix_hf.models.schema import kinds_of_class

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# Everything that pip would bring along and that answering does not need.
ABSENT = (
    "torch", "torchvision", "transformers", "datasets", "accelerate", "peft", "pyarrow", "scipy", "sklearn",
    "evaluate", "matplotlib", "jinja2", "yaml", "psutil", "filelock", "pandas", "onnx", "onnxscript", "openvino",
)  # fmt: skip
BLOCK = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError("there is no " + name, name=name)

sys.meta_path.insert(0, Absent())
"""


def without_torch(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_onnx_bundle(tmp_path_factory.mktemp("torch_free"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{n:02}.png" for n in range(12)]
    for path, image in zip(paths, pictures(), strict=True):
        image.save(path)
    return paths


ANSWER = """
import io, json
from dataclasses import asdict
from pathlib import Path
import numpy as np
from PIL import Image
import natix_hf

bundle = natix_hf.load_bundle(sys.argv[1], backend=json.loads(sys.argv[2]))
paths = sys.argv[3:]
kinds = {
    "files": paths,
    "paths": [Path(path) for path in paths],
    "bytes": [Path(path).read_bytes() for path in paths],
    "pictures": [Image.open(path) for path in paths],
    "arrays": [np.asarray(Image.open(path)) for path in paths],
    "cells": [{"bytes": Path(path).read_bytes(), "path": None} for path in paths],
}
found = {kind: [asdict(answer) for answer in bundle.predict(images, 5)] for kind, images in kinds.items()}
[bad] = bundle.stream(["no such file.jpg"])
print(json.dumps({"backend": bundle.backend, "bad": bad.problem, "logits": list(bundle.logits(paths)), **found}))
"""


@pytest.mark.parametrize("backend", [None, "onnx"])
def test_every_kind_of_picture_is_answered_without_torch(backend: Any, bundle: Path, files: list[Path]) -> None:
    done = without_torch(ANSWER, bundle, json.dumps(backend), *files)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    exact = load_bundle(bundle, backend="torch")
    expected = exact.predict(files)
    assert found["backend"] == "onnx" and tells(found["bad"], "no such file.jpg")
    np.testing.assert_allclose(found["logits"], exact.logits(files), atol=2e-5, rtol=0)
    assert {p.decision for p in expected} == {"Roadwork", "None", "abstain"}
    for kind in ("files", "paths", "bytes", "pictures", "arrays", "cells"):
        told = [{**answer, "probability": None} for answer in found[kind]]
        wanted = [{"probability": None, "label": p.label, "accepted": p.accepted, "decision": p.decision,
                   "threshold": p.threshold} for p in expected]  # fmt: skip
        assert told == wanted, kind
        probabilities = [answer["probability"] for answer in found[kind]]
        np.testing.assert_allclose(probabilities, [p.probability for p in expected], atol=1e-5)


def test_nothing_of_torch_is_imported_where_it_is_installed(bundle: Path, files: list[Path]) -> None:
    code = "import sys, natix_hf; b = natix_hf.load_bundle(sys.argv[1]); b.predict(sys.argv[2:]);"
    code += "print(b.backend, sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, bundle, *files], capture_output=True, text=True, timeout=300)
    accelerated = backends._may_have_accelerator() and backends.kind_of_device(None) != "cpu"
    assert done.stdout.strip() == "onnx []" or accelerated, done.stdout + done.stderr


def test_the_command_line_needs_no_torch(bundle: Path, files: list[Path]) -> None:
    code = "import natix_hf.cli; natix_hf.cli.main(sys.argv[1:])"
    done = without_torch(code, "predict", bundle, *files[:3], "--json")
    assert done.returncode == 0, done.stderr
    told = [json.loads(line)["decision"] for line in done.stdout.splitlines()]
    assert told == [p.decision for p in load_bundle(bundle, backend="torch").predict(files[:3])]


def test_another_command_says_what_it_lacks(bundle: Path) -> None:
    done = without_torch("import natix_hf.cli; natix_hf.cli.main(sys.argv[1:])", "verify", bundle)
    assert done.returncode == 1 and tells(done.stderr.strip(), "psutil", "pip install natix_hf")


REFUSE = """
import natix_hf
try:
    natix_hf.load_bundle(sys.argv[1], **eval(sys.argv[2]))
except natix_hf.errors.NatixError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"backend": "torch"}, ["PyTorch"]),
        ({"precision": "bfloat16"}, ["PyTorch", "bfloat16"]),
        ({"device": "cuda"}, ["PyTorch", "cuda"]),
    ],
)
def test_what_only_torch_can_do_is_said(options: dict[str, str], facts: list[str], bundle: Path) -> None:
    done = without_torch("import natix_hf.errors\n" + REFUSE, bundle, options)
    assert tells(done.stdout.strip(), "UsageError", *facts), done.stderr


def test_a_bundle_without_onnx_says_what_to_do(bundle: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(bundle, tmp_path / "b")
    (tmp_path / "b" / "model.onnx").unlink()
    edit(tmp_path / "b" / "policy.json", onnx=None)
    describe(tmp_path / "b")
    done = without_torch("import natix_hf.errors\n" + REFUSE, tmp_path / "b", {})
    assert tells(done.stdout.strip(), "UsageError", tmp_path / "b", "phase6.onnx=true", "torch"), done.stderr


@pytest.mark.parametrize(
    "damaged", ["model.safetensors", "model.onnx", "gate.safetensors", "policy.json", "config.json"]
)
def test_a_damaged_bundle_is_refused_without_torch_too(damaged: str, bundle: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(bundle, tmp_path / "b")
    content = bytearray((tmp_path / "b" / damaged).read_bytes())
    content[-20] ^= 1
    (tmp_path / "b" / damaged).write_bytes(content)
    done = without_torch("import natix_hf.errors\n" + REFUSE, tmp_path / "b", {})
    assert tells(done.stdout.strip(), "VerificationError", damaged), done.stderr


# The pixels.


def test_the_pixels_are_those_of_the_stock_processor() -> None:
    """Bit for bit, over sizes, modes, means and resized or not."""
    rng = np.random.default_rng(0)
    sides = [1, 2, 27, 28, 29, 56, 100, 223, 224, 225, 640]
    for turn in range(60):
        width, height = (int(side) for side in rng.choice(sides, 2))
        mode = ("RGB", "L", "RGBA", "P", "CMYK", "1", "I;16", "F")[turn % 8]
        size = int(rng.choice([1, 14, 28, 70, 224]))
        settings = ViTImageProcessorPil(
            size={"height": size, "width": size},
            resample=3,
            image_mean=[0, 1, 0.5] if turn % 3 == 0 else rng.uniform(-1, 2, 3).tolist(),
            image_std=[1, 10, 0.001] if turn % 3 == 0 else rng.uniform(0.001, 2, 3).tolist(),
            do_convert_rgb=True,
            rescale_factor=1 / 255 if turn % 2 else 0.00392156862745098,
        )
        noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image = noise.convert("L").convert(mode) if mode in ("I;16", "F") else noise.convert(mode)
        plain = json.loads(settings.to_json_string())
        ours = Preprocess(plain)
        stock = settings(centre_square(to_rgb(image)), return_tensors="np")["pixel_values"][0]
        found = ours.pixels(image)
        assert found.dtype == stock.dtype == np.float32 and found.shape == (3, size, size)
        assert found.tobytes() == np.ascontiguousarray(stock).tobytes(), (turn, mode, width, height, size)
        assert ours(image).numpy().tobytes() == found.tobytes() and ours.image_size == size
        assert found.flags.c_contiguous and found.flags.writeable


# The gate.


def test_the_gate_in_numpy_is_the_gate_that_was_trained(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    gate = Gate(66, 32)
    features, logits = rng.normal(size=(500, 64)).astype(np.float32) * 3, rng.normal(size=500) * 4
    inputs = gate_inputs(features, logits, 0.7)
    gate.standardise(inputs)
    save_gate(tmp_path / "gate.safetensors", gate)
    read = read_gate(tmp_path / "gate.safetensors")
    found = read.confidence(inputs)
    np.testing.assert_array_equal(found, gate.confidence(inputs))
    trained, by_hand = (load_gate(tmp_path / "gate.safetensors") for _ in range(2))
    with torch.no_grad():
        rounded = trained(torch.from_numpy(inputs))["logits"].numpy()
        wanted = by_hand.double()(torch.from_numpy(inputs).double())["logits"].numpy()
    np.testing.assert_allclose(found, rounded, atol=1e-6)
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    # Alone or in a batch: the same to the last bit, so nothing at the threshold depends on its company.
    for size in (1, 2, 7, 32):
        parts = [read.confidence(inputs[at : at + size]) for at in range(0, len(inputs), size)]
        np.testing.assert_array_equal(np.concatenate(parts), found)
    np.testing.assert_array_equal(read.confidence(np.asfortranarray(inputs)), found)
    assert np.ptp(found) > 0.1
    np.testing.assert_array_equal(Confidence(0.7, tmp_path / "gate.safetensors")(logits, features), found)


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "type", "nan", "text"])
def test_a_file_that_is_no_gate_is_refused(fault: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "gate.safetensors"
    save_gate(path, Gate(5, 4))
    tensors = load_file(path)
    if fault == "missing":
        del tensors["std"]
    elif fault == "extra":
        tensors["more"] = np.zeros(1, dtype=np.float32)
    elif fault == "shape":
        tensors["mean"] = np.zeros(6, dtype=np.float32)
    elif fault == "type":
        tensors["mean"] = tensors["mean"].astype(np.float64)
    elif fault == "nan":
        tensors["layers.2.bias"][:] = np.nan
    save_file(tensors, path)
    if fault == "text":
        path.write_bytes(b"no tensors")
    with refused(VerificationError, path):
        read_gate(path)


# The checks.


def test_the_stored_fields_are_those_of_the_classes() -> None:
    """If a later transformers has others, copy them: `kinds_of_class` gives them."""
    assert set(FIELDS) == set(ARCHITECTURES)
    for name in ARCHITECTURES:
        stored = {field: kind for kind, fields in FIELDS[name].items() for field in fields.split()}
        assert stored == kinds_of_class(name), name


def test_a_key_of_a_later_transformers_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from natix_hf.models import schema

    monkeypatch.setattr(schema, "FIELDS", {"vit": {"whole": "hidden_size"}})
    schema._own_rules.cache_clear()
    try:
        from transformers import ViTConfig

        content = ViTConfig(num_labels=2).to_dict()
        content |= {"architectures": ["ViTForImageClassification"], "dtype": "float32"}
        content = {key: value for key, value in content.items() if key in schema.config_keys("vit")}
        assert "encoder_stride" in content and list(schema.config_faults(content)) == []
        assert any("nonsense" in fault for fault in schema.config_faults(content | {"nonsense": 1}))
    finally:
        schema._own_rules.cache_clear()


# Where it runs.


def test_an_accelerator_is_looked_for_only_where_one_may_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(backends.sys, "platform", "linux")
    monkeypatch.setattr(backends, "Path", lambda _: tmp_path)
    assert not backends._may_have_accelerator()
    (tmp_path / "dri").mkdir()
    (tmp_path / "dri" / "renderD128").touch()
    assert backends._may_have_accelerator()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    assert not backends._may_have_accelerator()
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setattr(backends.sys, "platform", "darwin")
    assert backends._may_have_accelerator()
    monkeypatch.setattr(backends, "is_installed", lambda name: False)
    assert not backends._may_have_accelerator()
    with refused(UsageError, "cuda", "PyTorch"):
        backends.kind_of_device("cuda")


@pytest.mark.parametrize(
    ("value", "expected"), [("3", 3), ("4,2", 4), (" 2 ", 2), ("0", None), ("many", None), ("-1", None), (None, None)]
)
def test_threads_without_torch(value: str | None, expected: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert backends.threads() == (expected or backends._cores()) >= 1

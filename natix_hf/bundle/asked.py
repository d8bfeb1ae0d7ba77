"""What a caller asks of a bundle, checked before any work: one line for every impossible value."""

from __future__ import annotations

import re
import sys
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

from natix_hf.bundle.backends import AUTO, Backend, Precision, is_installed, kind_of_device
from natix_hf.bundle.names import ONNX, POLICY
from natix_hf.bundle.policy import read_policy
from natix_hf.errors import UsageError, VerificationError, cut

_IMAGES = "a path, a PIL image, a uint8 array, encoded bytes or a cell of a datasets column"
# As git names branches, tags, commits and pull requests.
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9_][\w.-]*)*", re.ASCII)
_LONGEST_REVISION = 200
MANY = 1000  # images, from which on the seconds that torch takes to import are nothing


def check_load(reference: Any, revision: Any, verify: Any, expected: Any) -> None:
    """Refuse arguments of `load_bundle` that can name nothing.

    Raises:
        UsageError: with the argument, its value and what is allowed.
    """
    if not isinstance(reference, str | PathLike) or not str(reference):
        raise UsageError(f"load_bundle({cut(reference)}): name a folder, or a Hub repository as org/name")
    if not isinstance(verify, bool | np.bool_):
        raise UsageError(f"load_bundle: verify is {cut(verify)}: it must be True or False")
    if expected is not None and not verify:
        raise UsageError(f"load_bundle({cut(reference)}): expected= says nothing with verify=False: leave one out")
    digest = isinstance(expected, str) and re.fullmatch(r"[0-9a-f]{64}", expected) is not None
    if expected is not None and not digest:
        raise UsageError(f"load_bundle: expected is {cut(expected)}: it must be a sha256 of 64 digits, or None")
    check_revision(revision)


def check_revision(revision: Any) -> None:
    """Refuse a revision that no repository can have. The Hub's cache makes a file of its name.

    Raises:
        UsageError: with the value.
    """
    named = isinstance(revision, str) and _REVISION.fullmatch(revision) is not None
    if revision is not None and not (named and ".." not in revision and len(revision) <= _LONGEST_REVISION):
        raise UsageError(f"revision is {cut(revision)}: it must be a branch, a tag or a commit")


def check_batch_size(batch_size: Any) -> int:
    """The number of images in a forward pass.

    Raises:
        UsageError: if it is no whole number of at least 1.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or int(batch_size) < 1:
        raise UsageError(f"batch_size is {cut(batch_size)}: it must be a whole number of at least 1")
    return int(batch_size)


def check_timeout(timeout_s: Any) -> float | None:
    """The seconds that an image may take, or None for ever.

    Raises:
        UsageError: if it is neither None nor a number above 0.
    """
    number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if timeout_s is not None and not (number and timeout_s > 0):
        raise UsageError(f"timeout_s is {cut(timeout_s)}: it must be a number of seconds above 0, or None")
    return timeout_s if timeout_s is None else float(timeout_s)


def check_images(images: Any) -> None:
    """Refuse what holds no images. The elements of a list are looked at, those of another iterable as they come.

    Raises:
        UsageError: with the value, or the element and its place.
    """
    if not hasattr(images, "__iter__") and not hasattr(images, "__getitem__"):
        raise UsageError(f"images is {cut(images)}: give {_IMAGES}, or several of them")
    for index, image in enumerate(images if isinstance(images, list | tuple) else ()):
        if not _may_be_image(image):
            raise UsageError(f"image {index} is {cut(image)}: it must be {_IMAGES}")


def _may_be_image(value: Any) -> bool:
    known = (str, bytes, bytearray, memoryview, PathLike, Image.Image, np.ndarray, dict)
    return value is None or isinstance(value, known) or hasattr(value, "read")  # None: the empty cell of a column


def choose_backend(
    folder: Path, has_onnx: bool, device: str | None, backend: str | None, precision: Precision
) -> Backend:
    """The backend that was asked for, or by default "onnx" if `model.onnx` can run here and "torch" if not.

    Raises:
        UsageError: if the backend that was asked for cannot run here.
    """
    for name, given, known in (("backend", backend, get_args(Backend)), ("precision", precision, get_args(Precision))):
        if not (given is None and name == "backend") and (not isinstance(given, str) or given not in known):
            more = f" | {AUTO}" if name == "backend" else ""
            raise UsageError(f"{name} is {cut(given)}: allowed is {' | '.join(known)}{more}")
    exact, on_cpu = precision == "float32", device is None or str(device).partition(":")[0] == "cpu"
    if backend in ("onnx", "openvino"):
        if has_onnx and not on_cpu:
            raise UsageError(f"{ONNX} runs only on the CPU (onnx: in float32): leave out backend, or device")
        if backend == "onnx" and has_onnx and not exact:
            raise UsageError(f"{ONNX} runs only in float32 on the CPU: leave out backend, or device and precision")
        if not has_onnx:
            raise UsageError(f"{folder} has no {ONNX}: export it with phase6.onnx=true, or leave backend out")
        return "onnx" if backend == "onnx" else "openvino"
    if backend == "compile" and not (exact and on_cpu):
        raise UsageError("backend compile is for float32 on the CPU: leave out backend, or device and precision")
    kind = "cpu" if backend == "compile" else kind_of_device(device)
    if backend is None and has_onnx and kind == "cpu" and exact and is_installed("onnxruntime"):
        return "onnx"
    if not is_installed("torch"):
        raise UsageError(_why_torch(folder, has_onnx, exact))
    return "compile" if backend == "compile" else "torch"


def candidate_backends(
    folder: Path,
    has_onnx: bool,
    device: str | None,
    backend: str | None,
    precision: Precision,
    expected_images: int | None = None,
) -> tuple[Backend, ...]:
    """The backends that may answer: one, or for "auto" all that are here and may pay, to be measured.

    torch is among them if nothing else can run, if it is loaded already, or if many images are expected, since its
    import alone takes seconds. An accelerator is taken without measuring.

    Raises:
        UsageError: as `choose_backend`, and if `expected_images` is no whole number of at least 1.
    """
    if expected_images is not None and (backend != AUTO or type(expected_images) is not int or expected_images < 1):
        told = f"expected_images is {cut(expected_images)}: it must be a whole number of at least 1"
        raise UsageError(f"{told}, and goes with backend='{AUTO}'")
    if backend != AUTO:
        return (choose_backend(folder, has_onnx, device, backend, precision),)
    exact = precision == "float32"
    if kind_of_device(device) != "cpu" or precision not in get_args(Precision):
        return (choose_backend(folder, has_onnx, device, None, precision),)
    found: list[Backend] = ["onnx"] if has_onnx and exact and is_installed("onnxruntime") else []
    found += ["openvino"] if has_onnx and is_installed("openvino") else []
    many = expected_images is not None and expected_images >= MANY
    if not found or (is_installed("torch") and (many or "torch" in sys.modules)):
        found.append(choose_backend(folder, False, device, None, precision))  # torch, or why there is none
        found += ["compile"] if exact and many else []
    return tuple(found)


def runs_safetensors(
    folder: Path, device: str | None, backend: str | None, precision: Precision, expected_images: int | None
) -> bool:
    """Whether the safetensors of a bundle may be run, which is asked before it is verified.

    Raises:
        UsageError: as `candidate_backends`.
    """
    try:
        has_onnx = read_policy(folder / POLICY).onnx is not None
    except VerificationError:  # the verification says so
        return False
    found = candidate_backends(folder, has_onnx, device, backend, precision, expected_images)
    return not {"torch", "compile"}.isdisjoint(found)


def _why_torch(folder: Path, has_onnx: bool, exact: bool) -> str:
    """Why a bundle cannot be answered without PyTorch, which is not here."""
    if not exact:
        return "PyTorch is not installed: leave precision out, or compute in bfloat16 with backend='openvino'"
    if has_onnx:
        return f"{folder} needs onnxruntime (its {ONNX}) or PyTorch, and neither is here: pip install onnxruntime"
    return f"{folder} has no {ONNX}, and PyTorch is not installed: export it with phase6.onnx=true, or install torch"

"""What a caller asks of a bundle, checked before any work: one line for every impossible value."""

from __future__ import annotations

import re
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

from natix_hf.bundle.backends import Backend, Precision, is_installed, kind_of_device
from natix_hf.bundle.names import ONNX, POLICY
from natix_hf.bundle.policy import read_policy
from natix_hf.errors import UsageError, VerificationError, cut

_IMAGES = "a path, a PIL image, a uint8 array, encoded bytes or a cell of a datasets column"
# As git names branches, tags, commits and pull requests.
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9_][\w.-]*)*", re.ASCII)
_LONGEST_REVISION = 200


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
    folder: Path, has_onnx: bool, device: str | None, backend: Backend | None, precision: Precision
) -> Backend:
    """The backend that was asked for, or by default "onnx" if `model.onnx` can run here and "torch" if not.

    Raises:
        UsageError: if the backend that was asked for cannot run here.
    """
    for name, given, known in (("backend", backend, get_args(Backend)), ("precision", precision, get_args(Precision))):
        if not (given is None and name == "backend") and (not isinstance(given, str) or given not in known):
            raise UsageError(f"{name} is {cut(given)}: allowed is {' | '.join(known)}")
    exact, on_cpu = precision == "float32", str(device).partition(":")[0] == "cpu"
    if backend == "onnx" and has_onnx and not (exact and (on_cpu or device is None)):
        raise UsageError(f"{ONNX} runs only in float32 on the CPU: leave out backend, or device and precision")
    if backend == "onnx" and not has_onnx:
        raise UsageError(f"{folder} has no {ONNX}: export it with phase6.onnx=true, or leave backend out")
    if backend == "onnx":
        return backend
    kind = kind_of_device(device)
    if backend is None and has_onnx and kind == "cpu" and exact and is_installed("onnxruntime"):
        return "onnx"
    if not is_installed("torch"):
        raise UsageError(_why_torch(folder, has_onnx, exact))
    return "torch"


def runs_safetensors(folder: Path, device: str | None, backend: Backend | None, precision: Precision) -> bool:
    """Whether the safetensors of a bundle would be run, which is asked before it is verified.

    Raises:
        UsageError: as `choose_backend`.
    """
    try:
        has_onnx = read_policy(folder / POLICY).onnx is not None
    except VerificationError:  # the verification says so
        return False
    return choose_backend(folder, has_onnx, device, backend, precision) != "onnx"


def _why_torch(folder: Path, has_onnx: bool, exact: bool) -> str:
    """Why a bundle cannot be answered without PyTorch, which is not here."""
    if not exact:
        return "PyTorch is not installed, and only it computes in bfloat16: leave precision out, or install torch"
    if has_onnx:
        return f"{folder} needs onnxruntime (its {ONNX}) or PyTorch, and neither is here: pip install onnxruntime"
    return f"{folder} has no {ONNX}, and PyTorch is not installed: export it with phase6.onnx=true, or install torch"

"""A teacher: a finished classifier, whose answers a student learns. They are computed once and kept."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from natix_hf.bundle.contents import most_bytes, require_intact
from natix_hf.bundle.inference import Inference
from natix_hf.bundle.load import find_bundle, is_from_hub
from natix_hf.bundle.names import BUNDLE_MANIFEST, CONFIG, POLICY, PROCESSOR, WEIGHTS
from natix_hf.bundle.policy import read_policy
from natix_hf.data.views import finished
from natix_hf.errors import RunError, UsageError, VerificationError
from natix_hf.labels import LabelNames, stored_names
from natix_hf.models.features import cache_folder
from natix_hf.models.header import tensor_shapes
from natix_hf.models.preprocess import load_processor
from natix_hf.provenance.alone import alone
from natix_hf.provenance.files import atomic_file, file_sha256, json_sha256

_BATCH, _BATCHES = 8, 5  # pictures and batches by which a speed is measured


@dataclass(frozen=True)
class Teacher:
    """A classifier on disk.

    Attributes:
        name: As it may be published.
        folder: Model, config and processor.
        slope, shift: A bundle's logit z' is slope * z - shift, where z is the logit of its candidate. Else 1 and 0.
        trained_in: The run folder whose rows it has learned from; None if that is not known.
    """

    name: str
    folder: Path
    slope: float = 1.0
    shift: float = 0.0
    trained_in: Path | None = None

    @functools.cached_property
    def sha256(self) -> str:
        """The hash of its weights."""
        return file_sha256(self.folder / WEIGHTS)

    @functools.cached_property
    def identity(self) -> str:
        """The hash of all that decides its answers."""
        configs = [file_sha256(self.folder / name) for name in (CONFIG, PROCESSOR)]
        return json_sha256([self.sha256, *configs, self.slope, self.shift])

    @functools.cached_property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in tensor_shapes(self.folder / WEIGHTS, most_bytes(WEIGHTS)).values())

    @property
    def labels(self) -> LabelNames:
        return stored_names(self.folder)

    @property
    def processor(self) -> Any:
        return load_processor(self.folder)

    def inference(self, device: torch.device | None = None) -> Inference:
        return Inference(self.folder, device)


def teacher_of(reference: str, revision: str | None = None) -> Teacher:
    """Find a teacher by the folder of a bundle, of a run that has one, or of a classifier, or by a bundle on the Hub.

    Its files are checked, those of a bundle against its manifest.

    Raises:
        UsageError: If there is no such folder or bundle.
        VerificationError: If a file is damaged, or is not what an export writes.
    """
    name = Path(reference).name or reference
    folder = Path(reference).expanduser()
    if not is_from_hub(folder) and (folder / WEIGHTS).is_file() and not is_bundle(folder):
        return classifier_in(folder, name)
    bundle = find_bundle(reference if is_from_hub(folder) else folder, revision)
    return bundle_in(bundle, reference if is_from_hub(folder) else name)


def teacher_names(teacher: str | Path | Sequence[str | Path] | None) -> list[str] | None:
    """The teachers of a trainer as text, as a recipe names them."""
    if teacher is None:
        return None
    return [str(each) for each in ([teacher] if isinstance(teacher, str | Path) else teacher)]


def is_bundle(folder: Path) -> bool:
    """True if a folder has a file that only bundles have."""
    return any((folder / name).is_file() for name in (POLICY, BUNDLE_MANIFEST))


def bundle_in(folder: Path, name: str) -> Teacher:
    """The candidate that a bundle was made of. What was folded into its head is undone in every answer."""
    require_intact(folder)
    policy = read_policy(folder / POLICY)
    return Teacher(name, folder, policy.folded_slope, policy.folded_shift)


def classifier_in(folder: Path, name: str, trained_in: Path | None = None) -> Teacher:
    """A classifier in a folder, with two labels and an image processor.

    Raises:
        VerificationError: If a file is missing, damaged, or does not fit.
    """
    teacher = Teacher(name, folder, trained_in=trained_in)
    if not (folder / PROCESSOR).is_file():
        raise VerificationError(f"{folder} has no {PROCESSOR}: save the image processor beside the model")
    _ = teacher.labels, teacher.processor, teacher.parameters  # each checks its file
    return teacher


def require_same_answers(teachers: Sequence[Teacher], labels: LabelNames, where: str) -> None:
    """Raise a `UsageError` if a teacher answers another question, or has yes and no the other way round."""
    for teacher in teachers:
        own = teacher.labels
        if own != labels:
            raise UsageError(
                f"{where}: {teacher.name} answers {own.no} (no) and {own.yes} (yes), and this model {labels.no} (no) "
                f"and {labels.yes} (yes): use a teacher of the same question, or give its answers the same names"
            )


class Answers:
    """Computes the answers of a teacher to views, or reads them from the cache. The model is loaded when needed.

    Args:
        workers: Of the loader.
    """

    def __init__(self, teacher: Teacher, batch_size: int, workers: int, device: torch.device) -> None:
        self.teacher = teacher
        self._batch_size, self._workers, self._device = batch_size, workers, device
        self._inference: Inference | None = None

    def __call__(self, views: Any, keys: Sequence[Any], made_from: Any, label: str) -> np.ndarray:
        """The logits z of yes over no, before any folding or calibration, float32 [n].

        Args:
            views: A dataset; `views[key]` yields `pixel_values`, which `finished` completes.
            made_from: Everything that decides the pixels, as plain JSON values.
            label: Name of a progress bar.

        Raises:
            RunError: If an answer is NaN.
        """
        name = json_sha256([self.teacher.identity, len(keys), made_from])
        path = cache_folder() / "features" / f"{name}.npy"
        if not path.is_file():
            with alone(path, "computing the same answers of a teacher"):
                if not path.is_file():
                    answers = self._compute(views, keys, label)
                    _write(path, lambda file: np.save(file, answers))
        kept: np.ndarray = np.load(path)
        return kept

    def _compute(self, views: Any, keys: Sequence[Any], label: str) -> np.ndarray:
        if self._inference is None:
            self._inference = self.teacher.inference(self._device)
        loader = DataLoader(views, sampler=keys, batch_size=self._batch_size, num_workers=self._workers)
        folded = [np.zeros(0)]
        for batch in tqdm(loader, desc=label, disable=None, leave=False):
            moved = {name: values.to(self._device) for name, values in batch.items()}
            folded.append(self._inference.answer(finished(views, moved)["pixel_values"])[0])
        logits = (np.concatenate(folded) + self.teacher.shift) / self.teacher.slope
        if not np.isfinite(logits).all():
            raise RunError(f"the teacher {self.teacher.name} answers NaN or infinity: use another one")
        return logits.astype(np.float32)


def _write(path: Path, write: Callable[[Any], None]) -> None:
    try:
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            write(file)
    except PermissionError:
        if not path.is_file():  # on Windows, if another run was quicker and has the file open: use that file
            raise


def softened(logits: Sequence[np.ndarray], temperature: float) -> np.ndarray:
    """The probability of yes at a temperature, float32 [...]: of several teachers the mean of theirs."""
    halves = [np.tanh(each.astype(np.float64) / (2 * temperature)) / 2 for each in logits]  # no overflow
    mean: np.ndarray = np.mean(halves, axis=0) + 0.5
    return mean.astype(np.float32)


def pictures_a_second(inference: Inference) -> float:
    """The speed of a forward pass here: the median of a few batches of eight pictures, after one to warm up. Preparing
    the pictures is not counted."""
    size = inference.preprocess.image_size
    batch = torch.zeros(_BATCH, 3, size, size)
    inference.answer(batch)
    times = []
    for _ in range(_BATCHES):
        begin = time.perf_counter()
        inference.answer(batch)  # which ends on the CPU
        times.append(time.perf_counter() - begin)
    return _BATCH / median(times)

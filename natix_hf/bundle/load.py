"""`load_bundle`: from a folder or the Hub to a model that answers by its policy."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np
import torch
from torch.utils.data import Dataset

from natix_hf.bundle.confidence import Confidence
from natix_hf.bundle.contents import BUNDLE_MANIFEST, ONNX, WEIGHTS, config_problems, policy_problems, require_intact
from natix_hf.bundle.fetch import fetch_bundle, require_intact_snapshot
from natix_hf.bundle.inference import Backend, Inference, Precision
from natix_hf.bundle.onnx_check import onnx_problems
from natix_hf.bundle.policy import POLICY, read_policy
from natix_hf.bundle.stream import BadImage, batches
from natix_hf.errors import DataError, UsageError, VerificationError
from natix_hf.models.device import default_device
from natix_hf.models.gate import GATE
from natix_hf.models.preprocess import Preprocess
from natix_hf.provenance.files import file_sha256
from natix_hf.provenance.hub import is_repo_id

_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer.

    Args:
        probability (`float`): Calibrated P(roadwork).
        label (`str`): The answer, by the fitted threshold.
        accepted (`bool`): Whether the guarantee of the bundle's policy covers it.
        decision (`str`): The label, or "abstain" where the answer is not accepted.
        threshold (`float`): The probability above which the label is Roadwork. It need not be 0.5.
    """

    probability: float
    label: str
    accepted: bool
    decision: Literal["Roadwork", "None", "abstain"]
    threshold: float


Answer: TypeAlias = Prediction | BadImage


class Bundle:
    """A loaded bundle: `policy` says how it decides, `predict` and `stream` answer, `backend` says what runs its model
    and `precision` in which numbers. `load_bundle` checks the folder first. Threads may share one."""

    def __init__(
        self,
        folder: Path,
        device: str | None = None,
        backend: Backend | None = None,
        precision: Precision = "float32",
    ) -> None:
        self.folder = folder
        self.policy = read_policy(folder / POLICY)
        self.backend = _backend(folder, self.policy.onnx is not None, device, backend, precision)
        self.precision = precision
        self._inference = Inference(folder, device, self.backend, precision)
        learned = folder / GATE if self.policy.gate.kind == "learned" else None
        self._confidence = Confidence(self.policy.threshold_logit, learned)

    @property
    def preprocess(self) -> Preprocess:
        """What an image goes through before the model; for a dataset of `logits_of`."""
        return self._inference.preprocess

    def logits_of(self, views: Dataset[Any], batch_size: int = 32, label: str | None = None) -> np.ndarray:
        """`logits` of a dataset that yields `pixel_values`. `label` names a progress bar."""
        return self.policy.unfold(self._inference.logits(views, batch_size, label=label))

    def logits(self, images: Iterable[Any], batch_size: int = 32) -> np.ndarray:
        """The candidate's z (unfolded), float64 [n]. Raises as `predict`."""
        parts = [np.zeros(0)]
        for batch in batches(images, self.preprocess, batch_size):
            pixels = [_require_read(image) for image in batch]
            parts.append(self.policy.unfold(self._inference.answer(torch.stack(pixels))[0]))
        return np.concatenate(parts)

    def predict(self, images: Iterable[Any], batch_size: int = 32) -> list[Prediction]:
        """Answers for paths, PIL images, uint8 arrays [H, W(, 3)], or a `datasets` image column; one image works too.

        The images are taken as `stream` takes them: of a generator's million, two batches are in memory at a time.

        Raises:
            DataError: an image cannot be read; the line names it. `stream` reports it in its place and goes on.
        """
        return [_require_read(answer) for answer in self.stream(images, batch_size)]

    def stream(self, images: Iterable[Any], batch_size: int = 32) -> Iterator[Answer]:
        """The answers of `predict` as they come, one for each image and in their order, without an end if the images
        have none. An image that cannot be read has a `BadImage` in its place, which names it and says why.

        The first answers come when two batches of files, or one of pictures in memory, have been taken: give a live
        camera `batch_size=1`.
        """
        for batch in batches(images, self.preprocess, batch_size):
            yield from self._answers(batch)

    def stream_beside(
        self, other: Bundle, images: Iterable[Any], batch_size: int = 32
    ) -> Iterator[tuple[Answer, Answer]]:
        """`stream` of this bundle and of another on the same pixels, for `count_flips`: what bfloat16 changes, or
        another version of a model."""
        for batch in batches(images, self.preprocess, batch_size):
            yield from zip(self._answers(batch), other._answers(batch), strict=True)

    def _answers(self, batch: list[torch.Tensor | BadImage]) -> list[Answer]:
        read = [pixels for pixels in batch if not isinstance(pixels, BadImage)]
        answers = iter(self._predictions(torch.stack(read)) if read else [])
        return [image if isinstance(image, BadImage) else next(answers) for image in batch]

    def _predictions(self, pixel_values: torch.Tensor) -> list[Prediction]:
        folded, features = self._inference.answer(pixel_values)
        z = self.policy.unfold(folded)
        accepted = self.policy.accepts(z, self._confidence(z, features))
        answers = zip(self.policy.probability(z), self.policy.decide(z), accepted, strict=True)
        [cut] = self.policy.probability(np.array([self.policy.threshold_logit])).tolist()
        return [_prediction(float(p), bool(positive), bool(sure), cut) for p, positive, sure in answers]


@dataclass(frozen=True)
class Flips:
    """How the answers of one bundle differ from another's on `images` that could be read, beside `bad` ones: how many
    `labels` and how many `decisions` (abstaining is one) are others, and the largest difference of a probability."""

    images: int
    bad: int
    labels: int
    decisions: int
    max_difference: float


def count_flips(pairs: Iterable[tuple[Answer, Answer]]) -> Flips:
    """What `Bundle.stream_beside` gave, counted."""
    images = bad = labels = decisions = 0
    worst = 0.0
    for one, other in pairs:
        if isinstance(one, BadImage) or isinstance(other, BadImage):
            bad += 1
        else:
            images += 1
            labels += one.label != other.label
            decisions += one.decision != other.decision
            worst = max(worst, abs(one.probability - other.probability))
    return Flips(images, bad, labels, decisions, worst)


def _backend(
    folder: Path, has_onnx: bool, device: str | None, backend: Backend | None, precision: Precision
) -> Backend:
    """The one that is asked for, if it can be had; else `model.onnx` where it can be run."""
    for name, given, known in (("backend", backend, get_args(Backend)), ("precision", precision, get_args(Precision))):
        if given is not None and given not in known:
            raise UsageError(f"{name} is {given!r}: allowed is {' | '.join(known)}")
    on_cpu = (torch.device(device) if device is not None else default_device()).type == "cpu"
    exact = precision == "float32"
    if backend is None:
        fits = has_onnx and on_cpu and exact and importlib.util.find_spec("onnxruntime") is not None
        return "onnx" if fits else "torch"
    if backend == "onnx" and not has_onnx:
        raise UsageError(f"{folder} has no {ONNX}: export it with phase6.onnx=true, or leave backend out")
    if backend == "onnx" and not (exact and (on_cpu or device is None)):
        raise UsageError(f"{ONNX} runs in float32 on the CPU: leave backend out, or device and precision")
    return backend


def _require_read(answer: _Read | BadImage) -> _Read:
    if isinstance(answer, BadImage):
        raise DataError(answer.problem)
    return answer


def _prediction(probability: float, positive: bool, accepted: bool, threshold: float) -> Prediction:
    label: Literal["Roadwork", "None"] = "Roadwork" if positive else "None"
    return Prediction(probability, label, accepted, label if accepted else "abstain", threshold)


def load_bundle(
    path_or_repo_id: str | Path,
    revision: str | None = None,
    verify: bool = True,
    expected: str | None = None,
    device: str | None = None,
    backend: Backend | None = None,
    precision: Precision = "float32",
) -> Bundle:
    """Loads a bundle from a folder or a Hub repository. Nothing is unpickled and no remote code runs.

    Args:
        path_or_repo_id: a bundle folder, a run folder (its newest bundle), or `org/name` on the Hub.
        revision: branch, tag or commit on the Hub.
        verify: check every file against `bundle_manifest.json` first; False: only that the policy belongs to the
            weights, and that the configs ask for nothing from elsewhere.
        expected: sha256 that the manifest itself must have; not without `verify`, which makes it hold for the files.
        device: as torch names it; None takes the accelerator if there is one.
        backend: "torch" runs the safetensors, "onnx" the bundle's `model.onnx` on the CPU. None: the latter
            where it can be run, both are exact; `bundle.backend` tells which.
        precision: "bfloat16" is faster on hardware that has it, and flips decisions near the threshold: count them
            with `stream_beside` and `count_flips`, or `natix-hf predict --bf16`, on pictures of your own first.

    Raises:
        UsageError: there is no bundle there, or no right to it; `revision` of a folder. HubError: the Hub or the
            connection failed. VerificationError: a file is not what the manifest says.
    """
    if expected is not None and not verify:
        raise UsageError(f"load_bundle({str(path_or_repo_id)!r}): expected= says nothing with verify=False")
    folder = find_bundle(path_or_repo_id, revision)
    if verify and is_from_hub(path_or_repo_id):
        require_intact_snapshot(folder, str(path_or_repo_id), expected)
    elif verify:
        require_intact(folder, expected)
    else:
        present = [name for name in (WEIGHTS, GATE, ONNX) if (folder / name).is_file()]
        problems = policy_problems(folder, {name: file_sha256(folder / name) for name in present})
        problems += onnx_problems(folder / ONNX) if ONNX in present else []
        for problem in [*config_problems(folder), *problems]:
            raise VerificationError(problem)
    return Bundle(folder, device, backend, precision)


def find_bundle(path_or_repo_id: str | Path, revision: str | None = None) -> Path:
    """The folder of a bundle: itself, `phase6_export/bundle` of a run, or a snapshot from the Hub."""
    if is_from_hub(path_or_repo_id):
        return fetch_bundle(str(path_or_repo_id), revision)
    if revision is not None and Path(path_or_repo_id).exists():
        raise UsageError(f"revision {revision!r} is for a repository on the Hub: {path_or_repo_id} lies here")
    return find_local_bundle(path_or_repo_id)


def is_from_hub(path_or_repo_id: str | Path) -> bool:
    """Whether a reference names a Hub repository: a folder of that name comes first."""
    return not Path(path_or_repo_id).exists() and is_repo_id(str(path_or_repo_id))


def find_local_bundle(reference: str | Path) -> Path:
    """The folder of a bundle: itself, or `phase6_export/bundle` of a run."""
    path = Path(reference)
    for folder in (path, path / "phase6_export" / "bundle"):
        # A bundle that lost one of the two is still a damaged bundle, not a stranger.
        if (folder / POLICY).is_file() or (folder / BUNDLE_MANIFEST).is_file():
            return folder
    if path.exists():
        raise UsageError(f"{path} is not a bundle: it has no {POLICY}; run phase 6, or name the folder that has one")
    raise UsageError(f"there is no bundle {reference}: name a folder, or a Hub repository as org/name")

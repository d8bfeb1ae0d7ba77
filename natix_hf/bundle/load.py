"""`load_bundle`: load a bundle from a folder or the Hub, ready to answer by its policy."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from natix_hf.bundle.asked import candidate_backends, check_batch_size, check_load, runs_safetensors
from natix_hf.bundle.backends import Precision, precision_named
from natix_hf.bundle.confidence import Confidence
from natix_hf.bundle.contents import decisive_problems, require_intact
from natix_hf.bundle.fastest import fastest
from natix_hf.bundle.fetch import fetch_bundle, require_intact_snapshot
from natix_hf.bundle.names import BUNDLE_MANIFEST, CONFIG, POLICY, PROCESSOR, bundle_of_run
from natix_hf.bundle.policy import read_policy
from natix_hf.bundle.stream import TIMEOUT_S, BadImage, batches
from natix_hf.errors import DataError, UsageError, VerificationError, cut
from natix_hf.labels import ABSTAIN
from natix_hf.models.gate_file import GATE
from natix_hf.models.preprocess import Preprocess
from natix_hf.provenance.hub import is_repo_id

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from natix_hf.bundle.explain import Explanation

_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer.

    Args:
        probability (`float`): The calibrated probability of yes, label 1, between 0 and 1.
        label (`str`): The name of the answer, by the fitted threshold; for the subnet `"Roadwork"` or `"None"`.
        accepted (`bool`): True if the guarantee in the bundle's policy covers the answer. A bundle without a guarantee
            accepts every answer.
        decision (`str`): The label, or `"abstain"` if the answer is not accepted.
        threshold (`float`): The probability above which the answer is yes. It need not be 0.5.
    """

    probability: float
    label: str
    accepted: bool
    decision: str
    threshold: float


Answer: TypeAlias = Prediction | BadImage


class Bundle:
    """A loaded bundle, which answers images. [`load_bundle`] makes one and checks the folder first.

    Several threads may share a bundle. For the arguments see [`load_bundle`].

    Attributes:
        policy ([`Policy`]): How the bundle decides: threshold, calibration, gate and guarantee. `policy.labels` has
            the names of the answers.
        backend (`str`): What runs the model: `"torch"`, `"compile"`, `"onnx"` or `"openvino"`.
    """

    def __init__(
        self,
        folder: Path,
        device: str | None = None,
        backend: str | None = None,
        precision: Precision = "float32",
        expected_images: int | None = None,
    ) -> None:
        self.folder = folder
        self.policy = read_policy(folder / POLICY)
        self.precision: Precision = precision_named(precision)
        asked = (folder, self.policy.onnx is not None, device, backend, self.precision, expected_images)
        self._inference = fastest(folder, device, candidate_backends(*asked), self.precision, expected_images)
        self.backend = self._inference.backend
        learned = folder / GATE if self.policy.gate.kind == "learned" else None
        self._confidence = Confidence(self.policy.threshold_logit, learned)

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing of images, for a dataset to pass to `logits_of`."""
        return self._inference.preprocess

    def logits_of(self, views: Dataset[Any], batch_size: int = 32, label: str | None = None) -> np.ndarray:
        """The candidate's logits (unfolded), float64 [n], of a dataset that yields `pixel_values`. `label` names a
        progress bar."""
        return self.policy.unfold(self._inference.logits(views, check_batch_size(batch_size), label=label))

    def logits(self, images: Iterable[Any], batch_size: int = 32) -> np.ndarray:
        """The candidate's logits (unfolded), float64 [n]. Takes images and raises errors as `predict` does."""
        parts = [np.zeros(0)]
        for batch in batches(images, self.preprocess.pixels, batch_size):
            pixels = [_require_read(image) for image in batch]
            parts.append(self.policy.unfold(self._inference.answer(np.stack(pixels))[0]))
        return np.concatenate(parts)

    def predict(self, images: Iterable[Any], batch_size: int = 32) -> list[Prediction]:
        """Answer images, and return all answers at once.

        At most two batches of images are in memory at a time, so a generator may yield millions.

        Args:
            images (`Iterable`): Paths, PIL images, uint8 arrays [H, W] or [H, W, 3], encoded bytes, or a `datasets`
                image column. A single image works too.
            batch_size (`int`, defaults to 32): Images per forward pass.

        Returns:
            `list[Prediction]`: One answer per image, in the same order.

        Raises:
            [`UsageError`]: if `images` holds something else, or if `batch_size` is no whole number of at least 1.
            [`DataError`]: if an image cannot be read; the line names it. `stream` reports it and goes on.

        Example:

            >>> import natix_hf
            >>> bundle = natix_hf.load_bundle("outputs/my_run")  # doctest: +SKIP
            >>> [answer] = bundle.predict("street.jpg")  # doctest: +SKIP
            >>> answer.decision, round(answer.probability, 2)  # doctest: +SKIP
            ('Roadwork', 0.93)
        """
        return [_require_read(answer) for answer in self.stream(images, batch_size)]

    def stream(
        self, images: Iterable[Any], batch_size: int = 32, timeout_s: float | None = TIMEOUT_S
    ) -> Iterator[Answer]:
        """Answer images as they come, one answer per image and in the same order. The stream may be endless.

        The first answers arrive after two batches of files or one batch of pictures in memory. For a live camera use
        `batch_size=1`. The arguments are those of `predict`, and `timeout_s`: an image that is still being read after
        so many seconds is a bad one. None waits for ever. The next of `images` is always waited for, as for a camera.

        Yields:
            [`Prediction`], or a [`BadImage`] that says why an image cannot be read, or that the model answers no
            number.

        Raises:
            [`UsageError`]: as in `predict`, when it is called.

        Example:

            >>> for answer in bundle.stream(Path("photographs").glob("*.jpg")):  # doctest: +SKIP
            ...     print(answer)
        """
        # refuses bad arguments now, not at the first answer
        read = batches(images, self.preprocess.pixels, batch_size, timeout_s)
        answers = (answer for batch in read for answer in self._answers(batch))
        return (named(answer, f"image {index}") for index, answer in enumerate(answers))

    def explain(self, image: Any, method: str = "gradient") -> Explanation:
        """Answer one image, and show which places moved the answer (docs/explain.md). `method` is `"gradient"`, or for
        a model with attention `"rollout"`. Images and errors are those of `predict`; [`UsageError`] if it cannot be.
        """
        from natix_hf.bundle.explain import explain

        return explain(self, image, method)

    def stream_beside(
        self, other: Bundle, images: Iterable[Any], batch_size: int = 32
    ) -> Iterator[tuple[Answer, Answer]]:
        """Answer the same images with this bundle and another one, for [`count_flips`].

        Use it to see what bfloat16 or another version of a model changes.

        Yields:
            Pairs of answers as in `stream`, first this bundle's, then the other's.
        """
        read = batches(images, self.preprocess.pixels, batch_size)
        pairs = (pair for batch in read for pair in zip(self._answers(batch), other._answers(batch), strict=True))
        return (
            (named(mine, f"image {index}"), named(theirs, f"image {index}"))
            for index, (mine, theirs) in enumerate(pairs)
        )

    def _answers(self, batch: list[np.ndarray | BadImage]) -> list[Answer]:
        read = [pixels for pixels in batch if not isinstance(pixels, BadImage)]
        answers = iter(self._predictions(np.stack(read)) if read else [])
        return [image if isinstance(image, BadImage) else next(answers) for image in batch]

    def _predictions(self, pixel_values: np.ndarray) -> list[Answer]:
        folded, features = self._inference.answer(pixel_values)
        z = self.policy.unfold(folded)
        known = np.isfinite(z)  # not after an overflow in 16 bits: the rest of the batch does not fail with it
        answers = iter(self._decided(z[known], features[known]) if known.any() else [])
        return [
            next(answers) if each else BadImage("", f"the model answers {value:g}, which is no number")
            for each, value in zip(known, z, strict=True)
        ]

    def _decided(self, z: np.ndarray, features: np.ndarray) -> list[Prediction]:
        accepted = self.policy.accepts(z, self._confidence(z, features))
        answers = zip(self.policy.probability(z), self.policy.decide(z), accepted, strict=True)
        [cut] = self.policy.probability(np.array([self.policy.threshold_logit])).tolist()
        predictions = []
        for probability, positive, sure in answers:
            label = self.policy.labels.name(positive)
            predictions.append(Prediction(float(probability), label, bool(sure), label if sure else ABSTAIN, cut))
        return predictions


def named(answer: Answer, name: str) -> Answer:
    """The answer, and a picture that has no number under its name: the model knows none."""
    if isinstance(answer, BadImage) and not answer.name:
        return BadImage(name, f"{name}: {answer.problem}")
    return answer


def _require_read(answer: _Read | BadImage) -> _Read:
    if isinstance(answer, BadImage):
        raise DataError(answer.problem)
    return answer


def load_bundle(
    path_or_repo_id: str | Path,
    revision: str | None = None,
    verify: bool = True,
    expected: str | None = None,
    device: str | None = None,
    backend: str | None = None,
    precision: str = "float32",
    expected_images: int | None = None,
) -> Bundle:
    """Load a bundle from a folder or the Hub. Nothing is unpickled and no remote code runs.

    An older bundle, whose policy does not name the hashes of its configs, loads with a `UserWarning`.

    Args:
        path_or_repo_id (`str` or `Path`): A bundle folder, a run folder, or a repository on the Hub as `org/name`.
        revision (`str`, *optional*): A branch, tag or commit on the Hub.
        verify (`bool`, defaults to `True`): Check every file against `bundle_manifest.json`. With `False` only
            what decides an answer is checked: policy, configs, weights, gate and ONNX file are sound and belong
            together.
        expected (`str`, *optional*): The sha256 that the manifest must have, which pins every file. Needs `verify`.
        device (`str`, *optional*): A torch device. Defaults to the accelerator, or the CPU if there is none.
        backend (`str`, *optional*): `"torch"` runs the safetensors, `"compile"` the same compiled for the CPU;
            `"onnx"` and `"openvino"` run the bundle's `model.onnx` there. All are exact. `"auto"` measures those that
            are installed and takes the fastest. Defaults to `"onnx"` where it can run, else `"torch"`, unmeasured.
            `bundle.backend` says which one runs.
        precision (`str`, defaults to `"float32"`): `"bfloat16"` (or `"bf16"`) is faster on hardware that supports it,
            but it flips some decisions near the threshold. Count them on your own pictures first, with
            [`Bundle.stream_beside`] and [`count_flips`] or with `natix-hf predict --bf16`.
        expected_images (`int`, *optional*): For `"auto"`: how many images will come. Only with many does it import
            torch, and compile if that pays.

    Returns:
        [`Bundle`]: Ready to answer.

    Raises:
        [`UsageError`]: if there is no bundle, if the token may not read it, if `revision` is given for a folder, or if
            an argument has an impossible value.
        [`HubError`]: if the Hub or the connection fails.
        [`VerificationError`]: if a file does not match the manifest, or holds what no export writes.

    Example:

        >>> import natix_hf
        >>> bundle = natix_hf.load_bundle("outputs/my_run")  # doctest: +SKIP
        >>> bundle.predict(["street.jpg"])[0].decision  # doctest: +SKIP
        'Roadwork'
    """
    check_load(path_or_repo_id, revision, verify, expected)
    folder = find_bundle(path_or_repo_id, revision)
    rounded: Precision = precision_named(precision)
    runs_weights = runs_safetensors(folder, device, backend, rounded, expected_images)
    if verify and is_from_hub(path_or_repo_id):
        require_intact_snapshot(folder, str(path_or_repo_id), expected, runs_weights)
    elif verify:
        require_intact(folder, expected, runs_weights)
    else:
        for problem in decisive_problems(folder, runs_weights):
            raise VerificationError(problem)
    bundle = Bundle(folder, device, backend, rounded, expected_images)
    if not bundle.policy.binds_configs and expected is None:
        warnings.warn(
            f"{folder} is an older bundle: nothing but the whole manifest tells whether its {CONFIG} and {PROCESSOR} "
            "are those it was exported with; pin it with expected=, or export it again",
            stacklevel=2,
        )
    return bundle


def find_bundle(path_or_repo_id: str | Path, revision: str | None = None) -> Path:
    """The folder of a bundle: the folder itself, `phase6_export/bundle` of a run, or a snapshot from the Hub."""
    if is_from_hub(path_or_repo_id):
        return fetch_bundle(str(path_or_repo_id), revision)
    if revision is not None and Path(path_or_repo_id).exists():
        raise UsageError(
            f"revision {cut(revision)} is for a repository on the Hub, but {path_or_repo_id} lies here: leave it out"
        )
    return find_local_bundle(path_or_repo_id)


def is_from_hub(path_or_repo_id: str | Path) -> bool:
    """True if a reference names a repository on the Hub. A folder of that name takes precedence."""
    return not Path(path_or_repo_id).exists() and is_repo_id(str(path_or_repo_id))


def find_local_bundle(reference: str | Path) -> Path:
    """The folder of a bundle: the folder itself, or `phase6_export/bundle` of a run."""
    path = Path(reference)
    for folder in (path, bundle_of_run(path)):
        # A folder that has lost one of the two files is a damaged bundle, and still a bundle.
        if (folder / POLICY).is_file() or (folder / BUNDLE_MANIFEST).is_file():
            return folder
    if path.exists():
        raise UsageError(f"{path} is not a bundle: it has no {POLICY}; run phase 6, or name the folder that has one")
    raise UsageError(f"there is no bundle {reference}: name a folder, or a Hub repository as org/name")

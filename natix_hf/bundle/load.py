"""`load_bundle`: from a folder or the Hub to a model that answers by its policy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from natix_hf.bundle.confidence import Confidence
from natix_hf.bundle.fetch import fetch_bundle, require_intact_snapshot
from natix_hf.bundle.inference import ImageList, Inference
from natix_hf.bundle.policy import POLICY, read_policy
from natix_hf.bundle.verify import BUNDLE_MANIFEST, WEIGHTS, config_problems, policy_problems, require_intact
from natix_hf.errors import UsageError, VerificationError
from natix_hf.models.gate import GATE
from natix_hf.models.preprocess import Preprocess
from natix_hf.provenance.files import file_sha256
from natix_hf.provenance.hub import is_repo_id


@dataclass(frozen=True)
class Prediction:
    """One answer. `probability` is the calibrated P(roadwork); `label` follows the fitted threshold, not .5;
    `accepted` says whether the guarantee of the bundle's policy covers it, and `decision` is "abstain" where not."""

    probability: float
    label: str
    accepted: bool
    decision: Literal["Roadwork", "None", "abstain"]


class Bundle:
    """A loaded bundle: `policy` says how it decides, `predict` answers. `load_bundle` checks the folder first."""

    def __init__(self, folder: Path, device: str | None = None) -> None:
        self.folder = folder
        self.policy = read_policy(folder / POLICY)
        self._inference = Inference(folder, device)
        learned = folder / GATE if self.policy.gate["kind"] == "learned" else None
        self._confidence = Confidence(self.policy.threshold_logit, learned)

    @property
    def preprocess(self) -> Preprocess:
        """What an image goes through before the model; for a dataset of `logits_of`."""
        return self._inference.preprocess

    def logits_of(self, views: Dataset[Any], batch_size: int = 32, label: str | None = None) -> np.ndarray:
        """`logits` of a dataset that yields `pixel_values`. `label` names a progress bar."""
        return self.policy.unfold(self._inference.logits(views, batch_size, label=label))

    def logits(self, images: Iterable[Any], batch_size: int = 32) -> np.ndarray:
        """The candidate's z (unfolded), float64 [n]."""
        return self._answers(images, batch_size)[0]

    def _answers(self, images: Iterable[Any], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        listed = ImageList(_as_list(images), self._inference.preprocess)
        folded, features = self._inference.logits_and_features(listed, batch_size)
        return self.policy.unfold(folded), features

    def predict(self, images: Iterable[Any], batch_size: int = 32) -> list[Prediction]:
        """Answers for paths, PIL images, uint8 arrays [H, W(, 3)], or a `datasets` image column; one image works too.

        Raises:
            DataError: an image cannot be read; the line names it.
        """
        z, features = self._answers(images, batch_size)
        if not len(z):
            return []
        accepted = self.policy.accepts(z, self._confidence(z, features))
        answers = zip(self.policy.probability(z), self.policy.decide(z), accepted, strict=True)
        return [_prediction(float(probability), bool(positive), bool(sure)) for probability, positive, sure in answers]


def _prediction(probability: float, positive: bool, accepted: bool) -> Prediction:
    label: Literal["Roadwork", "None"] = "Roadwork" if positive else "None"
    return Prediction(probability, label, accepted, label if accepted else "abstain")


def _as_list(images: Iterable[Any]) -> list[Any]:
    single = isinstance(images, str | bytes | Path | Image.Image | dict) or (
        isinstance(images, np.ndarray) and images.ndim < 4
    )
    return [images] if single else list(images)


def load_bundle(
    path_or_repo_id: str | Path,
    revision: str | None = None,
    verify: bool = True,
    expected: str | None = None,
    device: str | None = None,
) -> Bundle:
    """Loads a bundle from a folder or a Hub repository. Nothing is unpickled and no remote code runs.

    Args:
        path_or_repo_id: a bundle folder, a run folder (its newest bundle), or `org/name` on the Hub.
        revision: branch, tag or commit on the Hub.
        verify: check every file against `bundle_manifest.json` first; False: only that the policy belongs to the
            weights, and that the configs ask for nothing from elsewhere.
        expected: sha256 that the manifest itself must have; not without `verify`, which makes it hold for the files.
        device: as torch names it; None takes the accelerator if there is one.

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
        hashes = {name: file_sha256(folder / name) for name in (WEIGHTS, GATE) if (folder / name).is_file()}
        for problem in [*config_problems(folder), *policy_problems(folder, hashes)]:
            raise VerificationError(problem)
    return Bundle(folder, device)


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

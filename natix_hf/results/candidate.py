"""A candidate: a folder with a merged, plain float32 model and the logits that this model gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from natix_hf.data.config import Exam
from natix_hf.labels import LabelNames, stored_names
from natix_hf.provenance.files import file_sha256
from natix_hf.results.logits import LogitTable, read_logits

START = "start_sha256"  # in a report: the hash of the weights that a training began with, head and all


@dataclass(frozen=True)
class Candidate:
    """A candidate on disk, named after its folder."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def labels(self) -> LabelNames:
        """The names of the two answers, from the model's config."""
        return stored_names(self.model)

    @property
    def weights(self) -> Path:
        return self.model / "model.safetensors"

    @property
    def sha256(self) -> str:
        return file_sha256(self.weights)

    @property
    def training_plot(self) -> Path:
        return self.folder / "plots" / "training.png"

    def logits_file(self, role: str) -> Path:
        return self.folder / "logits" / f"{role}.parquet"

    def stored_logits(self, role: str, exam: Exam | None) -> LogitTable:
        """The stored logits of a role's pictures, or of their views in the exam, checked to come from these weights.

        Raises:
            VerificationError: if they are missing, damaged, from other weights, or about other views.
        """
        return read_logits(self.logits_file(role), self.sha256, exam)

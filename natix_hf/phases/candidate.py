"""A candidate: a merged, plain float32 model folder, and the logits that this very folder gives."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from natix_hf.bundle.inference import Inference
from natix_hf.bundle.logits import LogitTable, read_logits, write_logits
from natix_hf.data.config import Exam
from natix_hf.data.exam import ExamViews
from natix_hf.data.rows import Rows
from natix_hf.data.views import OriginalViews
from natix_hf.errors import RunError, VerificationError
from natix_hf.models.preprocess import Preprocess
from natix_hf.provenance.files import atomic_folder, file_sha256, write_json

MODEL = "model"


@dataclass(frozen=True)
class Candidate:
    """A candidate on disk."""

    name: str
    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / MODEL

    @property
    def sha256(self) -> str:
        return file_sha256(self.model / "model.safetensors")

    def logits_file(self, role: str) -> Path:
        return self.folder / "logits" / f"{role}.parquet"

    def stored_logits(self, role: str) -> LogitTable:
        """What `store_logits` kept, checked to be of these very weights."""
        return read_logits(self.logits_file(role), self.sha256)


def save_candidate(folder: Path, model: PreTrainedModel, processor: Any) -> Candidate:
    """Writes `folder/model`: float32 weights, config, processor."""
    with atomic_folder(folder / MODEL) as temporary:
        nn.Module.to(model, device="cpu", dtype=torch.float32)
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
    return Candidate(folder.name, folder)


def shown(rows: Rows, preprocess: Preprocess, exam: Exam | None) -> OriginalViews | ExamViews:
    """What a candidate is asked about rows: the original images, or views of the exam."""
    if exam is None:
        return OriginalViews(rows, preprocess)
    cells = rows.source.select_columns([rows.image_column])[rows.image_column]
    return ExamViews(cells, rows.ids, preprocess, exam.seed, exam.views)


def compute_answers(
    candidate: Candidate, rows: Rows, exam: Exam | None = None, workers: int = 1
) -> tuple[LogitTable, np.ndarray]:
    """Logits by the saved folder, through the preprocessing of `predict`, of the original images or of views of the
    exam; and what a learned gate reads: the classifier layer's inputs, float32 [n, d]."""
    inference = Inference(candidate.model)
    views = shown(rows, inference.preprocess, exam)
    logits, features = inference.logits_and_features(views, workers=workers, label=f"{rows.role} logits")
    table = _of_views(LogitTable(rows.ids, rows.groups, rows.labels, logits, candidate.sha256, exam))
    if not np.isfinite(logits).all():
        first = table.ids[int(np.flatnonzero(~np.isfinite(logits))[0])]
        raise RunError(f"the model in {candidate.model} answers NaN, first to row {first}: lower learning_rate")
    return table, features


def _of_views(table: LogitTable) -> LogitTable:
    """A table whose ids, groups and labels are still those of pictures, each repeated for its views."""
    ids = [row_id for row_id in table.ids for _ in range(table.views)]
    groups, labels = np.repeat(table.groups, table.views), np.repeat(table.labels, table.views)
    return replace(table, ids=ids, groups=groups, labels=labels)


def store_logits(candidate: Candidate, rows: Rows) -> LogitTable:
    """Computes the logits of the original images of a role once and keeps them beside the candidate."""
    table = compute_answers(candidate, rows)[0]
    write_logits(candidate.logits_file(rows.role), table)
    return table


def kept_logits(path: Path, candidate: Candidate, rows: Rows, exam: Exam | None) -> LogitTable | None:
    """Logits that an earlier attempt of a phase left at `path`, with the groups of today, if they are this candidate's
    answers to these views of these rows."""
    if not path.is_file():
        return None
    try:
        found = read_logits(path, candidate.sha256, exam)
    except VerificationError:
        return None
    wanted = _of_views(LogitTable(rows.ids, rows.groups, rows.labels, found.logits, found.candidate_sha256, exam))
    same = (found.ids, found.labels.tolist()) == (wanted.ids, wanted.labels.tolist())
    return wanted if same else None


def write_history(path: Path, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keeps a Trainer's log, null for what is no number in JSON, and without its wall-clock figures: equal trainings
    must leave equal files. Returns it."""
    timeless = [
        {
            key: value if math.isfinite(value) else None
            for key, value in row.items()
            if key != "data_wait" and not key.endswith(("_runtime", "_per_second"))
        }
        for row in history
    ]
    write_json(path, timeless)
    return timeless

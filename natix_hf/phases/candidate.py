"""A candidate: a merged, plain float32 model folder, and the logits that this very folder gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from natix_hf.bundle.inference import Inference
from natix_hf.bundle.logits import LogitTable, read_logits, write_logits
from natix_hf.data.rows import Rows
from natix_hf.data.views import OriginalViews
from natix_hf.errors import RunError
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


def compute_logits(candidate: Candidate, rows: Rows, workers: int = 1) -> LogitTable:
    """Logits of the original images by the saved folder, through the preprocessing of `predict`."""
    return compute_answers(candidate, rows, workers)[0]


def compute_answers(candidate: Candidate, rows: Rows, workers: int = 1) -> tuple[LogitTable, np.ndarray]:
    """`compute_logits`, and what a learned gate reads: the classifier layer's inputs, float32 [n, d]."""
    inference = Inference(candidate.model)
    views = OriginalViews(rows, inference.preprocess)
    logits, features = inference.logits_and_features(views, workers=workers, label=f"{rows.role} logits")
    if not np.isfinite(logits).all():
        first = rows.ids[int(np.flatnonzero(~np.isfinite(logits))[0])]
        raise RunError(f"the model in {candidate.model} answers NaN, first to row {first}: lower learning_rate")
    return LogitTable(rows.ids, rows.groups, rows.labels, logits, candidate.sha256), features


def store_logits(candidate: Candidate, rows: Rows) -> LogitTable:
    """Computes the logits of a role once and keeps them beside the candidate."""
    table = compute_logits(candidate, rows)
    write_logits(candidate.logits_file(rows.role), table)
    return table


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

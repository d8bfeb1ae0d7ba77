"""Stored logits: row ids, groups, labels and z, with the hash of the weights that made them and what they saw."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from natix_hf.data.config import Exam
from natix_hf.errors import VerificationError
from natix_hf.provenance.files import atomic_file
from natix_hf.subnet.challenge import LEVELS

_HASH_KEY, _EXAM_KEY = b"candidate_sha256", b"exam"


@dataclass(frozen=True)
class LogitTable:
    """Aligned: ids, groups (str [n]), labels (int64 [n]), logits (float64 [n], label 1 over label 0).

    With an `exam` the views of a picture follow each other, and n counts views.
    """

    ids: list[str]
    groups: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    candidate_sha256: str
    exam: Exam | None = None

    @property
    def views(self) -> int:
        """Of each picture."""
        return self.exam.views if self.exam is not None else 1

    @property
    def levels(self) -> np.ndarray:
        """The exam's level of each view, int64 [n]; without an exam there are none, and no use for this."""
        return np.arange(len(self.ids)) % self.views % len(LEVELS)


def write_logits(path: Path, table: LogitTable) -> None:
    columns = {"row_id": table.ids, "group": table.groups, "label": table.labels, "logit": table.logits}
    made_by = {_HASH_KEY: table.candidate_sha256.encode(), _EXAM_KEY: _exam_text(table.exam)}
    content = pa.table(columns | ({"level": table.levels} if table.exam is not None else {}))
    with atomic_file(path) as temporary:
        pq.write_table(content.replace_schema_metadata(made_by), temporary)


def _exam_text(exam: Exam | None) -> bytes:
    return json.dumps(None if exam is None else asdict(exam)).encode()


def read_logits(path: Path, candidate_sha256: str, exam: Exam | None = None) -> LogitTable:
    """Reads stored logits.

    Raises:
        VerificationError: unreadable, or made by other weights than `candidate_sha256`, or of other views.
    """
    try:
        content = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise VerificationError(f"{path} cannot be read ({error})") from None
    metadata = content.schema.metadata or {}
    made_by = metadata.get(_HASH_KEY, b"").decode()
    if made_by != candidate_sha256:
        raise VerificationError(
            f"{path} was made by weights {made_by[:12]}, not by {candidate_sha256[:12]}: run the phase again"
        )
    if metadata.get(_EXAM_KEY, b"null") != _exam_text(exam):
        raise VerificationError(f"{path} holds answers to other views of the pictures: run the phase again")
    return LogitTable(
        ids=content["row_id"].to_pylist(),
        groups=np.asarray(content["group"].to_pylist()),
        labels=content["label"].to_numpy(),
        logits=content["logit"].to_numpy(),
        candidate_sha256=made_by,
        exam=exam,
    )

"""Stored logits: the questions, the answers, and the hash of the weights that answered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from natix_hf.data.asked import Asked
from natix_hf.data.config import Exam
from natix_hf.errors import VerificationError
from natix_hf.provenance.files import atomic_file
from natix_hf.provenance.stored import from_json, to_json

_HASH_KEY, _EXAM_KEY = b"candidate_sha256", b"exam"


@dataclass(frozen=True)
class LogitTable:
    """Answers of one model. `logits` is float64 [n], label 1 over label 0, aligned with `asked`."""

    asked: Asked
    logits: np.ndarray
    candidate_sha256: str

    @property
    def ids(self) -> list[str]:
        return self.asked.ids

    @property
    def groups(self) -> np.ndarray:
        return self.asked.groups

    @property
    def labels(self) -> np.ndarray:
        return self.asked.labels


def write_logits(path: Path, table: LogitTable) -> None:
    """Write logits to a parquet file that also names the weights and the exam."""
    asked = table.asked
    columns = {"row_id": table.ids, "group": table.groups, "label": table.labels, "logit": table.logits}
    levels = {} if asked.exam is None else {"level": asked.levels}
    made_by = {_HASH_KEY: table.candidate_sha256.encode(), _EXAM_KEY: exam_text(asked.exam)}
    with atomic_file(path) as temporary:
        pq.write_table(pa.table(columns | levels).replace_schema_metadata(made_by), temporary)


def read_logits(path: Path, candidate_sha256: str, exam: Exam | None = None) -> LogitTable:
    """Read stored logits.

    Raises:
        VerificationError: if the file cannot be read, comes from other weights than `candidate_sha256`, or answers
            other views.
    """
    try:
        content = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise VerificationError(f"{path} cannot be read ({error})") from None
    metadata = content.schema.metadata or {}
    made_by = metadata.get(_HASH_KEY, b"").decode()
    if made_by != candidate_sha256:
        raise VerificationError(
            f"{path} was made by weights {made_by[:12]}, not by {candidate_sha256[:12]}: run its phase again"
        )
    if metadata.get(_EXAM_KEY, b"null") != exam_text(exam):
        raise VerificationError(f"{path} holds answers to other views of the pictures: run its phase again")
    each_row = slice(None, None, exam.views if exam is not None else 1)
    asked = Asked(
        row_ids=content["row_id"].to_pylist()[each_row],
        row_groups=np.asarray(content["group"].to_pylist())[each_row],
        row_labels=content["label"].to_numpy()[each_row],
        exam=exam,
    )
    return LogitTable(asked, content["logit"].to_numpy(), made_by)


def kept_logits(path: Path, candidate_sha256: str, asked: Asked) -> LogitTable | None:
    """The answers that an earlier attempt left at `path`, with the present groups, if the same weights answered the
    same rows and views; otherwise None."""
    if not path.is_file():
        return None
    try:
        found = read_logits(path, candidate_sha256, asked.exam)
    except VerificationError:
        return None
    same = (found.ids, found.labels.tolist()) == (asked.ids, asked.labels.tolist())
    return LogitTable(asked, found.logits, candidate_sha256) if same else None


def exam_text(exam: Exam | None) -> bytes:
    """The exam as a file's metadata hold it."""
    return json.dumps(to_json(exam)).encode()


def exam_of_text(text: bytes) -> Exam | None:
    """Read what `exam_text` wrote."""
    found: Exam | None = from_json(Exam | None, json.loads(text))
    return found

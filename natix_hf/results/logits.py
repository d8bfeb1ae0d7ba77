"""Stored logits: the questions, the answers, and the hash of the weights that answered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from natix_hf.data.asked import Asked
from natix_hf.data.config import Exam
from natix_hf.errors import VerificationError
from natix_hf.provenance.files import atomic_file
from natix_hf.provenance.stored import from_json, to_json

_HASH_KEY, _EXAM_KEY, _CONTENT_KEY = b"candidate_sha256", b"exam", b"content_sha256"
_COLUMN = "column."
# In the folders of phases 5 and 6. Features are there only with a learned gate, which reads them.
CALIB_ANSWERS, CALIB_FEATURES = "logits/val_calib.parquet", "logits/val_calib_features.safetensors"
TEST_ANSWERS, TEST_FEATURES = "logits/test.parquet", "logits/test_features.safetensors"
TEST_COLUMNS = "logits/test_columns.parquet"
SYNTHETIC_ANSWERS = "logits/synthetic_half.parquet"


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
    """Write logits to a parquet file that also names the weights and the exam, and holds the hash of its content."""
    asked = table.asked
    columns = {"row_id": table.ids, "group": table.groups, "label": table.labels, "logit": table.logits}
    levels = {} if asked.exam is None else {"level": asked.levels}
    made_by = {_HASH_KEY: table.candidate_sha256.encode(), _EXAM_KEY: exam_text(asked.exam)}
    content = pa.table(columns | levels)
    made_by[_CONTENT_KEY] = _content_sha256(content)
    with atomic_file(path) as temporary:
        pq.write_table(content.replace_schema_metadata(made_by), temporary)


def _content_sha256(content: pa.Table) -> bytes:
    """The hash of a table's values. An attempt that was interrupted has no manifest, so a file that it left has to
    prove itself."""
    values = {name: content[name].to_pylist() for name in ("row_id", "group", "label", "logit")}
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest().encode()


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
    if _CONTENT_KEY in metadata and metadata[_CONTENT_KEY] != _content_sha256(content):
        raise VerificationError(f"{path} was changed after it was written: run its phase again")
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


def write_features(path: Path, table: LogitTable, features: np.ndarray) -> None:
    """Write the inputs of the classifier layer, float32 [n, d], that belong to a table's answers."""
    with atomic_file(path) as temporary:
        proof = {"sha256": hashlib.sha256(features.tobytes()).hexdigest()}
        save_file({table.candidate_sha256: features}, temporary, metadata=proof)


def read_features(path: Path, table: LogitTable) -> np.ndarray:
    """Read what `write_features` wrote, float32 [n, d].

    Raises:
        VerificationError: if the file cannot be read or belongs to other answers.
    """
    try:
        with safe_open(path, "np") as file:
            features: np.ndarray = file.get_tensor(table.candidate_sha256)
            expected = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError) as error:
        raise VerificationError(f"{path} cannot be read ({error}): run its phase again") from None
    if expected is not None and expected != hashlib.sha256(features.tobytes()).hexdigest():
        raise VerificationError(f"{path} was changed after it was written: run its phase again")
    if len(features) != len(table.logits):
        raise VerificationError(
            f"{path} has {len(features)} rows for {len(table.logits)} answers: run its phase again"
        )
    return features


def write_columns(path: Path, ids: Sequence[str], columns: Mapping[str, Sequence[str]]) -> None:
    """Write further columns of the rows, by name."""
    named = {f"{_COLUMN}{name}": list(values) for name, values in columns.items()}
    with atomic_file(path) as temporary:
        pq.write_table(pa.table({"row_id": list(ids)} | named), temporary)


def read_columns(path: Path, ids: Sequence[str]) -> dict[str, list[str]]:
    """Read what `write_columns` wrote.

    Raises:
        VerificationError: if the file cannot be read or is about other rows than `ids`.
    """
    try:
        content = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise VerificationError(f"{path} cannot be read ({error}): run its phase again") from None
    if content["row_id"].to_pylist() != list(ids):
        raise VerificationError(f"{path} is about other rows: run its phase again")
    return {
        name.removeprefix(_COLUMN): content[name].to_pylist()
        for name in content.column_names
        if name.startswith(_COLUMN)
    }


def exam_text(exam: Exam | None) -> bytes:
    """The exam as a file's metadata hold it."""
    return json.dumps(to_json(exam)).encode()


def exam_of_text(text: bytes) -> Exam | None:
    """Read what `exam_text` wrote."""
    found: Exam | None = from_json(Exam | None, json.loads(text))
    return found

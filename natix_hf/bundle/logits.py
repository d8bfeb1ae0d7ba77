"""Stored logits: row ids, groups, labels and z, with the hash of the weights that made them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from natix_hf.errors import VerificationError
from natix_hf.provenance.files import atomic_file

_HASH_KEY = b"candidate_sha256"


@dataclass(frozen=True)
class LogitTable:
    """Aligned: ids, groups (str [n]), labels (int64 [n]), logits (float64 [n], label 1 over label 0)."""

    ids: list[str]
    groups: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    candidate_sha256: str


def write_logits(path: Path, table: LogitTable) -> None:
    content = pa.table({"row_id": table.ids, "group": table.groups, "label": table.labels, "logit": table.logits})
    with atomic_file(path) as temporary:
        pq.write_table(content.replace_schema_metadata({_HASH_KEY: table.candidate_sha256.encode()}), temporary)


def read_logits(path: Path, candidate_sha256: str) -> LogitTable:
    """Reads stored logits.

    Raises:
        VerificationError: unreadable, or made by other weights than `candidate_sha256`.
    """
    try:
        content = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise VerificationError(f"{path} cannot be read ({error})") from None
    made_by = (content.schema.metadata or {}).get(_HASH_KEY, b"").decode()
    if made_by != candidate_sha256:
        raise VerificationError(
            f"{path} was made by weights {made_by[:12]}, not by {candidate_sha256[:12]}: run the phase again"
        )
    return LogitTable(
        ids=content["row_id"].to_pylist(),
        groups=np.asarray(content["group"].to_pylist()),
        labels=content["label"].to_numpy(),
        logits=content["logit"].to_numpy(),
        candidate_sha256=made_by,
    )

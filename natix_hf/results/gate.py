"""The result of phase 3: the learned gate compared with the margin, and which of the two is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from natix_hf.errors import VerificationError
from natix_hf.provenance.files import atomic_file
from natix_hf.provenance.stored import OPTIONAL, Stored

_CROSS_FITTED = "val_select_cross_fitted.parquet"


@dataclass(frozen=True)
class GateComparison:
    """One figure of both gates on val_select: the margin's, the cross-fitted learned gate's, and their difference with
    its paired 95% interval, or with the reason why there is none. A difference below zero favours the learned gate."""

    margin: float
    learned: float
    difference: float
    low: float | None
    high: float | None
    no_interval: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class GateReport(Stored):
    """The gate that is kept, and why.

    Args:
        compared (`dict[str, GateComparison]`): The comparison by figure, `aurc` and `augrc`. None if too few answers
            are wrong to learn from.
        folds (`int`): Number of folds of the cross-fit; None likewise.
        gate_sha256 (`str`): The hash of the learned gate's file; None if the margin is kept.
    """

    FILE: ClassVar[str] = "gate.json"

    kind: Literal["margin", "learned"]
    method: str
    candidate_sha256: str
    wrong_rows: int
    compared: dict[str, GateComparison] | None = field(metadata=OPTIONAL)
    folds: int | None = field(metadata=OPTIONAL)
    reason: str
    gate_sha256: str | None = field(default=None, metadata=OPTIONAL)


def write_cross_fitted(folder: Path, ids: Sequence[str], confidence: np.ndarray) -> None:
    """Write the confidence of each row of val_select, by a learned gate that has not seen the row's group."""
    with atomic_file(folder / _CROSS_FITTED) as temporary:
        pq.write_table(pa.table({"row_id": list(ids), "confidence": confidence}), temporary)


def read_cross_fitted(folder: Path, ids: Sequence[str]) -> np.ndarray | None:
    """Read what `write_cross_fitted` wrote, float64 [n]. None: phase 3 was run by a version that kept none.

    Raises:
        VerificationError: if the file cannot be read or is about other rows than `ids`.
    """
    path = folder / _CROSS_FITTED
    if not path.is_file():
        return None
    try:
        content = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise VerificationError(f"{path} cannot be read ({error})") from None
    if content["row_id"].to_pylist() != list(ids):
        raise VerificationError(f"{path} is about other rows of val_select: run phase 3 again")
    confidence: np.ndarray = content["confidence"].to_numpy()
    return confidence

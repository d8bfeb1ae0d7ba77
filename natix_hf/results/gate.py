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
from natix_hf.metrics import paired_selective_difference
from natix_hf.metrics.at_fnr import paired_difference_at_fnr
from natix_hf.provenance.files import atomic_file
from natix_hf.provenance.stored import OPTIONAL, Stored
from natix_hf.results.figures import paired_bounds
from natix_hf.trainers.gate_config import GateConfig

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
            are wrong to learn from. With the method `conformal` also `cost`, `fpr` and `abstained` at `fnr_at_most`;
            `fpr` is missing if a gate accepts no negative there.
        folds (`int`): Number of folds of the cross-fit; None likewise.
        gate_sha256 (`str`): The hash of the learned gate's file; None if the margin is kept.
        fnr_at_most (`float`, *optional*): `phase3.alpha`, with the method `conformal`.
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
    fnr_at_most: float | None = field(default=None, metadata=OPTIONAL)


def compare_gates(
    margin: np.ndarray,
    learned: np.ndarray,
    wrong: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    weights: np.ndarray | None,
    config: GateConfig,
) -> dict[str, GateComparison]:
    """Compare the margin and a cross-fitted gate on the same rows, by paired resamples of groups.

    Args:
        margin, learned: Both confidences, float64 [n].
        wrong, labels, groups: Wrong answers, labels and groups, [n].
        weights: Weights of the rows in `aurc` and `augrc`, [n]. The other figures depend on no prior.
    """
    pair = margin, learned, wrong, labels, groups
    found = paired_selective_difference(*pair, weights, config.n_resamples)
    if config.method == "conformal":
        found |= paired_difference_at_fnr(*pair, config.alpha, config.abstention_cost, config.n_resamples)
    return {
        name: GateComparison(
            each["a"], each["b"], each["difference"], *paired_bounds(each["low"], each["high"], labels, groups)
        )
        for name, each in found.items()
        if np.isfinite(each["difference"])
    }


def verdict(compared: dict[str, GateComparison], config: GateConfig) -> tuple[bool, str]:
    """Whether the learned gate is kept, and the reason in words.

    `correctness` and `confidnet` are kept if AURC falls beyond doubt, that is, with its whole interval. `conformal` is
    kept if the cost that it was trained for falls beyond doubt, and neither of the parts of the cost rises beyond
    doubt: then nobody has to agree with the price of an abstention to call it better.
    """
    decisive = compared["cost" if config.method == "conformal" else "aurc"]
    parts = {name: compared[name] for name in ("fpr", "abstained") if name in compared}
    worse = [name for name, each in parts.items() if each.low is not None and each.low > 0]
    wins = decisive.high is not None and decisive.high < 0
    aurc = compared["aurc"]
    figures = f"AURC {aurc.learned:.4f} for the learned gate, {aurc.margin:.4f} for the margin"
    if config.method == "conformal":
        told = {"cost": decisive} | parts
        each = ", ".join(f"{name} {one.learned:.4f} and {one.margin:.4f}" for name, one in told.items())
        figures = f"at an FNR of at most {config.alpha:g} {each}; {figures}"
    if wins and not worse:
        return True, f"the learned gate beats the margin ({figures})"
    doubt = decisive.no_interval or "is not entirely below zero"
    why = f"the paired interval of the gain {doubt}" if not wins else f"the learned gate is worse in {worse[0]}"
    return False, f"the margin stays: {why} ({figures})"


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

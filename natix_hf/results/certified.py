"""The certificate of a run, from the stored answers: phase 5 makes it, and `verify` makes it once more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from natix_hf.calibration.config import RiskConfig
from natix_hf.data.config import DataConfig
from natix_hf.labels import LabelNames
from natix_hf.provenance.files import ids_sha256
from natix_hf.results.logits import LogitTable
from natix_hf.results.looks import Look
from natix_hf.results.promise import CalibrationRows, PromiseReport, SelectRows, calibration_rows, certify


def certify_run(
    calib: tuple[LogitTable, np.ndarray],
    select: tuple[LogitTable, np.ndarray],
    threshold: float,
    gate: str,
    risk: RiskConfig,
    data: DataConfig,
    labels: LabelNames,
    record: Callable[[Look], list[Look]],
) -> tuple[PromiseReport, CalibrationRows]:
    """Certify the acceptance cuts of a run. Equal answers give an equal certificate.

    Args:
        calib, select: The champion's answers on val_calib and on val_select, each with the confidence in them, float64
            [n]. No confidence may come from a gate that has seen the row's group.
        threshold: The decision threshold, a raw logit.
        gate: The kind of the confidence, `margin` or `learned`.
        data: The run's data section: prior, seed, and whether groups are known.
        record: As in `certify`.

    Returns:
        The promise, and the rows that it rests on.
    """
    (table, confidence), (others, of_others), prior = calib, select, data.target_prior
    rows, why_not = calibration_rows(table, confidence, threshold, risk, prior, data.seed)
    answered = (others.logits > threshold).astype(np.int8)
    promise = certify(
        rows,
        why_not,
        SelectRows(of_others, answered, others.labels, others.groups),
        risk,
        prior,
        candidate_sha256=table.candidate_sha256,
        gate=gate,
        of_views=table.asked.exam is not None,
        groups_known=data.groups_known,
        labels=labels,
        record=record,
        rows_sha256=ids_sha256(table.asked.row_ids),
    )
    return promise, rows

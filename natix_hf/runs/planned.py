"""The answers of a run on val_select, to plan a calibration of the same classifier with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from natix_hf.bundle.confidence import Confidence
from natix_hf.calibration import Plan, groups_needed_classwise, groups_needed_for, losses_for
from natix_hf.calibration.classwise import ClasswiseLoss
from natix_hf.calibration.config import RiskConfig
from natix_hf.calibration.simulation import MOST_GROUPS
from natix_hf.data.splits import SPLITS, read_splits
from natix_hf.errors import UsageError
from natix_hf.models.gate import GATE
from natix_hf.provenance.manifest import read_manifest
from natix_hf.results.candidate import Candidate
from natix_hf.results.decision import Decision
from natix_hf.results.gate import read_cross_fitted
from natix_hf.results.logits import LogitTable
from natix_hf.results.promise import SelectRows
from natix_hf.runs.folders import RUN_FILE
from natix_hf.runs.freshness import finished_digest, upstream_digests
from natix_hf.runs.graph import PHASES, candidate_folder


@dataclass(frozen=True)
class RunAnswers:
    """The champion's answers on val_select, and what the run was asked to certify.

    Args:
        rows ([`SelectRows`]): The answers, of every row and view.
        weights (`np.ndarray` [n]): One group is drawn like another, and one answer of it, at `prior`.
        groups (`int`): Groups on val_select.
        gate (`str`): `margin` or `learned`. A learned gate's confidences are cross-fitted, because it was trained on
            these rows.
        risk ([`RiskConfig`]): `phase5.risk` of the run; the defaults of a recipe if phase 5 has not finished.
        certified (`bool`): Phase 5 has finished.
        prior (`float`, *optional*): The target prior, if the loss depends on it.
        calib_groups, calib_usable (`int`): Groups on val_calib, and about how many are left at `prior`.
    """

    rows: SelectRows
    weights: np.ndarray
    groups: int
    gate: str
    risk: RiskConfig
    certified: bool
    prior: float | None
    calib_groups: int
    calib_usable: int

    def plan(
        self,
        alpha: float | None = None,
        delta: float | None = None,
        coverage: float | None = None,
        groups: Sequence[int] = (),
    ) -> Plan:
        """Plan for answers like these. Without alpha and delta those of the run count, delta for one look. The table
        has a row for as many groups as the run has."""
        groups = [*groups, *([self.calib_usable] if 1 <= self.calib_usable <= MOST_GROUPS else [])]
        alpha = self.risk.alpha if alpha is None else alpha
        delta = self.risk.delta_of_a_look if delta is None else delta
        if self.risk.classwise:
            kind: ClasswiseLoss = "error" if self.risk.loss == "error" else "rates"
            answers = (self.rows.confidence, self.rows.decisions, self.rows.labels)
            return groups_needed_classwise(*answers, alpha, delta, kind, coverage, self.weights, groups)
        losses, eligible = losses_for(self.risk.loss, self.rows.decisions, self.rows.labels)
        return groups_needed_for(self.rows.confidence, losses, alpha, delta, coverage, self.weights, eligible, groups)


def run_answers(run_dir: Path) -> RunAnswers:
    """Read a run's answers on val_select.

    Raises:
        UsageError: if it is no run folder, if a phase that phase 5 needs is missing, stale or too old, or if the run
            promises for an interval of priors.
        DataError: if val_select has rows of one label only, and a target prior.
        VerificationError: if a file is damaged.
    """
    if not (run_dir / RUN_FILE).is_file():
        raise UsageError(f"--run {run_dir} is not a run folder: name one that natix-hf run has made")
    upstream_digests(run_dir, PHASES[5])
    decision = Decision.read(run_dir / PHASES[2].folder)
    champion = Candidate(run_dir / candidate_folder(decision.champion))
    table = decision.val_select(run_dir / PHASES[2].folder, champion)
    splits = read_splits(run_dir / PHASES[0].folder / SPLITS)
    risk, certified = _risk(run_dir)
    confidence, gate = _confidence(run_dir, decision, table)
    priors = risk.priors(decision.target_prior)
    if priors is not None and priors[0] != priors[1]:
        raise UsageError(
            f"{run_dir} promises an error rate for shares of label 1 from {priors[0]:g} to {priors[1]:g} "
            "(phase5.risk.prior), which natix-hf plan cannot simulate: plan without --run"
        )
    prior = None if priors is None else priors[0]
    rows = SelectRows(
        confidence, (table.logits > decision.threshold_logit).astype(np.int8), table.labels, table.groups
    )
    counts = splits.counts()["val_calib"]
    return RunAnswers(
        rows=rows,
        weights=rows.weights(prior),
        groups=np.unique(table.groups).size,
        gate=gate,
        risk=risk,
        certified=certified,
        prior=prior,
        calib_groups=counts["groups"],
        calib_usable=_usable(counts["positive_groups"], counts["groups"], prior),
    )


def _risk(run_dir: Path) -> tuple[RiskConfig, bool]:
    if finished_digest(run_dir, PHASES[5]) is None:
        return RiskConfig(), False
    section = read_manifest(run_dir / PHASES[5].folder)["section"]["phase5"]
    return RiskConfig.build(section.get("risk", {})), True


def _confidence(run_dir: Path, decision: Decision, table: LogitTable) -> tuple[np.ndarray, str]:
    """The confidence in the answers on val_select, and the kind of the gate."""
    folder = run_dir / PHASES[3].folder
    if finished_digest(run_dir, PHASES[3]) is None or not (folder / GATE).is_file():
        return Confidence(decision.threshold_logit)(table.logits), "margin"
    found = read_cross_fitted(folder, table.ids)
    if found is None:
        raise UsageError(
            f"phase 3 of {run_dir} is of an older version, which kept no confidences on val_select: "
            f"natix-hf run RECIPE --phases 3 --run-dir {run_dir}"
        )
    return found, "learned"


def _usable(positive: int, groups: int, prior: float | None) -> int:
    """About how many groups are left when the class that is too frequent is thinned out."""
    if prior is None:
        return groups
    return int(min(positive / prior, (groups - positive) / (1 - prior)))

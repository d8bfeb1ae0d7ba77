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
from natix_hf.data.splits import SPLITS, Splits, read_splits
from natix_hf.errors import DataError, UsageError
from natix_hf.models.gate import GATE, gate_inputs
from natix_hf.provenance.manifest import read_manifest
from natix_hf.results.candidate import Candidate
from natix_hf.results.decision import Decision
from natix_hf.results.logits import LogitTable
from natix_hf.runs.folders import RUN_FILE
from natix_hf.runs.freshness import finished_digest, upstream_digests
from natix_hf.runs.graph import PHASES


@dataclass(frozen=True)
class RunAnswers:
    """The champion's answers on val_select, and what the run was asked to certify.

    Args:
        confidence, decisions, labels (`np.ndarray` [n]): The answers, of every row and view.
        weights (`np.ndarray` [n]): One group is drawn like another, and one answer of it, at `prior`.
        groups (`int`): Groups on val_select.
        gate (`str`): `margin` or `learned`. A learned gate's confidences are cross-fitted, because it was trained on
            these rows.
        risk ([`RiskConfig`]): `phase5.risk` of the run; the defaults of a recipe if phase 5 has not finished.
        certified (`bool`): Phase 5 has finished.
        prior (`float`, *optional*): The target prior, if the loss depends on it.
        calib_groups, calib_usable (`int`): Groups on val_calib, and about how many are left at `prior`.
    """

    confidence: np.ndarray
    decisions: np.ndarray
    labels: np.ndarray
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
        """Plan for answers like these. Without alpha and delta those of the run count, delta for one look."""
        alpha = self.risk.alpha if alpha is None else alpha
        delta = self.risk.delta_of_a_look if delta is None else delta
        if self.risk.classwise:
            kind: ClasswiseLoss = "error" if self.risk.loss == "error" else "rates"
            answers = (self.confidence, self.decisions, self.labels)
            return groups_needed_classwise(*answers, alpha, delta, kind, coverage, self.weights, groups)
        losses, eligible = losses_for(self.risk.loss, self.decisions, self.labels)
        return groups_needed_for(self.confidence, losses, alpha, delta, coverage, self.weights, eligible, groups)


def run_answers(run_dir: Path) -> RunAnswers:
    """Read a run's answers on val_select.

    With a learned gate the pictures of val_select are read again, because their features are not stored.

    Raises:
        UsageError: if it is no run folder, or if a phase that phase 5 needs is missing or stale.
        DataError: if val_select has rows of one label only, and a target prior.
        VerificationError: if a file is damaged.
    """
    if not (run_dir / RUN_FILE).is_file():
        raise UsageError(f"--run {run_dir} is not a run folder: name one that natix-hf run has made")
    upstream_digests(run_dir, PHASES[5])
    decision = Decision.read(run_dir / PHASES[2].folder)
    champion = Candidate(run_dir / decision.champion)
    table = decision.val_select(run_dir / PHASES[2].folder, champion)
    splits = read_splits(run_dir / PHASES[0].folder / SPLITS)
    risk, certified = _risk(run_dir)
    learned = (run_dir / PHASES[3].folder / GATE).is_file() and finished_digest(run_dir, PHASES[3]) is not None
    confidence = (
        _cross_fitted(run_dir, decision, champion, table, splits)
        if learned
        else Confidence(decision.threshold_logit)(table.logits)
    )
    priors = risk.priors(decision.target_prior)
    if priors is not None and priors[0] != priors[1]:
        raise UsageError(
            f"{run_dir} promises an error rate for shares of label 1 from {priors[0]:g} to {priors[1]:g} "
            "(phase5.risk.prior), which natix-hf plan cannot simulate: plan without --run"
        )
    prior = None if priors is None else priors[0]
    _, of_group, sizes = np.unique(table.groups, return_inverse=True, return_counts=True)
    weights = _at_prior(1.0 / sizes[of_group], table.labels, prior)
    counts = splits.counts()["val_calib"]
    return RunAnswers(
        confidence=confidence,
        decisions=(table.logits > decision.threshold_logit).astype(np.int8),
        labels=table.labels,
        weights=weights,
        groups=len(sizes),
        gate="learned" if learned else "margin",
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


def _cross_fitted(
    run_dir: Path, decision: Decision, champion: Candidate, table: LogitTable, splits: Splits
) -> np.ndarray:
    from natix_hf.data.asked import ask
    from natix_hf.data.rows import load_image_data
    from natix_hf.recipe import parse_recipe
    from natix_hf.results.answers import compute_answers
    from natix_hf.runs.pins import pinned_data
    from natix_hf.trainers.gate import cross_fit, gate_targets

    sections = [read_manifest(run_dir / PHASES[number].folder)["section"] for number in (0, 3)]
    gate = dict(sections[1]["phase3"])
    recipe = parse_recipe({"data": sections[0]["data"], "phase3": gate | gate.pop("training", {})})
    rows = load_image_data(pinned_data(run_dir, recipe.data), splits).role("val_select")
    features = compute_answers(champion, ask(rows, decision.exam))[1]
    threshold, method = decision.threshold_logit, recipe.phase3.method
    wrong = ((table.logits > threshold) != (table.labels == 1)).astype(np.int64)
    targets = gate_targets(method, table.logits, table.labels, threshold)
    found: np.ndarray = cross_fit(
        gate_inputs(features, table.logits, threshold), targets, wrong, table.groups, recipe.phase3
    )
    return found


def _at_prior(weights: np.ndarray, labels: np.ndarray, prior: float | None) -> np.ndarray:
    if prior is None:
        return weights
    share = float(weights[labels == 1].sum() / weights.sum())
    if not 0 < share < 1:
        raise DataError(f"all rows of val_select have one label, so they cannot stand for a target prior of {prior:g}")
    return weights * np.where(labels == 1, prior / share, (1 - prior) / (1 - share))


def _usable(positive: int, groups: int, prior: float | None) -> int:
    """About how many groups are left when the class that is too frequent is thinned out."""
    if prior is None:
        return groups
    return int(min(positive / prior, (groups - positive) / (1 - prior)))

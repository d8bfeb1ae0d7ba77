"""Where the errors at each level of the exam come from, for real and for generated pictures."""

from __future__ import annotations

import numpy as np

from natix_hf.bundle.policy import Policy
from natix_hf.metrics.confusion import Confusion
from natix_hf.results.logits import LogitTable
from natix_hf.subnet.marks import REAL, SYNTHETIC, ExamAnswers, confusion_by_level


def confusion_of_halves(
    table: LogitTable, policy: Policy, accepted: np.ndarray | None, synthetic: LogitTable | None, n_resamples: int
) -> dict[str, dict[str, Confusion]]:
    """The counts by half of the exam and by level. Both halves together have none: their answers do not weigh alike.

    Args:
        accepted: bool [n], aligned with `table`; None if the policy accepts everything.
        synthetic: Answers to the exam's views of generated pictures; None without these.
    """
    found = {REAL: confusion_by_level(exam_answers(table), policy.threshold_logit, accepted, n_resamples)}
    if synthetic is not None:
        taken = _accepted_by_margin(synthetic, policy)
        found[SYNTHETIC] = confusion_by_level(exam_answers(synthetic), policy.threshold_logit, taken, n_resamples)
    return found


def exam_answers(table: LogitTable) -> ExamAnswers:
    """The answers of a table as the subnet's marks take them."""
    asked = table.asked
    return ExamAnswers(table.logits, asked.labels, asked.levels, asked.groups, asked.views)


def _accepted_by_margin(table: LogitTable, policy: Policy) -> np.ndarray | None:
    """What the policy accepts, bool [n]. None if it accepts everything, and with a learned gate, which reads features
    that were not kept."""
    if policy.gate.kind != "margin" or not policy.promise.feasible:
        return None
    return policy.accepts(table.logits, np.abs(table.logits - policy.threshold_logit))

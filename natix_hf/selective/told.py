"""A policy in words: what was fitted on which rows, and what is promised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from natix_hf.bundle.policy import Policy

if TYPE_CHECKING:
    from natix_hf.selective.fitting import Evidence


def lines(policy: Policy, evidence: Evidence | None) -> Iterator[str]:
    """The lines of `describe` and of `natix-hf certify`, each opened by a word."""
    made, labels = policy.made_from, policy.labels
    if made is not None:
        rows, groups = (getattr(made.fitting, of) + getattr(made.certifying, of) for of in ("rows", "groups"))
        model = f", answered by {made.model}" if made.model else ""
        yield f"answers  {rows} rows in {groups} groups{model}"
        yield f'share    {made.share:.3g} of the certifying groups are "{labels.yes}"'
        yield f"halves   {halves(policy)}; divided by group, seed {made.seed}"
    else:
        yield f"answers  of the bundle's model {(policy.model_sha256 or '')[:12]}"
    if made is not None and evidence is not None and evidence.raised:
        yield f"         {evidence.raised} probabilities of 0 or 1 count as {made.epsilon:g} away from it"
    yield f"fitted   {fitted(policy, evidence)}"
    yield f"promise  {policy.promise.guarantee}"
    if policy.promise.feasible and evidence is not None:
        for name, part in evidence.report.parts.items():
            yield f"covers   {part.coverage:.3f} of {name} ({part.accepted} accepted with {part.errors} errors)"
    if policy.promise.accept_above is not None:
        cuts = policy.promise.accept_above
        told = ", ".join(f"{name} above {cuts[name]:.4g}" for name in (labels.no, labels.yes))
        yield f"accepts  {told}, as distance of the logit to the threshold"


def halves(policy: Policy) -> str:
    """Which half did what."""
    made = policy.made_from
    if made is None:
        return "fitted by a run"
    first, second = made.fitting, made.certifying
    unit = "groups" if made.groups_known else "rows"
    one = ", one row of each" if made.groups_known else ""
    return (
        f"temperature, threshold and cuts from {first.groups} {unit}, the certificate from {second.groups} other "
        f"{unit}{one}"
    )


def fitted(policy: Policy, evidence: Evidence | None) -> str:
    """Temperature and threshold."""
    calibration, parts = policy.calibration, []
    if calibration.method == "platt":
        parts.append(f"slope {calibration.slope:.4g}, intercept {calibration.intercept:+.4g}")
    else:
        parts.append(f"temperature {1 / calibration.slope:.4g}")
    if evidence is not None and evidence.no_optimum:
        parts.append("(no temperature fits best, so probabilities stay)")
    [cut] = policy.probability(np.array([policy.threshold_logit])).tolist()
    parts.append(f"threshold at logit {policy.threshold_logit:+.4g}, a calibrated probability of {cut:.4g}")
    if evidence is not None and evidence.prior is not None:
        parts.append(f'rows weighted to a share of {evidence.prior:g} of "{policy.labels.yes}"')
    return ", ".join(parts)

"""The number of calibration groups that a guarantee needs, by simulation of the rule that certifies it.

A single exact test says too little: risk control tests many thresholds, from a start that other rows choose, and stops
at the first failure. So calibrations are drawn from a model of the answers, or from answers that a classifier gave,
and each goes through the walk of [`fit_risk_control`] itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from natix_hf.calibration.binomial import check_share
from natix_hf.calibration.classwise import ClasswiseLoss, fit_classwise_risk_control
from natix_hf.calibration.fixed_sequence import loosest, walks
from natix_hf.calibration.population import Profile, Sample, sample_of
from natix_hf.calibration.simulation import NEAR, Calibrate, Plan, simulate
from natix_hf.errors import DataError, UsageError
from natix_hf.metrics.arrays import Floats, Labels, as_floats, as_labels, as_weights, check_lengths

# The model's share of wrong answers below the planned share.
REST = 0.3
# Without a planned coverage: this part of the largest one whose risk is at most alpha.
PLANNED = 0.9


def groups_needed(
    alpha: float,
    delta: float,
    error_rate: float | None = None,
    coverage: float = 1.0,
    floor: float | None = None,
    rest: float = REST,
    groups: Sequence[int] = (),
) -> Plan:
    """Compute how many calibration groups are needed to certify a risk of at most `alpha` at a planned coverage.

    The answers are a simple model. Ranked by confidence, the planned share `coverage` has the mean error `error_rate`,
    and the answers below it have the error `rest`. Among the most confident answers the share `floor` is wrong, as
    mislabelled pictures are; from there the error rises linearly over the planned share. With `floor` equal to
    `error_rate`, its default, the confidence does not tell right from wrong within the planned share: the pessimistic
    reading. Without any error and at a coverage of 1 the answer is exact: `log(delta) / log(1 - alpha)`, rounded up.
    Otherwise calibrations are drawn, each with as many rows to choose the start on, and [`fit_risk_control`]'s walk is
    run on each of them.

    Args:
        alpha (`float`): Risk to certify, in (0, 1).
        delta (`float`): Largest probability of a false certificate, in (0, 1).
        error_rate (`float`, *optional*): Mean error of the planned share, from 0 to below `alpha`. Defaults to
            `floor`.
        coverage (`float`, defaults to 1): Share of the answers that is to be accepted, in (0, 1].
        floor (`float`, *optional*): Error of the most confident answers, at most `error_rate`. Defaults to
            `error_rate`; both default to 0.
        rest (`float`, defaults to 0.3): Error of the answers below the planned share, in [0, 1].
        groups (`Sequence[int]`): Further numbers of groups for the table, besides some around the answer.

    Returns:
        [`Plan`]: The number of groups and a table. `groups` is `None` if 100,000 would not do.

    Raises:
        [`UsageError`]: If an argument is out of range.

    Example:
        >>> groups_needed(alpha=0.05, delta=0.05).groups
        59
        >>> plan = groups_needed(alpha=0.1, delta=0.1, error_rate=0.02, coverage=0.6)
        >>> 120 < plan.groups < 200, plan.probability >= 0.9
        (True, True)
    """
    _check(alpha, delta, coverage)
    mean = error_rate if error_rate is not None else floor if floor is not None else 0.0
    lowest = floor if floor is not None else mean
    if not 0 <= mean < alpha:
        name = "floor" if error_rate is None and floor is not None else "error_rate"
        raise UsageError(f"{name} must be at least 0 and below alpha ({alpha}), found {mean}")
    if not 0 <= lowest <= mean:
        raise UsageError(f"floor must be at least 0 and at most error_rate ({mean}), found {lowest}")
    if 2 * mean - lowest > 1:
        raise UsageError(
            f"floor {lowest} is too far below error_rate {mean}: the error would rise above 1 within the planned "
            "share; raise floor"
        )
    if not 0 <= rest <= 1:
        raise UsageError(f"rest must be from 0 to 1, found {rest}")
    profile = Profile(coverage, mean, lowest, rest)
    hopeless, exact = profile.hopeless(NEAR * coverage, alpha), mean == 0 and coverage == 1
    return simulate(_one_threshold(profile, alpha, delta), coverage, alpha, delta, groups, hopeless, exact)


def groups_needed_for(
    confidence: Any,
    losses: Any,
    alpha: float,
    delta: float,
    coverage: float | None = None,
    weights: Any | None = None,
    eligible: Any | None = None,
    groups: Sequence[int] = (),
) -> Plan:
    """Compute how many calibration groups are needed if the answers are like those that a classifier gave.

    Rows are drawn from these answers with replacement, for the start and for the certificate, and
    [`fit_risk_control`]'s walk is run on each draw. Do not pass the rows that you will certify on.

    Args:
        confidence (`array-like` of shape `(n,)`): Finite numbers.
        losses (`array-like` of shape `(n,)`): 0 or 1 ([`losses_for`]).
        alpha (`float`): Risk to certify, in (0, 1).
        delta (`float`): Largest probability of a false certificate, in (0, 1).
        coverage (`float`, *optional*): The planned share of accepted answers, in (0, 1]. Defaults to 0.9 of the
            largest coverage whose risk among these answers is at most `alpha`.
        weights (`array-like` of shape `(n,)`, *optional*): Rows are drawn in proportion to them: for a row of a group,
            1 over the size of the group, times its [`prior_weights`].
        eligible (`array-like` of shape `(n,)`, *optional*): 1 for the rows that count in the denominator of the risk.
        groups (`Sequence[int]`): Further numbers of groups for the table, besides some around the answer.

    Returns:
        [`Plan`]: The number of groups and a table. `groups` is `None` if 100,000 would not do.

    Raises:
        [`DataError`]: If an array is invalid or the arrays differ in length.
        [`UsageError`]: If an argument is out of range.

    Example:
        >>> import numpy as np
        >>> confidence = np.arange(200)
        >>> plan = groups_needed_for(confidence, losses=confidence < 40, alpha=0.05, delta=0.1, coverage=0.75)
        >>> 100 < plan.groups < 180
        True
    """
    _check(alpha, delta, coverage)
    sample = sample_of(confidence, losses, weights, eligible)
    return _plan_for(_one_threshold(sample, alpha, delta), *sample.risks(), coverage, alpha, delta, groups)


def groups_needed_classwise(
    confidence: Any,
    decisions: Any,
    labels: Any,
    alpha: float,
    delta: float,
    loss: ClasswiseLoss = "error",
    coverage: float | None = None,
    weights: Any | None = None,
    groups: Sequence[int] = (),
) -> Plan:
    """Compute how many calibration groups are needed for a certified threshold of each answer.

    Like [`groups_needed_for`], with [`fit_classwise_risk_control`]. The planned coverage is a share of each answer's
    rows, and a draw succeeds if both answers reach 0.95 of it. Rows are drawn here, which takes longer.

    Args:
        confidence, decisions, labels (`array-like` of shape `(n,)`): As in [`fit_classwise_risk_control`].
        alpha (`float`): Risk to certify, in (0, 1).
        delta (`float`): Largest probability that at least one guarantee is false, in (0, 1).
        loss (`str`, defaults to `"error"`): `"error"` or `"rates"`.
        coverage (`float`, *optional*): The planned share of each answer, in (0, 1]. Defaults to 0.9 of the largest one
            at which both risks are at most `alpha`.
        weights, groups: As in [`groups_needed_for`].

    Returns:
        [`Plan`]: The number of groups and a table. `coverage` in the table is the share of all rows.

    Raises:
        [`DataError`]: If an array is invalid, the arrays differ in length, or all decisions are the same.
        [`UsageError`]: If an argument is out of range.
    """
    _check(alpha, delta, coverage)
    c, d, y = as_floats(confidence, "confidence"), as_labels(decisions, "decisions"), as_labels(labels)
    given = as_weights(weights, "weights")
    check_lengths(confidence=c, decisions=d, labels=y, weights=given)
    if d.min() == d.max():
        raise DataError(f"all {d.size} decisions are {d[0]}: a threshold for each answer needs rows of both")
    weight = np.ones(c.size) if given is None else given
    ends = np.cumsum(weight)

    def rows(groups: int, rng: np.random.Generator) -> tuple[Any, Any, Any]:
        at = np.searchsorted(ends, rng.random(groups) * ends[-1], side="right")
        return c[at], d[at], y[at]

    def calibrate(groups: int, rng: np.random.Generator) -> tuple[float, float]:
        select, calib = rows(groups, rng), rows(groups, rng)
        try:
            found = fit_classwise_risk_control(*calib, alpha, delta, loss, select=select)
        except DataError:  # an answer, or a label that a rate counts, has no row in this draw
            return 0.0, 0.0
        if not found.feasible:
            return 0.0, 0.0
        parts = (found.positive.coverage or 0.0, found.negative.coverage or 0.0)
        return float(np.where(calib[1] == 1, *parts).mean()), min(parts)

    covered, risks = _joint_risks(c, d, y, weight, loss)
    return _plan_for(calibrate, covered, risks, coverage, alpha, delta, groups)


def _joint_risks(c: Floats, d: Labels, y: Labels, weight: Floats, loss: ClasswiseLoss) -> tuple[Floats, Floats]:
    """The larger one of both risks, where the same share of each answer's rows is accepted."""
    depth = np.empty(c.size)
    for answer in (0, 1):
        mine = np.flatnonzero(d == answer)
        above = mine[np.argsort(-c[mine])]
        depth[above] = np.cumsum(weight[above]) / weight[above].sum()
    order = np.argsort(depth)
    of = d if loss == "error" else y
    worst = np.zeros(c.size)
    for part in (0, 1):
        counted = np.cumsum((weight * (of == part))[order])
        wrong = np.cumsum((weight * (of == part) * (d != y))[order])
        worst = np.maximum(worst, np.divide(wrong, counted, out=np.ones_like(wrong), where=counted > 0))
    return depth[order], worst


def _check(alpha: float, delta: float, coverage: float | None) -> None:
    check_share(alpha, "alpha")
    check_share(delta, "delta")
    if coverage is not None and not 0 < coverage <= 1:
        raise UsageError(f"coverage must be above 0 and at most 1, found {coverage}")


def _one_threshold(answers: Profile | Sample, alpha: float, delta: float) -> Calibrate:
    def calibrate(groups: int, rng: np.random.Generator) -> tuple[float, float]:
        drawn = answers.draw(groups, rng)
        if not (drawn.calib.total and drawn.select.total):  # no row counts
            return 0.0, 0.0
        walk = loosest(walks([drawn.calib], alpha, delta, [drawn.select]))
        coverage = float(drawn.coverage[walk.last]) if walk.passed else 0.0
        return coverage, coverage

    return calibrate


def _plan_for(
    calibrate: Calibrate,
    covered: Floats,
    risks: Floats,
    coverage: float | None,
    alpha: float,
    delta: float,
    groups: Sequence[int],
) -> Plan:
    """Plan for answers whose risk is known at every coverage, unless these are hopeless."""
    low = risks <= alpha
    planned = coverage if coverage is not None else PLANNED * float(covered[low].max()) if low.any() else 0.0
    far = covered >= NEAR * planned
    hopeless = ""
    if not (risks[far] < alpha).any():
        where = f"every coverage from {NEAR * planned:.3g} on" if planned else "every coverage"
        hopeless = f"the risk of these answers is {risks[far].min():.3g} or more at {where}"
    return simulate(calibrate, planned, alpha, delta, groups, hopeless)

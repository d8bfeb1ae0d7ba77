"""The words of a guarantee: what is promised, about what, and what is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from natix_hf.calibration.config import RiskConfig
from natix_hf.labels import LabelNames
from natix_hf.results.looks import Look, words_about


@dataclass(frozen=True)
class Setting:
    """The words of a promise that depend on where it is made.

    Args:
        things: What labelled rows are called.
        grouping: Where a user says which rows belong together.
        others: The other rows, which give the cuts to try.
    """

    things: str
    grouping: str
    others: str


OF_A_RUN = Setting("pictures", "data.group_by", "val_select")
_RISKS = {
    "error": "the share of wrong answers among accepted answers",
    "fnr": 'the share answered "{no}" among accepted {things} labelled "{yes}"',
    "fpr": 'the share answered "{yes}" among accepted {things} labelled "{no}"',
}
_RISK_OF_EITHER = {
    "error": 'the share of wrong answers, both among accepted answers "{yes}" and among accepted answers "{no}",',
    "rates": 'the share of wrong answers, both among accepted {things} labelled "{yes}" and among those labelled '
    '"{no}",',
}


def guarantee(
    risk: RiskConfig,
    target_prior: float | None,
    labels: LabelNames,
    *,
    groups_known: bool,
    of_views: bool,
    share: float,
    error_at_share: Mapping[str, float | None],
    looks: Sequence[Look] = (),
    setting: Setting = OF_A_RUN,
) -> str:
    """The guarantee of a feasible certificate in words.

    Args:
        target_prior: The share of label 1 that the rows were weighted to; None means as found.
        groups_known: Something says which rows belong together. False: each row counts as a group, and the words say
            what the guarantee rests on.
        of_views: True if a row is a view of the exam.
        share: The share of label 1 among the calibration rows.
        error_at_share: The error rate of the accepted calibration rows at shares of label 1; empty for a rate.
        looks: The different certifications of the same rows.
        setting: The words for rows and groups.
    """
    what = _RISKS[risk.loss]
    if risk.classwise:
        what = _RISK_OF_EITHER["error" if risk.loss == "error" else "rates"]
    what = what.format(no=labels.no, yes=labels.yes, things=setting.things)
    unit, new, doubt = "groups", "a row of a new group", ""
    if not groups_known:
        unit, new = "rows", "a new row"
        doubt = f", if rows are independent, which nobody has said ({setting.grouping})"
    told = [
        f"with probability at least {1 - risk.delta:g} over the draw of the calibration {unit}, {what} is at most "
        f"{risk.alpha:g} for {new}{doubt}",
        f"The promise holds for new {unit} drawn like the calibration {unit}, "
        f"{_at(risk, target_prior, labels, f'the share of these {unit}, {share:.3g}', error_at_share)}",
        "It covers all of them together, not every slice, and only accepted answers",
    ]
    if of_views:
        told.append("Here a row is a view of the exam, that is, a picture as the subnet would send it")
    if about := words_about(looks, unit):
        told.append(about)
    return ". ".join(told)


def _at(
    risk: RiskConfig,
    target_prior: float | None,
    labels: LabelNames,
    as_found: str,
    error_at_share: Mapping[str, float | None],
) -> str:
    """The shares of label 1 at which the guarantee holds, and what happens at others. `as_found` is the share without
    a target prior, in words."""
    yes, priors = labels.yes, risk.priors(target_prior)
    if risk.loss != "error":
        return f'at every share of "{yes}"'
    elsewhere = "At another share nothing is promised about the error rate"
    low, high = priors or (1.0, 0.0)
    seen = [f"{error:.3f} at {share}" for share, error in error_at_share.items()
            if error is not None and not low <= float(share) <= high]  # fmt: skip
    if seen:
        elsewhere += f"; on the calibration rows it was {' and '.join(dict.fromkeys((seen[0], seen[-1])))}"
    if priors is None:
        return f'at {as_found}, of "{yes}". {elsewhere}'
    if priors[0] == priors[1]:
        return f'at a share of {priors[0]:g} of "{yes}". {elsewhere}'
    return f'at every share of "{yes}" from {priors[0]:g} to {priors[1]:g}. {elsewhere}'


def no_guarantee(why: str) -> str:
    """The words where nothing could be certified."""
    return f"none: every answer is accepted. No acceptance cut could be certified ({why})"

"""Make a policy from labelled answers: one half of the groups fits, the other half certifies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from natix_hf.bundle.policy import Half, MadeFrom, Policy
from natix_hf.errors import DataError, UsageError, cut
from natix_hf.labels import LabelNames
from natix_hf.metrics import select_threshold
from natix_hf.metrics.arrays import as_array, as_labels, check_lengths
from natix_hf.metrics.groups import classes_of_groups
from natix_hf.results.calibration import fit_on
from natix_hf.results.guarantee import Setting
from natix_hf.results.promise import CalibrationRows, PromiseReport, SelectRows, calibration_rows, certify
from natix_hf.selective.wanted import Wanted


class Answers(NamedTuple):
    """The answers of one half: logits float64 [n], labels int8 [n], and the numbers of their groups, int64 [n]."""

    logits: np.ndarray
    labels: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """What a guarantee rests on.

    Args:
        report ([`PromiseReport`]): Counts, coverage and the reason in `parts`, as phase 5 writes them.
        rows ([`CalibrationRows`]): The rows that certified, one per group.
        fitting, certifying ([`Answers`]): All rows of the two halves.
        prior (`float`, *optional*): The share of label 1 that rows were weighted to.
        no_optimum (`bool`): No temperature fits best, so the probabilities stay as they are.
        raised (`int`): Rows whose probability counts as `epsilon`.
    """

    report: PromiseReport
    rows: CalibrationRows
    fitting: Answers
    certifying: Answers
    prior: float | None
    no_optimum: bool
    raised: int


def fit(
    logits: np.ndarray, raised: int, labels: Any, groups: Any | None, want: Wanted, names: LabelNames, made: MadeFrom
) -> tuple[Policy, Evidence]:
    """Fit on one half and certify on the other.

    Args:
        logits: float64 [n], label 1 over label 0.
        raised: Rows whose probability was raised to epsilon.
        made: What is known of the answers; share and halves are filled in.
    """
    fitting, certifying = halves(logits, labels, groups, want.seed, names)
    threshold, prior = _threshold(fitting, want, made), want.weighted_to
    calibration, no_optimum = fit_on(fitting, "temperature", prior)
    first, second = (np.abs(half.logits - threshold) for half in (fitting, certifying))
    rows, why_not = calibration_rows(certifying, second, threshold, want.risk, prior, want.seed)
    answered = (fitting.logits > threshold).astype(np.int8)
    report = certify(
        rows,
        why_not,
        SelectRows(first, answered, fitting.labels, fitting.groups),
        want.risk,
        prior,
        candidate_sha256="",
        gate="margin",
        of_views=False,
        groups_known=made.groups_known,
        labels=names,
        setting=Setting("rows", "groups=", "the half for fitting"),
    )
    found = rows.labels if rows.as_found is None else rows.as_found[2]
    share = float(found.mean())
    made = replace(made, share=share, fitting=_half(fitting), certifying=_half(certifying))
    policy = Policy(threshold, None, None, calibration, "none", promise=report.promise, labels=names, made_from=made)
    return policy, Evidence(report, rows, fitting, certifying, prior, no_optimum, raised)


def halves(
    logits: np.ndarray, labels: Any, groups: Any | None, seed: int, names: LabelNames
) -> tuple[Answers, Answers]:
    """Divide the groups in two, at random within each class. Of an odd number the second half gets one more.

    Raises:
        DataError: if an array is invalid, or the first half has no row of a class.
    """
    y = _labels(labels)
    g = np.arange(y.size) if groups is None else _groups(groups)
    check_lengths(logits=logits, labels=y, groups=g)
    numbers, positive = classes_of_groups(g, y)
    if y.min() == y.max():
        raise DataError(f"all {y.size} labels are {y[0]}: rows of both classes are needed")
    if positive.size < 2:
        raise DataError(f"all {y.size} rows are of one group: one half of the groups fits, the other half certifies")
    generator, first = np.random.default_rng(seed), np.zeros(positive.size, dtype=np.bool_)
    order = np.argsort(np.unique(numbers, return_index=True)[1])  # as they appear, whatever they are called
    for members in (order[positive[order]], order[~positive[order]]):
        first[generator.permutation(members)[: members.size // 2]] = True
    chosen = first[numbers]
    for label in (0, 1):
        if not (y[chosen] == label).any():
            found = np.unique(numbers[y == label]).size
            unit, name = "rows" if groups is None else "groups", names.name(bool(label))
            raise DataError(
                f'the half for fitting has no row labelled {label} ("{name}"): such rows are in only {found} of the '
                f"{positive.size} {unit}: add more"
            )
    whole = Answers(logits, y, numbers)
    return Answers(*(part[chosen] for part in whole)), Answers(*(part[~chosen] for part in whole))


def _labels(values: Any) -> np.ndarray:
    array = _known(as_array(values, "labels"), "labels")
    if isinstance(array[0], str):
        raise DataError(
            f"labels are words such as {cut(str(array[0]))}: pass 1 for yes and 0 for no, as labels == WORD gives"
        )
    return as_labels(array)


def _groups(values: Any) -> np.ndarray:
    array = _known(as_array(values, "groups"), "groups")
    if array.dtype.kind in "OUS":
        empty = [isinstance(name, str | bytes) and not name.strip() for name in array.tolist()]
        if any(empty):
            raise DataError(f"groups has no name at position {empty.index(True)}: name the group of every row")
    return array


def _known(array: np.ndarray, name: str) -> np.ndarray:
    """The array, if no value of it is missing."""
    missing = [_is_missing(value) for value in array] if array.dtype.kind == "O" else [False]
    if any(missing):
        position = missing.index(True)
        raise DataError(f"{name} has no value at position {position}, found {array[position]}: leave out such rows")
    return array


def _is_missing(value: Any) -> bool:
    """Whether it is None, NaN or pandas' NA, which equals nothing and is no truth value."""
    try:
        return value is None or not bool(value == value)
    except (TypeError, ValueError):
        return True


def _half(answers: Answers) -> Half:
    return Half(answers.labels.size, np.unique(answers.groups).size)


def _threshold(fitting: Answers, want: Wanted, made: MadeFrom) -> float:
    """The decision threshold as a logit."""
    given = want.threshold
    if isinstance(given, str):
        objective: Any = given
        return select_threshold(fitting.logits, fitting.labels, objective, want.weighted_to).threshold
    if not made.probabilities:
        return float(given)
    if not 0 < given < 1:
        raise UsageError(f"threshold must be a probability between 0 and 1, both excluded, found {given}")
    return float(np.log(given) - np.log1p(-given))

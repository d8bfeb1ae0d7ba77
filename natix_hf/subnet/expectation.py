"""The mean reward of a miner, exactly: a sum over the counts of right and wrong answers in the window."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from natix_hf.errors import UsageError
from natix_hf.metrics.arrays import Floats
from natix_hf.metrics.classification import matthews
from natix_hf.subnet.rewards import LONG_WINDOW, SHORT_WINDOW

_CHUNK = 4096  # pairs of rates that are evaluated together


def mean_reward(tpr: Any, tnr: Any, answers: int = LONG_WINDOW, recent: int = SHORT_WINDOW) -> Floats:
    """Compute the mean reward for pairs of rates, exactly.

    The labels are fair coins and the answers independent. Then the counts of true and false positives and negatives
    are multinomial, and the MCC follows from them. Given that k of all answers are right, the number of right answers
    among the recent ones is hypergeometric, and the cube needs its first three moments only.

    Args:
        tpr, tnr (`float` or `array-like` of shape `(n,)`): Shares of the pictures with and without roadwork that are
            answered correctly.
        answers (`int`, defaults to 100): Answers in the window of the MCC.
        recent (`int`, defaults to 10): Answers in the window of the accuracy, at most `answers`.

    Returns:
        `np.ndarray` of float64, of the broadcast shape: mean rewards, from 0 to 1.

    Raises:
        [`UsageError`]: If a rate is outside [0, 1], or the windows are impossible.

    Example:
        >>> mean_reward([1.0, 0.9], [1.0, 0.9]).round(3).tolist()
        [1.0, 0.624]
    """
    t, u = np.broadcast_arrays(np.asarray(tpr, dtype=np.float64), np.asarray(tnr, dtype=np.float64))
    if not (((t >= 0) & (t <= 1)).all() and ((u >= 0) & (u <= 1)).all()):
        raise UsageError("rates must be from 0 to 1")
    if not 1 <= recent <= answers:
        raise UsageError(f"recent must be from 1 to the {answers} answers, found {recent}")
    shape, t, u = t.shape, t.ravel(), u.ravel()
    means = np.empty(t.size)
    for start in range(0, t.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        means[part] = _sum_over_counts(t[part], u[part], answers, recent)
    return means.reshape(shape)


def reward_of_counts(tp: Any, fp: Any, tn: Any, fn: Any) -> Floats:
    """The mean reward for the rates of four counts, weighted or not: an objective for [`select_threshold`].

    Both labels must occur. The prior of the counts does not matter, because the subnet asks both equally often.
    """
    return mean_reward(tp / (tp + fn), tn / (tn + fp))


def _sum_over_counts(t: Floats, u: Floats, answers: int, recent: int) -> Floats:
    exponents = np.arange(answers + 1)
    hits, misses, rejections, alarms = (rate[:, None] ** exponents for rate in (t, 1 - t, u, 1 - u))
    means = np.zeros(t.size)
    for positives, table in enumerate(_tables(answers, recent)):
        negatives = answers - positives
        of_positives = hits[:, : positives + 1] * misses[:, positives::-1]
        of_negatives = rejections[:, : negatives + 1] * alarms[:, negatives::-1]
        means += ((of_positives @ table) * of_negatives).sum(axis=1)
    return means


@lru_cache(maxsize=4)
def _tables(answers: int, recent: int) -> list[Floats]:
    """For each number of positives: the mean reward by (true positives, true negatives), times the number of ways to
    get these counts, times their probability without the rates."""
    from scipy.special import gammaln

    tables = []
    for positives in range(answers + 1):
        negatives = answers - positives
        tp, tn = np.arange(positives + 1)[:, None], np.arange(negatives + 1)[None, :]
        fn, fp = positives - tp, negatives - tn
        ways = gammaln(answers + 1) - sum(gammaln(count + 1) for count in (tp, fn, tn, fp))
        mcc = np.maximum(matthews(tp, fp, tn, fn), 0.0)
        first, second, third = _moments(tp + tn, answers, recent)
        cube = mcc**3 + 3 * mcc**2 * first + 3 * mcc * second + third
        tables.append(cube / 8 * np.exp(ways - answers * np.log(2.0)))
    return tables


def _moments(right: Any, answers: int, recent: int) -> tuple[Floats, Floats, Floats]:
    """The first three moments of the accuracy of the recent answers, given the number of right ones among all.

    Its factorial moments are those of a hypergeometric count.
    """
    factorials, product = [], np.ones(right.shape)
    for i in range(3):
        product = product * (right - i) * (recent - i) / max(answers - i, 1)
        factorials.append(product)
    one, two, three = factorials
    return one / recent, (two + one) / recent**2, (three + 3 * two + one) / recent**3

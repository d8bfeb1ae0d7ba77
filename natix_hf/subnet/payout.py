"""How long it takes until a new model is paid in full."""

from __future__ import annotations

from dataclasses import dataclass

from natix_hf.errors import UsageError
from natix_hf.subnet.expectation import mean_reward
from natix_hf.subnet.rewards import LONG_WINDOW, SHORT_WINDOW

# Seen in the subnet, second-hand and dated 2026: one question per miner and validator in this many minutes.
MINUTES_A_QUESTION = (26.0, 30.0)
SCORE_WEIGHT = 0.05  # of the newest reward in the score
_MOST_QUESTIONS = 1000


@dataclass(frozen=True)
class Wait:
    """A number of questions, and the hours that they take at 26 and at 30 minutes a question."""

    questions: int
    hours: tuple[float, float]


def wait_of(questions: int) -> Wait:
    """The time that a number of questions takes."""
    fast, slow = MINUTES_A_QUESTION
    return Wait(questions, (questions * fast / 60, questions * slow / 60))


def wait_until(share: float, tpr: float, tnr: float) -> Wait | None:
    """The time until the mean score of a new model first reaches a share of its final value.

    The model begins with a score of 0 and without an answer in the windows. After each question
    `score = 0.05 * reward + 0.95 * score`, and the mean reward is that of the answers so far. Both are exact. A model
    near chance is early: few answers vary more, and the cube of the reward likes that.

    Args:
        share (`float`): Share of the final score, between 0 and 1, both excluded.
        tpr, tnr (`float`): The model's rates.

    Returns:
        `Wait` or `None`: `None` if the final score is 0.

    Raises:
        [`UsageError`]: If the share or a rate is out of range.

    Example:
        >>> wait_until(0.5, 1.0, 1.0).questions
        16
    """
    if not 0 < share < 1:
        raise UsageError(f"share must be between 0 and 1, found {share}")
    final = float(mean_reward(tpr, tnr))
    score = 0.0
    for question in range(1, _MOST_QUESTIONS if final > 0 else 0):
        paid = final
        if question < LONG_WINDOW:
            paid = float(mean_reward(tpr, tnr, question, min(question, SHORT_WINDOW)))
        score += SCORE_WEIGHT * (paid - score)
        if score >= share * final:
            return wait_of(question)
    return None

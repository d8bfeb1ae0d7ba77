"""Scores of 0 and 1, which do not say how large a logit was: does an answer depend on it?"""

from __future__ import annotations

import numpy as np

from natix_hf.bundle.policy import Policy
from natix_hf.errors import DataError

# A calibrated probability may be off by this much.
_CLOSE = 1e-3


def check_clipped(policy: Policy, folded: np.ndarray, clipped: np.ndarray) -> None:
    """Refuse rows whose answer, acceptance or probability depends on the logit that their score hides.

    Such a logit lies anywhere from the clipped value on, outwards. Far out, the answer is the side, it is accepted,
    and its probability is 0 or 1. In between answer and probability only move one way, and so does the acceptance
    once the answer is given: what is alike at both ends is alike everywhere.

    Args:
        folded: Logits of the model, float64 [n].
        clipped: Which of them are clipped, bool [n].

    Raises:
        DataError: if there is such a row; the line names the first.
    """
    rows = np.flatnonzero(clipped)
    z, far = policy.unfold(folded[rows]), folded[rows] > 0
    depends = {
        "answer": policy.decide(z) != far,
        "acceptance": ~policy.accepts(z, policy.margin(z)),
        "probability": np.abs(policy.probability(z) - far) > _CLOSE,
    }
    any_of = np.any(list(depends.values()), axis=0)
    if any_of.any():
        first = int(np.argmax(any_of))
        what = next(what for what, of in depends.items() if of[first])
        raise DataError(
            f"the score at position {rows[first]} is too close to {int(far[first])} for this policy, whose {what} "
            f"depends on how far the logit is beyond {folded[rows[first]]:+.1f}: pass logits with probabilities=False"
        )

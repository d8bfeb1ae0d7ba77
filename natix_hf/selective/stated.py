"""What a caller states: the prior and the names of the answers. Is it what a policy was made for?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from natix_hf.bundle.policy import Policy
from natix_hf.errors import RecipeError, UsageError
from natix_hf.labels import LabelNames

Prior = tuple[float, float]
Shares = float | Sequence[float]


def interval(prior: Shares | None) -> Prior | None:
    """A prior as an interval; a single share is both ends.

    Raises:
        UsageError: if it is not within (0, 1).
    """
    if prior is None:
        return None
    try:
        low, high = np.broadcast_to(np.asarray(prior, dtype=np.float64), 2).tolist()
    except (TypeError, ValueError):
        raise UsageError(f"prior must be a share or a pair of shares (low, high), found {prior!r}") from None
    if not 0 < low <= high < 1:
        raise UsageError(f"prior must be a share, or low and high, between 0 and 1, both excluded, found {prior!r}")
    return low, high


def told_prior(prior: Prior) -> str:
    """A prior as text: `0.5`, or `0.2 to 0.8`."""
    return f"{prior[0]:g}" if prior[0] == prior[1] else f"{prior[0]:g} to {prior[1]:g}"


def label_names(names: Sequence[str]) -> LabelNames:
    """The names of answers 0 and 1.

    Raises:
        UsageError: if there are not two, or one cannot be used.
    """
    if isinstance(names, str) or len(names) != 2:
        raise UsageError(f"names must be two, of answer 0 and of answer 1, found {names!r}")
    try:
        return LabelNames(no=names[0], yes=names[1])
    except RecipeError as error:
        raise UsageError(str(error).replace(f"{LabelNames.place}.", "names: ", 1)) from None


def differences(policy: Policy, names: Sequence[str] | None, prior: Shares | None, model: str | None) -> Iterator[str]:
    """One line for everything in which a policy differs from what a caller states. None states nothing."""
    if names is not None and label_names(names) != policy.labels:
        own = f"{policy.labels.no} (0) and {policy.labels.yes} (1)"
        yield f"answers {own}, not {names[0]} (0) and {names[1]} (1): fit one for those"
    if model is not None:
        known = (policy.made_from.model,) if policy.made_from is not None else ()
        hashes = [sha for sha in (*known, policy.model_sha256) if sha is not None]
        if not hashes:
            yield f"does not say which model it is for, and you state {model}: fit it again with model="
        elif model not in hashes:
            yield f"is for the model {hashes[0]}, not {model}: fit one for that model"
    wanted, promise = interval(prior), policy.promise
    if wanted is None or not promise.feasible or promise.loss != "error":
        return  # the rates of a class do not depend on how common it is
    if promise.prior is None:
        found = "" if policy.made_from is None else f", {policy.made_from.share:.3g}"
        yield (
            f"promises its error rate at the share of {policy.labels.yes} in its own rows{found}, and you expect "
            f"{told_prior(wanted)}: fit it with prior={prior!r}"
        )
    elif not promise.prior[0] <= wanted[0] <= wanted[1] <= promise.prior[1]:
        held = told_prior(promise.prior)
        yield (
            f"promises its error rate at a prior of {held}, and you expect {told_prior(wanted)}: fit it with "
            f"prior={prior!r}"
        )

"""What a caller states: prior, names, model and the kind of the values. Is it what a policy was made for?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np

from natix_hf.bundle.policy import Policy
from natix_hf.errors import RecipeError, UsageError, cut
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
        given = np.asarray(prior)
        if given.dtype.kind not in "iuf" or given.shape not in ((), (2,)):  # no text
            raise ValueError
        low, high = np.broadcast_to(given.astype(np.float64), 2).tolist()
    except (TypeError, ValueError):
        raise UsageError(f"prior must be a share or a pair of shares (low, high), found {cut(prior)}") from None
    if not 0 < low <= high < 1:
        raise UsageError(f"prior must be a share, or low and high, between 0 and 1, both excluded, found {cut(prior)}")
    return low, high


def told_prior(prior: Prior) -> str:
    """A prior as text: `0.5`, or `0.2 to 0.8`."""
    return f"{prior[0]:g}" if prior[0] == prior[1] else f"{prior[0]:g} to {prior[1]:g}"


def label_names(names: Sequence[str]) -> LabelNames:
    """The names of answers 0 and 1.

    Raises:
        UsageError: if there are not two, or one cannot be used.
    """
    given: Any = names
    given = given.tolist() if isinstance(given, np.ndarray) else given
    ordered = not isinstance(given, str | bytes | Mapping | Set)
    try:
        listed = list(given) if ordered else []
    except TypeError:
        listed = []
    if len(listed) != 2:
        raise UsageError(f"names must be two in order, of answer 0 and of answer 1, found {cut(names)}")
    try:
        return LabelNames(no=listed[0], yes=listed[1])
    except RecipeError as error:
        raise UsageError(str(error).replace(f"{LabelNames.place}.", "names: ", 1)) from None


def model_name(model: Any) -> str | None:
    """Which model answered, in words or as a hash.

    Raises:
        UsageError: if it is no text of one line.
    """
    if model is not None and not (isinstance(model, str) and model.strip() and model.isprintable()):
        raise UsageError(f"model must be one line of text, or None, found {cut(model)}")
    return model


def kind_of_values(probabilities: Any) -> bool | None:
    """Whether values are said to be probabilities.

    Raises:
        UsageError: if it is neither True, False nor None.
    """
    if probabilities is not None and not isinstance(probabilities, bool | np.bool_):
        raise UsageError(f"probabilities must be True, False or None, found {cut(probabilities)}")
    return None if probabilities is None else bool(probabilities)


def differences(
    policy: Policy, names: Sequence[str] | None, prior: Shares | None, model: str | None, probabilities: bool | None
) -> Iterator[str]:
    """One line for everything in which a policy differs from what a caller states. None states nothing."""
    stated = None if names is None else label_names(names)
    if stated is not None and stated != policy.labels:
        own = f"{policy.labels.no} (0) and {policy.labels.yes} (1)"
        yield f"answers {own}, not {stated.no} (0) and {stated.yes} (1): fit one for those"
    made = policy.made_from
    if probabilities is False and made is not None and made.probabilities:
        yield "was fitted to probabilities, and you state that the values are logits: fit one to logits"
    if model is not None:
        known = (made.model,) if made is not None else ()
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
            f"promises its error rate at the share of {policy.labels.yes} among its own groups{found}, and you expect "
            f"{told_prior(wanted)}: fit it with prior={cut(prior)}"
        )
    elif not promise.prior[0] <= wanted[0] <= wanted[1] <= promise.prior[1]:
        held = told_prior(promise.prior)
        yield (
            f"promises its error rate at a prior of {held}, and you expect {told_prior(wanted)}: fit it with "
            f"prior={cut(prior)}"
        )

"""What another precision, backend or version of a model changes: answers that differ, counted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from natix_hf.bundle.stream import BadImage

if TYPE_CHECKING:
    from natix_hf.bundle.load import Answer


@dataclass(frozen=True)
class Flips:
    """The differences between the answers of two bundles.

    Args:
        images (`int`): Images that could be read.
        bad (`int`): Images that could not be read.
        labels (`int`): Images with different labels.
        decisions (`int`): Images with different decisions, where "abstain" is a decision of its own.
        max_difference (`float`): The largest difference between two probabilities.
    """

    images: int
    bad: int
    labels: int
    decisions: int
    max_difference: float


def count_flips(pairs: Iterable[tuple[Answer, Answer]]) -> Flips:
    """Count the differences between two bundles.

    Args:
        pairs (`Iterable[tuple]`): The pairs of answers that [`Bundle.stream_beside`] yields.

    Returns:
        [`Flips`]: The counts and the largest difference of a probability.

    Example:

        >>> fast = natix_hf.load_bundle("my_bundle", precision="bfloat16")  # doctest: +SKIP
        >>> exact = natix_hf.load_bundle("my_bundle")  # doctest: +SKIP
        >>> natix_hf.count_flips(fast.stream_beside(exact, images)).decisions  # doctest: +SKIP
        0
    """
    images = bad = labels = decisions = 0
    worst = 0.0
    for one, other in pairs:
        if isinstance(one, BadImage) or isinstance(other, BadImage):
            bad += 1
        else:
            images += 1
            labels += one.label != other.label
            decisions += one.decision != other.decision
            worst = max(worst, abs(one.probability - other.probability))
    return Flips(images, bad, labels, decisions, worst)

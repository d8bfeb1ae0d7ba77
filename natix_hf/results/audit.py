"""What an audit of the labels found, as figures. The rows are in the list beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from natix_hf.metrics.label_noise import NoiseEstimate
from natix_hf.provenance.stored import OPTIONAL, Stored

AUDIT = "audit"  # the folder in a run


@dataclass(frozen=True)
class NoiseRate:
    """An estimated rate of wrong labels.

    Args:
        value: The rate; None where no row tells.
        interval: Its 95% interval, from groups; None where there is none.
        exact: The interval is an exact bound, not from resamples.
        reason: Why there is no interval.
    """

    value: float | None
    interval: tuple[float | None, float | None]
    exact: bool = False
    reason: str = ""


# Answers below this AUROC know so little that most flagged labels are right.
_WEAK = 0.75


@dataclass(frozen=True)
class Planted:
    """How many labels that were flipped on purpose (`data.label_noise`) the flagged rows hold.

    Args:
        flipped: Rows whose label was flipped.
        found: Those of them that are flagged.
        precision: Share of the flagged rows whose label was flipped; None if none is flagged.
        recall: Share of the flipped labels that is flagged.
    """

    flipped: int
    found: int
    precision: float | None
    recall: float


@dataclass(frozen=True)
class AuditReport(Stored):
    """What an audit of train and val_select found.

    Args:
        rows, groups: What was audited.
        auroc: Of the answers to the rows, against the labels as found.
        flagged: Rows whose label is most surely wrong.
        whole_groups: Groups that are suspect as a whole; their rows are among the flagged ones.
        contradictions: Pairs of pictures that look alike and have different labels.
        thresholds: Mean probability of label 0, and of label 1, among the rows with that label.
        confident_joint: Rows by [label][class that they are confidently of].
        estimated_joint: The same as estimated shares of all rows.
        noise: The rates of [`NoiseEstimate`], by name.
        fold_models: The hash of the weights of each fold.
        planted: Only where `data.label_noise` flipped labels.
    """

    FILE: ClassVar[str] = "audit.json"

    rows: int
    groups: int
    auroc: float
    flagged: int
    whole_groups: int
    contradictions: int
    thresholds: tuple[float, float]
    confident_joint: list[list[int]]
    estimated_joint: list[list[float]]
    noise: dict[str, NoiseRate]
    fold_models: list[str]
    planted: Planted | None = field(default=None, metadata=OPTIONAL)

    @property
    def told_answers(self) -> str:
        """How well the answers tell the labels apart, in words."""
        weak = "; this is too weak to doubt a label: train a better model first" if self.auroc < _WEAK else ""
        return f"AUROC {self.auroc:.3f} of the answers against the labels as found{weak}"


def noise_of(estimate: NoiseEstimate) -> dict[str, NoiseRate]:
    """The rates of an estimate with their intervals."""
    return {
        name: NoiseRate(value, (bounds.low, bounds.high), bounds.exact, bounds.reason)
        for name, value in estimate.rates.items()
        for bounds in [estimate.intervals[name]]
    }

"""The recipe's `phase1.profit:` section. This module imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from natix_hf.errors import RecipeError, require
from natix_hf.models.adapters import AUTO
from natix_hf.section import NOT_A_KEY, Section

if TYPE_CHECKING:
    from natix_hf.trainers.supervised_config import SupervisedConfig

# The reference rate as a share of learning_rate: the bounds of the paper, and the default, which is between them.
LEAST, DEFAULT, MOST = 1e-4, 1e-2, 1e-1
# Adapters that change the model's answers before their first step, so that it is no longer the one that converged.
START_ELSEWHERE = ("c3a", "fourierft", "unilora", "vblora")
_STEPS = "gradient_accumulation_steps"


@dataclass(frozen=True)
class ProfitConfig(Section):
    """Settings of PROFIT (Chakravarthy et al., arXiv:2412.01930)."""

    reference_steps: Annotated[int, "Reference steps, of SGD on batches of their own, before each optimizer step."] = 1
    reference_learning_rate: Annotated[
        float | None, "Learning rate of the reference steps; null is a hundredth of learning_rate."
    ] = None
    where: str = field(default="phase1.profit", metadata=NOT_A_KEY)  # the place in the recipe, for error messages

    def key(self, name: str) -> str:
        return f"{self.where}.{name}"

    def check(self) -> None:
        self.require_within("reference_steps", 1, 100)

    def plain(self) -> dict[str, Any]:
        return {key: value for key, value in super().plain().items() if key != "where"}

    def rate(self, learning_rate: float) -> float:
        """The learning rate of the reference steps."""
        given = self.reference_learning_rate
        return DEFAULT * learning_rate if given is None else given

    def check_stage(self, stage: SupervisedConfig) -> None:
        """Refuse a stage that PROFIT cannot train.

        Raises:
            RecipeError: If it does not begin at a trained classifier, or the reference rate is out of proportion.
        """
        rate, low, high = self.rate(stage.learning_rate), LEAST * stage.learning_rate, MOST * stage.learning_rate
        allowed = f"between learning_rate / 10,000 and learning_rate / 10, that is {low:g} and {high:g}"
        require(low * 0.999 <= rate <= high * 1.001, self.key("reference_learning_rate"), rate, allowed)
        adapter = stage.adapter
        moved = f"with adapter {adapter}, which begins with other answers than the model that it continues"
        drawn = [name for name, value in stage.adapter_options.items() if name.startswith("init_") and value is False]
        for holds, why in (
            (stage.where.startswith("phase4"), "in phase 4: an adapted backbone has a fresh classifier layer"),
            (adapter == "none", "with adapter none, which trains the classifier layer alone"),
            (adapter == AUTO, "with adapter auto: name an adapter"),
            (adapter in START_ELSEWHERE, moved),
            (
                bool(drawn),
                f"with adapter_options.{''.join(drawn[:1])}=false: the adapter would not begin at the model",
            ),
            (stage.folds is not None, "with folds: the model that it continues may know the rows of each fold"),
        ):
            if holds:
                raise RecipeError(f"{self.where} is refused {why}")


def with_reference_batches(training: Mapping[str, Any], profit: ProfitConfig | None) -> dict[str, Any]:
    """Fields of `TrainingArguments` in which an optimizer step counts the batches of its reference steps too."""
    fields = dict(training)
    if profit is not None:
        fields[_STEPS] = (fields.get(_STEPS) or 1) * (profit.reference_steps + 1)
    return fields

"""The recipe's `phase3:` section. This module imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from natix_hf.errors import require
from natix_hf.section import LATER
from natix_hf.trainers.config import Epochs, TrainingSection

_ONE_PASS = (
    *("eval_strategy", "save_strategy", "load_best_model_at_end", "metric_for_best_model", "eval_on_start"),
    *("eval_steps", "save_steps", "logging_strategy", "logging_steps"),
)


@dataclass(frozen=True, kw_only=True)
class GateConfig(TrainingSection):
    """Settings of the learned gate, which estimates the confidence of each answer."""

    place: ClassVar[str] = "phase3"

    method: Annotated[
        Literal["correctness", "confidnet"],
        "What the gate predicts. correctness: whether the answer is right; confidnet: the probability of the true "
        "class (arXiv:1910.04851).",
    ] = "correctness"
    hidden: Annotated[int, "Width of the gate's hidden layer."] = 64
    from_: Annotated[
        Literal["val_select", "out_of_fold"],
        "The answers that the gate learns from. out_of_fold: also those of phase1.folds to train. The gate is "
        "compared on val_select either way.",
    ] = field(default="val_select", metadata=LATER)
    folds: Annotated[int, "Number of folds of the cross-fit on val_select; a group is never in two folds."] = 5
    n_resamples: Annotated[
        int, "Number of bootstrap resamples in the paired comparison of the learned gate with the margin."
    ] = 2000
    num_train_epochs: Epochs = 40
    learning_rate: float = 1e-3

    def check(self) -> None:
        super().check()
        self.require(self.hidden >= 1, "hidden", "at least 1")
        self.require(self.folds >= 2, "folds", "at least 2")
        self.require(self.n_resamples >= 100, "n_resamples", "at least 100")
        for key in _ONE_PASS:
            given = self.extra.get(key)
            require(given is None, self.key(key), given, "left out: a gate trains for seconds and is never evaluated")
        smoothing = self.extra.get("label_smoothing_factor", 0)
        require(smoothing == 0, self.key("label_smoothing_factor"), smoothing, "0: a gate uses its targets unchanged")

"""The recipe's `phase3:` section. This module imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Annotated, ClassVar, Literal

from natix_hf.errors import require
from natix_hf.section import LATER
from natix_hf.trainers.config import COMPILING, Epochs, TrainingSection

_ONE_PASS = (
    *("eval_strategy", "save_strategy", "load_best_model_at_end", "metric_for_best_model", "eval_on_start"),
    *("eval_steps", "save_steps", "logging_strategy", "logging_steps"),
    *COMPILING,
)
_CONFORMAL = ("alpha", "abstention_cost", "softness")


@dataclass(frozen=True, kw_only=True)
class GateConfig(TrainingSection):
    """Settings of the learned gate, which estimates the confidence of each answer."""

    place: ClassVar[str] = "phase3"

    method: Annotated[
        Literal["correctness", "confidnet", "conformal"],
        "What the gate predicts. correctness: whether the answer is right; confidnet: the probability of the true "
        "class (arXiv:1910.04851). conformal: nothing; its order of the answers is trained for few false alarms among "
        "the accepted ones at a bounded share of missed positives (arXiv:2510.08748).",
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
    alpha: Annotated[
        float,
        "With conformal: largest share of missed positives among the accepted ones in training. Half of "
        "phase5.risk.alpha does well: a certificate asks for fewer than it allows.",
    ] = field(default=0.025, metadata=LATER)
    abstention_cost: Annotated[
        float, "With conformal: what it costs to accept no answer, where a false positive rate of 1 costs 1."
    ] = field(default=0.5, metadata=LATER)
    softness: Annotated[
        float,
        "With conformal: width of the step from refused to accepted in training, in standard deviations of the "
        "confidence.",
    ] = field(default=0.2, metadata=LATER)
    num_train_epochs: Epochs = 40
    learning_rate: float = 1e-3

    def check(self) -> None:
        super().check()
        self.require_within("hidden", 1, 10**5)
        self.require_within("folds", 2, 1000)
        self.require_within("n_resamples", 100, 10**6)
        self._check_conformal()
        for key in _ONE_PASS:
            given = self.extra.get(key)
            require(given is None, self.key(key), given, "left out: a gate trains for seconds and is never evaluated")
        smoothing = self.extra.get("label_smoothing_factor", 0)
        require(smoothing == 0, self.key("label_smoothing_factor"), smoothing, "0: a gate uses its targets unchanged")

    @property
    def calibrates(self) -> int:
        """Positives of a batch that calibrate: every other one, beginning with the first."""
        return (self.per_device_train_batch_size // 2 + 1) // 2

    def _check_conformal(self) -> None:
        if self.method != "conformal":
            defaults = {each.name: each.default for each in fields(self)}
            for key in _CONFORMAL:
                self.require(
                    getattr(self, key) == defaults[key], key, f"{defaults[key]} unless phase3.method is conformal"
                )
            return
        self.require(1e-6 <= self.alpha < 1, "alpha", "a share between 0 and 1, and at least 0.000001")
        for name in ("abstention_cost", "softness"):
            self.require(0 < getattr(self, name) <= 10**6, name, "above 0, up to 1,000,000")
        batch, positives = self.per_device_train_batch_size, least_positives(self.alpha)
        least = max(4 * positives - 2, 4)
        self.require(
            batch >= least and batch % 2 == 0,
            "per_device_train_batch_size",
            f"an even number of at least {least} where phase3.method is conformal, better 512: a quarter of the batch "
            f"are positives that calibrate, and below {positives} of them no cut reaches phase3.alpha {self.alpha:g}",
        )


def least_positives(alpha: float) -> int:
    """The smallest m with 1 / (m + 1) <= alpha: so many accepted positives, none missed, reach alpha."""
    return math.ceil((1 - 1e-9) / alpha) - 1

"""The keys of the supervised stage: `phase1:` and `phase4.supervised:`. This module imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Self

from natix_hf.errors import require
from natix_hf.models.adapters import check_adapter
from natix_hf.section import LATER, NOT_A_KEY
from natix_hf.trainers.config import (
    COMPILING,
    NEED_A_MODEL,
    SCORES,
    Argument,
    Epochs,
    LoggingSteps,
    SaveLimit,
    TrainingSection,
    Workers,
)
from natix_hf.trainers.distil_config import DistilConfig
from natix_hf.trainers.profit_config import ProfitConfig, with_reference_batches

_NO_LABELS = "left out: distil.mix is 1, so labels have no part in the loss"


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(TrainingSection):
    """Settings of a classifier that is trained on labelled rows. The best epoch on val_select is kept."""

    adapter: Annotated[
        str,
        "The weights to train. none: only the classifier layer, on features computed once; full: all weights; the "
        "name of an adapter, such as lora or dora (docs/adapters.md): it and the classifier layer; auto: the best of "
        "lora, dora, adalora and lokr in a bake-off, which doubles the number of steps.",
    ] = "full"
    adapter_options: Annotated[
        dict[str, Any], "Options of the adapter, fields of its PEFT config class; for auto, r and target_modules."
    ] = field(default_factory=dict)
    feature_views: Annotated[
        int, "Views per row with adapter: none. The first is the picture as predict sees it; the others are augmented."
    ] = 1
    early_stopping_patience: Annotated[
        int | None, "Number of evaluations without a better score after which training stops; null never stops early."
    ] = None
    ema_decay: Annotated[
        float | None, "Keep a moving average of the weights over about 1 / (1 - ema_decay) steps; null turns it off."
    ] = None
    mixup: Annotated[
        float | None,
        "Mix the rows of each training batch, and their labels, with shares from Beta(mixup, mixup), such as 0.2 "
        "(arXiv 1710.09412); with adapter: none the features; null mixes nothing.",
    ] = field(default=None, metadata=LATER)
    prior_by: Annotated[
        Literal["sampler", "loss"],
        "How training reaches data.target_prior: sampler draws the rarer class more often; loss gives it more weight.",
    ] = "sampler"
    folds: Annotated[
        int | None,
        "Also train a model without each of so many folds of groups, for out-of-fold answers to train and val_select "
        "(docs/phase1.md); null trains none.",
    ] = field(default=None, metadata=LATER)
    layer_decay: Annotated[
        float | None,
        "Factor of the learning rate from each block to the one before it, from the classifier layer down to the "
        "patches; null trains all layers at one rate.",
    ] = field(default=None, metadata=LATER)
    head_learning_rate: Annotated[
        float | None, "Peak learning rate of the classifier layer; null is that of the other layers."
    ] = field(default=None, metadata=LATER)
    profit: Annotated[
        ProfitConfig | None, "Continue a trained classifier with PROFIT (docs/phase1.md); null makes plain steps."
    ] = field(default=None, metadata=LATER)
    teacher: Annotated[
        str | list[str] | None,
        "A trained model whose answers the model learns beside the labels: the folder of a run (its champion), of a "
        "bundle or of a classifier, or a bundle on the Hub; a list is an ensemble (docs/phase1.md). null: none.",
    ] = field(default=None, metadata=LATER)
    distil: DistilConfig = field(default_factory=DistilConfig, metadata=LATER)
    keep_folds: Annotated[bool, "Keep the models of the folds, as members of a soup in phase 2."] = field(
        default=False, metadata=LATER
    )
    seeds: Annotated[
        int | None,
        "Train so many models from one start, as members of a soup in phase 2: the first with `seed`, each further "
        "one with the next seed for the order of its rows and its views; null trains one.",
    ] = field(default=None, metadata=LATER)
    num_train_epochs: Epochs = 10
    per_device_eval_batch_size: Annotated[int, Argument("Evaluation rows per batch and device.")] = 128
    eval_strategy: Annotated[
        Literal["no", "steps", "epoch"],
        Argument("When to score val_select: never, every eval_steps steps, or after each epoch."),
    ] = "epoch"
    save_strategy: Annotated[
        Literal["no", "steps", "epoch", "best"],
        Argument(
            "When to write a checkpoint: never, every save_steps steps, after each epoch, or at each best score."
        ),
    ] = "epoch"
    save_total_limit: SaveLimit = 2
    metric_for_best_model: Annotated[
        str | None, Argument(f"Score on val_select that chooses the best checkpoint: {', '.join(SCORES)}.")
    ] = "mcc"
    load_best_model_at_end: Annotated[
        bool, Argument("Keep the weights of the best checkpoint; false keeps the last weights.")
    ] = True
    logging_steps: LoggingSteps = 20
    dataloader_num_workers: Workers = 1
    where: str = field(default="phase1", metadata=NOT_A_KEY)  # the place in the recipe, for error messages

    def key(self, name: str) -> str:
        return f"{self.where}.{name}"

    def check(self) -> None:
        super().check()
        check_adapter(self.adapter, self.adapter_options, self.where)
        for name, value in self.adapter_options.items():
            fits = not isinstance(value, int | float) or abs(value) <= 10**6
            require(fits, f"{self.key('adapter_options')}.{name}", value, "at most 1,000,000")
        views, decay, patience, score = (
            self.feature_views, self.ema_decay, self.early_stopping_patience, self.metric_for_best_model,
        )  # fmt: skip
        self.require_within("feature_views", 1, 10**4)
        self.require(views == 1 or self.adapter == "none", "feature_views", "1 unless adapter is none")
        self.require(decay is None or 0 < decay < 1, "ema_decay", "a share between 0 and 1, or null")
        self.require_within("early_stopping_patience", 1, 10**6)
        self.require_within("mixup", 0.001, 1000)  # numpy draws no Beta from much smaller numbers
        alone = "null with per_device_train_batch_size 1: a row is mixed with others of its batch"
        self.require(self.mixup is None or self.per_device_train_batch_size > 1, "mixup", alone)
        self.require_within("folds", 2, 1000)
        frozen = self.adapter == "none"
        for key in COMPILING:
            given = self.extra.get(key)
            require(not (frozen and given), self.key(key), given, "left out: adapter none trains no backbone")
        self._check_rates()
        if self.profit is not None:
            self.profit.check_stage(self)
        self.require(self.folds is None or self.where == "phase1", "folds", "left out: phase 1 alone has folds")
        self._check_teacher()
        self.require(not self.keep_folds or self.folds is not None, "keep_folds", "false unless phase1.folds is set")
        self.require(self.seeds is None or self.where == "phase1", "seeds", "left out: phase 1 alone has several")
        self.require_within("seeds", 2, 100)
        self.require(self.seed + (self.seeds or 1) <= 2**32, "seeds", "fewer: their last seed would be too large")
        known = score is None or score.removeprefix("eval_") in SCORES
        self.require(known, "metric_for_best_model", " | ".join(SCORES))
        stops = patience is not None
        needed = "where early_stopping_patience is set"
        self.require(not stops or score is not None, "metric_for_best_model", f"a score {needed}")
        self.require(not stops or self.eval_strategy != "no", "eval_strategy", f"epoch or steps {needed}")

    def _check_rates(self) -> None:
        decay, head = self.layer_decay, self.head_learning_rate
        self.require(decay is None or 0 < decay <= 1, "layer_decay", "above 0 and at most 1, or null")
        self.require(head is None or 0 < head <= 1000, "head_learning_rate", "above 0 and at most 1000, or null")
        if self.adapter == "none":
            self.require(decay is None, "layer_decay", "left out: adapter none trains no layer but the classifier's")
            only = "left out: learning_rate is that of the classifier layer, and adapter none trains no other"
            self.require(head is None, "head_learning_rate", only)
        name = str(getattr(self.extra.get("optim"), "value", self.extra.get("optim")))
        by_layer = not (decay is None and head is None)
        allowed = "an optimizer with groups of parameters, such as adamw_torch, for layer_decay and head_learning_rate"
        require(not (by_layer and name.startswith(NEED_A_MODEL)), self.key("optim"), name, allowed)

    def training_fields(self) -> dict[str, Any]:
        """As in every section; with PROFIT `gradient_accumulation_steps` counts the reference steps' batches too."""
        return with_reference_batches(super().training_fields(), self.profit)

    @property
    def teachers(self) -> list[str]:
        """The teachers, of which there may be none."""
        several = self.teacher if isinstance(self.teacher, list) else [self.teacher]
        return [name for name in several if name is not None]

    def _check_teacher(self) -> None:
        if self.teacher is None:
            told = self.distil.plain()
            require(self.distil == DistilConfig(), self.key("distil"), told, "left out: phase1.teacher is null")
            return
        named = bool(self.teachers) and all(map(str.strip, self.teachers))
        self.require(named, "teacher", "a folder, a bundle on the Hub, a list of these, or null")
        self.require(len(set(self.teachers)) == len(self.teachers), "teacher", "a list in which each comes once")
        alone = "left out: with phase4.supervised null, phase 4 trains as phase 1 does, with its teacher"
        self.require(self.where != "phase4.supervised", "teacher", alone)
        out_of_fold = "null with phase1.teacher, which has seen the labels of every fold"
        self.require(self.folds is None, "folds", out_of_fold)
        heard = self.distil.mix < 1 or not self.extra.get("label_smoothing_factor")
        require(heard, self.key("label_smoothing_factor"), self.extra.get("label_smoothing_factor"), _NO_LABELS)
        self.require(self.distil.mix < 1 or self.prior_by == "sampler", "prior_by", _NO_LABELS)
        views, by = self.distil.views, "left out: with adapter none feature_views decides"
        require(views is None or self.adapter != "none", "phase1.distil.views", views, by)

    @property
    def alone(self) -> Self:
        """The settings of one training: without folds and further seeds."""
        return replace(self, folds=None, keep_folds=False, seeds=None)

    def plain(self) -> dict[str, Any]:
        values = super().plain()
        return values | {"where": values.pop("where")}

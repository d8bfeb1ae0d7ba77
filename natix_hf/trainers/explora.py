"""`ExploraTrainer`: self-supervised training of an objective, probed as it goes, stopped when it collapses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from natix_hf.errors import RunError, VerificationError
from natix_hf.ssl.collapse import collapse_reason
from natix_hf.ssl.objective import Objective
from natix_hf.trainers.base import BaseTrainer

_LOGS_IN_A_ROW = 3
UNTRAINED = "untrained.safetensors"
Probe = Callable[[nn.Module], dict[str, float]]


class ExploraTrainer(BaseTrainer):
    """Minimises an `Objective`'s own loss.

    An evaluation is a probe of the backbone that would be kept. Its figures take the place of a validation loss, so
    that Trainer's own best-checkpoint machinery keeps the best backbone (`metric_for_best_model`).

    Args:
        model: an `Objective`. Each of its schedules follows the optimizer steps.
        probe: figures of `model.backbone()`; called on one rank, the others get its figures.

    Raises (in training):
        RunError: the representation has collapsed (`collapse_reason`).
    """

    def __init__(self, *args: Any, probe: Probe, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model: Any = self.model
        self.objective: Objective = model
        self._probe = probe
        self._figures: dict[str, float] = {}
        self._suspicious = 0
        self.add_callback(_Steps(self.objective))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        outputs = model(**inputs)
        self._figures = {name: value for name, value in outputs.items() if name != "loss"}
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the objective's own figures, of the last batch, and stops training on a collapse that they show."""
        if "loss" in logs:
            logs |= {name: round(float(value), 6) for name, value in self._figures.items()}
            # One batch may look alike, and a fresh head is flat for some steps: several in a row do not.
            self._suspicious = self._suspicious + 1 if collapse_reason(logs) is not None else 0
            if self._suspicious >= _LOGS_IN_A_ROW:
                self._require_no_collapse(logs)
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        if self.is_in_train:
            self._require_finite_loss()
        found: list[Any] = [self._probe(self.objective.backbone()) if self.is_world_process_zero() else None]
        figures: dict[str, float] = broadcast_object_list(found)[0] if self.args.world_size > 1 else found[0]
        self._require_no_collapse(figures)
        metrics = {f"eval_{name}": value for name, value in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _require_no_collapse(self, figures: dict[str, float]) -> None:
        reason = collapse_reason(figures)
        if reason is not None:
            raise RunError(
                f"self-supervised training has collapsed at step {self.state.global_step}: {reason}; "
                "lower phase4.learning_rate, or take the other phase4.objective"
            )

    def save_extra(self, checkpoint: Path) -> None:
        save_file(self.objective.untrained_state(), checkpoint / UNTRAINED)

    def _load_weights(self, checkpoint: Path, model: nn.Module | None) -> None:
        super()._load_weights(checkpoint, model)
        try:
            state = load_file(checkpoint / UNTRAINED)
        except (OSError, SafetensorError) as error:
            raise VerificationError(f"{checkpoint / UNTRAINED} cannot be loaded: {error}") from None
        self.objective.load_untrained_state(state)


class _Steps(TrainerCallback):
    """Tells the objective about optimizer steps, sets the weight decay that it wants, and probes the last step too."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.objective.on_step_begin(state.global_step, state.max_steps)
        decay = self.objective.weight_decay(state.global_step, state.max_steps, args.weight_decay)
        # Trainer gives biases and norms a second group, without decay: it stays without.
        kwargs["optimizer"].param_groups[0]["weight_decay"] = decay

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.objective.on_gradients(state.global_step, state.max_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.objective.on_step_end(state.global_step, state.max_steps)
        if state.global_step >= state.max_steps:  # without any other probe too: nothing collapsed is kept
            control.should_evaluate = True

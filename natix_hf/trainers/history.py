"""Record the facts of a training for the model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_CURVE_ROWS = 10


class TrainingFacts(TrainerCallback):
    """Record the settings and the learning curve of a training.

    Args:
        further: Settings that `TrainingArguments` do not hold, as text by name.

    Attributes:
        facts: `settings`, as text by name, is set when training begins. `curve` is set when it ends: at most ten
            evenly spaced rows of epoch, step, train loss and scores on val_select, including the last one. The curve
            comes from the state of the Trainer, so it also covers the steps before a resume.
    """

    def __init__(self, further: Mapping[str, str]) -> None:
        self.facts: dict[str, Any] = {}
        self._further = further

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        precision = "bf16 autocast" if args.bf16 else "fp16 autocast" if args.fp16 else "float32"
        self.facts["settings"] = {
            "optimizer": str(getattr(args.optim, "value", args.optim)),
            "learning rate": f"{args.learning_rate:g}",
            "schedule": f"{getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)}, "
            f"{args.get_warmup_steps(state.max_steps)} warm-up steps of {state.max_steps}",
            "weight decay": f"{args.weight_decay:g}",
            "batch": f"{batch} images on {args.world_size} x {args.device.type}",
            "precision": f"{precision}, stored as float32",
            "seed": str(args.seed),
            **self._further,
        }

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        losses = [(row["step"], row["loss"]) for row in state.log_history if "loss" in row]
        rows = []
        for row in state.log_history:
            if "eval_mcc" in row:
                seen = [loss for step, loss in losses if step <= row["step"]]
                scores = {name: row.get(f"eval_{name}") for name in ("mcc", "auroc", "nll")}
                rows.append({"epoch": row["epoch"], "step": row["step"], "loss": seen[-1] if seen else None} | scores)
        every = -(-len(rows) // _CURVE_ROWS) or 1
        self.facts["curve"] = rows[::-1][::every][::-1]

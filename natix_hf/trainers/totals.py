"""The sums of a training that `transformers.Trainer` forgets when it resumes: of the losses, and of the time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import EarlyStoppingCallback, Trainer

from natix_hf.provenance.files import read_json, write_json

TOTALS = "totals.json"


class Totals:
    """The sums of a trainer, kept over a resume.

    transformers 5.23 begins them anew. Its `train_loss` is then that of the last steps only, or 0, and the first loss
    that it logs leaves out the steps between the last log and the checkpoint.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._restored: dict[str, Any] | None = None
        self._seconds, self._begin = 0.0, time.time()
        self._losses: list[float] = []

    def begin(self) -> None:
        """Called before a training."""
        self._restored, self._seconds, self._begin = None, 0.0, time.time()

    def gather(self) -> None:
        """Collect the losses since the last log. Every rank must call it before `save`."""
        self._losses = gather_object([float(self._trainer._tr_loss)])

    def save(self, checkpoint: Path) -> None:
        """Write the sums into a checkpoint."""
        trainer = self._trainer
        totals = {
            "logged_loss": trainer._total_loss_scalar,
            "logged_step": trainer._globalstep_last_logged,
            "loss_since": self._losses,
            "seconds": self._seconds + time.time() - self._begin,
        }
        write_json(checkpoint / TOTALS, totals)

    def load(self, checkpoint: Path) -> None:
        """Read what `save` wrote. An older version of this package wrote nothing, then the sums begin anew."""
        if (checkpoint / TOTALS).is_file():
            self._restored = read_json(checkpoint / TOTALS)

    def restore(self) -> None:
        """Give the trainer what `load` has read, once it has reset its sums."""
        found, self._restored = self._restored, None
        if found is None:
            return
        trainer, losses = self._trainer, found["loss_since"]
        rank = trainer.args.process_index
        own = losses[rank] if len(losses) == trainer.args.world_size else sum(losses) / len(losses)
        trainer._tr_loss = torch.tensor(own, device=trainer.args.device)
        trainer._total_loss_scalar = found["logged_loss"]
        trainer._globalstep_last_logged = found["logged_step"]
        trainer._initial_global_step = 0  # train_loss and the speed count all steps, so the time does too
        self._seconds = found["seconds"]

    def since(self, start: float) -> float:
        """The time from which a training that began at `start` counts, with the time before it was resumed."""
        return start - self._seconds


def had_stopped_early(trainer: Trainer) -> bool:
    """True if the checkpoint that was resumed is the last one of a training that was stopped early. Trainer would go
    on, because it forgets that it had decided to stop."""
    callbacks = trainer.callback_handler.callbacks
    return any(
        isinstance(each, EarlyStoppingCallback)
        and each.early_stopping_patience_counter >= each.early_stopping_patience
        for each in callbacks
    )

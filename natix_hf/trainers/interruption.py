"""A training that a signal ends at a step, after a checkpoint, on every rank at the same step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from natix_hf import interrupt


class StopAtStep(TrainerCallback):
    """Decide when to stop because of a signal (`natix_hf.interrupt`). The trainer saves a checkpoint and calls `end`.

    With several ranks a signal may reach one of them only. After every step all ranks take the maximum of the signals
    that they have received. They read it one step later, so that nobody waits for it.

    A training that saves no checkpoints does not wait for a step: a signal ends it at once.

    Attributes:
        signum: The signal on which all ranks have agreed to stop, or 0.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._pending: Callable[[], int] | None = None
        self._at_end_of_epoch = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.signum, self._pending = 0, None
        if args.save_strategy != SaveStrategy.NO:
            interrupt.defer("a checkpoint is saved at the next step" if state.is_world_process_zero else "")

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._at_end_of_epoch = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.save_strategy == SaveStrategy.NO:
            return
        if args.world_size == 1:
            self.signum = interrupt.received()
            return
        before, self._pending = self._pending, _maximum(interrupt.received(), args.device)
        self.signum = before() if before is not None else 0

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._at_end_of_epoch = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._pending is not None:
            self._pending()
        interrupt.act()

    def is_due(self, state: TrainerState, control: TrainerControl) -> bool:
        """True if all ranks stop now. What belongs to the end of an epoch, such as its score, is done first."""
        last = control.should_training_stop or control.should_epoch_stop or (state.epoch or 0) % 1 == 0
        return bool(self.signum) and (self._at_end_of_epoch or not last)


def _maximum(value: int, device: torch.device) -> Callable[[], int]:
    """Begin to compute the maximum over all ranks, and return a function that waits for it."""
    flag = torch.tensor([value], dtype=torch.int32, device=device)
    work = distributed.all_reduce(flag, distributed.ReduceOp.MAX, async_op=True)
    if device.type == "cuda":  # copied on the way: to read it later must not wait for the next step
        work.wait()
        host = torch.zeros(1, dtype=torch.int32, pin_memory=True)
        host.copy_(flag, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        return functools.partial(_after, copied.synchronize, host)
    return functools.partial(_after, work.wait, flag)


def _after(wait: Callable[[], Any], flag: torch.Tensor) -> int:
    wait()
    return int(flag)


def survive_with_parent(first: Callable[[int], None] | None, worker: int) -> None:
    """Initialise a worker process of a loader: it outlives a signal that its whole process group receives."""
    interrupt.leave_to_parent()
    if first is not None:
        first(worker)

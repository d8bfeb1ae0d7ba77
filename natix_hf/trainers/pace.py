"""How fast a training goes, measured in the training itself: its steps, scores and checkpoints, and its memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median
from typing import Any

import psutil
import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

_WARM_UP = 2  # steps in which workers start, kernels are chosen and the optimizer's state is made


class Pace:
    """The pace of a trainer.

    A step lasts from the end of the last one to its own end, waiting for the loader included, scores and checkpoints
    excluded. The first two steps do not count if there are more. On a CPU the median counts, so that other work on the
    machine matters less. A GPU is only waited for now and then, so there it is the mean.

    Args:
        trainer: A `BaseTrainer`.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.begin()

    def begin(self) -> None:
        """Called before a training."""
        self._steps: list[float] = []
        self._scores: list[float] = []
        self._saves: list[float] = []
        self._checkpoint = self._step = 0
        self._waited = 0.0
        self._since = self._waiting_since = time.perf_counter()
        if self._trainer.args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._trainer.args.device)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """The block waits for the loader."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    def take_data_wait(self) -> float:
        """The share of the time since the last call that was spent waiting for the loader."""
        now = time.perf_counter()
        share = self._waited / max(now - self._waiting_since, 1e-9)
        self._waited, self._waiting_since = 0.0, now
        return round(share, 4)

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """A step or an epoch has ended. Inside the block it is logged, scored and saved as far as it is due."""
        control, step = self._trainer.control, self._trainer.state.global_step
        due = control.should_log or control.should_evaluate or control.should_save or control.should_training_stop
        if due or len(self._steps) < _WARM_UP:
            self._wait()
        if step != self._step:
            self._steps.append(time.perf_counter() - self._since)
            self._step = step
        begin, scored, saved_before = time.perf_counter(), sum(self._scores), self._trainer.saved_step
        yield
        self._since = time.perf_counter()
        if self._trainer.saved_step != saved_before:
            self._saves.append(self._since - begin - (sum(self._scores) - scored))
            name = f"{PREFIX_CHECKPOINT_DIR}-{step}"
            self._checkpoint = _bytes_below(Path(str(self._trainer.args.output_dir)) / name) or self._checkpoint

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """The block scores the model."""
        begin = time.perf_counter()
        yield
        self._scores.append(time.perf_counter() - begin)

    def facts(self) -> dict[str, Any]:
        """The figures of this process: seconds of a step, of the fastest score and of the slowest
        checkpoint, bytes of a checkpoint, and the peak of the memory. A figure without a measurement is left out."""
        args = self._trainer.args
        counted = self._steps[_WARM_UP:] or self._steps
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        found = {"rows_a_step": rows, "steps": len(counted)} | ({"step_s": self._typical(counted)} if counted else {})
        found |= {"score_s": round(min(self._scores), 4)} if self._scores else {}
        found |= {"save_s": round(max(self._saves), 4)} if self._saves else {}
        found |= {"checkpoint_bytes": self._checkpoint} if self._checkpoint else {}
        return found | {"memory": peak_memory(args.device)}

    def _typical(self, seconds: list[float]) -> float:
        take = mean if self._trainer.args.device.type == "cuda" else median
        return round(take(seconds), 5)

    def _wait(self) -> None:
        """Wait for the work that a GPU has been given, or a step would seem to take no time."""
        if self._trainer.args.device.type == "cuda":
            torch.cuda.synchronize(self._trainer.args.device)


def peak_memory(device: torch.device) -> dict[str, int]:
    """The largest memory so far, in bytes: on a GPU `allocated` by tensors and `reserved` from the card since the
    training began; elsewhere `process`, all that this process has held."""
    if device.type == "cuda":
        allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        return {"allocated": allocated, "reserved": reserved}
    if find_spec("resource") is None:  # Windows
        return {"process": psutil.Process().memory_info().peak_wset}
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"process": peak if sys.platform == "darwin" else peak * 1024}


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

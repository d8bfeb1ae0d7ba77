"""What the benchmarks share: sides in processes of their own, their memory, and the plain Trainer that is the peer."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # comes with accelerate
from torch import nn
from transformers import TrainingArguments

from natix_hf.data.rows import Rows
from natix_hf.models.device import runs_on_cpu

MIB = 1 << 20
_MARK = "measured: "


def report(**figures: Any) -> None:
    """Hands figures from a side's process to the benchmark; Trainer prints to the same stream."""
    print(_MARK + json.dumps(figures), flush=True)


class Side:
    """One side of a comparison: this script, started again with other arguments, or another one by its own Python."""

    def __init__(
        self, script: str, *arguments: str, env: dict[str, str] | None = None, python: str = sys.executable
    ) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # a pipe that nobody empties would stop the side when it is full
        self.process = subprocess.Popen(
            [python, script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=env,
        )

    def figures(self) -> dict[str, Any]:
        """The next figures that the side reports."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(_MARK):
                found: dict[str, Any] = json.loads(line.removeprefix(_MARK))
                return found
        self._errors.seek(0)
        raise SystemExit(f"{self.process.args!r} ended early:\n{self._errors.read()[-4000:]}")

    def figures_of_turn(self) -> dict[str, Any]:
        """Let the side take a turn. What it reports."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.figures()

    def take_turn(self) -> float:
        """Seconds of one of the side's `Turns`."""
        return float(self.figures_of_turn()["seconds"])

    def memory(self) -> float:
        """MiB of the process and its loader workers, what they share counted once."""
        tree = [root := psutil.Process(self.process.pid), *root.children(recursive=True)]
        return float(sum(process.memory_full_info().pss for process in tree)) / MIB

    def finish(self) -> None:
        self.process.communicate()


class Turns:
    """Cuts the training of `model` into turns that a `Side` is given one by one, so that several sides alternate every
    few seconds and the machine's moods meet them all. The first steps of a turn refill the loader and are not timed.
    """

    def __init__(self, model: nn.Module, turns: int, steps: int, warm_up: int = 5) -> None:
        self.steps = steps
        self.warm_up = warm_up
        self.total = turns * (warm_up + steps) + 1  # the last turn ends where another step begins
        self._step = 0
        self._begin = 0.0
        model.register_forward_pre_hook(lambda *_: self._at_forward())

    def _at_forward(self) -> None:
        within = self._step % (self.warm_up + self.steps)
        if within == 0:
            report(seconds=time.perf_counter() - self._begin)
            if not sys.stdin.readline():  # the benchmark is through, or gone
                raise SystemExit
        if within == self.warm_up:
            self._begin = time.perf_counter()
        self._step += 1


def plain_rows(rows: Rows, to_pixels: Callable[[list[Any]], Any]) -> Any:
    """Rows as the documentation has them: `with_transform` over the images that `datasets` decodes."""
    from datasets import Image

    plain = rows.source.select_columns([rows.image_column]).cast_column(rows.image_column, Image())
    plain = plain.add_column("labels", rows.labels.tolist())

    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        return {"pixel_values": to_pixels(batch[rows.image_column]), "labels": batch["labels"]}

    return plain.with_transform(transform)


def plain_arguments(training: dict[str, Any], folder: Path, **changes: Any) -> TrainingArguments:
    """The recipe's batch, optimiser, schedule and loader worker, for a plain Trainer that only trains."""
    names = ["learning_rate", "weight_decay", "lr_scheduler_type", "warmup_steps", "num_train_epochs"]
    names += ["per_device_train_batch_size", "per_device_eval_batch_size", "dataloader_num_workers", "seed"]
    settings: dict[str, Any] = {name: training[name] for name in names}
    settings |= {"use_cpu": runs_on_cpu(), "dataloader_pin_memory": not runs_on_cpu(), "remove_unused_columns": False}
    settings |= {"dataloader_persistent_workers": training["dataloader_num_workers"] > 0, "disable_tqdm": True}
    settings |= {"report_to": "none", "save_strategy": "no", "logging_steps": training["logging_steps"]}
    return TrainingArguments(output_dir=str(folder), **(settings | changes))

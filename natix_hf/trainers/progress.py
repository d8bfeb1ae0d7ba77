"""The progress table of a training: a header, then one line per evaluation."""

from __future__ import annotations

import sys
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from natix_hf.terminal import tell

# A column: heading, width, key of the log, and format of the figure.
Column = tuple[str, int, str, str]
SUPERVISED: tuple[Column, ...] = (
    ("epoch", 6, "epoch", ".3g"),
    ("train loss", 10, "loss", ".4f"),
    ("val MCC (optimistic)", 20, "eval_mcc", ".3f"),
    ("AUROC", 6, "eval_auroc", ".3f"),
    ("NLL", 6, "eval_nll", ".3f"),
    ("learning rate", 13, "learning_rate", ".2e"),
)
SELF_SUPERVISED: tuple[Column, ...] = (
    ("step", 6, "step", "d"),
    ("train loss", 10, "loss", ".4f"),
    ("probe AUROC", 11, "eval_linear_auroc", ".3f"),
    ("k-NN AUROC", 10, "eval_knn_auroc", ".3f"),
    ("spread", 6, "eval_spread", ".3f"),
    ("learning rate", 13, "learning_rate", ".2e"),
)
_ROWS_WITHOUT_SCORES = 10  # number of lines of a self-supervised training without probes
_REFRESH_S = 1.0


class ProgressTable(TrainerCallback):
    """Print one table line per evaluation, instead of transformers' dicts and bars.

    Only the first rank prints, through `natix_hf.terminal.tell`. The train loss is the mean of the losses logged since
    the previous line. On a terminal, a status line shows the step and the time left between evaluations;
    `disable_tqdm=True` turns it off.

    Args:
        columns: `SUPERVISED` or `SELF_SUPERVISED`.
    """

    def __init__(self, columns: tuple[Column, ...] = SUPERVISED) -> None:
        self.columns = columns
        self._losses: list[float] = []
        self._latest: dict[str, Any] = {}
        self._begin, self._first_step, self._shown = 0.0, 0, 0.0
        self._headed = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._begin, self._first_step, self._headed = time.perf_counter(), state.global_step, False
        self._losses, self._latest = [], {}
        for row in state.log_history:  # of a training that is resumed
            self._losses = [*self._losses, float(row["loss"])] if "loss" in row else []

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if "loss" in logs:
            self._losses.append(float(logs["loss"]))
            self._latest["learning_rate"] = logs.get("learning_rate")
            on_the_way = state.global_step < state.max_steps  # the last step is always probed and gets a line then
            if _never_scored(args) and self.columns is SELF_SUPERVISED and on_the_way:
                every = max(1, state.max_steps // _ROWS_WITHOUT_SCORES)
                if state.global_step // every > (state.global_step - int(args.logging_steps)) // every:
                    self._row(state, {})

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        # With several evaluation sets the keys are `eval_<set>_mcc` and so on.
        found = {key: value for key, value in (metrics or {}).items() if key.startswith("eval_")}
        ends = {column[2]: column[2].removeprefix("eval") for column in self.columns if column[2].startswith("eval_")}
        scores = {key: next((v for k, v in found.items() if k.endswith(end)), None) for key, end in ends.items()}
        self._row(state, scores)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if _never_scored(args) and self.columns is SUPERVISED:
            self._row(state, {})

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        now = time.perf_counter()
        live = state.is_world_process_zero and not args.disable_tqdm and sys.stderr.isatty()
        if live and now - self._shown > _REFRESH_S:
            self._shown = now
            sys.stderr.write(f"\r\033[Kstep {state.global_step} of {state.max_steps}, {self._left(state)} left")
            sys.stderr.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._clear()
        self._begin = 0.0

    def _row(self, state: TrainerState, metrics: dict[str, float | None]) -> None:
        if not state.is_world_process_zero or not self._begin:
            return
        mean = sum(self._losses) / len(self._losses) if self._losses else None
        self._losses = []
        figures = {"epoch": state.epoch, "step": state.global_step, "loss": mean} | self._latest | metrics
        cells = [_cell(figures.get(key), width, form) for _, width, key, form in self.columns]
        self._clear()
        if not self._headed:
            self._headed = True
            tell("  ".join(heading.rjust(width) for heading, width, *_ in self.columns) + "  time left")
        tell("  ".join(cells) + "  " + self._left(state).rjust(9))

    def _left(self, state: TrainerState) -> str:
        done = state.global_step - self._first_step
        if done <= 0:
            return "-"
        return spell(int((time.perf_counter() - self._begin) / done * max(0, state.max_steps - state.global_step)))

    def _clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
            self._shown = 0.0


def _never_scored(args: TrainingArguments) -> bool:
    return bool(args.eval_strategy == IntervalStrategy.NO)


def _cell(value: Any, width: int, form: str) -> str:
    return ("-" if value is None else format(value, form)).rjust(width)


def spell(seconds: int) -> str:
    """Write a duration as `42 s`, `3 min 05` or `2 h 07`."""
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d}"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d}"

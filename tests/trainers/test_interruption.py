"""A training that is cut off, by a kill or by a signal, continues as if it had not been: weights, log and sums."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import Killed
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from natix_hf import interrupt
from natix_hf.trainers.base import BaseTrainer
from natix_hf.trainers.checkpoints import newest_complete_checkpoint
from natix_hf.trainers.gate import GateTrainer
from natix_hf.trainers.progress import ProgressTable
from natix_hf.trainers.totals import TOTALS

ROWS, BATCH, EPOCHS = 20, 4, 3  # five steps an epoch
STEPS = ROWS // BATCH * EPOCHS
HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


class Vectors(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self) -> None:
        made = torch.Generator().manual_seed(0)
        self.values = torch.randn(ROWS, 6, generator=made)

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"features": self.values[row], "labels": (self.values[row].sum() > 0).float()}


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = torch.nn.Sequential(torch.nn.Linear(6, 1), torch.nn.Dropout(0.2))

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.layer(features).squeeze(1)}


class At(TrainerCallback):
    """Do something at the end of a step, or at another event."""

    def __init__(self, step: int, act: Callable[[], None], event: str = "on_step_end") -> None:
        def when(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                act()

        setattr(self, event, when)


def trainer(folder: Path, *callbacks: TrainerCallback, **settings: Any) -> BaseTrainer:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": BATCH, "num_train_epochs": EPOCHS, "learning_rate": 0.05, "logging_steps": 3,
        "save_strategy": "epoch", "eval_strategy": "epoch", "report_to": "none", "use_cpu": True,
        "disable_tqdm": True, "restore_callback_states_from_checkpoint": True, "seed": 5,
    }  # fmt: skip
    arguments = TrainingArguments(output_dir=str(folder), **defaults | settings)
    return GateTrainer(
        model=Layer(), method="correctness", args=arguments, train_dataset=Vectors(), eval_dataset=Vectors(),
        callbacks=list(callbacks),
    )  # fmt: skip


def log_of(trained: BaseTrainer) -> list[dict[str, Any]]:
    """The log without what the clock says."""
    clock = ("data_wait", "_runtime", "_per_second")
    return [{k: v for k, v in row.items() if not k.endswith(clock)} for row in trained.state.log_history]


def weights(trained: BaseTrainer) -> list[list[float]]:
    assert trained.model is not None
    return [tensor.flatten().tolist() for tensor in trained.model.state_dict().values()]


def killed() -> None:
    raise Killed


def send(signum: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signum)


@pytest.mark.parametrize(("save_steps", "steps"), [(1, (1, 5, 8)), (4, (2, 6, 10, STEPS))])
def test_the_log_and_the_sums_of_a_killed_training_are_those_of_a_whole_one(
    save_steps: int, steps: tuple[int, ...], tmp_path: Path
) -> None:
    settings = {"save_strategy": "steps", "save_steps": save_steps, "eval_strategy": "steps", "eval_steps": 4}
    whole = trainer(tmp_path / "whole", **settings)
    result = whole.train()
    losses = [row["train_loss"] for row in log_of(whole) if "train_loss" in row]
    assert losses == [result.training_loss] and losses[0] > 0.1
    for step in steps:
        place = tmp_path / f"killed-{step}"
        event = "on_step_end" if step < STEPS else "on_train_end"
        with pytest.raises(Killed):
            trainer(place, At(step, killed, event), **settings).train()
        kept = newest_complete_checkpoint(place)
        resumed = trainer(place, **settings)
        again = resumed.train(str(kept) if kept else None)
        assert again.training_loss == result.training_loss, step
        assert log_of(resumed) == log_of(whole), step
        assert weights(resumed) == weights(whole)
        assert resumed.state.total_flos == whole.state.total_flos


def test_a_checkpoint_of_an_older_version_is_continued(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "no"}
    whole = trainer(tmp_path / "whole", **settings)
    whole.train()
    with pytest.raises(Killed):
        trainer(tmp_path / "cut", At(6, killed), **settings).train()
    checkpoint = newest_complete_checkpoint(tmp_path / "cut")
    assert checkpoint is not None
    (checkpoint / TOTALS).unlink()
    resumed = trainer(tmp_path / "cut", **settings)
    resumed.train(str(checkpoint))
    assert weights(resumed) == weights(whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> BaseTrainer:
    made = trainer(tmp_path_factory.mktemp("whole"))
    made.train()
    return made


@pytest.mark.parametrize(
    ("name", "step"), [("SIGTERM", 3), ("SIGTERM", 5), ("SIGTERM", STEPS), ("SIGINT", 14), ("SIGHUP", 10)]
)
def test_a_signal_saves_a_checkpoint_of_its_step(name: str, step: int, whole: BaseTrainer, tmp_path: Path) -> None:
    """Step 5 is the last of an epoch, whose score is not lost."""
    if not hasattr(signal, name):
        pytest.skip(f"there is no {name} here")
    signum = getattr(signal, name)
    if signal.getsignal(signum) == signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, as under nohup, and so it is by a training")
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, HANGUP) if each]
    at_begin = At(step - 1, send(signum), "on_step_begin")
    with pytest.raises(KeyboardInterrupt if name == "SIGINT" else SystemExit) as caught:
        trainer(tmp_path / "cut", at_begin).train()
    if name != "SIGINT":
        assert caught.value.args == (128 + signum,)
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, HANGUP) if each] == before
    kept = newest_complete_checkpoint(tmp_path / "cut")
    assert kept == tmp_path / "cut" / f"checkpoint-{step}"
    resumed = trainer(tmp_path / "cut")
    resumed.train(str(kept))
    assert log_of(resumed) == log_of(whole) and weights(resumed) == weights(whole)


def test_a_signal_while_it_scores_waits_for_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        trainer(tmp_path, At(5, send(signal.SIGTERM), "on_prediction_step")).train()
    assert newest_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-6"


def test_a_training_without_checkpoints_ends_at_once(tmp_path: Path) -> None:
    reached: list[int] = []
    watch = At(2, lambda: reached.append(2))
    with pytest.raises(SystemExit):
        trainer(tmp_path, At(1, send(signal.SIGTERM), "on_step_begin"), watch, save_strategy="no").train()
    assert not reached and newest_complete_checkpoint(tmp_path) is None


class Destroyed:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_a_destructor_swallows_comes_again(capfd: pytest.CaptureFixture[str]) -> None:
    """Python drops whatever a destructor raises, and says so in a traceback."""
    with pytest.raises(SystemExit) as stop, interrupt.catching():
        last = Destroyed()
        del last
        time.sleep(5)
        pytest.fail("the signal was lost")
    assert stop.value.code == 143 and capfd.readouterr().err == ""


def test_a_second_signal_ends_at_once_but_an_echo_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    for echo, kept in ((60.0, "checkpoint-3"), (0.0, None)):
        monkeypatch.setattr(interrupt, "_ECHO_S", echo)
        place = tmp_path / str(echo)
        with pytest.raises(SystemExit):
            trainer(place, At(2, twice, "on_step_begin")).train()
        assert newest_complete_checkpoint(place) == (place / kept if kept else None)


def test_handlers_of_others_and_other_threads_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    own = signal.signal(signal.SIGTERM, lambda signum, frame: seen.append(signum))
    ignored = signal.signal(HANGUP, signal.SIG_IGN) if HANGUP else None
    acts = [At(2, send(signal.SIGTERM)), *([At(3, send(HANGUP))] if HANGUP else [])]
    try:
        trainer(tmp_path / "own", *acts).train()
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, own)
        if HANGUP:
            signal.signal(HANGUP, ignored)
    found: list[Any] = []
    thread = threading.Thread(
        target=lambda: trainer(
            tmp_path / "thread", At(2, lambda: found.append(signal.getsignal(signal.SIGTERM)))
        ).train()
    )
    thread.start()
    thread.join()
    assert found == [own]


def test_early_stopping_stays_stopped(tmp_path: Path) -> None:
    """Killed between the last checkpoint and the end: Trainer would go on with the next epoch."""
    settings = {"metric_for_best_model": "loss", "greater_is_better": True, "load_best_model_at_end": True}
    settings |= {"num_train_epochs": 8}
    whole = trainer(tmp_path / "whole", EarlyStoppingCallback(2), **settings)
    whole.train()
    stopped = whole.state.global_step
    assert stopped < 8 * ROWS // BATCH
    with pytest.raises(Killed):
        trainer(tmp_path / "cut", EarlyStoppingCallback(2), At(stopped, killed, "on_train_end"), **settings).train()
    resumed = trainer(tmp_path / "cut", EarlyStoppingCallback(2), **settings)
    resumed.train(True)
    assert log_of(resumed) == log_of(whole) and weights(resumed) == weights(whole)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups here")
def test_the_workers_of_the_loader_outlive_a_signal_to_the_group(tmp_path: Path) -> None:
    def to_all() -> None:
        for worker in psutil.Process().children():
            worker.send_signal(signal.SIGINT)
            worker.send_signal(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    settings = {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 1, "eval_strategy": "no"}
    settings |= {"per_device_train_batch_size": 1}
    with pytest.raises(SystemExit):
        trainer(tmp_path, At(2, to_all, "on_step_begin"), **settings).train()
    assert newest_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-3"


def test_the_table_remembers_the_losses_since_its_last_line(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 4, "logging_steps": 1}
    rows: list[list[float]] = []

    def watched(trained: BaseTrainer) -> At:
        table = next(c for c in trained.callback_handler.callbacks if isinstance(c, ProgressTable))
        return At(9, lambda: rows.append([*table._losses]), "on_step_begin")

    with pytest.raises(Killed):
        trainer(tmp_path, At(9, killed), **settings).train()
    resumed = trainer(tmp_path, **settings)
    resumed.add_callback(watched(resumed))
    resumed.train(True)
    whole = trainer(tmp_path / "whole", **settings)
    whole.add_callback(watched(whole))
    whole.train()
    assert rows[0] == rows[1] and len(rows[0]) == 4

"""A Trainer without the traps: what a checkpoint restores, how a loss is scaled, and when a run must stop.

Each override names the behaviour of transformers 5.23 that it corrects, and each has a test that fails without it.
Five are overrides of private methods; the comment of each names the upstream issue, where one is known.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from transformers.utils import SAFE_WEIGHTS_NAME

from natix_hf.data.sampler import EpochSampler
from natix_hf.errors import RunError, VerificationError, first_line
from natix_hf.models.bars import no_loading_bars
from natix_hf.models.classifier import load_strictly
from natix_hf.provenance.files import check_files, describe_files, list_files, read_json, write_json
from natix_hf.trainers.progress import SUPERVISED, Column, ProgressTable

COMPLETE = "complete.json"


class BaseTrainer(Trainer):
    """`transformers.Trainer` with exact resume, complete checkpoints and a table in place of printed dicts.

    Args:
        train_sampler: order of the training rows, and the epoch that each view is drawn from; None: Trainer's own
            random order.
        quiet: print nothing while training.
        The others are those of `transformers.Trainer`.
    """

    # transformers multiplies the gradient by the accumulation steps when compute_loss is overridden for a model whose
    # forward takes **kwargs, unless it is told that the loss is a plain mean over the batch.
    loss_is_scaled_for_ga = False
    columns: tuple[Column, ...] = SUPERVISED

    def __init__(
        self, *args: Any, train_sampler: EpochSampler | None = None, quiet: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        # Views have the columns that a model reads, and a transform of `datasets` needs columns that it does not.
        self.args.remove_unused_columns = False
        self.args.logging_nan_inf_filter = False  # it hides a NaN loss and trains on
        if self.args.label_names is None:
            self.label_names = ["labels"]  # transformers looks in forward(), where a head on features has none
        self._sampler = train_sampler
        self._data_wait = 0.0
        self._waiting_since = time.perf_counter()
        if train_sampler is not None:
            self.add_callback(_SetEpoch(train_sampler))
        self.remove_callback(PrinterCallback)
        self.remove_callback(DEFAULT_PROGRESS_CALLBACK)
        if not quiet:
            self.add_callback(ProgressTable(self.columns))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `transformers.Trainer.train` does.

        Args:
            resume_from_checkpoint: a checkpoint; True: the newest complete one of `args.output_dir`. Training goes on
                from there to the same bits as an uninterrupted one.

        Raises:
            RunError: with True, there is no complete checkpoint; or the loss became NaN or infinite.
        """
        if resume_from_checkpoint is True:
            newest = newest_complete_checkpoint(Path(str(self.args.output_dir)))
            if newest is None:
                raise RunError(f"{self.args.output_dir} holds no complete checkpoint to resume from")
            resume_from_checkpoint = str(newest)
        with no_loading_bars():  # of checkpoints that are written and read
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[Any] | None:
        # accelerate makes only RandomSampler agree across ranks; this sampler is a function of (seed, epoch). Trainer
        # takes no sampler of one's own: transformers#8952 and #11460, both closed without one.
        return self._sampler if self._sampler is not None else super()._get_train_sampler(train_dataset)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """As in transformers, but `dataloader_drop_last` drops no row here."""
        with self._keeping_every_row():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """As in transformers, but `dataloader_drop_last` drops no row here."""
        with self._keeping_every_row():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _keeping_every_row(self) -> Iterator[None]:
        # dataloader_drop_last is meant for training; Trainer drops the last evaluation rows with it, or all of them.
        wanted, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = wanted

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # A run that was cut off after its last step (while the model was merged, say) is resumed in the middle of an
        # epoch, and Trainer would take one step more than max_steps. No upstream issue found (2026-11).
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]  # inherited, so not covered by the exclusion

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        begin = time.perf_counter()
        batches = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._data_wait += time.perf_counter() - begin
        return batches

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add `data_wait`: the share of the time since the last log that was spent waiting for the loader."""
        if "loss" in logs:
            _require_finite(logs["loss"], self.state.global_step, self.args.learning_rate)
            now = time.perf_counter()
            logs["data_wait"] = round(self._data_wait / max(now - self._waiting_since, 1e-9), 4)
            self._data_wait, self._waiting_since = 0.0, now
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        if self.is_in_train:
            self._require_finite_loss()
        return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Trainer writes checkpoints in place and later trusts the folder's name (transformers#35782): a marker with
        # checksums, written last, tells the complete ones. Nothing is saved from a diverged run: its newest complete
        # checkpoint must be worth resuming from.
        self._require_finite_loss()
        # Trainer deletes old checkpoints before this one is marked complete; a kill between the two would leave none.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        except torch.OutOfMemoryError:
            raise
        except (OSError, SafetensorError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            raise RunError(
                f"the checkpoint of step {self.state.global_step} could not be written to {self.args.output_dir} "
                f"({first_line(error)}): free some space, the same --run-dir continues"
            ) from None
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(str(self.args.output_dir))
            checkpoint = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            self.save_extra(checkpoint)
            mark_complete(checkpoint)
            rotate_checkpoints(str(folder), limit, self.state.best_model_checkpoint)

    def save_extra(self, checkpoint: Path) -> None:
        """Write what a subclass holds beside weights, optimizer and state. Called before the marker is written."""

    def load_extra(self, checkpoint: Path, best: bool) -> None:
        """Read back what `save_extra` wrote; `best`: the best weights were loaded, not those to train on from."""

    def _require_finite_loss(self) -> None:
        _require_finite(float(self._tr_loss), self.state.global_step, self.args.learning_rate)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # transformers#48805: Trainer loads with strict=False, and most tensors of a ViT or DINOv2 stay as they were.
        self._load_weights(Path(resume_from_checkpoint), model)
        self.load_extra(Path(resume_from_checkpoint), best=False)

    def _load_best_model(self) -> None:
        # transformers#48805, as above.
        best = Path(str(self.state.best_model_checkpoint))
        if (best / COMPLETE).is_file() and not _is_complete(best):
            raise VerificationError(f"{best}, the best epoch, was damaged: remove {best.parent} and train again")
        self._load_weights(best, None)
        self.load_extra(best, best=True)

    def _load_weights(self, checkpoint: Path, model: nn.Module | None) -> None:
        # Checkpoints of ViT and DINOv2 carry the Hub's key names, the live modules other ones. `from_pretrained`
        # translates the names, and the rest is strict.
        target = self.accelerator.unwrap_model(self.model if model is None else model, keep_torch_compile=False)
        if isinstance(target, PreTrainedModel):
            state = load_strictly(type(target), checkpoint).state_dict()
            target.load_state_dict(state, strict=True)
        else:
            load_tensors(checkpoint / SAFE_WEIGHTS_NAME, trained_tensors(target))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model: a whole transformers model as `save_pretrained` does, of anything else what is trained.

        The rest is a function of backbone and seed, and some tuners share frozen tensors between layers, which
        safetensors refuses.
        """
        target = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if isinstance(target, PreTrainedModel):
            with no_loading_bars():
                super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            folder = Path(str(output_dir or self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            tensors = {name: tensor.detach().contiguous() for name, tensor in trained_tensors(target).items()}
            save_file(tensors, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})


class _SetEpoch(TrainerCallback):
    """Tells the sampler the epoch. accelerate does not reach it behind a skipping, sharding batch sampler."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.sampler.set_epoch(int(state.epoch or 0))


def _require_finite(loss: float, step: int, learning_rate: float) -> None:
    if not math.isfinite(loss):
        raise RunError(
            f"the loss is {loss} at step {step}: lower learning_rate (now {learning_rate:g}) or check the data"
        )


def trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def load_tensors(path: Path, targets: dict[str, torch.Tensor]) -> None:
    """Copies the tensors of a file into `targets`: the same names and shapes, or an error.

    Raises:
        VerificationError: the file is missing, damaged, or that of another model.
    """
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise VerificationError(f"{path} cannot be loaded: {error}") from None
    shapes = {name: tensor.shape for name, tensor in targets.items()}
    if {name: tensor.shape for name, tensor in stored.items()} != shapes:
        raise VerificationError(f"{path} holds the tensors of another model")
    for name, tensor in stored.items():
        targets[name].copy_(tensor)


def mark_complete(checkpoint: Path) -> None:
    """Writes the marker that makes a checkpoint one to resume from: every file of it with size and sha256."""
    names = [name for name in list_files(checkpoint) if name != COMPLETE]
    write_json(checkpoint / COMPLETE, {"files": describe_files(checkpoint, names)})


def newest_complete_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps whose marker was written and whose files are what it says, or None.

    Trainer writes checkpoints in place and its own `get_last_checkpoint` trusts the folder's name.
    """
    numbered = [(path.name.rpartition("-")[2], path) for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")]
    newest_first = sorted(((int(steps), path) for steps, path in numbered if steps.isdigit()), reverse=True)
    return next((path for _, path in newest_first if _is_complete(path)), None)


def _is_complete(checkpoint: Path) -> bool:
    """By checksum: weights with a flipped byte load without a word."""
    try:
        return not check_files(checkpoint, read_json(checkpoint / COMPLETE)["files"])
    except (VerificationError, AttributeError, KeyError, TypeError):
        return False

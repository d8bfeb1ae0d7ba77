"""A Trainer that corrects `transformers.Trainer`: exact resume, loss scaling, and a stop when training diverges.

Each override names the behaviour of transformers 5.23 that it corrects. Each has a test that fails without it. Nine
override private methods; their comments name the upstream issue if one is known.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
)
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints
from transformers.utils import SAFE_WEIGHTS_NAME

from natix_hf import interrupt
from natix_hf.data.sampler import RowOrder
from natix_hf.data.views import finished
from natix_hf.disk import disk_error, disk_line
from natix_hf.errors import RunError, VerificationError, first_line
from natix_hf.models.bars import no_loading_bars
from natix_hf.models.classifier import load_strictly, share_weights
from natix_hf.provenance.durable import remove_folder, sync_folder
from natix_hf.provenance.files import check_guards, read_json
from natix_hf.trainers.checkpoints import (
    COMPLETE,
    is_complete,
    load_tensors,
    mark_complete,
    newest_complete_checkpoint,
    remove_old_checkpoints,
    trained_tensors,
)
from natix_hf.trainers.compiled import compile_blocks
from natix_hf.trainers.epochs import SetEpoch
from natix_hf.trainers.interruption import StopAtStep, survive_with_parent
from natix_hf.trainers.pace import Pace
from natix_hf.trainers.progress import SUPERVISED, Column, ProgressTable
from natix_hf.trainers.totals import Totals, had_stopped_early


class BaseTrainer(Trainer):
    """`transformers.Trainer` with exact resume, verified checkpoints, and a progress table instead of printed dicts.

    Args:
        train_sampler (`RowOrder`, *optional*): Order of the training rows, and the epoch from which each view is
            drawn. None uses Trainer's own random order.
        quiet (`bool`, defaults to `False`): Print nothing while training.
        args, kwargs: Arguments of `transformers.Trainer`.
    """

    # If a subclass overrides compute_loss and the model's forward takes **kwargs, transformers multiplies the gradient
    # by the accumulation steps. This attribute says that the loss is a plain mean over the batch, which prevents it.
    loss_is_scaled_for_ga = False
    columns: tuple[Column, ...] = SUPERVISED

    def __init__(self, *args: Any, train_sampler: RowOrder | None = None, quiet: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Views hold only the columns that the model reads, and a transform of `datasets` needs the other columns.
        self.args.remove_unused_columns = False
        self.args.logging_nan_inf_filter = False  # the filter would hide a NaN loss and keep training
        if self.args.label_names is None:
            self.label_names = ["labels"]  # transformers looks in forward(), but a head on features has none there
        if self.args.torch_compile:
            trained: Any = self.model
            compile_blocks(trained, self.args)
        self._sampler = train_sampler
        self._totals = Totals(self)
        self.pace = Pace(self)
        self.saved_step = 0
        self._stop = StopAtStep()
        self.add_callback(self._stop)
        if train_sampler is not None:
            self.add_callback(SetEpoch(train_sampler))
        self.remove_callback(PrinterCallback)
        self.remove_callback(DEFAULT_PROGRESS_CALLBACK)
        if not quiet:
            self.add_callback(ProgressTable(self.columns))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `transformers.Trainer.train` does.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): A checkpoint folder, or True for the newest complete
                checkpoint in `args.output_dir`. The result is bit-equal to that of an uninterrupted training.
            args, kwargs: Further arguments of `transformers.Trainer.train`.

        On SIGINT, SIGTERM and SIGHUP every rank saves a checkpoint after its step. It then raises `KeyboardInterrupt`,
        or `SystemExit` with the code 143 or 129. A second signal ends the training at once, and so does the first one
        with `save_strategy="no"`. Outside the main thread, and where the caller handles a signal, nothing is changed.

        Raises:
            [`RunError`]: If the loss becomes NaN or infinite, or `resume_from_checkpoint` is True and there is no
                complete checkpoint.
        """
        if resume_from_checkpoint is True:
            newest = newest_complete_checkpoint(Path(str(self.args.output_dir)))
            if newest is None:
                raise RunError(
                    f"{self.args.output_dir} holds no complete checkpoint to resume from: "
                    "train without resume_from_checkpoint"
                )
            resume_from_checkpoint = str(newest)
        self._totals.begin()
        self.pace.begin()
        with interrupt.catching(), no_loading_bars():  # writing and reading checkpoints would draw them
            try:
                return super().train(resume_from_checkpoint, *args, **kwargs)
            finally:
                interrupt.stop_deferring()

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        # accelerate would compile the whole model in a wrapper, which renames every tensor and hides the methods that
        # Trainer's callbacks call. compile_blocks does it in place.
        found: dict[str, Any] = super()._build_accelerator_args(**kwargs)
        found.pop("dynamo_plugin", None)
        return found

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        # A checkpoint names the best one by its path, and Trainer forgets the best if it is not there: after the run
        # was moved or copied it would keep other weights. The best lies beside the checkpoint. No upstream issue found
        # (2026-11).
        done: tuple[int, int] = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        state = Path(str(resume_from_checkpoint)) / TRAINER_STATE_NAME
        recorded = (
            read_json(state).get("best_model_checkpoint") if resume_from_checkpoint and state.is_file() else None
        )
        if recorded is not None:
            best = state.parents[1] / PureWindowsPath(recorded).name
            if not best.is_dir():
                raise VerificationError(
                    f"{state.parent} continues from {best}, which is missing: remove {best.parent} and train again"
                )
            self.state.best_model_checkpoint = str(best)
        return done

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[Any] | None:
        # accelerate synchronises only a RandomSampler across ranks. Our sampler depends only on (seed, epoch). Trainer
        # accepts no custom sampler: transformers#8952 and #11460, both closed without a solution.
        return self._sampler if self._sampler is not None else super()._get_train_sampler(train_dataset)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Make the loader as transformers does, but keep every row, even with `dataloader_drop_last`."""
        with self._keeping_every_row():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Make the loader as transformers does, but keep every row, even with `dataloader_drop_last`."""
        with self._keeping_every_row():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _keeping_every_row(self) -> Iterator[None]:
        # dataloader_drop_last is meant for training, but Trainer also drops the last evaluation rows, or all of them.
        wanted, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = wanted

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        # A signal to the whole process group would end the workers, and the training with them before its checkpoint.
        loader = super()._get_dataloader(*args, **kwargs)
        if loader.num_workers > 0:
            loader.worker_init_fn = functools.partial(survive_with_parent, loader.worker_init_fn)
        return loader

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._totals.restore()
        # A run that was interrupted after its last step, for example during the merge, resumes in the middle of an
        # epoch. Trainer would then take one step more than max_steps. No upstream issue found (2026-11).
        if self.state.global_step >= self.state.max_steps or had_stopped_early(self):
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]  # inherited, so not covered by the exclusion

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        self._totals.restore()
        since = self._totals.since(start_time)
        return super()._finalize_training(trial, num_train_samples, since)  # type: ignore[no-untyped-call]

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: nn.Module, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        with self.pace.between_steps():
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        if self._stop.is_due(self.state, self.control):
            if self.saved_step != self.state.global_step:
                self._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # the launcher ends the others as soon as one has ended
            interrupt.end(self._stop.signum)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)  # which moves them to the device; pictures travel as bytes
        is_training = self.model is not None and self.model.training
        return finished(self.train_dataset, inputs) if is_training else inputs

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        with self.pace.loading():
            return super().get_batch_samples(epoch_iterator, num_batches, device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log figures and add `data_wait`, the share of the time since the last log spent waiting for the loader."""
        if "loss" in logs:
            _require_finite(logs["loss"], self.state.global_step, self.args.learning_rate)
            logs["data_wait"] = self.pace.take_data_wait()
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        if self.is_in_train:
            self._require_finite_loss()
        return super().evaluate(*args, **kwargs)

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with self.pace.scoring():
            return super()._evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Trainer writes checkpoints in place and later trusts the folder's name (transformers#35782). We write a
        # marker with checksums last, which identifies complete checkpoints. A diverged run saves nothing, so that its
        # newest complete checkpoint is worth resuming from.
        self._require_finite_loss()
        if self.args.should_save:
            check_guards(Path(str(self.args.output_dir)) / COMPLETE)
        self._totals.gather()
        # Trainer would delete old checkpoints before this one is marked complete. A kill in between would leave none.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        marker = Path(str(self.args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}" / COMPLETE
        if self.args.should_save and marker.is_file():  # a damaged checkpoint, which is now written anew
            marker.unlink()
            sync_folder(marker.parent)
        try:
            super()._save_checkpoint(model, trial)
        except torch.OutOfMemoryError:
            raise
        except (OSError, SafetensorError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            disk = disk_error(error)
            why = first_line(error) if disk is None else disk_line(disk, Path(str(self.args.output_dir)))
            raise RunError(f"the checkpoint of step {self.state.global_step} could not be written: {why}") from error
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(str(self.args.output_dir))
            checkpoint = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            self._totals.save(checkpoint)
            self.save_extra(checkpoint)
            mark_complete(checkpoint)
            remove_old_checkpoints(folder, limit, self.state.best_model_checkpoint)
        self.saved_step = self.state.global_step

    def save_extra(self, checkpoint: Path) -> None:
        """Write the further state of a subclass into a checkpoint. Called before the marker is written."""

    def load_extra(self, checkpoint: Path, best: bool) -> None:
        """Load what `save_extra` wrote. `best` is true if the best weights were loaded, and false on a resume."""

    def _require_finite_loss(self) -> None:
        _require_finite(float(self._tr_loss), self.state.global_step, self.args.learning_rate)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # transformers#48805: Trainer loads with strict=False, and most tensors of a ViT or DINOv2 stay unchanged.
        self._load_weights(Path(resume_from_checkpoint), model)
        self._totals.load(Path(resume_from_checkpoint))
        self.load_extra(Path(resume_from_checkpoint), best=False)

    def _load_best_model(self) -> None:
        # transformers#48805, as above.
        best = Path(str(self.state.best_model_checkpoint))
        if (best / COMPLETE).is_file() and not is_complete(best):
            raise VerificationError(f"the best checkpoint {best} was damaged: remove {best.parent} and train again")
        self._load_weights(best, None)
        self.load_extra(best, best=True)
        if self.args.should_save and self.args.save_total_limit == 1:  # Trainer would delete the last one in place
            for other in sort_checkpoints(str(best.parent)):
                if Path(other) != best:
                    remove_folder(Path(other))

    def _load_weights(self, checkpoint: Path, model: nn.Module | None) -> None:
        # Checkpoints of ViT and DINOv2 use the Hub's key names, which differ from those of the modules in memory.
        # `from_pretrained` translates the names. Everything else is strict.
        target = self.accelerator.unwrap_model(self.model if model is None else model, keep_torch_compile=False)
        if isinstance(target, PreTrainedModel):
            state = load_strictly(type(target), checkpoint).state_dict()
            target.load_state_dict(state, strict=True)
        else:
            load_tensors(checkpoint / SAFE_WEIGHTS_NAME, trained_tensors(target))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save a transformers model as `save_pretrained` does. For any other model save only the trained tensors.

        The frozen tensors follow from the backbone and the seed. Some tuners also share them between layers, which
        safetensors refuses.
        """
        target = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if isinstance(target, PreTrainedModel):
            with no_loading_bars():
                super().save_model(output_dir, _internal_call)
            if self.args.should_save:
                share_weights(Path(str(output_dir or self.args.output_dir)))
        elif self.args.should_save:
            folder = Path(str(output_dir or self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            tensors = {name: tensor.detach().contiguous() for name, tensor in trained_tensors(target).items()}
            save_file(tensors, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})


def _require_finite(loss: float, step: int, learning_rate: float) -> None:
    if not math.isfinite(loss):
        raise RunError(
            f"the loss is {loss} at step {step}: lower learning_rate (now {learning_rate:g}) or check the data"
        )

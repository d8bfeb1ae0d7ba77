"""`MergeValidationCallback`: merge the adapter when training ends, and compare the result with the trained model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from peft import PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import nn
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from natix_hf.errors import MergeMismatchError, UsageError
from natix_hf.models.adapters import REFUSED
from natix_hf.models.classifier import load_strictly, share_weights
from natix_hf.trainers.merge_proof import TOLERANCE, Batch, base_of, merge_in_place, merged_modules, prove_merge

UNMERGED = "unmerged.safetensors"
MERGED = "merged"


class MergeValidationCallback(TrainerCallback):
    """Merge the adapter when training ends, save the plain model, and check that it equals the trained model.

    It works in any [`~transformers.Trainer`] whose model is a `PeftModel` that PEFT can merge, including
    `modules_to_save`. The merged model is written to `<output_dir>/merged` in float32, with its config and the
    Trainer's processing class. It is then read back and compared with the trained model; [`prove_merge`] lists the
    checks. Afterwards `trainer.model` is the plain model on every rank, with the original device and dtypes.
    `trainer.evaluate()`, `predict()` and `save_model()` use it. The trainer's optimizer is dropped, because the
    weights that it updates no longer exist.

    Add the callback last, so that it sees the weights that the other callbacks leave. Rank 0 holds a float32 copy of
    the model in host memory. A plain model without an adapter is saved, read back and compared in the same way.

    Args:
        rows (`int`, defaults to 32): Number of rows on which to compare the outputs. They are spread evenly over the
            evaluation set, because datasets are often sorted by class. Without an evaluation set they come from the
            training set. A dataset without a length gives its first rows.
        tolerance (`float`, defaults to 1e-4): Largest allowed difference of any output.
        model (`nn.Module`, *optional*): The model to check if it is only a part of `trainer.model`, such as the
            backbone inside an objective. `trainer.model` is then not replaced. It requires `images`, `save` and
            `load`.
        images (`Callable`, *optional*): Returns float32 pixel values of shape `(n, 3, H, W)`.
        save (`Callable`, *optional*): Writes the merged model and returns its folder.
        load (`Callable`, *optional*): Reads the model back, strictly.

    Attributes:
        proof (`dict`): The figures of [`prove_merge`] and `rows_from` (`"evaluation"`, `"training"` or `"given"`).
            `None` until training has ended.

    Raises:
        [`UsageError`]: If `rows` is below 1. When training begins, if the model cannot be merged or checked.
        [`MergeMismatchError`]: When training ends, on every rank, with the figures. The unmerged weights are then in
            `<output_dir>/unmerged.safetensors`, and `trainer.model` is still the trained `PeftModel`.

    Example:
        ```python
        from natix_hf import MergeValidationCallback
        from peft import LoraConfig, get_peft_model
        from transformers import Trainer

        model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]))
        check = MergeValidationCallback()
        trainer = Trainer(model, args, train_dataset=train, eval_dataset=test, callbacks=[check])
        trainer.train()
        check.proof["max_difference"]
        ```
    """

    def __init__(
        self,
        rows: int = 32,
        tolerance: float = TOLERANCE,
        *,
        model: nn.Module | None = None,
        images: Callable[[], torch.Tensor] | None = None,
        save: Callable[[PreTrainedModel], Path] | None = None,
        load: Callable[[Path], PreTrainedModel] | None = None,
    ) -> None:
        if rows < 1:
            raise UsageError(f"rows is {rows}: it must be at least 1")
        self.rows = rows
        self.tolerance = tolerance
        self.proof: dict[str, Any] | None = None
        self._model = model
        self._given = (images, save, load)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._model is None:
            _require_provable(_calling_trainer())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer = _calling_trainer() if self._model is None else None
        model: Any = self._model if trainer is None else trainer.model
        told: list[Any] = [None, None]
        stored: PreTrainedModel | None = None
        failure: Exception | None = None
        if state.is_world_process_zero:
            try:
                told[0], stored = self._prove(model, trainer, Path(str(args.output_dir)) / UNMERGED)
            except Exception as error:  # the other ranks wait for the outcome, whatever went wrong
                failure, told[1] = error, str(error)
        self.proof, refused = broadcast_object_list(told)
        if failure is not None:
            raise failure
        if refused is not None:
            raise MergeMismatchError(refused)
        if trainer is not None:
            _replace_model(trainer, stored)

    def _prove(
        self, model: nn.Module, trainer: Trainer | None, unmerged: Path
    ) -> tuple[dict[str, Any], PreTrainedModel]:
        batches: list[Batch]
        if trainer is None:
            images, save, load = self._given
            assert images is not None and save is not None and load is not None, "model needs images, save and load"
            batches, source = [{"pixel_values": part} for part in torch.split(images().float(), 8)], "given"
        else:
            save, load = _saver(trainer), _loader(base_of(model))
            batches, source = _batches(trainer, self.rows)
        try:
            figures, stored = prove_merge(model, batches, save, load, self.tolerance)
        except MergeMismatchError:
            _save_unmerged(model, unmerged)
            raise
        return figures | {"rows_from": source}, stored


def _calling_trainer() -> Trainer:
    """Find the Trainer that runs the callback, a few calls up the stack.

    transformers passes a callback the model and the loaders. That is not enough to read another evaluation set or to
    replace the model.
    """
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer):
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    raise UsageError(
        "MergeValidationCallback was not called by a transformers.Trainer: pass it as Trainer(callbacks=[...])"
    )


def _require_provable(trainer: Trainer) -> None:
    model: Any = trainer.model
    base: Any = base_of(model)
    what = f"MergeValidationCallback: {type(base).__name__}"
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or trainer.is_model_parallel:
        raise UsageError(f"{what} is spread over several devices: train with plain DDP, or on one device")
    if trainer.args.world_size > 1 and trainer.model_wrapped is model:
        # transformers 5.23 prepares a model once. A model prepared for evaluation is not wrapped for training.
        raise UsageError(
            f"{what} was evaluated before training, so the ranks would not synchronise: make a new Trainer"
        )
    if not isinstance(base, PreTrainedModel):
        raise UsageError(f"{what} is not a transformers PreTrainedModel: give model, images, save and load")
    if getattr(base, "hf_quantizer", None) is not None:
        raise UsageError(f"{what} is quantised, and a merge would round it again: load it in float32 or bfloat16")
    if not isinstance(model, PeftModel):
        if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise UsageError(f"{what} has an adapter but is not a PeftModel: add the adapter by peft.get_peft_model")
        return
    for config in model.peft_config.values():
        kind = PeftType(config.peft_type).value.lower()
        if config.is_prompt_learning or kind in ("lily", "poly", "shadow", "xlora"):
            reason = REFUSED.get(kind, "it changes the input, which weights cannot store")
            raise UsageError(f"{what} has the adapter {kind}, which cannot be merged: {reason}")


def _batches(trainer: Trainer, most: int) -> tuple[list[Batch], str]:
    """Collate rows as the Trainer's own loader does, on the CPU, in float32 and without labels."""
    loader: Any
    if trainer.eval_dataset:
        first = next(iter(trainer.eval_dataset)) if isinstance(trainer.eval_dataset, dict) else None
        loader, source = trainer.get_eval_dataloader(first), "evaluation"
    else:
        loader, source = trainer.callback_handler.train_dataloader, "training"
    # Read the dataset directly. Every rank would have to iterate over the loader at the same time.
    rows = _spread(loader.dataset, most)
    size = trainer.args.per_device_eval_batch_size
    labels = {*trainer.label_names, "labels", "label"}
    if getattr(getattr(trainer.model, "config", None), "is_encoder_decoder", False):
        labels = set()  # the decoder's input is made from the labels
    collated = [loader.collate_fn(rows[start : start + size]) for start in range(0, len(rows), size)]
    return [
        {name: _as_float32(value) for name, value in dict(batch).items() if name not in labels} for batch in collated
    ], source


def _spread(dataset: Any, most: int) -> list[Any]:
    try:
        length = len(dataset)
    except TypeError:
        return list(islice(iter(dataset), most))
    return [dataset[row] for row in torch.linspace(0, length - 1, min(most, length)).round().long().tolist()]


def _as_float32(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.to("cpu", torch.float32) if value.is_floating_point() else value.to("cpu")


def _saver(trainer: Trainer) -> Callable[[PreTrainedModel], Path]:
    def save(merged: PreTrainedModel) -> Path:
        folder = Path(str(trainer.args.output_dir)) / MERGED
        merged.save_pretrained(folder)
        share_weights(folder)
        if trainer.processing_class is not None:
            trainer.processing_class.save_pretrained(folder)
        return folder

    return save


def _loader(base: nn.Module) -> Callable[[Path], PreTrainedModel]:
    # Many base model classes add a random pooler on load, even if the model was built without one.
    without_pooler = getattr(base, "pooler", base) is None
    options = {"add_pooling_layer": False} if without_pooler else {}
    return lambda folder: load_strictly(type(base), folder, **options)


def _save_unmerged(model: nn.Module, path: Path) -> None:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weights = trained or dict(model.named_parameters())  # a teacher has no trainable parameters, so save all of it
    save_file({name: p.detach().cpu().contiguous() for name, p in weights.items()}, path)


def _replace_model(trainer: Trainer, stored: PreTrainedModel | None) -> None:
    """Replace the Trainer's model by the plain one. Ranks that did not write merge their own copy, which is equal."""
    trained: Any = trainer.model
    base: Any = base_of(trained)
    device, attention = next(trained.parameters()).device, base.config._attn_implementation
    dtypes = _dtypes_before(trained)
    plain = merge_in_place(trained) if stored is None else stored
    for name, tensor in plain.state_dict(keep_vars=True).items():
        tensor.data = tensor.data.to(dtypes.get(name, tensor.dtype))
    if plain.config._attn_implementation != attention:
        plain.set_attn_implementation(attention)
    plain.requires_grad_(True).eval()
    # Reset the Trainer to the state of a new one with the plain model: nothing is prepared, and no optimizer exists.
    trainer.accelerator.free_memory()
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.model = trainer.model_wrapped = trainer.callback_handler.model = nn.Module.to(plain, device)


def _dtypes_before(model: nn.Module) -> dict[str, torch.dtype]:
    """Original dtype of every tensor of the base model, by its name after the merge."""
    layers = merged_modules(model)
    tensors: dict[str, torch.Tensor] = base_of(model).state_dict()
    for name, (_, original) in layers.items():
        tensors |= {f"{name}.{part}": value for part, value in original.state_dict().items()}
    return {name: value.dtype for name, value in tensors.items()}

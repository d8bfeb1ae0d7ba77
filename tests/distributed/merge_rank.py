"""A rank of a plain Trainer with `MergeValidationCallback()`: leaves its model, or the error that it was given.

Arguments: the folder, and `sound` or `spoilt`: what rank 0 writes.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import PreTrainedModel, Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from natix_hf.errors import MergeMismatchError, UsageError
from natix_hf.trainers.merge_validation import MergeValidationCallback


def main(folder: Path, written: str) -> None:
    rank = int(os.environ["RANK"])
    torch.manual_seed(0)
    model = ViTForImageClassification(
        ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=14,
                  image_size=28)
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(
            model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
        )
    rows = [{"pixel_values": torch.randn(3, 28, 28), "labels": i % 2} for i in range(16)]
    arguments = TrainingArguments(
        str(folder), use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", max_steps=2, learning_rate=0.1
    )
    callback = MergeValidationCallback()
    trainer = Trainer(adapted, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[callback])
    if written == "spoilt" and rank == 0:
        _spoil()
    found: dict[str, Any] = {"world_size": arguments.world_size}
    try:
        trainer.train()
        found |= {"model": type(trainer.model).__name__, "proof": callback.proof}
        save_file({name: value.clone() for name, value in trainer.model.state_dict().items()}, _of(folder, rank))
        found["loss"] = trainer.evaluate()["eval_loss"]
        trainer.save_model(str(folder / "again"))
        try:
            trainer.train()  # transformers would train each rank on its own
        except UsageError as error:
            found["again"] = str(error)
    except MergeMismatchError as error:
        found |= {"model": type(trainer.model).__name__, "error": str(error)}
    _of(folder, rank).with_suffix(".json").write_text(json.dumps(found), encoding="utf-8")


def _of(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank}.safetensors"


def _spoil() -> None:
    right = PreTrainedModel.save_pretrained

    def save(self: Any, folder: Any, **kwargs: Any) -> None:
        self.classifier.bias.data += 1.0
        right(self, folder, **kwargs)

    PreTrainedModel.save_pretrained = save  # type: ignore[method-assign]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

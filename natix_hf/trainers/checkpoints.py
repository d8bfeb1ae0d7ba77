"""Checkpoints of a training: complete or not, the newest of them, and the tensors in them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from natix_hf.errors import VerificationError
from natix_hf.provenance.durable import remove_folder, settle
from natix_hf.provenance.files import check_files, describe_files, list_files, read_json, write_json

COMPLETE = "complete.json"


def trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The trainable parameters of a model, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def load_tensors(path: Path, targets: dict[str, torch.Tensor]) -> None:
    """Copy the tensors of a file into `targets`. Names and shapes must match.

    Raises:
        VerificationError: If the file is missing, damaged, or belongs to another model.
    """
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise VerificationError(f"{path} cannot be loaded: {error}") from None
    shapes = {name: tensor.shape for name, tensor in targets.items()}
    if {name: tensor.shape for name, tensor in stored.items()} != shapes:
        raise VerificationError(f"{path} holds the tensors of another model: begin a new run")
    for name, tensor in stored.items():
        targets[name].copy_(tensor)


def mark_complete(checkpoint: Path) -> None:
    """Write the marker of a complete checkpoint, with size and sha256 of every file."""
    settle(checkpoint)
    names = [name for name in list_files(checkpoint) if name != COMPLETE]
    write_json(checkpoint / COMPLETE, {"files": describe_files(checkpoint, names)})


def remove_old_checkpoints(folder: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints until `limit` are left. The newest and the best one stay.

    transformers' `rotate_checkpoints` deletes file by file, so that a kill leaves a marker without its files.
    """
    found = [Path(path) for path in sort_checkpoints(str(folder))]
    kept = {found[-1], *([Path(best)] if best is not None else [])}
    surplus = len(found) - max(limit, len(kept)) if limit is not None and limit > 0 else 0
    for path in [path for path in found if path not in kept][: max(0, surplus)]:
        remove_folder(path)


def newest_complete_checkpoint(folder: Path) -> Path | None:
    """Find the checkpoint with the most steps whose files match its marker. Returns None if there is none.

    transformers' own `get_last_checkpoint` trusts the folder's name, although checkpoints are written in place.
    """
    numbered = [(path.name.rpartition("-")[2], path) for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")]
    newest_first = sorted(((int(steps), path) for steps, path in numbered if steps.isdigit()), reverse=True)
    return next((path for _, path in newest_first if is_complete(path)), None)


def is_complete(checkpoint: Path) -> bool:
    """Compare the checksums, because weights with a flipped byte load without an error."""
    try:
        return not check_files(checkpoint, read_json(checkpoint / COMPLETE)["files"])
    except (VerificationError, AttributeError, KeyError, TypeError):
        return False

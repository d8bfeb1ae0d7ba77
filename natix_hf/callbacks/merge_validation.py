"""`MergeValidationCallback`: at the end of training the adapter is merged, saved, read back, and proven the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from natix_hf.errors import MergeMismatchError, VerificationError

UNMERGED = "unmerged.safetensors"
TOLERANCE = 1e-4


class MergeValidationCallback(TrainerCallback):
    """Merges in float32, saves, and compares what lies on disk with what was trained.

    The answers of the trained model (logits; of a backbone, its last hidden state) are taken on real images *before*
    the merge: PEFT merges in place, and the "original" asked afterwards is the merged model itself. Add it last, so
    that it sees the weights that are kept.

    Args:
        adapted: what was trained: a PeftModel, or a plain model, of which saving and reading back are proven.
        images: gives float32 [n, 3, H, W] of real rows.
        save: writes the merged model and returns its folder.
        load: reads it back, strictly.
        tolerance: largest difference of any answer.

    Attributes:
        proof: the figures, once training has ended on the writing rank.

    Raises (at the end of training):
        MergeMismatchError: with the figures; the trained weights lie in `<output_dir>/unmerged.safetensors`.
    """

    def __init__(
        self,
        adapted: nn.Module,
        images: Callable[[], torch.Tensor],
        save: Callable[[PreTrainedModel], Path],
        load: Callable[[Path], PreTrainedModel],
        tolerance: float = TOLERANCE,
    ) -> None:
        self.adapted = adapted
        self.images = images
        self.save = save
        self.load = load
        self.tolerance = tolerance
        self.proof: dict[str, Any] | None = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        nn.Module.to(self.adapted, device="cpu", dtype=torch.float32)
        self.adapted.eval()
        trained = [(n, p) for n, p in self.adapted.named_parameters() if p.requires_grad]
        # A teacher has no gradients: then everything.
        unmerged = {n: p.detach().clone() for n, p in trained or self.adapted.named_parameters()}
        try:
            self.proof = self._merge_and_compare()
        except MergeMismatchError:
            save_file(unmerged, Path(str(args.output_dir)) / UNMERGED)
            raise

    def _merge_and_compare(self) -> dict[str, Any]:
        model, images = self.adapted, self.images().float()
        before = answers(model, images)
        with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
            effect = float((answers(model, images) - before).abs().max())
        inner: nn.Module = model.get_base_model() if isinstance(model, PeftModel) else model
        tuned = [name for name, module in inner.named_modules() if isinstance(module, BaseTunerLayer)]
        kept = _tensors_outside(inner, tuned)
        bases = {name: _base_of(inner.get_submodule(name)) for name in tuned}
        merged: Any = model.merge_and_unload() if isinstance(model, PeftModel) else model
        folder = self.save(merged)
        lost = _leftovers(merged, folder)  # first: load would refuse the same, without the trained weights being kept
        if lost is not None:
            raise MergeMismatchError(f"the merged model in {folder} is not what was trained: {lost}")
        try:
            stored = self.load(folder)
        except VerificationError as error:
            raise MergeMismatchError(f"the merged model is not what was trained, it does not load: {error}") from None
        difference = (answers(stored, images) - before).abs()
        state = stored.state_dict()
        figures = {
            "max_difference": float(difference.max()),
            "mean_difference": float(difference.mean()),
            "tolerance": self.tolerance,
            "adapter_effect": effect,
            "images": len(images),
            "merged_layers": len(tuned),
            "tensors_bit_equal": len(kept),
        }
        told = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
        for problem in (
            _not_finite(before, state),
            _differing(kept, state),
            _unchanged(bases, stored, effect),
            None if figures["max_difference"] <= self.tolerance else "the answers differ",
        ):
            if problem is not None:
                raise MergeMismatchError(f"the merged model in {folder} is not what was trained: {problem} ({told})")
        return figures


@torch.no_grad()
def answers(model: nn.Module, images: torch.Tensor, batch_size: int = 8) -> torch.Tensor:
    """Logits of a classifier, or the last hidden state of a backbone, for float32 images [n, 3, H, W]."""
    found = []
    for batch in torch.split(images, batch_size):
        output = model(pixel_values=batch)
        found.append(output.logits if hasattr(output, "logits") else output.last_hidden_state)
    return torch.cat(found)


def _tensors_outside(model: nn.Module, tuned: list[str]) -> dict[str, torch.Tensor]:
    """Copies of every tensor that a merge must leave alone, under its name in the merged model."""
    inside = tuple(f"{name}." for name in tuned)
    return {name: value.clone() for name, value in model.state_dict().items() if not name.startswith(inside)}


def _base_of(layer: nn.Module) -> dict[str, torch.Tensor]:
    assert isinstance(layer, BaseTunerLayer)
    return {name: p.detach().clone() for name, p in layer.get_base_layer().named_parameters()}


def _leftovers(merged: nn.Module, folder: Path) -> str | None:
    wrappers = sorted({type(m).__name__ for m in merged.modules() if type(m).__module__.startswith("peft.")})
    if wrappers:
        return f"{', '.join(wrappers)} of PEFT is left in it"
    file = next(folder.glob("adapter_*"), None)
    return f"{file.name} lies beside it and would be attached on load" if file is not None else None


def _not_finite(before: torch.Tensor, state: dict[str, torch.Tensor]) -> str | None:
    if not before.isfinite().all():
        return "it answered NaN or infinity before it was merged"
    broken = next((name for name, value in state.items() if not value.isfinite().all()), None)
    return f"{broken} holds NaN or infinity" if broken is not None else None


def _differing(kept: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> str | None:
    for name, value in kept.items():
        if name not in state:
            return f"{name} is missing"
        if not torch.equal(value, state[name]):
            return f"{name}, which no adapter touches, changed"
    return None


def _unchanged(bases: dict[str, dict[str, torch.Tensor]], stored: nn.Module, effect: float) -> str | None:
    if not bases or effect == 0.0:
        return None
    moved = any(
        not torch.equal(value, stored.get_submodule(name).get_parameter(part))
        for name, parts in bases.items()
        for part, value in parts.items()
    )
    return None if moved else "the merge changed no weight, though the adapter has an effect"

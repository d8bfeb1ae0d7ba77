"""`prove_merge`: merge an adapter, save the plain model, read it back, and compare it with the trained model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from natix_hf.errors import MergeMismatchError, UsageError, VerificationError, first_line

TOLERANCE = 1e-4
# Relative to the largest entry of a layer if that is above 1. All 36 tuners of the adapter table that merge into
# linear layers stay below 2e-7.
WEIGHT_TOLERANCE = 1e-5

Batch = Mapping[str, Any]


def prove_merge(
    model: nn.Module,
    batches: Sequence[Batch],
    save: Callable[[PreTrainedModel], Path],
    load: Callable[[Path], PreTrainedModel],
    tolerance: float = TOLERANCE,
) -> tuple[dict[str, Any], PreTrainedModel]:
    """Merge a copy of `model` in float32 on the CPU, save it, read it back, and compare it with the trained model.

    The outputs of the trained model are computed before the merge, because PEFT merges in place. The merged weights
    are compared with the linear map that each adapted layer computed before the merge (W + s·BA for LoRA). This check
    does not use PEFT's own merge formula. It finds an error in one entry even if no output depends on it.

    Args:
        model: A `PeftModel`. Or a plain model, for which only saving and reading back are checked. It is not changed.
        batches: Inputs of `model.forward`, without labels.
        save: Writes the merged model and returns its folder.
        load: Reads the model back, strictly, in float32 on the CPU.
        tolerance: Largest allowed difference of any output.

    Returns:
        The figures, and the model as read back. Figures: `max_difference` and `mean_difference` of the outputs;
        `tolerance`; `adapter_effect`, the largest difference of the outputs with and without the adapter; `images`,
        the number of rows; `merged_layers`; `weights_recomputed`, the number of these layers that were compared with
        their own linear map (others, such as norms, are compared only with PEFT's result); `max_weight_difference`;
        `weight_tolerance`; and `tensors_bit_equal`, the number of tensors that a merge must not change.

    Raises:
        [`MergeMismatchError`]: If the saved model differs from the trained one. The message holds the figures.
    """
    trained = _float32_copy(model)
    with _full_precision():
        before = outputs(trained, batches)
        with trained.disable_adapter() if isinstance(trained, PeftModel) else nullcontext():
            effect = float((outputs(trained, batches) - before).abs().max())
        layers = merged_modules(trained)
        kept = {name: value.clone() for name, value in _unmerged_tensors(trained, layers).items()}
        expected = _linear_maps(layers)
        merged = _merge(trained)
        folder = save(merged)
        stored = _read_back(merged, folder, load)
        difference = (outputs(stored, batches) - before).abs()
    state = stored.state_dict()
    weight_difference, wrong_weight = _weight_differences(expected, state)
    figures: dict[str, Any] = {
        "max_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "tolerance": tolerance,
        "adapter_effect": effect,
        "images": sum(_rows(batch) for batch in batches),
        "merged_layers": sum(isinstance(layer, BaseTunerLayer) for layer, _ in layers.values()),
        "weights_recomputed": len(expected),
        "max_weight_difference": weight_difference,
        "weight_tolerance": WEIGHT_TOLERANCE,
        "tensors_bit_equal": len(kept),
    }
    problem = (
        _not_finite(before, state)
        or _differing(kept, state, "which no adapter touches, changed")
        or wrong_weight
        or _differing(merged.state_dict(), state, "as read back, is not what was saved")
        or (None if figures["max_difference"] <= tolerance else "the outputs differ")
    )
    if problem is not None:
        told = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
        raise MergeMismatchError(f"the merged model in {folder} is not what was trained: {problem} ({told})")
    return figures, stored


def _read_back(merged: nn.Module, folder: Path, load: Callable[[Path], PreTrainedModel]) -> PreTrainedModel:
    # Check for leftovers of PEFT first. `load` may refuse them too, but with a less specific message.
    lost = _leftovers(merged, folder)
    if lost is not None:
        raise MergeMismatchError(f"the merged model in {folder} is not what was trained: {lost}")
    try:
        stored = load(folder)
    except VerificationError as error:
        raise MergeMismatchError(f"the merged model is not what was trained, it does not load: {error}") from None
    stored.eval()
    return stored


@torch.no_grad()
def outputs(model: nn.Module, batches: Sequence[Batch]) -> torch.Tensor:
    """Compute every floating-point output of `model` for `batches`, as one flat tensor without the loss.

    Raises:
        [`UsageError`]: If the model returns no such tensor.
    """
    found: list[torch.Tensor] = []
    for batch in batches:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a masked autoencoder draws masks even in evaluation mode
            output = model(**batch)
        values = [value for name, value in output.items() if name != "loss"] if isinstance(output, Mapping) else output
        tensors = [values] if isinstance(values, torch.Tensor) else values
        found += [t.flatten() for t in tensors if isinstance(t, torch.Tensor) and t.is_floating_point()]
    if not found:
        raise UsageError(f"no output to compare: {type(model).__name__} returns no tensor for {len(batches)} batches")
    return torch.cat(found)


def merged_modules(model: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Find PEFT's modules in a model. Maps the name after the merge to the module and the module that it wraps."""
    found: dict[str, tuple[nn.Module, nn.Module]] = {}
    for name, module in base_of(model).named_modules():
        if name.startswith(tuple(f"{outer}." for outer in found)):
            continue
        around: nn.Module = module
        if isinstance(module, BaseTunerLayer):
            found[name] = around, module.get_base_layer()
        elif isinstance(module, AuxiliaryTrainingWrapper):
            found[name] = around, module.original_module
    return found


def base_of(model: nn.Module) -> nn.Module:
    """Unwrap the model inside a PeftModel. A plain model is returned as it is."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def merge_in_place(model: nn.Module) -> PreTrainedModel:
    """Merge without a copy and without a proof, on the CPU in float32, so that the result is exact."""
    nn.Module.to(model, device="cpu", dtype=torch.float32)
    with _full_precision():
        return _merge(model)


def _merge(model: nn.Module) -> PreTrainedModel:
    if not isinstance(model, PeftModel):
        assert isinstance(model, PreTrainedModel)
        return model
    try:
        merged: PreTrainedModel = model.merge_and_unload()
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        kinds = ", ".join(sorted({PeftType(config.peft_type).value for config in model.peft_config.values()}))
        reason = first_line(error)
        raise MergeMismatchError(f"PEFT cannot merge {kinds}: {reason}") from None
    return merged


def _float32_copy(model: nn.Module) -> nn.Module:
    # Copy on the CPU, so that an accelerator never holds the model twice.
    device = next(model.parameters()).device
    nn.Module.to(model, device="cpu")
    copied = copy.deepcopy(model)
    nn.Module.to(model, device=device)
    # accelerate replaces the instance's `forward` for mixed precision. Restore the original.
    original: Any = vars(copied).pop("_original_forward", None)
    if original is not None:
        copied.forward = original
    copied = nn.Module.to(copied, dtype=torch.float32).eval()
    base = base_of(copied)
    if isinstance(base, PreTrainedModel) and "flash" in str(base.config._attn_implementation):
        base.set_attn_implementation("eager")  # flash attention supports neither float32 nor the CPU
    return copied


@contextmanager
def _full_precision() -> Iterator[None]:
    """Compute float32 products in full precision, whatever `torch.set_float32_matmul_precision` the training used."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _unmerged_tensors(model: nn.Module, layers: dict[str, tuple[nn.Module, nn.Module]]) -> dict[str, torch.Tensor]:
    """Every tensor that a merge must not change, by its name after the merge."""
    inside = tuple(f"{name}." for name in layers)
    found = {name: value for name, value in base_of(model).state_dict().items() if not name.startswith(inside)}
    for name, (wrapper, original) in layers.items():
        if isinstance(wrapper, ModulesToSaveWrapper):
            active = wrapper.active_adapters
            kept = wrapper.modules_to_save[active[0]] if active else original
            found |= {f"{name}.{part}": value for part, value in kept.state_dict().items()}
    return found


def _linear_maps(layers: dict[str, tuple[nn.Module, nn.Module]]) -> dict[str, dict[str, torch.Tensor]]:
    maps = {name: _linear_map(layer) for name, (layer, _) in layers.items()}
    return {name: weights for name, weights in maps.items() if weights is not None}


@torch.no_grad()
def _linear_map(layer: nn.Module) -> dict[str, torch.Tensor] | None:
    """Recompute weight and bias of the linear map of an adapted layer from its outputs for unit vectors.

    Returns None if the layer is not of a type that computes a linear map with its weight as the matrix.
    """
    if not isinstance(layer, BaseTunerLayer):
        return None
    base: Any = layer.get_base_layer()
    ask: Any = layer
    if type(base) is nn.Embedding:
        return {"weight": ask(torch.arange(base.num_embeddings))}
    if type(base) in (nn.Linear, Conv1D):
        width = base.in_features if type(base) is nn.Linear else base.nx
        bias = ask(torch.zeros(1, width, dtype=torch.float32))[0]
        matrix = ask(torch.eye(width, dtype=torch.float32)) - bias
        weight = matrix.T if type(base) is nn.Linear else matrix
    elif type(base) is nn.Conv2d and base.padding == (0, 0) and base.dilation == (1, 1) and base.groups == 1:
        # Like the patch embedding of a ViT: a picture of the size of the kernel gives one output.
        shape = base.weight.shape
        units = torch.eye(base.weight[0].numel(), dtype=torch.float32).view(-1, *shape[1:])
        bias = ask(torch.zeros(1, *shape[1:], dtype=torch.float32))[0, :, 0, 0]
        weight = (ask(units)[:, :, 0, 0] - bias).T.reshape(shape)
    else:
        return None
    return {"weight": weight, "bias": bias} if base.bias is not None else {"weight": weight}


def _weight_differences(
    expected: dict[str, dict[str, torch.Tensor]], state: dict[str, torch.Tensor]
) -> tuple[float, str | None]:
    """Compute the largest difference, and describe the first layer that exceeds the tolerance."""
    largest, problem = 0.0, None
    for layer, parts in expected.items():
        for part, weights in parts.items():
            name = f"{layer}.{part}"
            if name not in state or state[name].shape != weights.shape:
                return largest, f"{name} is missing or has another shape"
            difference = float((state[name] - weights).abs().max())
            largest = max(largest, difference)
            scale = max(1.0, *(float(w.abs().max()) for w in parts.values()))
            if problem is None and not difference <= WEIGHT_TOLERANCE * scale:
                problem = f"{name} differs by {difference:.3g} from the weight that the adapted layer had"
    return largest, problem


def _rows(batch: Batch) -> int:
    return next((len(value) for value in batch.values() if isinstance(value, torch.Tensor)), 0)


def _leftovers(merged: nn.Module, folder: Path) -> str | None:
    wrappers = sorted({type(m).__name__ for m in merged.modules() if type(m).__module__.startswith("peft.")})
    if wrappers:
        return f"{', '.join(wrappers)} of PEFT is left in it"
    file = next(folder.glob("adapter_*"), None)
    return f"{file.name} lies beside it and would be attached on load" if file is not None else None


def _not_finite(before: torch.Tensor, state: dict[str, torch.Tensor]) -> str | None:
    if not before.isfinite().all():
        return "it returned NaN or infinity before the merge"
    broken = next((name for name, value in state.items() if not value.isfinite().all()), None)
    return f"{broken} holds NaN or infinity" if broken is not None else None


def _differing(wanted: dict[str, torch.Tensor], state: dict[str, torch.Tensor], what: str) -> str | None:
    for name, value in wanted.items():
        if name not in state:
            return f"{name} is missing"
        if not torch.equal(value, state[name]):
            return f"{name}, {what}"
    return None

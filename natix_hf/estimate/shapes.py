"""Peak memory and floating-point operations of an optimizer step and of an answer, from shapes alone.

The model is built without weights and runs once on tensors without values (torch's `FakeTensorMode`), while
`MemTracker` counts what a device would hold and `FlopCounterMode` what it would compute. No GPU is needed, and a model
of any size takes as long as its number of operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.models.dinov3_vit import modeling_dinov3_vit

_KINDS = {
    "PARAM": "weights",
    "BUFFER": "weights",
    "GRAD": "gradients",
    "OPT": "optimizer",
    "ACT": "activations",
    "TEMP": "activations",
    "OTH": "activations",
}


@dataclass(frozen=True)
class Footprint:
    """What a step or an answer needs.

    Args:
        memory: Bytes at the peak, by kind: `weights`, `gradients`, `optimizer`, `activations`.
        flops: Floating-point operations, a multiplication and an addition counted as two.
        checkpoint: Bytes of what a checkpoint holds: trained weights, the optimizer's state, and further tensors.
    """

    memory: Mapping[str, int]
    flops: int
    checkpoint: int = 0

    @property
    def peak(self) -> int:
        """Bytes at the peak."""
        return sum(self.memory.values())


def step_footprint(
    make: Callable[[], nn.Module],
    item: Mapping[str, torch.Tensor],
    loss: Callable[[nn.Module, dict[str, torch.Tensor]], torch.Tensor],
    arguments: TrainingArguments,
    dtype: torch.dtype | None,
    copies_of_trained: int = 0,
    with_values: bool = False,
) -> Footprint:
    """Measure one optimizer step, with the gradients' clipping and accumulation and the optimizer's state.

    Args:
        make: Builds the model that is trained. It is called on the meta device.
        item: One row of a batch; only shapes, types and the number of true values of a mask are read.
        loss: Computes the loss of a batch.
        arguments: Batch size, accumulation, optimizer, clipping and activation checkpointing.
        dtype: The type of autocast; None trains in float32.
        copies_of_trained: Further copies of the trained weights, such as a moving average or the buckets of DDP.
        with_values: Take the step with real numbers on the CPU, to compare. It needs the memory that it measures.
    """
    selected = _selected(item) * arguments.per_device_train_batch_size
    with nullcontext(make()) if with_values else _without_values(make, selected) as model:
        model.train()
        if arguments.activation_checkpointing:
            enable: Any = model.activation_checkpointing_enable
            enable()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = _optimizer(trained, arguments)

        def forward_and_backward() -> None:
            batch = _batch(item, arguments.per_device_train_batch_size, with_values)
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                value = loss(model, batch)
            torch.autograd.backward(value)

        # One after the other: under activation checkpointing the counter would keep alive what the tracker tracks.
        with FlopCounterMode(display=False) as flops:
            forward_and_backward()
        optimizer.zero_grad()
        with _tracker(model, optimizer) as tracker:
            for _ in range(min(2, arguments.gradient_accumulation_steps)):  # the gradients of the first stay
                forward_and_backward()
                tracker.reset_mod_stats()
            if arguments.max_grad_norm:
                nn.utils.clip_grad_norm_(trained, arguments.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        memory = _by_kind(tracker)
        memory["weights"] += copies_of_trained * sum(parameter.nbytes for parameter in trained)
        total = flops.get_total_flops() * arguments.gradient_accumulation_steps
        return Footprint(memory, total, _checkpoint(model, trained, optimizer))


def _checkpoint(model: nn.Module, trained: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    weights = list(model.parameters()) if isinstance(model, PreTrainedModel) else trained  # see BaseTrainer.save_model
    further: Any = getattr(model, "untrained_state", dict)
    state = [value for of_one in optimizer.state.values() for value in of_one.values()]
    tensors = [*weights, *state, *further().values()]
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))


def answer_footprint(make: Callable[[], nn.Module], item: Mapping[str, torch.Tensor], batch_size: int) -> Footprint:
    """Measure one forward pass without gradients, in float32."""
    with _without_values(make) as model:
        model.eval()
        with torch.no_grad(), _tracker(model) as tracker, FlopCounterMode(display=False) as flops:
            model(**_batch(item, batch_size))
        return Footprint(_by_kind(tracker), flops.get_total_flops())


@contextmanager
def _without_values(make: Callable[[], nn.Module], selected: int = 0) -> Iterator[nn.Module]:
    """Build a model on the meta device, and give it tensors without values on a CPU that is not there.

    Inside the block a boolean mask selects `selected` elements.
    """
    with torch.device("meta"):
        model = make()
    with _no_kept_positions(), FakeTensorMode(), _KnownMasks(selected):
        made: dict[int, torch.Tensor] = {}  # tied weights stay tied
        for module in model.modules():
            for table in (module._parameters, module._buffers):
                for name, old in table.items():
                    if old is not None and id(old) not in made:
                        made[id(old)] = _like(old)
                    if old is not None:
                        table[name] = made[id(old)]  # type: ignore[assignment]
        yield model


@contextmanager
def _no_kept_positions() -> Iterator[None]:
    """Let a DINOv3 compute the positions of its patches afresh. It keeps them from one model to the next, and those
    without values would reach another mode, or a training in this process."""
    kept: Any = modeling_dinov3_vit.get_patches_center_coordinates
    modeling_dinov3_vit.get_patches_center_coordinates = kept.__wrapped__
    try:
        yield
    finally:
        modeling_dinov3_vit.get_patches_center_coordinates = kept


def _like(old: torch.Tensor) -> torch.Tensor:
    new = torch.empty(old.shape, dtype=old.dtype, device="cpu")
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _batch(item: Mapping[str, torch.Tensor], size: int, with_values: bool = False) -> dict[str, torch.Tensor]:
    if with_values:
        return {name: torch.stack([value] * size) for name, value in item.items()}
    return {name: torch.empty((size, *value.shape), dtype=value.dtype, device="cpu") for name, value in item.items()}


def _optimizer(trained: list[nn.Parameter], arguments: TrainingArguments) -> torch.optim.Optimizer:
    """The optimizer of the training, with its state already there: in all steps but the first it is."""
    make, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
    optimizer: torch.optim.Optimizer = make(trained, **settings)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


class _WholeModel(MemTracker):  # type: ignore[no-untyped-call]  # torch's own __init_subclass__
    """A MemTracker without the figures of every module, which take most of its time."""

    def _update_peak_stats(self, peak_state: Any) -> None:
        modules, self.memory_tracking = self.memory_tracking, WeakIdKeyDictionary()
        super()._update_peak_stats(peak_state)
        self.memory_tracking = modules


class _NoHook:
    def remove(self) -> None:
        """Nothing was registered."""


def _tracker(model: nn.Module, *optimizers: torch.optim.Optimizer) -> MemTracker:
    tracker = _WholeModel()
    for parameter in model.parameters():
        if not parameter.requires_grad:  # torch 2.13 registers a hook on every parameter, which a frozen one refuses
            tracker._param_to_grad_hook_handles[parameter] = (_NoHook(), _NoHook())
    tracker.track_external(model, *optimizers)
    return tracker


def _by_kind(tracker: MemTracker) -> dict[str, int]:
    found = dict.fromkeys(_KINDS.values(), 0)
    for device in tracker.get_tracker_snapshot("peak").values():
        for kind, count in device.items():
            name = str(getattr(kind, "name", ""))
            if name in _KINDS:
                found[_KINDS[name]] += count
    return found


def _selected(item: Mapping[str, torch.Tensor]) -> int:
    """The number of true values of the mask in a row, 0 without one."""
    return next((int(value.sum()) for value in item.values() if value.dtype == torch.bool), 0)


class _KnownMasks(TorchFunctionMode):
    """Let every boolean mask select so many elements: without values nobody knows how many it would."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.__getitem__, torch.Tensor.repeat_interleave) and len(args) > 1:
            source, by = args[:2]
            if isinstance(by, torch.Tensor) and by.dtype in (torch.bool, torch.int64):
                chosen = torch.zeros(self.count, dtype=torch.int64)
                if by.dtype == torch.bool:
                    return source.flatten(0, by.dim() - 1)[chosen,]
                if func is torch.Tensor.repeat_interleave:
                    return source[chosen,]
        return func(*args, **(kwargs or {}))

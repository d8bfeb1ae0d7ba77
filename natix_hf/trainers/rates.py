"""Learning rates by depth: each block learns more slowly than the next one. The classifier layer may have its own.

With L blocks and the decay d, block i (1 … L) has the rate `learning_rate * d ** (L + 1 - i)`. All that comes before
the first block (patches, cls token, positions, registers, stem) has `learning_rate * d ** (L + 1)`, all that follows
the last one `learning_rate`. Sources: BEiT (Bao et al., arXiv:2106.08254) and the fine-tuning of MAE (He et al.,
arXiv:2111.06377, appendix A). Blocks in stages are counted through, and what lies between two of them (a downsampling
layer) has the rate of the later one. A tensor of an adapter has the rate of the block that it is in; one that several
blocks share has `learning_rate`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from natix_hf.errors import UsageError
from natix_hf.models.blocks import backbone_blocks
from natix_hf.models.classifier import head_of
from natix_hf.trainers.base import BaseTrainer

# In a group of the optimizer: its rate as a share of `learning_rate`.
SCALE = "lr_scale"


class RatedTrainer(BaseTrainer):
    """A trainer whose optimizer has a rate for each depth.

    Args:
        layer_decay (`float`, *optional*): d, in (0, 1]. None: all blocks have `learning_rate`.
        head_learning_rate (`float`, *optional*): Peak rate of the classifier layer. None: `learning_rate`.
        args, kwargs: Arguments of `BaseTrainer`.

    Raises:
        UsageError: If `optimizers` are given too. In training, if there is no classifier with a backbone in blocks, if
            its weights are spread over devices, or if the checkpoint to resume from was trained at other rates.
    """

    def __init__(
        self, *args: Any, layer_decay: float | None = None, head_learning_rate: float | None = None, **kwargs: Any
    ) -> None:
        self._rates = None if layer_decay is None and head_learning_rate is None else (layer_decay, head_learning_rate)
        if self._rates is not None and any(kwargs.get("optimizers") or ()):
            raise UsageError(
                "layer_decay and head_learning_rate divide the groups of an optimizer of their own: leave out "
                "optimizers"
            )
        super().__init__(*args, **kwargs)

    def create_optimizer(self, model: Any = None) -> Any:
        is_new, optimizer = self.optimizer is None, super().create_optimizer(model)
        if is_new and self._rates is not None:
            trained: Any = self.model
            set_rates(optimizer, trained, self.args.learning_rate, *self._rates)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        is_new, schedule = self.lr_scheduler is None, super().create_scheduler(num_training_steps, optimizer)
        if is_new and self._rates is not None:
            scale_bounds(schedule, schedule.optimizer.param_groups)
        return schedule

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        # A checkpoint holds the rates of its groups, and they would replace those that were asked for.
        optimizer: Any = self.optimizer
        asked = _scales(optimizer)
        other = f"{checkpoint} was trained with another layer_decay or head_learning_rate: give it the same ones"
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError:
            if self._rates is None:
                raise
            raise UsageError(other) from None
        if _scales(optimizer) != asked:
            raise UsageError(other)

    def _get_learning_rate(self) -> float:
        # Trainer logs the rate of the first group. With an adapter and a head rate no group may have the base rate.
        optimizer: Any = self.optimizer
        scale: float = optimizer.param_groups[0].get(SCALE, 1.0)
        return super()._get_learning_rate() / scale


def _scales(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group.get(SCALE, 1.0) for group in optimizer.param_groups]


def set_rates(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    learning_rate: float,
    layer_decay: float | None,
    head_learning_rate: float | None,
) -> None:
    """Divide the groups of a new optimizer by the rate of their parameters. All other settings of a group stay.

    Args:
        optimizer: An optimizer that has made no step.
        model: What is trained: a classifier, or a wrapper around one.
        learning_rate: The peak rate, at least 0.
        layer_decay: d, in (0, 1]. None: all blocks have `learning_rate`.
        head_learning_rate: The peak rate of the classifier layer. None: `learning_rate`.

    Raises:
        UsageError: If there is no classifier with a backbone in the model, or the optimizer has other parameters than
            the model. Also if a rate would be 0.
    """
    rates = rates_by_id(model, learning_rate, layer_decay, head_learning_rate)
    own = {id(parameter) for parameter in model.parameters()}
    if any(id(parameter) not in own for group in optimizer.param_groups for parameter in group["params"]):
        raise UsageError(
            "layer_decay and head_learning_rate know no depth of this optimizer's parameters, which are not those of "
            "the model, as with FSDP and DeepSpeed: leave them out"
        )
    divided = []
    for group in optimizer.param_groups:
        by_rate: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_rate.setdefault(rates.get(id(parameter), learning_rate), []).append(parameter)
        for rate, parameters in by_rate.items():
            scale = rate / learning_rate if learning_rate else 1.0
            divided.append({**group, "params": parameters, "lr": rate, SCALE: scale})
    optimizer.param_groups.clear()
    for group in sorted(divided, key=lambda group: group[SCALE] != 1.0):  # first those whose rate is logged unrounded
        optimizer.add_param_group(group)  # some optimizers prepare a group here


def scale_bounds(schedule: Any, groups: list[dict[str, Any]]) -> None:
    """Scale the bounds of a new schedule for each group.

    `reduce_lr_on_plateau` and `greedy` hold all groups within the same bounds, which would undo the decay. All other
    schedules multiply the rate of each group by the same factor.
    """
    for name in ("min_lrs", "max_lrs"):
        if hasattr(schedule, name):
            bounds = zip(getattr(schedule, name), groups, strict=True)
            setattr(schedule, name, [bound * group.get(SCALE, 1.0) for bound, group in bounds])


def rates_by_id(
    model: nn.Module, learning_rate: float, layer_decay: float | None, head_learning_rate: float | None
) -> dict[int, float]:
    """The peak rate of a parameter, by its `id`. A parameter that is not there has `learning_rate`.

    Raises:
        UsageError: As `set_rates` does.
    """
    plain = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    if plain is None:
        raise UsageError(
            f"layer_decay and head_learning_rate need a classifier with a backbone, not a {type(model).__name__}: "
            "leave them out"
        )
    rates = {id(parameter): head_learning_rate or learning_rate for parameter in head_of(plain).parameters()}
    if layer_decay is not None:
        depths, blocks = _depths(plain.base_model)
        if not blocks:
            raise UsageError(f"layer_decay: a {type(plain).__name__} has no blocks that stand in a list: leave it out")
        if learning_rate * layer_decay ** (blocks + 1) == 0 < learning_rate:
            raise UsageError(f"layer_decay is {layer_decay:g}: with {blocks} blocks the lowest rate is 0, choose more")
        rates |= {key: learning_rate * layer_decay ** (blocks + 1 - depth) for key, depth in depths.items()}
    return rates


def _depths(backbone: nn.Module) -> tuple[dict[int, int], int]:
    """The depth of each parameter by its `id`: 0 before the first of L blocks, L + 1 after the last one; and L."""
    numbers = {id(block): number for number, block in enumerate(backbone_blocks(backbone), 1)}
    found: dict[int, set[int]] = {}
    waiting: list[nn.Parameter] = []  # between the last block and the next one
    done = 0

    def visit(module: nn.Module) -> None:
        nonlocal done
        number = numbers.get(id(module))
        if number is None:
            waiting.extend(module.parameters(recurse=False))
            for child in module.children():
                visit(child)
            return
        for parameter in waiting:
            found.setdefault(id(parameter), set()).add(number if done else 0)
        waiting.clear()
        for parameter in module.parameters():
            found.setdefault(id(parameter), set()).add(number)
        done = number

    visit(backbone)
    last = len(numbers) + 1
    for parameter in waiting:
        found.setdefault(id(parameter), set()).add(last)
    return {key: depths.pop() if len(depths) == 1 else last for key, depths in found.items()}, len(numbers)

"""PROFIT (Chakravarthy et al., arXiv:2412.01930, Algorithm 1): continue a converged model, to forget less of it.

An optimizer step at the weights w, with n reference steps:

    n steps of SGD at the reference rate, each on a batch of its own        d = the sum of these steps
    the gradient g on a further batch, at w + d
    if <d, g> < 0:  g = g - <d, g> / |d|^2 * d
    the optimizer steps from w, with g

**The sign.** w is taken for a minimum of what the model has learned so far, whose loss rises as 1/2 d'Hd on the way
to w + d. So d is, up to H, the gradient of the old loss at w + d, and -d leads back. Where d and g disagree, the part
of g along d is left out, as PCGrad does with the gradients of two tasks. That is the usual case, since gradients of
the new loss made d: a loss that is linear between w and w + d would not be learned at all.

**Batches.** With `a` batches to accumulate, an optimizer step reads (n + 1) * a batches of the epoch, the last `a` of
them for g. To transformers all of them are batches to accumulate, so steps, epochs and a resume count them, and no row
is read twice. Where an epoch leaves fewer batches, the first reference steps are left out: the last step of an epoch
may be a plain one. If an epoch has too few batches for one whole step, a line says so.

**Numbers.** d is summed apart from w: next to a weight, float32 could not tell it. Inner products run over all trained
weights together. Clipping, weight decay, schedules, `layer_decay` and `head_learning_rate` concern the optimizer's
step alone. Each reference step takes the mean of the gradients of all ranks. Nothing but the weights outlives a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import nn
from transformers import PreTrainedModel

from natix_hf.errors import UsageError
from natix_hf.models.classifier import head_of
from natix_hf.terminal import LABEL, tell
from natix_hf.trainers.profit_config import ProfitConfig
from natix_hf.trainers.rates import RatedTrainer


class ProfitTrainer(RatedTrainer):
    """A trainer that makes the steps of PROFIT.

    Args:
        profit (`ProfitConfig`, *optional*): None: plain steps.
        args, kwargs: Arguments of `RatedTrainer`. `args.gradient_accumulation_steps` counts the batches of the
            reference steps too.

    Raises:
        UsageError: If the classifier layer was never trained, or the batches cannot be divided.
    """

    def __init__(self, *args: Any, profit: ProfitConfig | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._profit = profit
        self._tells = self.args.should_save and not kwargs.get("quiet")
        self.projected = 0  # optimizer steps of this process in which a part of the gradient was left out
        self._due: list[tuple[int, bool, bool]] = []
        self._start: list[torch.Tensor] = []
        self._delta = torch.empty(0)
        if profit is None:
            return
        self._accumulated, rest = divmod(self.args.gradient_accumulation_steps, profit.reference_steps + 1)
        if rest:
            raise UsageError(
                f"gradient_accumulation_steps is {self.args.gradient_accumulation_steps}: with profit it counts the "
                f"batches of the reference steps too, so make it a multiple of {profit.reference_steps + 1}"
            )
        trained: Any = self.model
        plain = next((part for part in trained.modules() if isinstance(part, PreTrainedModel)), None)
        bias = head_of(plain).bias if plain is not None else None
        if bias is None or not bool(bias.detach().any()):
            raise UsageError(
                "profit continues a converged model, and the classifier layer of this one is as it was initialised "
                "(its bias is 0): start from a trained classifier, or leave profit out"
            )

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        found = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._profit is not None:
            self._return()  # from a step that ran out of memory (auto_find_batch_size)
            parts = divide_batches(len(found[0]), self._accumulated)
            last = len(parts) - 1
            wanted, whole = self._profit.reference_steps, self.args.gradient_accumulation_steps
            if self.state.global_step == 0 and last < wanted and self._tells:
                tell(
                    f"{' ' * LABEL}profit: an epoch has {len(found[0])} batches and a step reads {whole}, so a step "
                    f"makes {last} of {wanted} reference steps: lower per_device_train_batch_size",
                    hang=LABEL,
                )
            self._due = [
                (size, batch == size - 1, part == last) for part, size in enumerate(parts) for batch in range(size)
            ]
        return found

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        if self._profit is None:
            return super().training_step(model, inputs, num_items_in_batch)
        size, ends, is_main = self._due.pop(0)
        whole, self.current_gradient_accumulation_steps = self.current_gradient_accumulation_steps, size
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        finally:
            self.current_gradient_accumulation_steps = whole
        if ends and not is_main:
            self._reference_step()
        elif ends and self._start:
            self._project()
            self._return()
        return loss * (size / whole)  # Trainer adds up those of all batches

    @torch.no_grad()
    def _reference_step(self) -> None:
        parameters = self._trained()
        if not self._start:
            self._start = [parameter.detach().clone() for parameter in parameters]
            self._delta = torch.zeros_like(_flat(self._start))
        gradient = _flat([parameter.grad for parameter in parameters], parameters)
        # accelerate adds the gradients of the ranks up at the last batch of the optimizer step only.
        gradient = self.accelerator.reduce(gradient, reduction="mean")
        if self.accelerator.scaler is not None:  # fp16
            gradient = gradient / self.accelerator.scaler.get_scale()
            if not bool(gradient.isfinite().all()):
                gradient = torch.zeros_like(gradient)
        assert self._profit is not None
        self._delta.add_(gradient, alpha=-self._profit.rate(self.args.learning_rate))
        moves = torch.split(self._delta, [parameter.numel() for parameter in parameters])
        for parameter, start, move in zip(parameters, self._start, moves, strict=True):
            torch.add(start, move.view_as(start), out=parameter.data)
            parameter.grad = None

    @torch.no_grad()
    def _project(self) -> None:
        parameters = self._trained()
        moves = torch.split(self._delta, [parameter.numel() for parameter in parameters])
        length = _inner(moves, moves).sqrt()
        if length > 0:
            along = _inner(moves, [parameter.grad for parameter in parameters]) / length
            along = broadcast(along)  # the last bit of a sum could differ between two devices
            if along < 0:
                self.projected += 1
                for parameter, move in zip(parameters, moves, strict=True):
                    if parameter.grad is not None:
                        parameter.grad.sub_(move.view_as(parameter) * (along / length).to(move.dtype))

    @torch.no_grad()
    def _return(self) -> None:
        """Give the model the weights from which the reference steps began, if there were any."""
        if self._start:
            for parameter, start in zip(self._trained(), self._start, strict=True):
                parameter.copy_(start)
            self._start, self._delta = [], torch.empty(0)

    def _trained(self) -> list[nn.Parameter]:
        trained: Any = self.model
        return [parameter for parameter in trained.parameters() if parameter.requires_grad]


def divide_batches(batches: int, accumulated: int) -> list[int]:
    """Divide the batches of an optimizer step into those of each reference step and, last, those of its gradient.

    Args:
        batches: Number of batches, fewer at the end of an epoch.
        accumulated: Number of batches of each part. Only the first part may have fewer.
    """
    full, first = divmod(batches, accumulated)
    return ([first] if first else []) + [accumulated] * full


def _inner(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """The inner product of two lists of tensors, a scalar. It is summed in float64 where the device can: float32 would
    lose digits over millions of weights. None stands for zeros."""
    wide = torch.float32 if one[0].device.type == "mps" else torch.float64
    pairs = [(a.reshape(-1), b.reshape(-1)) for a, b in zip(one, other, strict=True) if b is not None]
    return torch.stack([torch.dot(a.to(wide), b.to(wide)) for a, b in pairs]).sum()


def _flat(tensors: list[Any], like: list[Any] | None = None) -> torch.Tensor:
    """One vector of all values. None stands for zeros, as many as the tensor at its place in `like` has."""
    shapes = like if like is not None else tensors
    return torch.cat(
        [
            (torch.zeros_like(shape) if tensor is None else tensor).reshape(-1)
            for tensor, shape in zip(tensors, shapes, strict=True)
        ]
    )

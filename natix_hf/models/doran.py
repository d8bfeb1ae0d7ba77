"""DoRAN (arXiv 2510.04331): DoRA with a learnable term in the denominator, as a custom layer of PEFT's LoRA.

W = m (W0 + s·BA) / (‖W0 + s·BA‖ + τ), with one norm, and one m, for each output feature, and one τ > 0 for each layer.
The paper also lets small shared networks make A and B; that part is left out. The authors published no code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraVariant
from torch import nn

from natix_hf.errors import UsageError


@dataclass
class DoranConfig(LoraConfig):
    """PEFT's `LoraConfig` with `tau`, for `get_peft_model`. Only the options in `ADAPTERS["doran"]` have a meaning.

    Attributes:
        tau (`float`): Where τ starts, above 0, in the unit of a weight's norm.
    """

    tau: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self._register_custom_module({nn.Module: DoranLinear})

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> NoReturn:
        """Refuse: PEFT would read the file as plain LoRA, and drop m and τ with no more than a warning."""
        raise UsageError("PEFT cannot read a DoRAN adapter back: merge it and save the plain model")


class DoranLinear(LoraLinear):
    """A linear layer with one DoRAN adapter.

    Raises:
        TypeError: If the module is no plain `torch.nn.Linear`.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: DoranConfig, **kwargs: Any) -> None:
        if type(base_layer) is not nn.Linear:
            raise TypeError(f"DoRAN adapts linear layers without another adapter, not a {type(base_layer).__name__}")
        super().__init__(base_layer, adapter_name, config, **kwargs)

    @property
    def lora_variants(self) -> dict[tuple[str, ...], type[LoraVariant]]:
        return {(): DoranVariant}


class DoranMagnitude(nn.Module):
    """m [out] and τ of one layer: what W0 + s·BA [out, in] is multiplied by, one factor [out] for each row.

    It starts at m = ‖W0 + s·BA‖ + τ, in float32 at least, so that every factor is 1. τ is `tau` times the exponential
    of a number that starts at 0: it stays above 0, and weight decay draws it back to its start.
    """

    def __init__(self, weight: torch.Tensor, tau: float) -> None:
        super().__init__()
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))  # PEFT trains half weights in float32
        self.start = tau
        self.log_tau_change = nn.Parameter(torch.zeros(1, device=weight.device, dtype=weight.dtype))
        self.weight = nn.Parameter(self._denominator(weight).detach())

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return self.weight / self._denominator(weight)

    def _denominator(self, weight: torch.Tensor) -> torch.Tensor:
        norm: torch.Tensor = torch.linalg.vector_norm(weight, dim=1)
        return norm + self.start * self.log_tau_change.exp()


class DoranVariant(LoraVariant):
    """What PEFT's `lora.Linear` asks of a variant.

    PEFT's DoRA treats the norm as a constant in the backward pass (arXiv 2402.09353, section 4.3), to save memory.
    Here it has its gradient: beside a constant norm, τ would only scale what m scales already.
    """

    def supports_lora_conversion(self) -> bool:
        return False  # PEFT would convert s·BA and forget m and τ

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        if len(module.lora_A) > 1:
            raise ValueError("a layer takes one DoRAN adapter")
        with torch.no_grad():
            magnitude = DoranMagnitude(_direction(module, adapter_name), kwargs["config"].tau)
        module.lora_magnitude_vector[adapter_name] = magnitude

    @staticmethod
    def forward(
        module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """Compute W x + b from the base layer's `result` [..., out]: at the start nothing is added to it but zeros.

        Dropout acts on the input of A alone, as in LoRA. The norm is that of the whole s·BA.
        """
        with torch.autocast(x.device.type, enabled=False):  # the norm of a row takes more digits than bfloat16 has
            factor = module.lora_magnitude_vector[active_adapter](_direction(module, active_adapter))
        low_rank = module.lora_B[active_adapter](module.lora_A[active_adapter](module.lora_dropout[active_adapter](x)))
        bias = module.get_base_layer().bias
        product = result if bias is None else result - bias
        found: torch.Tensor = result + (factor - 1) * product + factor * module.scaling[active_adapter] * low_rank
        return found

    @staticmethod
    @torch.no_grad()
    def merge_safe(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        module._cache_store(_before(active_adapter), orig_weight)
        direction = _direction(module, active_adapter)
        factor = module.lora_magnitude_vector[active_adapter](direction)
        merged: torch.Tensor = (factor[:, None] * direction).to(orig_weight.dtype)
        return merged

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> None:
        orig_weight.data = DoranVariant.merge_safe(module, active_adapter, orig_weight.data)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        before: torch.Tensor = module._cache_pop(_before(active_adapter))
        return before.to(orig_weight)


def _direction(module: Any, adapter: str) -> torch.Tensor:
    """W0 + s·BA [out, in]."""
    low_rank = module.lora_B[adapter].weight @ module.lora_A[adapter].weight
    direction: torch.Tensor = module.get_base_layer().weight + module.scaling[adapter] * low_rank
    return direction


def _before(adapter: str) -> str:
    return f"{adapter}-before_merge"

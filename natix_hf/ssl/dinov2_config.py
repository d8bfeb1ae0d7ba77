"""The recipe's `phase4.dinov2:` section: the DINOv2 objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from natix_hf.errors import require


@dataclass(frozen=True)
class DinoV2Config:
    """Heads, targets and schedules; what grows over a run is fitted to the number of its steps."""

    n_prototypes: int = 8192
    head_hidden: int = 2048  # width of a head's hidden layers
    bottleneck: int = 256  # width of what is compared with the prototypes
    separate_ibot_head: bool = True  # false: patches go through the head of the cls token
    targets: Literal["sinkhorn", "centre"] = "sinkhorn"
    student_temperature: float = 0.1
    teacher_temperature: list[float] = field(default_factory=lambda: [0.04, 0.07])  # from, to
    temperature_warmup: float = 0.3  # share of the steps in which the teacher's temperature rises
    ema: list[float] = field(default_factory=lambda: [0.992, 1.0])  # momentum of the teacher, from, to (cosine)
    weight_decay_end: float | None = 0.4  # phase4.weight_decay rises to it (cosine); null: constant
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1
    freeze_last_layer: float = 0.05  # share of the steps in which the prototypes stay as they are
    mask_share: float = 0.5  # share of the global crops that the student sees masked
    mask_ratio: list[float] = field(default_factory=lambda: [0.1, 0.5])  # least and most share of masked patches

    def __post_init__(self) -> None:
        for name, least in (("n_prototypes", 2), ("head_hidden", 1), ("bottleneck", 2)):
            value = getattr(self, name)
            require(value >= least, f"phase4.dinov2.{name}", value, f"at least {least}")
        sharpness = self.student_temperature
        require(sharpness > 0, "phase4.dinov2.student_temperature", sharpness, "above 0")
        heat = self.teacher_temperature
        holds = len(heat) == 2 and all(value > 0 for value in heat)
        require(holds, "phase4.dinov2.teacher_temperature", heat, "[from, to], both above 0")
        holds = len(self.ema) == 2 and 0 <= self.ema[0] <= self.ema[1] <= 1
        require(holds, "phase4.dinov2.ema", self.ema, "[from, to] in 0 to 1, not falling")
        for name in ("temperature_warmup", "freeze_last_layer", "mask_share"):
            share = getattr(self, name)
            require(0 <= share <= 1, f"phase4.dinov2.{name}", share, "a share from 0 to 1")
        for name in ("ibot_weight", "koleo_weight"):
            weight = getattr(self, name)
            require(weight >= 0, f"phase4.dinov2.{name}", weight, "at least 0")
        end = self.weight_decay_end
        require(end is None or end >= 0, "phase4.dinov2.weight_decay_end", end, "at least 0, or null")
        ratio = self.mask_ratio
        holds = len(ratio) == 2 and 0 < ratio[0] <= ratio[1] <= 1
        require(holds, "phase4.dinov2.mask_ratio", ratio, "[least, most] in (0, 1]")

"""The recipe's `phase4.dinov2:` section. This module imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from natix_hf.section import LATER, Section


@dataclass(frozen=True)
class DinoV2Config(Section):
    """Settings of the DINOv2 objective: heads, targets and schedules. Schedules scale with the number of steps."""

    place: ClassVar[str] = "phase4.dinov2"

    n_prototypes: Annotated[int, "Number of prototypes of each head."] = 8192
    head_hidden: Annotated[int, "Width of the hidden layers of a head."] = 2048
    bottleneck: Annotated[int, "Width of the vectors that are compared with the prototypes."] = 256
    separate_ibot_head: Annotated[
        bool, "Use a separate head for the patches; false uses the head of the cls token for them."
    ] = True
    targets: Annotated[Literal["sinkhorn", "centre"], "How the teacher's targets are spread over the prototypes."] = (
        "sinkhorn"
    )
    student_temperature: Annotated[float, "Temperature of the student's softmax."] = 0.1
    teacher_temperature: Annotated[list[float], "Temperature of the teacher's softmax at the start and the end."] = (
        field(default_factory=lambda: [0.04, 0.07])
    )
    temperature_warmup: Annotated[float, "Share of the steps in which the teacher's temperature rises."] = 0.3
    ema: Annotated[list[float], "Momentum of the teacher at the start and the end, along a cosine."] = field(
        default_factory=lambda: [0.992, 1.0]
    )
    ema_keeps: Annotated[
        float | None,
        "Largest share of the initial weights that the teacher still holds after the last step; in a run that is too "
        "short for it, the first value of ema is lowered. null: ema as it is given.",
    ] = field(default=0.05, metadata=LATER)
    weight_decay_end: Annotated[
        float | None, "Weight decay at the end, reached from phase4.weight_decay along a cosine; null: constant."
    ] = 0.4
    ibot_weight: Annotated[float, "Weight of the iBOT loss on masked patches."] = 1.0
    koleo_weight: Annotated[float, "Weight of the KoLeo loss, which spreads the features."] = 0.1
    freeze_last_layer: Annotated[float, "Share of the steps, from the start, with frozen prototypes."] = 0.05
    mask_share: Annotated[float, "Share of the global crops in which patches are masked for the student."] = 0.5
    mask_ratio: Annotated[list[float], "Smallest and largest share of masked patches in such a crop."] = field(
        default_factory=lambda: [0.1, 0.5]
    )

    def check(self) -> None:
        for name, least, most in (("n_prototypes", 2, 10**7), ("head_hidden", 1, 10**6), ("bottleneck", 2, 10**6)):
            self.require_within(name, least, most)
        heat, ema, ratio = self.teacher_temperature, self.ema, self.mask_ratio
        warm = 0 < self.student_temperature <= 1000
        self.require(warm, "student_temperature", "above 0, up to 1,000")
        warm = len(heat) == 2 and 0 < min(heat) <= max(heat) <= 1000
        self.require(warm, "teacher_temperature", "[from, to], both above 0, up to 1,000")
        self.require(len(ema) == 2 and 0 <= ema[0] <= ema[1] <= 1, "ema", "[from, to] in 0 to 1, not falling")
        keeps = self.ema_keeps is None or 0 < self.ema_keeps < 1
        self.require(keeps, "ema_keeps", "a share between 0 and 1, or null")
        for name in ("temperature_warmup", "freeze_last_layer", "mask_share"):
            self.require(0 <= getattr(self, name) <= 1, name, "a share from 0 to 1")
        for name in ("ibot_weight", "koleo_weight"):
            self.require_within(name, 0, 10**6)
        self.require_within("weight_decay_end", 0, 1000)
        holds = len(ratio) == 2 and 0 < ratio[0] <= ratio[1] <= 1
        self.require(holds, "mask_ratio", "[least, most] in (0, 1]")

"""The DINOv2 objective (Oquab et al., arXiv:2304.07193): a student learns to predict the output of its teacher.

The teacher is a moving average of the student. It sees complete global crops. The student sees the same crops with
some patches masked, and additional small local crops.
"""

from __future__ import annotations

import copy
import functools
import math
from typing import Any, ClassVar, Self

import numpy as np
import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from natix_hf.data.config import Augment
from natix_hf.data.crops import MultiCropViews
from natix_hf.data.crops_config import CropConfig
from natix_hf.data.rows import Rows
from natix_hf.errors import VerificationError
from natix_hf.models.architectures import has_fixed_size, prefix_tokens
from natix_hf.ssl.collapse import feature_std
from natix_hf.ssl.dinov2_config import DinoV2Config
from natix_hf.ssl.explora import freeze_parts, plain_backbone
from natix_hf.ssl.heads import ProjectionHead
from natix_hf.ssl.losses import Centre, centred_targets, dino_loss, ibot_loss, koleo_loss, sinkhorn_targets
from natix_hf.ssl.objective import PlainObjective
from natix_hf.terminal import tell

# Parts of the module that get no gradient.
_UNTRAINED = ("teacher.", "teacher_heads.", "centres.")


class DinoV2Objective(PlainObjective):
    """The losses DINO, iBOT and KoLeo with their teacher, heads and schedules.

    `natix_hf.ssl.objective` describes the interface. Every parameter with `requires_grad` gets a gradient in every
    step, whatever the masks. With gradient accumulation, Sinkhorn and KoLeo treat each forward pass as a batch of its
    own.

    Args:
        student: ViT, DINOv2 or DINOv3, or a PeftModel around one. The caller chooses its trainable
            weights, with two exceptions. A pooler is frozen. A ViT without a mask token gets one in the student only,
            so that the teacher keeps the structure that its class can load.
        teacher: A model of the same structure. Its weights are set to those of the student and frozen.
        config: Heads, targets and schedules.
        seed: Seed of the initial weights of the heads.
    """

    sections: ClassVar[dict[str, type]] = {"dinov2": DinoV2Config, "crops": CropConfig}
    without_decay: ClassVar[tuple[str, ...]] = ("lambda1",)

    @classmethod
    def check(cls, backbone: PreTrainedModel, image_size: int, **sections: Any) -> None:
        """Check that the crop sizes are multiples of the patch size. Raises RecipeError if not."""
        sections["crops"].local_pixels(image_size, backbone.config.patch_size)

    @classmethod
    def build(
        cls, student: nn.Module, image_size: int, seed: int, decoder: Any, images: int, *, dinov2: DinoV2Config,
        crops: CropConfig,
    ) -> Self:  # fmt: skip
        """Make the objective with a copy of the student as teacher. `decoder` and `images` are not used."""
        return cls(student, copy.deepcopy(student), dinov2, seed)

    @classmethod
    def views(
        cls, images: Rows, processor: Any, patch_size: int, augment: Augment, seed: int, *, dinov2: DinoV2Config,
        crops: CropConfig,
    ) -> Dataset[Any]:  # fmt: skip
        """Make multi-crop views with masks. `augment` is not used."""
        size, mean, std = int(processor.size["height"]), processor.image_mean, processor.image_std
        masks = (dinov2.mask_share, dinov2.mask_ratio)
        return MultiCropViews(images.decoded, crops, size, patch_size, mean, std, seed, *masks)

    def __init__(self, student: nn.Module, teacher: nn.Module, config: DinoV2Config, seed: int) -> None:
        super().__init__()
        self.settings = config
        self.student = student
        self.teacher = teacher
        inner = plain_backbone(student)
        freeze_parts(inner, "pooler")
        _add_mask_token(inner)
        width = inner.config.hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.student_heads = self._make_heads(width)
            self.teacher_heads = self._make_heads(width)
        self.centres = nn.ModuleDict()
        if config.targets == "centre":
            self.centres.update({name: Centre(config.n_prototypes) for name in ("dino", "ibot")})
        for module in (self.teacher, self.teacher_heads):
            module.requires_grad_(False)
        self._move_teacher(momentum=0.0)
        self.teacher_temperature = config.teacher_temperature[0]
        self.momentum = config.ema[0]
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the student. The teacher always stays in evaluation mode, so it never uses dropout."""
        super().train(mode)
        self.teacher.eval()
        self.teacher_heads.eval()
        return self

    def forward(
        self, global_crops: torch.Tensor, local_crops: torch.Tensor, masks: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Compute the loss and figures of one batch.

        Args:
            global_crops: float [b, 2, 3, S, S].
            local_crops: float [b, l, 3, s, s]; l may be 0.
            masks: bool [b, 2, patches of a global crop]; True hides a patch from the student.

        Returns:
            `loss`, and without gradient: the unweighted parts `dino`, `ibot` and `koleo`; `target_entropy`, the mean
            entropy of the targets of the cls tokens; `usage_entropy`, the entropy of the mean target; and
            `feature_std`, the spread of the teacher's cls features over the crops of this rank
            (`natix_hf.ssl.collapse.feature_std`). Entropies are shares of log K.
        """
        config = self.settings
        batch = len(global_crops)
        large, masks = global_crops.flatten(0, 1), masks.flatten(0, 1)
        with torch.no_grad():
            teacher_cls, teacher_patches = _tokens(self.teacher, large)
            dino_targets = self._targets("dino", self.teacher_heads["dino"](teacher_cls))
            ibot_targets = self._targets("ibot", _ibot_head(self.teacher_heads)(teacher_patches[masks]))

        student_cls, student_patches = _tokens(self.student, large, masks)
        cls_logits: torch.Tensor = self.student_heads["dino"](student_cls)
        student_globals = cls_logits.view(batch, 2, -1)
        student_locals = student_globals[:, :0]
        if local_crops.shape[1]:
            local_cls, _ = _tokens(self.student, local_crops.flatten(0, 1))
            student_locals = self.student_heads["dino"](local_cls).view(batch, local_crops.shape[1], -1)

        temperature = config.student_temperature
        dino = dino_loss(student_globals, student_locals, dino_targets.view(batch, 2, -1), temperature)
        masked_logits = _ibot_head(self.student_heads)(student_patches[masks])
        ibot = ibot_loss(masked_logits, ibot_targets, masks, temperature)
        koleo = koleo_loss(student_cls[0::2]) + koleo_loss(student_cls[1::2])
        return {
            "loss": dino + config.ibot_weight * ibot + config.koleo_weight * koleo,
            "dino": dino.detach(),
            "ibot": ibot.detach(),
            "koleo": koleo.detach(),
            **_figures(dino_targets, teacher_cls),
        }

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Turn on activation checkpointing. Trainer calls this for `activation_checkpointing: true`."""
        plain_backbone(self.student).activation_checkpointing_enable(**kwargs)

    def on_step_begin(self, step: int, total_steps: int) -> None:
        """Set the teacher's temperature and momentum for the next step, after `step` of `total_steps` steps."""
        low, high = self.settings.teacher_temperature
        warmup = self.settings.temperature_warmup * total_steps
        self.teacher_temperature = high if step >= warmup else low + (high - low) * step / warmup
        given, last = self.settings.ema
        keeps, first = self.settings.ema_keeps, given
        if keeps is not None:
            first = first_momentum(given, last, total_steps, keeps)
        if step == 0 and first < given and PartialState().is_main_process:
            tell(
                f"dinov2: ema begins at {first:.4g}, not at {given:g}, so that the teacher keeps {keeps:g} of its "
                f"initial weights in {total_steps:,} steps (phase4.dinov2.ema_keeps)"
            )
        self.momentum = _cosine(first, last, step, total_steps)

    def on_gradients(self, step: int, total_steps: int) -> None:
        """Freeze the prototypes in the first steps, while the targets of the new heads mean nothing.

        An optimizer skips a parameter without a gradient. Gradients of zero would enter AdamW's second moment, and the
        prototypes would then move at several times the learning rate.
        """
        if step >= round(self.settings.freeze_last_layer * total_steps):
            return
        for head in self.student_heads.values():
            assert isinstance(head, ProjectionHead)
            head.prototypes.grad = None

    def on_step_end(self, step: int, total_steps: int) -> None:
        """Update the teacher, its heads and the centres. Every rank must call this."""
        self._move_teacher(self.momentum)
        for centre in self.centres.values():
            assert isinstance(centre, Centre)
            centre.update()

    def weight_decay(self, step: int, total_steps: int, start: float) -> float:
        """Weight decay after `step` of `total_steps` steps, on a cosine from `start` to `weight_decay_end`."""
        end = self.settings.weight_decay_end
        return start if end is None else _cosine(start, end, step, total_steps)

    def untrained_state(self) -> dict[str, torch.Tensor]:
        """Copy the teacher, its heads and the centres."""
        return {name: value.detach().to("cpu", copy=True) for name, value in self._untrained().items()}

    @torch.no_grad()
    def load_untrained_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore the result of `untrained_state`.

        Raises:
            VerificationError: If it belongs to another model.
        """
        own = self._untrained()
        if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in own.items()}:
            raise VerificationError("the stored teacher belongs to another model or other heads: begin a new run")
        for name, value in state.items():
            own[name].copy_(value)

    def backbone(self) -> nn.Module:
        """The teacher, which is kept after training."""
        return self.teacher

    def _make_heads(self, width: int) -> nn.ModuleDict:
        config = self.settings
        names = ["dino", "ibot"] if config.separate_ibot_head else ["dino"]
        sizes = (width, config.n_prototypes, config.head_hidden, config.bottleneck)
        return nn.ModuleDict({name: ProjectionHead(*sizes) for name in names})

    def _targets(self, name: str, logits: torch.Tensor) -> torch.Tensor:
        if self.settings.targets == "sinkhorn":
            return sinkhorn_targets(logits, self.teacher_temperature)
        centre = self.centres[name]
        assert isinstance(centre, Centre)
        if self.training:
            centre.observe(logits)
        return centred_targets(logits, centre.centre, self.teacher_temperature)

    def _untrained(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self.state_dict().items() if name.startswith(_UNTRAINED)}

    @torch.no_grad()
    def _move_teacher(self, momentum: float) -> None:
        """Set teacher <- momentum * teacher + (1 - momentum) * student, for parameters and buffers, heads included."""
        for target, source in ((self.teacher, self.student), (self.teacher_heads, self.student_heads)):
            new = dict(source.named_parameters()) | dict(source.named_buffers())
            for name, value in [*target.named_parameters(), *target.named_buffers()]:
                if value.is_floating_point():
                    value.lerp_(new[name], 1 - momentum)  # keeps equal values bit-equal
                else:
                    value.copy_(new[name])


def _tokens(
    model: nn.Module, pixels: torch.Tensor, masks: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute cls tokens [n, d] and patch tokens [n, patches, d] of pictures [n, 3, H, W], with patches masked."""
    config = plain_backbone(model).config
    arguments: dict[str, Any] = {"bool_masked_pos": masks}
    if has_fixed_size(config.model_type):  # other models always interpolate their position embeddings
        arguments["interpolate_pos_encoding"] = True
    tokens = model(pixel_values=pixels, **arguments).last_hidden_state
    return tokens[:, 0], tokens[:, prefix_tokens(config) :]


def _ibot_head(heads: nn.ModuleDict) -> nn.Module:
    return heads["ibot"] if "ibot" in heads else heads["dino"]


def _add_mask_token(backbone: PreTrainedModel) -> None:
    embeddings: Any = backbone.embeddings
    if embeddings.mask_token is None:
        embeddings.mask_token = nn.Parameter(torch.zeros_like(embeddings.cls_token))


@torch.no_grad()
def _figures(targets: torch.Tensor, features: torch.Tensor) -> dict[str, torch.Tensor]:
    most = math.log(targets.shape[-1])
    return {
        "target_entropy": torch.special.entr(targets).sum(dim=-1).mean() / most,
        "usage_entropy": torch.special.entr(targets.mean(dim=0)).sum() / most,
        "feature_std": feature_std(features),
    }


@functools.lru_cache
def first_momentum(most: float, last: float, total_steps: int, keeps: float) -> float:
    """Find the largest first momentum with which a teacher loses enough of its initial weights.

    The share of them that is left in the end is the product of the momenta of all steps, along a cosine.

    Args:
        most: Largest first momentum.
        last: Momentum that the cosine approaches, at least `most`.
        total_steps: Length of the run.
        keeps: Largest share that may be left.

    Returns:
        `most` where the run is long enough for it, otherwise less.
    """
    # The momenta rise, so the last one of a block of steps bounds the others. Up to 100,000 steps are exact.
    blocks = min(total_steps, 100_000)
    ends = (np.arange(blocks) + 1) * total_steps // blocks
    counts, turned = np.diff(ends, prepend=0), (1 + np.cos(np.pi * (ends - 1) / total_steps)) / 2

    def left(first: float) -> float:
        with np.errstate(divide="ignore"):
            return float(np.exp(counts @ np.log(last + (first - last) * turned)))

    if left(most) <= keeps:
        return most
    low, high = 0.0, most
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if left(middle) <= keeps else (low, middle)
    return low


def _cosine(start: float, end: float, step: int, total_steps: int) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(step, total_steps) / total_steps)) / 2

"""The DIET objective (Ibrahim et al., arXiv:2302.10260): tell of a view which image it was made from.

DIET-CP (arXiv:2509.06990) trains a pretrained backbone further with it. There is one class for each image and one
cross-entropy, without a teacher, prototypes or a decoder.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from accelerate import PartialState
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from natix_hf.data.config import Augment, AugmentConfig
from natix_hf.data.rows import Rows
from natix_hf.data.views import NumberedViews, TrainViews
from natix_hf.disk import as_size
from natix_hf.ssl.collapse import feature_std
from natix_hf.ssl.diet_config import DietConfig
from natix_hf.ssl.explora import freeze_parts, plain_backbone
from natix_hf.ssl.objective import PlainObjective
from natix_hf.ssl.probe import cls_and_mean_patch
from natix_hf.terminal import tell

_LARGE = 2**30  # bytes of a head's training that a person is told of


class Diet(PlainObjective):
    """An encoder, and a linear layer from its features to one logit for each image.

    The features are those that probes read: the cls token, followed by the mean of the patch tokens.

    Args:
        encoder: A ViT, DINOv2 or DINOv3, or a PeftModel around one. Its pooler and mask token are frozen.
        config: Settings of the loss.
        images: Number of images, at least 2.
        seed: Seed of the initial weights of the layer.
    """

    sections: ClassVar[dict[str, type]] = {"diet": DietConfig}
    without_decay: ClassVar[tuple[str, ...]] = ("lambda1",)
    no_stream: ClassVar[str | None] = "diet has a class for each image, and an endless stream does not number them"

    @classmethod
    def build(
        cls, student: nn.Module, image_size: int, seed: int, decoder: Any, images: int, *, diet: DietConfig
    ) -> Self:
        """Make the objective around an encoder. `decoder` is not used."""
        return cls(student, diet, images, seed)

    @classmethod
    def views(
        cls, images: Rows, processor: Any, patch_size: int, augment: Augment, seed: int, *, diet: DietConfig
    ) -> Dataset[Any]:
        """Make augmented views with the number of their row."""
        size, mean, std = int(processor.size["height"]), processor.image_mean, processor.image_std
        shapes = AugmentConfig() if augment == "challenge" else augment
        strengths = {name: getattr(diet, name) for name in ("crop_scale", "jitter", "grey", "blur")}
        return NumberedViews(TrainViews(images, replace(shapes, **strengths), size, mean, std, seed))

    def __init__(self, encoder: nn.Module, config: DietConfig, images: int, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.settings = config
        inner = plain_backbone(encoder)
        freeze_parts(inner, "pooler", "mask_token")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Linear(2 * inner.config.hidden_size, images, bias=False)
            nn.init.trunc_normal_(self.head.weight, std=0.02)
        needed = 4 * self.head.weight.nbytes  # weights, gradients and the two moments of AdamW
        if needed >= _LARGE and not self.head.weight.is_meta and PartialState().is_main_process:
            tell(f"diet: the layer for {images:,} images takes {as_size(needed)} in training")

    def forward(self, pixel_values: torch.Tensor, row: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the loss and figures of one batch.

        Args:
            pixel_values: float32 [n, 3, H, W], normalised.
            row: int64 [n], the image of each view.

        Returns:
            `loss`, the mean cross-entropy with smoothed labels; and without gradient `told`, the share of views whose
            image has the largest logit, and `feature_std`, the spread of the cls features
            (`natix_hf.ssl.collapse.feature_std`).
        """
        tokens = self.encoder(pixel_values=pixel_values).last_hidden_state
        logits = self.head(cls_and_mean_patch(tokens, plain_backbone(self.encoder).config)).float()
        return {
            "loss": cross_entropy(logits, row, label_smoothing=self.settings.label_smoothing),
            "told": (logits.detach().argmax(dim=1) == row).float().mean(),
            "feature_std": feature_std(tokens[:, 0].detach()),
        }

    def backbone(self) -> nn.Module:
        return self.encoder

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Turn on activation checkpointing. Trainer calls this for `activation_checkpointing: true`."""
        plain_backbone(self.encoder).activation_checkpointing_enable(**kwargs)

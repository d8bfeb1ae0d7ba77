"""The self-supervised stage: a backbone trained on images alone, the best one by probe kept, merged and proven."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder
from transformers.trainer_utils import IntervalStrategy

from natix_hf.callbacks.merge_validation import MergeValidationCallback
from natix_hf.data.asked import ask
from natix_hf.data.config import Augment, AugmentConfig
from natix_hf.data.crops import MultiCropViews
from natix_hf.data.rows import Rows
from natix_hf.data.sampler import EpochSampler
from natix_hf.data.views import AskedViews, MaskedViews, TrainViews
from natix_hf.errors import RecipeError
from natix_hf.models.classifier import load_backbone
from natix_hf.models.preprocess import Preprocess
from natix_hf.models.tuner import count_trainable
from natix_hf.ssl.collapse import feature_figures
from natix_hf.ssl.dinov2 import DinoV2Objective
from natix_hf.ssl.explora import apply_explora, divide_blocks, unfreeze_blocks_alone
from natix_hf.ssl.mae import MaskedAutoencoder
from natix_hf.ssl.probe import backbone_features, probe_scores
from natix_hf.trainers.base import newest_complete_checkpoint
from natix_hf.trainers.explora import ExploraTrainer
from natix_hf.trainers.explora_config import ExploraConfig
from natix_hf.trainers.supervised import first_images, require_a_batch, training_arguments, training_refused

_BEST_BY = "linear_auroc"


def pretrain_backbone(
    backbone: PreTrainedModel,
    processor: Any,
    images: Rows,
    probe_rows: tuple[Rows, Rows] | None,
    config: ExploraConfig,
    augment: Augment,
    save: Callable[[PreTrainedModel], Path],
    checkpoints: Path,
    decoder: ViTMAEDecoder | None = None,
) -> dict[str, Any]:
    """Trains on `images` without their labels and saves the merged backbone, proven equal to the unmerged one.

    Args:
        backbone: to start from, without a head; it is changed in place.
        probe_rows: labelled rows to fit a probe on and to score it on (train, val_select); None: there are no labels,
            the last backbone is kept.
        augment: of the recipe; a masked autoencoder takes its flips and crop shapes, of `challenge` the default ones.
        save: writes the merged backbone and returns its folder; called on one rank.
        checkpoints: folder of the Trainer's checkpoints; training continues from there if it was cut off.
        decoder: of a masked autoencoder, pretrained with the backbone; it is changed in place. None: a fresh one.

    Returns:
        `history` (Trainer's log, probes among it), the objective and which decoder it had ("pretrained" or "fresh"),
        best score by probe, its step and the score before training, trainable parameters of the backbone, `merge` (the
        proof, on the writing rank), steps, seconds.

    Raises:
        MergeMismatchError: the saved backbone does not answer as the trained one did.
        RunError: training collapsed or diverged.
    """
    arguments = training_arguments(config.training_fields(), checkpoints, "phase4")
    seed, size = arguments.seed, int(processor.size["height"])
    objective = config.objective or objective_of(backbone)
    check_pretraining(backbone, config, size)
    model = _objective(backbone, objective, config, size, seed, decoder)
    trainable = count_trainable(backbone)  # heads and decoder, which are thrown away, are not counted
    labelled = probe_rows is not None and config.probe_steps > 0
    if config.probe_steps > 0:
        arguments.eval_strategy = arguments.save_strategy = IntervalStrategy.STEPS
        arguments.eval_steps = arguments.save_steps = config.probe_steps
    arguments.load_best_model_at_end = labelled
    arguments.metric_for_best_model = _BEST_BY if labelled else None
    arguments.greater_is_better = True
    resume = newest_complete_checkpoint(checkpoints)
    arguments.eval_on_start = config.probe_steps > 0 and resume is None  # what the backbone knew before
    trained: Any = model
    preprocess = Preprocess(processor)
    require_a_batch(arguments, len(images), "phase4")
    try:
        trainer = ExploraTrainer(
            model=trained,
            args=arguments,
            train_sampler=EpochSampler(images.labels, seed),
            train_dataset=_views(images, processor, backbone.config.patch_size, objective, config, augment, seed),
            eval_dataset=AskedViews(ask(images), preprocess),
            probe=_Probe(
                images, probe_rows, preprocess, config.probe_rows, arguments.per_device_eval_batch_size, seed
            ),
        )
    except (ImportError, ValueError) as error:
        raise training_refused(error, "phase4") from None
    proof = MergeValidationCallback(
        model=model.backbone(),
        images=lambda: first_images(AskedViews(ask(images), preprocess)),
        save=save,
        load=load_backbone,
    )
    trainer.add_callback(proof)
    begin = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    history = trainer.state.log_history
    return {
        "history": history,
        "objective": objective,
        "decoder": None if objective != "mae" else "fresh" if decoder is None else "pretrained",
        "best_score": trainer.state.best_metric,
        "best_step": trainer.state.best_global_step if labelled else trainer.state.global_step,
        "steps": trainer.state.global_step,
        "score_before": next((row[f"eval_{_BEST_BY}"] for row in history if f"eval_{_BEST_BY}" in row), None),
        "images": len(images),
        "trainable_parameters": trainable,
        "merge": proof.proof,
        "world_size": arguments.world_size,
        "resumed_from": resume.name if resume else None,
        "train_s": round(time.perf_counter() - begin, 1),
    }


def objective_of(backbone: PreTrainedModel) -> str:
    """The objective that a backbone's own weights were made with."""
    return "dinov2" if backbone.config.model_type.startswith("dinov2") else "mae"


def check_pretraining(backbone: PreTrainedModel, config: ExploraConfig, image_size: int) -> None:
    """Refuses settings that do not fit the backbone, which may be on the meta device.

    Raises:
        RecipeError
    """
    if backbone.config.model_type == "dinov3_vit":
        raise RecipeError("phase4: a dinov3_vit cannot be trained without labels here: take a ViT or a DINOv2")
    if config.trainable != "all":
        divide_blocks(backbone, config.unfreeze_blocks, adapt_others=config.trainable == "explora")
    if (config.objective or objective_of(backbone)) == "dinov2":
        config.crops.local_pixels(image_size, backbone.config.patch_size)


def _objective(
    backbone: PreTrainedModel,
    objective: str,
    config: ExploraConfig,
    size: int,
    seed: int,
    decoder: ViTMAEDecoder | None = None,
) -> DinoV2Objective | MaskedAutoencoder:
    if config.trainable == "explora":
        torch.manual_seed(seed)  # LoRA's first weights
        student: nn.Module = apply_explora(backbone, config.rank, config.alpha, config.unfreeze_blocks)
    elif config.trainable == "blocks":
        student = unfreeze_blocks_alone(backbone, config.unfreeze_blocks)
    else:
        student = backbone.requires_grad_(True)
    if objective == "mae":
        return MaskedAutoencoder(student, config.mae, size, seed, decoder)
    return DinoV2Objective(student, copy.deepcopy(student), config.dinov2, seed)


def _views(
    images: Rows, processor: Any, patch: int, objective: str, config: ExploraConfig, augment: Augment, seed: int
) -> Dataset[Any]:
    size, mean, std = int(processor.size["height"]), processor.image_mean, processor.image_std
    if objective == "dinov2":
        share, ratio = config.dinov2.mask_share, config.dinov2.mask_ratio
        return MultiCropViews(images.decoded, config.crops, size, patch, mean, std, seed, share, ratio)
    # Crops and flips alone: what a masked autoencoder learns from is the picture itself.
    shapes = AugmentConfig() if augment == "challenge" else augment
    plain = replace(shapes, crop_scale=config.mae.crop_scale, rotate=0.0, jitter=0.0, grey=0.0, blur=0.0, erase=0.0)
    return MaskedViews(TrainViews(images, plain, size, mean, std, seed), (size // patch) ** 2)


def _some_of_each_label(labels: np.ndarray, most: int, seed: int) -> list[int]:
    """At most about `most` rows, drawn within each label, at least two of either: a probe needs both."""
    rng = np.random.default_rng(seed)
    share = min(1.0, most / len(labels))
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    drawn = [rng.permutation(rows)[: max(2, round(share * len(rows)))] for rows in members]
    return [int(row) for row in np.sort(np.concatenate(drawn))]


class _Probe:
    """Figures of a backbone: of its features, and of a linear and a nearest-neighbour probe where there are labels."""

    def __init__(
        self,
        images: Rows,
        labelled: tuple[Rows, Rows] | None,
        preprocess: Preprocess,
        most: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.rows = labelled if labelled is not None else (images,)
        self.labelled = labelled is not None
        self.views = [AskedViews(ask(rows), preprocess) for rows in self.rows]
        self.chosen = [_some_of_each_label(rows.labels, most, seed) for rows in self.rows]
        self.batch_size = batch_size

    def __call__(self, backbone: nn.Module) -> dict[str, float]:
        features = [
            backbone_features(backbone, views, chosen, self.batch_size)
            for views, chosen in zip(self.views, self.chosen, strict=True)
        ]
        figures = feature_figures(features[0])
        if self.labelled:
            train, val = (rows.labels[chosen] for rows, chosen in zip(self.rows, self.chosen, strict=True))
            figures |= probe_scores(features[0], train, features[1], val)
        return figures

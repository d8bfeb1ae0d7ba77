"""The self-supervised stage of a run: train a backbone on images, keep the best one, merge it and check the merge."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder

from natix_hf.data.asked import Asked
from natix_hf.data.config import Augment, ViewsOn
from natix_hf.data.rows import Rows
from natix_hf.data.stream import Stream
from natix_hf.errors import DataError, RunError
from natix_hf.models.classifier import load_backbone
from natix_hf.ssl.objectives import version_of
from natix_hf.trainers.arguments import require_a_batch, training_arguments, training_refused
from natix_hf.trainers.checkpoints import newest_complete_checkpoint
from natix_hf.trainers.explora import ExploraTrainer
from natix_hf.trainers.explora_config import ExploraConfig
from natix_hf.trainers.merge_validation import MergeValidationCallback
from natix_hf.trainers.pretraining import BEST_BY, make_pretraining
from natix_hf.trainers.pretraining import check_pretraining as check_pretraining
from natix_hf.trainers.stage import first_images


def pretrain_backbone(
    backbone: PreTrainedModel,
    processor: Any,
    images: Rows,
    probe_rows: tuple[Asked, Asked] | None,
    config: ExploraConfig,
    augment: Augment,
    save: Callable[[PreTrainedModel], Path],
    checkpoints: Path,
    decoder: ViTMAEDecoder | None = None,
    stream: Stream | None = None,
    views_on: ViewsOn = "auto",
) -> dict[str, Any]:
    """Train a backbone on `images` without labels, save the merged backbone, and compare it with the trained one.

    Args:
        backbone: The backbone to start from, without a head. It is changed in place.
        processor: Image processor of the backbone.
        images: Rows to train on. With `stream`: a sample of it, on which backbones are compared.
        probe_rows: What a probe is fitted and scored on (train, val_select): labelled pictures, or their views in the
            exam. None: there are no labels, and the last backbone is kept.
        config: Settings of the stage.
        augment: Augmentation of the recipe. A masked autoencoder uses its flips and crop shapes, or the default ones
            with `challenge`.
        save: Writes the merged backbone and returns its folder. It is called on one rank.
        checkpoints: Folder of the checkpoints. An interrupted training continues from there.
        decoder: A masked autoencoder's decoder that was pretrained with the backbone. It is changed in place. None: a
            new decoder.
        stream: Frames to train on in place of `images`.
        views_on: Where training views are made (`choose_place`).

    Returns:
        `history` (the Trainer's log with the probes); the objective, its version, and its decoder ("pretrained" or
        "fresh"); the best score by probe, its step, and the score before training; trainable parameters of the
        backbone; `merge` (figures of the comparison); steps and seconds; `images`, the number of
        different images trained on; with a stream also `streamed` (`StreamTrainer.streamed`).

    Raises:
        MergeMismatchError: If the saved backbone differs from the trained one.
        RunError: If training collapsed or diverged, or a streamed frame cannot be used.
    """
    arguments = training_arguments(config.training_fields(), checkpoints, "phase4")
    resume = newest_complete_checkpoint(checkpoints)
    parts = make_pretraining(
        backbone,
        processor,
        images,
        probe_rows,
        config,
        augment,
        arguments,
        decoder,
        resuming=resume is not None,
        stream=stream,
        views_on=views_on,
    )
    if stream is None:
        require_a_batch(arguments, len(images), "phase4")
    try:
        trainer = ExploraTrainer(args=arguments, **parts.given)
    except (ImportError, ValueError) as error:
        raise training_refused(error, "phase4") from None
    proof = MergeValidationCallback(
        model=parts.model.backbone(), images=lambda: first_images(parts.pictures), save=save, load=load_backbone
    )
    trainer.add_callback(proof)
    begin = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except DataError as error:  # a stream meets a bad frame after hours: the checkpoints stay
        told = str(error).removeprefix("phase4.unlabelled: ")
        raise RunError(f"phase4.unlabelled: {told}; the same command continues from the last checkpoint") from None
    history = trainer.state.log_history
    streamed = {"streamed": trainer.streamed()} if stream is not None else {}
    count = sum(streamed["streamed"]["seen"].values()) if stream is not None else len(images)
    return {
        "history": history,
        "objective": parts.objective,
        "objective_version": version_of(parts.objective),
        "decoder": parts.model.decoder_from,
        "best_score": trainer.state.best_metric,
        "best_step": trainer.state.best_global_step if parts.labelled else trainer.state.global_step,
        "steps": trainer.state.global_step,
        "score_before": next((row[f"eval_{BEST_BY}"] for row in history if f"eval_{BEST_BY}" in row), None),
        "images": count,
        "trainable_parameters": parts.trainable,
        "merge": proof.proof,
        "world_size": arguments.world_size,
        "resumed_from": resume.name if resume else None,
        "train_s": round(time.perf_counter() - begin, 1),
        "pace": trainer.pace.facts(),
    } | streamed

"""Training of a candidate, and the answers that a candidate gives."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from natix_hf.bundle.inference import Inference
from natix_hf.data.asked import Asked
from natix_hf.data.config import DataConfig
from natix_hf.data.rows import Rows
from natix_hf.data.views import AskedViews
from natix_hf.errors import RunError
from natix_hf.models.classifier import save_model
from natix_hf.models.config import ModelConfig
from natix_hf.models.device import loader_workers
from natix_hf.models.features import weights_sha256
from natix_hf.models.preprocess import make_processor
from natix_hf.provenance.files import atomic_folder, write_json
from natix_hf.results import plots
from natix_hf.results.candidate import START, Candidate
from natix_hf.results.logits import LogitTable, write_logits
from natix_hf.results.teachers import compare_with_teachers
from natix_hf.terminal import LABEL, tell
from natix_hf.trainers.converged import start_of_training
from natix_hf.trainers.distil import Distillation
from natix_hf.trainers.supervised import train_classifier
from natix_hf.trainers.supervised_config import SupervisedConfig


def leave_candidate(
    candidate: Candidate,
    model: ModelConfig,
    stage: SupervisedConfig,
    train: Rows,
    val_select: Asked,
    data: DataConfig,
    checkpoints: Path,
    is_main: bool,
    distillation: Distillation | None = None,
    start_seed: int | None = None,
) -> dict[str, Any]:
    """Run the supervised stage: train a classifier on a backbone and leave a candidate. Every rank calls it.

    The candidate's folder then holds the merged model, its logits on val_select, the Trainer's log and a plot of it.

    Args:
        stage: The settings of the training.
        val_select: What is asked to choose the best epoch: pictures, or their views in the exam.
        checkpoints: The folder of the Trainer's checkpoints. An interrupted training continues from there.
        is_main: True for the process that writes. The others only take part in the training.
        distillation: Teachers to learn from too.
        start_seed: Seed of the weights that are not loaded. None: that of the training.

    Returns:
        The report of `train_classifier` without its log, `parameters`, the number of the model's weights, and
        `start_sha256`, the hash of all of them before the training. With teachers also `speed`, pictures a second of
        teachers and student here.
    """
    seed = stage.seed if start_seed is None else start_seed
    classifier = start_of_training(model, seed, data.labels, keep_head=stage.profit is not None)
    start = {START: weights_sha256(classifier, with_head=True)}
    processor = make_processor(model)
    parameters = sum(p.numel() for p in classifier.parameters())
    report = train_classifier(
        classifier,
        processor,
        train,
        val_select,
        stage,
        data.augment,
        data.target_prior,
        checkpoints,
        save=lambda merged: save_candidate(candidate.folder, merged, processor).model,
        views_on=data.views_on,
        distillation=distillation,
    )
    history = report.pop("history")
    if is_main:
        table = compute_answers(candidate, val_select)[0]
        write_logits(candidate.logits_file("val_select"), table)
        plots.training(candidate.training_plot, write_history(candidate.folder / "history.json", history))
        if distillation is not None:
            facts = (report["taught"], distillation, candidate.model, table, data.target_prior)
            report["taught"], report["speed"], lines = compare_with_teachers(*facts)
            for line in lines:
                tell(f"{' ' * LABEL}{line}", hang=LABEL)
    return report | {"parameters": parameters} | start


def save_candidate(folder: Path, model: PreTrainedModel, processor: Any) -> Candidate:
    """Write the model of a candidate: float32 weights, config and processor."""
    candidate = Candidate(folder)
    with atomic_folder(candidate.model) as temporary:
        nn.Module.to(model, device="cpu", dtype=torch.float32)
        save_model(temporary, model, processor)
    return candidate


def compute_answers(candidate: Candidate, asked: Asked, workers: int | None = None) -> tuple[LogitTable, np.ndarray]:
    """Compute a candidate's answers from its saved folder, with the same preprocessing as `predict`.

    Args:
        workers: Processes that prepare the pictures. None: as many as this machine has to spare.

    Returns:
        The logits, and the inputs of the classifier layer, float32 [n, d], which a learned gate reads.

    Raises:
        RunError: if the model answers NaN.
    """
    inference = Inference(candidate.model)
    views = AskedViews(asked, inference.preprocess)
    workers = loader_workers(on_cpu=1) if workers is None else workers
    logits, features = inference.logits_and_features(views, workers=workers, label=f"{candidate.name} logits")
    if not np.isfinite(logits).all():
        first = asked.ids[int(np.flatnonzero(~np.isfinite(logits))[0])]
        raise RunError(f"the model in {candidate.model} answers NaN, first for row {first}: lower learning_rate")
    return LogitTable(asked, logits, candidate.sha256), features


def write_history(path: Path, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write a Trainer's log without wall-clock figures, so that equal trainings leave equal files, and return it.

    NaN and infinity become null, because JSON has no word for them.
    """
    timeless = [
        {
            key: value if math.isfinite(value) else None
            for key, value in sorted(row.items())  # a checkpoint sorts them too
            if key != "data_wait" and not key.endswith(("_runtime", "_per_second"))
        }
        for row in history
    ]
    write_json(path, timeless)
    return timeless

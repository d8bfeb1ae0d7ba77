"""Distillation: the answers of teachers to the very views that a student trains on (arXiv 1503.02531, 2106.05237)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from transformers import TrainingArguments

from natix_hf.data.asked import Asked, ask
from natix_hf.data.config import Augment, ViewsOn
from natix_hf.data.rows import Rows
from natix_hf.data.taught import TaughtViews
from natix_hf.data.unlabelled import joined
from natix_hf.data.views import VIEWS_VERSION, AskedViews, TrainViews, choose_place
from natix_hf.errors import UsageError
from natix_hf.labels import names_in
from natix_hf.metrics import select_threshold
from natix_hf.models.preprocess import Preprocess
from natix_hf.provenance.files import ids_sha256
from natix_hf.trainers.supervised_config import SupervisedConfig
from natix_hf.trainers.teacher import Answers, Teacher, require_same_answers, softened, teacher_of

NO_LABEL = -1


@dataclass(frozen=True)
class Distillation:
    """What a student learns from, beside its labels.

    Attributes:
        teachers: One, or an ensemble.
        unlabelled: Rows without labels, which every epoch reads too.
    """

    teachers: tuple[Teacher, ...]
    unlabelled: tuple[Rows, ...] = ()

    def rows(self, train: Rows) -> Rows:
        """The rows to train on: those with labels, then those without, whose labels are -1."""
        if not self.unlabelled:
            return train
        further = sum(map(len, self.unlabelled))
        labels = np.concatenate([train.labels, np.full(further, NO_LABEL, dtype=np.int64)])
        return replace(joined([train, *self.unlabelled]), labels=labels)


def find_distillation(
    config: SupervisedConfig, names: Sequence[str] | Mapping[int, str], where: str
) -> Distillation | None:
    """Find the teachers of a trainer; None if it has none. A run looks for its own, with what is known of their rows.

    Args:
        names: The names of label 0 and label 1: of the rows where these name them, else of the model.

    Raises:
        UsageError, VerificationError: As `teacher_of` and `require_same_answers` do.
    """
    if not config.teachers:
        return None
    if config.distil.unlabelled:
        raise UsageError(
            f"{where}: distil has unlabelled, which works only in a recipe: leave it out, or run a recipe"
        )
    teachers = tuple(map(teacher_of, config.teachers))
    labels = names_in(dict(names) if isinstance(names, Mapping) else dict(enumerate(names)))
    require_same_answers(teachers, labels, f"{where}.teacher")
    return Distillation(teachers)


def taught(
    views: Any,
    distillation: Distillation,
    train: Rows,
    evaluation: Asked | None,
    size: int,
    config: SupervisedConfig,
    augment: Augment,
    target_prior: float | None,
    arguments: TrainingArguments,
    views_on: ViewsOn,
) -> tuple[TaughtViews, dict[str, Any]]:
    """Add the teachers' answers to the views of a training.

    A view has the same rotation, crop, colours and erasing for teacher and student, each at its own size. With
    `adapter: none` view 0 is the picture as each model's `predict` sees it.

    Args:
        views: Views of `distillation.rows(train)`: `TrainViews`, or `FeatureViews` with `adapter: none`.
        train: The labelled rows.
        evaluation: What is asked to choose the best checkpoint; the teachers are asked too.
        size: Image size of the student in px.

    Returns:
        The views, and facts: each teacher's name, sha256, parameters and MCC on `evaluation` at its best threshold,
        which is optimistic; of several also the MCC of their mean.
    """
    frozen, rows = config.adapter == "none", distillation.rows(train)
    count = config.feature_views if frozen else config.distil.drawn_views(_epochs(arguments, len(rows)))
    answers, asked = [], []
    with arguments.main_process_first(desc="teacher"):  # rank 0 computes, the other ranks read its cache
        for teacher in distillation.teachers:
            processor = teacher.processor
            preprocess = Preprocess(processor)
            batch, workers = arguments.per_device_eval_batch_size, arguments.dataloader_num_workers
            answer = Answers(teacher, batch, workers, arguments.device)
            drawn = TrainViews(
                rows, augment, preprocess.image_size, processor.image_mean, processor.image_std, arguments.seed
            )
            drawn.drawn_for = size
            choose_place(drawn, views_on, arguments.device)
            strengths = augment if augment == "challenge" else asdict(augment)
            made_from = [strengths, arguments.seed, size, VIEWS_VERSION, drawn.on_device]
            of_rows = [[ids_sha256(part.ids), part.decoded._fingerprint] for part in (train, *distillation.unlabelled)]
            of_views = []
            for view in range(count):
                label = f"{teacher.name}, view {view + 1} of {count}"
                if frozen and view == 0:
                    whole = AskedViews(ask(rows), preprocess)
                    of_views.append(answer(whole, range(len(rows)), ["whole", of_rows], label))
                else:
                    keys = [(view, row) for row in range(len(rows))]
                    of_views.append(answer(drawn, keys, [*made_from, view, of_rows], label))
            answers.append(np.stack(of_views))
            if evaluation is not None:
                exam = asdict(evaluation.exam) if evaluation.exam is not None else None
                asked_of = ["asked", evaluation.fingerprint, ids_sha256(evaluation.row_ids), exam]
                pictures = AskedViews(evaluation, preprocess)
                asked.append(answer(pictures, range(len(pictures)), asked_of, f"{teacher.name}, val_select"))
    found = TaughtViews(views, softened(answers, config.distil.temperature))
    facts: dict[str, Any] = {
        "teachers": [
            {"name": teacher.name, "sha256": teacher.sha256, "parameters": teacher.parameters,
             "splits_known": teacher.trained_in is not None}
            for teacher in distillation.teachers
        ],
        "temperature": config.distil.temperature, "mix": config.distil.mix, "views": count, "rows": len(train),
        "unlabelled": len(rows) - len(train),
    }  # fmt: skip
    if evaluation is not None:
        for fact, logits in zip(facts["teachers"], asked, strict=True):
            fact["val_select_mcc_optimistic"] = _mcc([logits], evaluation, target_prior)
        facts["val_select_mcc_optimistic"] = _mcc(asked, evaluation, target_prior)
    return found, facts


def _epochs(arguments: TrainingArguments, rows: int) -> float:
    """Number of epochs of a training on so many rows, or more where a sampler leaves rows out."""
    if arguments.max_steps <= 0:
        return float(arguments.num_train_epochs)
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return 1 + float(arguments.max_steps * batch / rows)


def _mcc(logits: Sequence[np.ndarray], asked: Asked, target_prior: float | None) -> float:
    """The MCC of the mean of teachers at its best threshold."""
    scores = logits[0].astype(np.float64) if len(logits) == 1 else softened(logits, 1.0).astype(np.float64)
    return float(select_threshold(scores, asked.labels, target_prior=target_prior).value)

"""The folds of phase 1: for each fold of groups, a model as phase 1 trains it, without those groups.

A fold's model trains on the other rows of train, and its epoch is chosen on the other rows of val_select. So it has
seen the groups that it answers neither in training nor in any choice.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from natix_hf.data.asked import Asked, ask
from natix_hf.data.folds import divide_folds
from natix_hf.data.rows import Rows
from natix_hf.errors import LeakageError
from natix_hf.metrics import select_threshold
from natix_hf.models.classifier import build_classifier
from natix_hf.models.features import weights_sha256
from natix_hf.models.preprocess import make_processor
from natix_hf.phases.phase1_seeds import MEMBER, MEMBER_FILES, member_figures
from natix_hf.provenance.durable import make_folder, remove_folder, replace
from natix_hf.provenance.files import atomic_file, ids_sha256
from natix_hf.provenance.parts import read_part, write_part
from natix_hf.results.answers import compute_answers, save_candidate
from natix_hf.results.candidate import START, Candidate
from natix_hf.results.logits import write_logits
from natix_hf.results.out_of_fold import OutOfFold, write_out_of_fold
from natix_hf.runs.context import PhaseContext
from natix_hf.runs.trained import MEMBERS
from natix_hf.terminal import LABEL, tell
from natix_hf.trainers.supervised import train_classifier


@dataclass(frozen=True)
class Part:
    """The answers of one fold's model: to its rows of train, then to those of val_select."""

    model_sha256: str
    logits: np.ndarray
    features: np.ndarray


def fold_of_each_row(context: PhaseContext, train: Rows, val_select: Asked) -> np.ndarray:
    """The fold of each row of train, then of val_select, int64 [n].

    Raises:
        UsageError: As `divide_folds` does.
    """
    stage = context.recipe.phase1
    assert stage.folds is not None
    asked, roles = _all_rows(train, val_select)
    return divide_folds(roles, asked.row_labels, asked.row_groups, stage.folds, stage.seed)


def answer_out_of_fold(
    context: PhaseContext, train: Rows, val_select: Asked, folds: np.ndarray
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train a model without each fold and leave its answers to that fold, and with `keep_folds` the model. Every rank
    calls it.

    An interrupted attempt continues with the fold, and the checkpoint, where it stopped.

    Returns:
        Figures for the manifest, and those of each model that is kept.
    """
    of_train, of_val = folds[: len(train)], folds[len(train) :]
    count = int(folds.max()) + 1
    parts, kept = [], []
    for fold in range(count):
        held = [
            ask(train.select(np.flatnonzero(of_train == fold)), val_select.exam),
            val_select.select(np.flatnonzero(of_val == fold)),
        ]
        path = context.checkpoints / "folds" / f"fold-{fold + 1}.safetensors"
        member = Candidate(context.folder / MEMBERS / path.stem) if context.recipe.phase1.keep_folds else None
        report = read_part(member.folder / MEMBER, context.tell) if member is not None else {}
        done = _read_part(path, held) is not None and report is not None
        PartialState().wait_for_everyone()  # every rank looks for the answers before rank 0 writes them
        if not done:
            if context.is_main:
                answered = sum(len(asked.row_ids) for asked in held)
                tell(
                    f"{' ' * LABEL}fold {fold + 1} of {count}: training without the {answered:,} rows that it answers"
                )
            seen = train.select(np.flatnonzero(of_train != fold)), val_select.select(np.flatnonzero(of_val != fold))
            report = _train_fold(context, *seen, held, path)
            if context.is_main and member is not None:
                _keep(member, path, report, val_select)
            if context.is_main:
                remove_folder(path.with_suffix(""))  # the answers are what is wanted
        PartialState().wait_for_everyone()
        parts.append(_read_part(path, held))
        if context.is_main and member is not None:
            assert report is not None
            kept.append({"fold": fold + 1} | member_figures(context, member, report))
    if not context.is_main:
        return {}, []
    return _leave(context, train, val_select, folds, [part for part in parts if part]), kept


def _train_fold(
    context: PhaseContext, train: Rows, val_select: Asked, held: list[Asked], path: Path
) -> dict[str, Any]:
    """Train the model of a fold and write its answers. Its folder stays beside them. Returns the report."""
    recipe, folder = context.recipe, path.with_suffix("")
    seen = {*train.groups.tolist(), *val_select.row_groups.tolist()}
    both = next((group for asked in held for group in asked.row_groups.tolist() if group in seen), None)
    if both is not None:
        raise LeakageError(f"group {both} is in the training of the fold that it is in: the folds divide a group")
    clear_device_cache(garbage_collection=True)  # the next model needs the GPU memory of the last one
    processor = make_processor(context.model)
    classifier = build_classifier(context.model, recipe.phase1.seed, recipe.data.labels)
    start = {START: weights_sha256(classifier, with_head=True)}
    report = train_classifier(
        classifier,
        processor,
        train,
        val_select,
        recipe.phase1,
        recipe.data.augment,
        recipe.data.target_prior,
        folder,
        save=lambda merged: save_candidate(folder, merged, processor).model,
        quiet=True,
        views_on=recipe.data.views_on,
    )
    if not context.is_main:
        return start
    answers = [compute_answers(Candidate(folder), asked) for asked in held if len(asked)]
    tensors = {
        "logits": np.concatenate([table.logits for table, _ in answers]),
        "features": np.concatenate([features for _, features in answers]),
    }
    made_by = {"model_sha256": answers[0][0].candidate_sha256, "rows_sha256": _rows_sha256(held)}
    made_by["content_sha256"] = _content_sha256(**tensors)
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata=made_by)
    return {key: report[key] for key in ("kept_step", "steps")} | start


def _keep(member: Candidate, path: Path, report: dict[str, Any], val_select: Asked) -> None:
    """Keep a fold's model as a candidate is kept, with its answers to all of val_select, most of which it has seen."""
    remove_folder(member.folder)
    make_folder(member.folder)
    replace(Candidate(path.with_suffix("")).model, member.model)
    write_logits(member.logits_file("val_select"), compute_answers(member, val_select)[0])
    write_part(member.folder / MEMBER, report, MEMBER_FILES)


def _rows_sha256(held: list[Asked]) -> str:
    return ids_sha256([row_id for asked in held for row_id in asked.row_ids])


def _content_sha256(logits: np.ndarray, features: np.ndarray) -> str:
    return hashlib.sha256(logits.tobytes() + features.tobytes()).hexdigest()


def _read_part(path: Path, held: list[Asked]) -> Part | None:
    """What a fold's model answered, or None if no attempt has left its answers to these rows yet."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "np") as part:
            made_by = part.metadata() or {}
            if made_by.get("rows_sha256") != _rows_sha256(held):
                return None
            found = Part(made_by["model_sha256"], part.get_tensor("logits"), part.get_tensor("features"))
            intact = made_by["content_sha256"] == _content_sha256(found.logits, found.features)
    except (OSError, SafetensorError, KeyError):
        return None
    return found if intact else None


def _leave(
    context: PhaseContext, train: Rows, val_select: Asked, folds: np.ndarray, parts: list[Part]
) -> dict[str, Any]:
    """Join the answers of all folds in the order of the rows, and write them."""
    asked, roles = _all_rows(train, val_select)
    logits = np.empty((len(folds), asked.views))
    features = np.empty((len(folds), asked.views, parts[0].features.shape[1]), dtype=np.float32)
    for fold, part in enumerate(parts):
        at = np.flatnonzero(folds == fold)
        logits[at] = part.logits.reshape(len(at), asked.views)
        features[at] = part.features.reshape(len(at), asked.views, -1)
    answers = OutOfFold(asked, roles, folds, logits.ravel(), [part.model_sha256 for part in parts])
    write_out_of_fold(context.folder, answers, features.reshape(len(asked), -1))
    best = select_threshold(answers.logits, asked.labels, target_prior=context.recipe.data.target_prior)
    return {"folds": len(parts), "out_of_fold_rows": len(folds), "out_of_fold_mcc_optimistic": best.value}


def _all_rows(train: Rows, val_select: Asked) -> tuple[Asked, np.ndarray]:
    """The rows of train, then of val_select, and the role of each."""
    asked = Asked(
        train.ids + val_select.row_ids,
        np.concatenate([train.groups, val_select.row_groups]),
        np.concatenate([train.labels, val_select.row_labels]),
        val_select.exam,
    )
    return asked, np.repeat(["train", "val_select"], [len(train), len(val_select.row_ids)])

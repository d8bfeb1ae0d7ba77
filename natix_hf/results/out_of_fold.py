"""Out-of-fold answers: each row of train and val_select, answered by a model that has not seen the row's group."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from natix_hf.data.asked import Asked
from natix_hf.errors import VerificationError
from natix_hf.provenance.files import atomic_file
from natix_hf.results.logits import exam_of_text, exam_text

OUT_OF_FOLD = "out_of_fold.parquet"
FEATURES = "out_of_fold_features.safetensors"
_MODELS, _EXAM = b"fold_models_sha256", b"exam"


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold answers to the rows of train, then of val_select.

    Args:
        asked (`Asked`): Rows and views, with the labels that the models were trained on.
        roles (`np.ndarray` of str, shape `(rows,)`): `train` or `val_select`.
        folds (`np.ndarray` of int64, shape `(rows,)`): The fold whose model answered; it has not seen the row's group.
        logits (`np.ndarray` of float64, shape `(len(asked),)`): One answer per view, label 1 over label 0.
        models (`list[str]`): The hash of each fold's weights.
    """

    asked: Asked
    roles: np.ndarray
    folds: np.ndarray
    logits: np.ndarray
    models: list[str]

    @property
    def labels(self) -> np.ndarray:
        return self.asked.labels

    @property
    def groups(self) -> np.ndarray:
        return self.asked.groups

    @property
    def row_logits(self) -> np.ndarray:
        """The mean answer to each row, float64 [rows]."""
        means: np.ndarray = self.logits.reshape(len(self.roles), self.asked.views).mean(axis=1)
        return means


def write_out_of_fold(folder: Path, answers: OutOfFold, features: np.ndarray | None = None) -> None:
    """Write the answers to `out_of_fold.parquet`, one line per view.

    Args:
        features: The inputs of the classifier layer of the model that answered, float32 [answers, d].
    """
    asked = answers.asked
    columns = {
        "row_id": asked.ids,
        "group": asked.groups,
        "label": asked.labels,
        "role": asked.of_rows(answers.roles),
        "fold": asked.of_rows(answers.folds),
        "logit": answers.logits,
    }
    levels = {} if asked.exam is None else {"level": asked.levels}
    made_by = {_MODELS: json.dumps(answers.models).encode(), _EXAM: exam_text(asked.exam)}
    with atomic_file(folder / OUT_OF_FOLD) as temporary:
        pq.write_table(pa.table(columns | levels).replace_schema_metadata(made_by), temporary)
    if features is not None:
        with atomic_file(folder / FEATURES) as temporary:
            save_file({"features": features}, temporary)


def read_out_of_fold(folder: Path) -> OutOfFold:
    """Read what `write_out_of_fold` wrote.

    Raises:
        VerificationError: if the file cannot be read, or if a group is in two folds.
    """
    path = folder / OUT_OF_FOLD
    try:
        content = pq.read_table(path)
        metadata = content.schema.metadata or {}
        exam, models = exam_of_text(metadata[_EXAM]), list(json.loads(metadata[_MODELS]))
        each_row = slice(None, None, exam.views if exam is not None else 1)
        columns = {
            name: np.asarray(content[name].to_pylist()) for name in ("row_id", "group", "label", "role", "fold")
        }
        rows = {name: values[each_row] for name, values in columns.items()}
        asked = Asked(rows["row_id"].tolist(), rows["group"], rows["label"].astype(np.int64), exam)
        logits = content["logit"].to_numpy()
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise VerificationError(f"{path} cannot be read ({error}): run phase 1 again") from None
    folds = rows["fold"].astype(np.int64)
    if len(set(zip(asked.row_groups.tolist(), folds.tolist(), strict=True))) > len(set(asked.row_groups.tolist())):
        raise VerificationError(f"{path} has a group in two folds, so a model answered what it has seen")
    return OutOfFold(asked, rows["role"], folds, logits, models)


def read_out_of_fold_features(folder: Path, answers: OutOfFold) -> np.ndarray:
    """Read the features that belong to these answers, float32 [answers, d].

    Raises:
        VerificationError: if the file cannot be read or belongs to other answers.
    """
    path = folder / FEATURES
    try:
        features: np.ndarray = load_file(path)["features"]
    except (OSError, KeyError, SafetensorError) as error:
        raise VerificationError(f"{path} cannot be read ({error}): run phase 1 again") from None
    if len(features) != len(answers.logits):
        raise VerificationError(
            f"{path} has {len(features)} rows for {len(answers.logits)} answers: run phase 1 again"
        )
    return features

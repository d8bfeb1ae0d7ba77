"""The rows of a run that can be audited: train and val_select, answered by models that have not seen their groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from natix_hf.data.config import DataConfig
from natix_hf.data.images import open_image
from natix_hf.data.rows import ImageData, load_image_data
from natix_hf.data.splits import SPLITS, read_splits
from natix_hf.errors import UsageError, VerificationError
from natix_hf.labels import LabelNames
from natix_hf.provenance.manifest import read_manifest
from natix_hf.results.candidate import Candidate
from natix_hf.results.examples import thumbnail
from natix_hf.results.out_of_fold import OUT_OF_FOLD, OutOfFold, read_out_of_fold
from natix_hf.runs.folders import RUN_FILE
from natix_hf.runs.freshness import finished_digest, is_stale
from natix_hf.runs.graph import PHASES
from natix_hf.runs.pins import pinned_data

_ROLES = ("train", "val_select")


@dataclass(frozen=True)
class AuditedRows:
    """Rows of train, then of val_select, with their out-of-fold answers. Rows of val_calib and test are not in it.

    Args:
        run_id: The run.
        answers ([`OutOfFold`]): The answers.
        labels (`np.ndarray` of int64 [n]): The labels in use.
        source_labels (`np.ndarray` of int64 [n]): The labels without the noise of `data.label_noise`.
        data ([`ImageData`]): The run's data.
        at (`list[int]`): The place of each row in the source.
        config ([`DataConfig`]): The recipe's section.
        names ([`LabelNames`]): The names of the answers.
    """

    run_id: str
    answers: OutOfFold
    labels: np.ndarray
    source_labels: np.ndarray
    data: ImageData
    at: list[int]
    config: DataConfig
    names: LabelNames

    @property
    def ids(self) -> list[str]:
        return self.answers.asked.row_ids

    @property
    def groups(self) -> np.ndarray:
        return self.answers.asked.row_groups

    def cell(self, row: int) -> Any:
        """The undecoded picture of a row."""
        return self.data.rows.images[self.at[row]][self.config.image_column]

    def place(self, row: int) -> str:
        """The file of a row's picture, or the row's id where the picture is no file of its own."""
        cell = self.cell(row)
        own_file = isinstance(cell, dict) and cell.get("bytes") is None and cell.get("path")
        return str(cell["path"]) if own_file else self.ids[row]

    def thumbnail(self, row: int) -> Any:
        """A small copy of a row's picture, as a PIL image.

        Raises:
            DataError: If the picture cannot be read.
        """
        most = self.config.max_megapixels
        return thumbnail(open_image(self.cell(row), self.ids[row], at_least=256, max_megapixels=most))


def read_audited(run_dir: Path) -> AuditedRows:
    """Read the out-of-fold answers of a run, and the pictures that they are about.

    Raises:
        UsageError: If it is no run folder, or phase 1 is missing or stale or left no out-of-fold answers.
        DataError: If the source is missing or has changed.
        VerificationError: If a file is damaged, or the answers are about other rows or labels than the splits hold.
    """
    if not (run_dir / RUN_FILE).is_file():
        raise UsageError(f"{run_dir} is not a run folder: name one that natix-hf run has made")
    folder = run_dir / PHASES[1].folder
    again = f"natix-hf run RECIPE --phases 1 --run-dir {run_dir}"
    for number in (0, 1):
        if finished_digest(run_dir, PHASES[number]) is None:
            raise UsageError(f"an audit needs phase {number}, which is not finished in {run_dir}: {again}")
    if is_stale(run_dir, PHASES[1]):
        raise UsageError(f"phase 1 of {run_dir} was made from other inputs than are there now: {again}")
    if not (folder / OUT_OF_FOLD).is_file():
        raise UsageError(
            f"{run_dir} has no out-of-fold answers ({PHASES[1].folder}/{OUT_OF_FOLD}), and a model that was fitted to "
            f"a label cannot doubt it: set phase1.folds=5: {again} phase1.folds=5"
        )
    answers = read_out_of_fold(folder)
    splits = read_splits(run_dir / PHASES[0].folder / SPLITS)
    section = read_manifest(run_dir / PHASES[0].folder)["section"]["data"]
    config = DataConfig.build(section)
    order = [i for role in _ROLES for i in splits.positions(role)]
    labels = np.asarray([splits.labels[i] for i in order], dtype=np.int64)
    same = [splits.ids[i] for i in order] == answers.asked.row_ids
    if not same or labels.tolist() != answers.asked.row_labels.tolist():
        raise VerificationError(
            f"{folder / OUT_OF_FOLD} answers other rows or labels than {SPLITS} holds: run phase 1 again: {again}"
        )
    data = load_image_data(pinned_data(run_dir, config), splits)
    place = {row_id: i for i, row_id in enumerate(data.rows.ids)}
    at = [place[row_id] for row_id in answers.asked.row_ids]
    return AuditedRows(
        run_dir.resolve().name, answers, labels, data.rows.labels[at], data, at, config, Candidate(folder).labels
    )

"""The hard test rows of a run, kept as small pictures: what a person should look at before trusting the figures.

They are files of phase 6, not of the bundle: the photographs may be licensed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from natix_hf.bundle.logits import LogitTable
from natix_hf.bundle.policy import Policy
from natix_hf.data.images import shrink, tame_aspect
from natix_hf.data.rows import Rows
from natix_hf.errors import DataError
from natix_hf.models.classifier import ID2LABEL
from natix_hf.provenance.files import atomic_folder, write_json

EXAMPLES = "examples"
EXAMPLES_FILE = "examples.json"
_SHOWN = 8  # of each kind, every one of another group
_PX = 192  # short side of a thumbnail
_OUTSIDE = 0.35  # brightness of what the model does not see


@dataclass(frozen=True)
class Answered:
    """The test rows, or their views, with what the policy made of them, aligned.

    Args:
        confidence: float64 [n]; what acceptance is decided by. accepted: bool [n].
        rows: the pictures, `table.views` answers each. picture: what the model was shown, by its place in the table.
    """

    table: LogitTable
    policy: Policy
    confidence: np.ndarray
    accepted: np.ndarray
    rows: Rows
    picture: Callable[[int], Image.Image]

    def column(self, name: str) -> list[str]:
        """The values of a column of the source, aligned with the answers."""
        return [str(value) for value in self.rows.column(name) for _ in range(self.table.views)]

    @property
    def positive(self) -> np.ndarray:
        return self.policy.decide(self.table.logits)

    @property
    def wrong(self) -> np.ndarray:
        return np.asarray(self.positive != (self.table.labels == 1))


def write_examples(folder: Path, answered: Answered, slices: dict[str, dict[str, Any]]) -> None:
    """Leaves `examples.json` and the thumbnails that it names in `folder/examples`.

    Args:
        slices: by column, the figures of its values, as in `evaluation.json`.
    """
    kinds = choose_examples(answered, slices)
    wanted = dict.fromkeys(i for kind in kinds for i in kind["rows"])
    columns = {name: answered.column(name) for name in slices}
    with atomic_folder(folder / EXAMPLES) as temporary:
        files = {i: _write_thumbnail(temporary, number, answered, i) for number, i in enumerate(wanted)}
        for kind in kinds:
            kind["rows"] = [_describe(answered, i, files[i], columns) for i in kind["rows"]]
        write_json(temporary / EXAMPLES_FILE, {"kinds": kinds})


def choose_examples(answered: Answered, slices: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Positions of the rows to show, by kind: the most confident mistakes of both kinds; where answers are accepted,
    the abstentions closest to it; the most confident mistakes of the slice with the lowest MCC.

    Returns:
        Rows of `kind`, `total` (how many rows are of it) and `rows`, at most eight positions, one of each group.
    """
    wrong, positive, confidence = answered.wrong, answered.positive, answered.confidence
    kinds = [
        {"kind": kind, "total": int(of_kind.sum()), "rows": _first_of_groups(answered, of_kind, -confidence)}
        for kind, of_kind in (("missed", wrong & ~positive), ("false_alarm", wrong & positive))
    ]
    thresholds = answered.policy.risk_control.get("thresholds")
    if thresholds is not None:
        lacking = np.where(positive, thresholds[ID2LABEL[1]], thresholds[ID2LABEL[0]]) - confidence
        abstained = ~answered.accepted
        rows = _first_of_groups(answered, abstained, lacking)
        kinds.append({"kind": "abstained", "total": int(abstained.sum()), "rows": rows})
    worst = worst_slice(slices)
    if worst is not None:
        column, value = worst
        inside = wrong & np.asarray([found == value for found in answered.column(column)])
        facts = {"column": column, "value": value, "mcc": slices[column][value]["mcc"]}
        rows = _first_of_groups(answered, inside, -confidence)
        kinds.append({"kind": "slice", "total": int(inside.sum()), "rows": rows} | facts)
    return kinds


def worst_slice(slices: dict[str, dict[str, Any]]) -> tuple[str, str] | None:
    """Column and value with the lowest MCC, among columns that have two values to compare; None: there is none."""
    found = []
    for column, values in slices.items():
        defined = [(figures["mcc"], column, value) for value, figures in values.items() if figures["mcc"] is not None]
        found += defined if len(defined) > 1 else []
    return min(found)[1:] if found else None


def _first_of_groups(answered: Answered, of_kind: np.ndarray, key: np.ndarray) -> Sequence[int]:
    """The positions of a kind by rising key, the first of each group: frames of one video would fill the page."""
    at = np.flatnonzero(of_kind)
    at = at[np.argsort(key[at], kind="stable")]
    _, first = np.unique(answered.table.groups[at], return_index=True)
    return [int(i) for i in at[np.sort(first)[:_SHOWN]]]


def _describe(answered: Answered, i: int, file: str | None, columns: dict[str, list[str]]) -> dict[str, Any]:
    answer = ID2LABEL[int(answered.positive[i])]
    return {
        "row": answered.table.ids[i],
        "file": file,
        "label": ID2LABEL[int(answered.table.labels[i])],
        "answer": answer,
        "probability": float(answered.policy.probability(answered.table.logits[[i]])[0]),
        "decision": answer if answered.accepted[i] else "abstain",
        "level": int(answered.table.levels[i]) if answered.table.exam is not None else None,
        "slices": {name: values[i] for name, values in columns.items()},
    }


def _write_thumbnail(folder: Path, number: int, answered: Answered, i: int) -> str | None:
    """Returns its name; None where the picture gives none, which is no reason to lose an export."""
    name = f"{number:02d}.jpg"
    try:
        small = thumbnail(answered.picture(i))
        small.save(folder / name, format="JPEG", quality=80, optimize=True)
    except (DataError, MemoryError, ValueError):
        return None
    return name


def thumbnail(image: Image.Image) -> Image.Image:
    """The whole picture, small, dark where the model does not look: outside its centre square. Pixels alone: nothing
    that a camera wrote beside them comes along."""
    image = shrink(tame_aspect(image), _PX)
    pixels = np.asarray(image).astype(np.float64)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    dimmed = pixels * _OUTSIDE
    dimmed[top : top + side, left : left + side] = pixels[top : top + side, left : left + side]
    return Image.fromarray(dimmed.round().astype(np.uint8))

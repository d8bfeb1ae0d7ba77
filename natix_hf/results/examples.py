"""The hard test rows of a run as small pictures, to look at before you trust the figures.

They stay in the folder of phase 6 and out of the bundle, because the photographs may be licensed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from natix_hf.bundle.explain import explained_by
from natix_hf.bundle.policy import Policy
from natix_hf.data.images import shrink, tame_aspect
from natix_hf.errors import DataError, NatixError, first_line, shortened
from natix_hf.labels import ABSTAIN
from natix_hf.provenance.files import atomic_folder
from natix_hf.provenance.stored import OPTIONAL, Stored
from natix_hf.results.evaluation import SliceFigures
from natix_hf.results.logits import LogitTable

EXAMPLES = "examples"
_SHOWN = 8  # examples of each kind, each from another group
_EXPLAINED = 4  # of each kind: a heatmap takes as long as some 70 answers
_HEATS_S = 120  # no run takes longer for its heatmaps, however large the model
_PX = 192  # short side of a thumbnail
_OUTSIDE = 0.35  # brightness of the parts that the model does not see
Slices = dict[str, dict[str, SliceFigures]]


@dataclass(frozen=True)
class Example:
    """One answer to look at. `file` is its thumbnail, or None if it could not be drawn. `heat` is the file with the
    places that moved the answer, or None if it was not made."""

    row: str
    file: str | None
    label: str
    answer: str
    probability: float
    decision: str
    level: int | None
    slices: dict[str, str]
    heat: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class ExampleKind:
    """Examples of one kind: `missed`, `false_alarm`, `abstained` or `slice`. `total` counts all answers of the kind.
    A slice also has its column, value and MCC."""

    kind: str
    total: int
    rows: list[Example]
    column: str | None = field(default=None, metadata=OPTIONAL)
    value: str | None = field(default=None, metadata=OPTIONAL)
    mcc: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Examples(Stored):
    """The hard test rows by kind. The file lies beside the thumbnails that it names. `no_heat` says why there are no
    heatmaps, or none from some row on."""

    FILE: ClassVar[str] = "examples.json"

    kinds: list[ExampleKind]
    no_heat: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Answered:
    """Test answers and what the policy makes of them, aligned.

    Args:
        table: The answers; its `asked` can open the pictures.
        confidence: float64 [n], which decides on acceptance.
        accepted: bool [n].
        columns: Values of the source's columns by name, one value per row.
    """

    table: LogitTable
    policy: Policy
    confidence: np.ndarray
    accepted: np.ndarray
    columns: Mapping[str, Sequence[str]]

    def column(self, name: str) -> np.ndarray:
        """The values of a column, str [n]."""
        return self.table.asked.of_rows([str(value) for value in self.columns[name]])

    @property
    def positive(self) -> np.ndarray:
        return self.policy.decide(self.table.logits)

    @property
    def wrong(self) -> np.ndarray:
        return np.asarray(self.positive != (self.table.labels == 1))


@dataclass(frozen=True)
class Chosen:
    """The answers of one kind to show: their positions, and the same facts as in `ExampleKind`."""

    kind: str
    total: int
    at: list[int]
    column: str | None = None
    value: str | None = None
    mcc: float | None = None


def write_examples(folder: Path, answered: Answered, slices: Slices, model: Path | None = None) -> None:
    """Write `examples.json`, its thumbnails and their heatmaps to `folder/examples`.

    Args:
        slices: The figures of each value, by column.
        model: The folder of the model that answered, for the heatmaps. None: there are none.
    """
    chosen = choose_examples(answered, slices)
    wanted = dict.fromkeys(i for kind in chosen for i in kind.at)
    columns = {name: answered.column(name) for name in slices}
    with atomic_folder(folder / EXAMPLES) as temporary:
        files = {i: _write_thumbnail(temporary, number, answered, i) for number, i in enumerate(wanted)}
        heats, no_heat = _write_heats(temporary, answered, _to_explain(chosen, files), model)
        kinds = [
            ExampleKind(
                kind.kind,
                kind.total,
                [_describe(answered, i, files[i], heats.get(i), columns) for i in kind.at],
                kind.column,
                kind.value,
                kind.mcc,
            )
            for kind in chosen
        ]
        Examples(kinds, no_heat).write(temporary)


def choose_examples(answered: Answered, slices: Slices) -> list[Chosen]:
    """Choose the answers to show, at most eight of each kind and one per group.

    The kinds are the most confident misses, the most confident false alarms, the abstentions closest to acceptance
    (if the policy accepts selectively), and the most confident mistakes in the slice with the lowest MCC.
    """
    wrong, positive, confidence = answered.wrong, answered.positive, answered.confidence
    chosen = [
        Chosen(kind, int(of_kind.sum()), _first_of_groups(answered, of_kind, -confidence))
        for kind, of_kind in (("missed", wrong & ~positive), ("false_alarm", wrong & positive))
    ]
    cuts = answered.policy.promise.accept_above
    if cuts is not None:
        labels = answered.policy.labels
        lacking = np.where(positive, cuts[labels.yes], cuts[labels.no]) - confidence
        abstained = ~answered.accepted
        chosen.append(Chosen("abstained", int(abstained.sum()), _first_of_groups(answered, abstained, lacking)))
    worst = worst_slice(slices)
    if worst is not None:
        column, value = worst
        inside = wrong & (answered.column(column) == value)
        rows = _first_of_groups(answered, inside, -confidence)
        chosen.append(Chosen("slice", int(inside.sum()), rows, column, value, slices[column][value].mcc))
    return chosen


def worst_slice(slices: Slices) -> tuple[str, str] | None:
    """The column and value with the lowest MCC, among columns with at least two values; None if there is none."""
    found = []
    for column, values in slices.items():
        defined = [(figures.mcc, column, value) for value, figures in values.items() if figures.mcc is not None]
        found += defined if len(defined) > 1 else []
    return min(found)[1:] if found else None


def _first_of_groups(answered: Answered, of_kind: np.ndarray, key: np.ndarray) -> list[int]:
    """The positions of a kind by rising key, one per group: otherwise frames of one video could fill the page."""
    at = np.flatnonzero(of_kind)
    at = at[np.argsort(key[at], kind="stable")]
    _, first = np.unique(answered.table.groups[at], return_index=True)
    return [int(i) for i in at[np.sort(first)[:_SHOWN]]]


def _describe(
    answered: Answered, i: int, file: str | None, heat: str | None, columns: dict[str, np.ndarray]
) -> Example:
    asked, labels = answered.table.asked, answered.policy.labels
    answer = labels.name(answered.positive[i])
    return Example(
        row=asked.ids[i],
        file=file,
        label=labels.name(asked.labels[i] == 1),
        answer=answer,
        probability=float(answered.policy.probability(answered.table.logits[[i]])[0]),
        decision=answer if answered.accepted[i] else ABSTAIN,
        level=int(asked.levels[i]) if asked.exam is not None else None,
        slices={name: str(values[i]) for name, values in columns.items()},
        heat=heat,
    )


def _write_thumbnail(folder: Path, number: int, answered: Answered, i: int) -> str | None:
    """Write a thumbnail and return its name, or None if the picture cannot be drawn. That must not stop an export."""
    name = f"{number:02d}.jpg"
    try:
        small = thumbnail(answered.table.asked.picture(i))
        small.save(folder / name, format="JPEG", quality=80, optimize=True)
    except (DataError, MemoryError, ValueError):
        return None
    return name


def _to_explain(chosen: Sequence[Chosen], files: Mapping[int, str | None]) -> dict[int, str]:
    """The thumbnails that get a heatmap, by answer: the first of each kind, then the second of each, and so on, so
    that a cut leaves every kind some."""
    ranks = zip_longest(*(kind.at[:_EXPLAINED] for kind in chosen))
    found = {i: files[i] for rank in ranks for i in rank if i is not None}
    return {i: file for i, file in found.items() if file is not None}


def _write_heats(
    folder: Path, answered: Answered, files: Mapping[int, str], model: Path | None
) -> tuple[dict[int, str], str | None]:
    """Write a heatmap for each of these thumbnails, as long as there is time: what moved the answer that was given. No
    heatmap must stop an export.

    Returns:
        The names of the files by answer, and why some or all are missing.
    """
    heats: dict[int, str] = {}
    if model is None or not files:
        return heats, None
    until = time.monotonic() + _HEATS_S
    try:
        explained = explained_by(model, answered.policy.threshold_logit, until)
        for i, file in files.items():
            name = f"{Path(file).stem}_heat.jpg"
            heat = explained(answered.table.asked.picture(i), bool(answered.positive[i]))
            heat.save(folder / name, format="JPEG", quality=80, optimize=True)
            heats[i] = name
    except (NatixError, RuntimeError, MemoryError, ValueError) as error:  # torch's out-of-memory is a RuntimeError
        if time.monotonic() >= until:
            return heats, f"phase 6 takes {_HEATS_S} s for them at most, and they were over"
        return heats, shortened(str(first_line(error)), 200)
    return heats, None


def thumbnail(image: Image.Image) -> Image.Image:
    """The whole picture, small, and dark outside the centre square, which is all that the model sees. Only pixels are
    kept, no metadata of the camera."""
    image = shrink(tame_aspect(image), _PX)
    pixels = np.asarray(image).astype(np.float64)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    dimmed = pixels * _OUTSIDE
    dimmed[top : top + side, left : left + side] = pixels[top : top + side, left : left + side]
    return Image.fromarray(dimmed.round().astype(np.uint8))

"""The hard test rows of a run, kept as small pictures: what a person should look at before trusting the figures.

They are files of phase 6, not of the bundle: the photographs may be licensed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from natix_hf.bundle.policy import Policy
from natix_hf.data.images import shrink, tame_aspect
from natix_hf.errors import DataError
from natix_hf.labels import ID2LABEL
from natix_hf.provenance.files import atomic_folder
from natix_hf.provenance.stored import OPTIONAL, Stored
from natix_hf.results.evaluation import SliceFigures
from natix_hf.results.logits import LogitTable

EXAMPLES = "examples"
_SHOWN = 8  # of each kind, every one of another group
_PX = 192  # short side of a thumbnail
_OUTSIDE = 0.35  # brightness of what the model does not see
Slices = dict[str, dict[str, SliceFigures]]


@dataclass(frozen=True)
class Example:
    """One answer that a person should look at. `file` is its thumbnail; None: it could not be drawn."""

    row: str
    file: str | None
    label: str
    answer: str
    probability: float
    decision: str
    level: int | None
    slices: dict[str, str]


@dataclass(frozen=True)
class ExampleKind:
    """Examples of one kind: `missed`, `false_alarm`, `abstained` or `slice`; the latter names its column, value and
    MCC. `total` counts all answers of the kind."""

    kind: str
    total: int
    rows: list[Example]
    column: str | None = field(default=None, metadata=OPTIONAL)
    value: str | None = field(default=None, metadata=OPTIONAL)
    mcc: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Examples(Stored):
    """The hard test rows by kind. It lies beside the thumbnails that it names."""

    FILE: ClassVar[str] = "examples.json"

    kinds: list[ExampleKind]


@dataclass(frozen=True)
class Answered:
    """Test answers with what the policy made of them, aligned.

    Args:
        table: its `asked` has the pictures at hand.
        confidence: float64 [n]; acceptance is decided by it. accepted: bool [n].
        columns: values of columns of the source, by name, one for each row.
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
    """Answers to show of one kind: their positions, and the same facts as `ExampleKind`."""

    kind: str
    total: int
    at: list[int]
    column: str | None = None
    value: str | None = None
    mcc: float | None = None


def write_examples(folder: Path, answered: Answered, slices: Slices) -> None:
    """Leaves `examples.json` and the thumbnails that it names in `folder/examples`.

    Args:
        slices: by column, the figures of its values.
    """
    chosen = choose_examples(answered, slices)
    wanted = dict.fromkeys(i for kind in chosen for i in kind.at)
    columns = {name: answered.column(name) for name in slices}
    with atomic_folder(folder / EXAMPLES) as temporary:
        files = {i: _write_thumbnail(temporary, number, answered, i) for number, i in enumerate(wanted)}
        kinds = [
            ExampleKind(
                kind.kind,
                kind.total,
                [_describe(answered, i, files[i], columns) for i in kind.at],
                kind.column,
                kind.value,
                kind.mcc,
            )
            for kind in chosen
        ]
        Examples(kinds).write(temporary)


def choose_examples(answered: Answered, slices: Slices) -> list[Chosen]:
    """The answers to show, by kind: the most confident mistakes of both kinds; where answers are accepted, the
    abstentions closest to it; the most confident mistakes of the slice with the lowest MCC. At most eight of each
    kind, one of each group.
    """
    wrong, positive, confidence = answered.wrong, answered.positive, answered.confidence
    chosen = [
        Chosen(kind, int(of_kind.sum()), _first_of_groups(answered, of_kind, -confidence))
        for kind, of_kind in (("missed", wrong & ~positive), ("false_alarm", wrong & positive))
    ]
    cuts = answered.policy.promise.accept_above
    if cuts is not None:
        lacking = np.where(positive, cuts[ID2LABEL[1]], cuts[ID2LABEL[0]]) - confidence
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
    """Column and value with the lowest MCC, among columns that have two values to compare; None: there is none."""
    found = []
    for column, values in slices.items():
        defined = [(figures.mcc, column, value) for value, figures in values.items() if figures.mcc is not None]
        found += defined if len(defined) > 1 else []
    return min(found)[1:] if found else None


def _first_of_groups(answered: Answered, of_kind: np.ndarray, key: np.ndarray) -> list[int]:
    """The positions of a kind by rising key, the first of each group: frames of one video would fill the page."""
    at = np.flatnonzero(of_kind)
    at = at[np.argsort(key[at], kind="stable")]
    _, first = np.unique(answered.table.groups[at], return_index=True)
    return [int(i) for i in at[np.sort(first)[:_SHOWN]]]


def _describe(answered: Answered, i: int, file: str | None, columns: dict[str, np.ndarray]) -> Example:
    asked, answer = answered.table.asked, ID2LABEL[int(answered.positive[i])]
    return Example(
        row=asked.ids[i],
        file=file,
        label=ID2LABEL[int(asked.labels[i])],
        answer=answer,
        probability=float(answered.policy.probability(answered.table.logits[[i]])[0]),
        decision=answer if answered.accepted[i] else "abstain",
        level=int(asked.levels[i]) if asked.exam is not None else None,
        slices={name: str(values[i]) for name, values in columns.items()},
    )


def _write_thumbnail(folder: Path, number: int, answered: Answered, i: int) -> str | None:
    """Returns its name; None where the picture gives none, which is no reason to lose an export."""
    name = f"{number:02d}.jpg"
    try:
        small = thumbnail(answered.table.asked.picture(i))
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

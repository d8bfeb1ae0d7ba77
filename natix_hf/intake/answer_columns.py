"""Which columns of a table hold answers, labels and groups: as named, or by their usual names where only one fits."""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import product

from natix_hf.errors import DataError, cut
from natix_hf.intake.answer_files import Columns

# The usual names of columns, in small letters with _ between words. A pair is of labels 0 and 1.
_STEMS = {"logit": ("logit", "logits", "z"), "probability": ("prob", "probability", "probabilities", "proba", "p")}
_SINGLE = {
    "logit": (*_STEMS["logit"], "decision_function"),
    "probability": (*_STEMS["probability"], *(f"{stem}_1" for stem in _STEMS["probability"]), "p1"),
    "score": ("score", "scores"),
    "label": ("label", "labels", "y", "y_true", "true_label", "target", "targets", "truth", "ground_truth"),
    "group": (
        *(
            "group",
            "groups",
            "group_id",
            "video",
            "video_id",
            "vid",
            "vid_id",
            "video_info_vid_id",
            "track",
            "track_id",
        ),
        *(
            "sequence",
            "sequence_id",
            "seq",
            "seq_id",
            "clip",
            "clip_id",
            "patient",
            "patient_id",
            "subject",
            "subject_id",
        ),
    ),
}
_NUMBERED = re.compile(r"(\D+?)_?(\d+)")


def find_answers(table: Columns, logit: str | None, probability: str | None) -> tuple[str, list[str]]:
    """What the answers are, `logit`, `probability` or `score` (either), and their one column or two.

    Args:
        logit, probability: The name of a column, or two with a comma between them, for labels 0 and 1.

    Raises:
        DataError: if a column is missing or it is not clear which one is meant.
    """
    for kind, given in (("logit", logit), ("probability", probability)):
        if given is not None:
            return kind, _named(table, kind, given, most=2)
    found = [(kind, [name]) for kind in ("logit", "probability", "score") for name in _usual(table, kind)]
    found += [(kind, pair) for kind in _STEMS for pair in _pairs(table, kind)]
    in_pairs = {name for _, names in found if len(names) == 2 for name in names}
    found = [(kind, names) for kind, names in found if len(names) == 2 or names[0] not in in_pairs]
    advice = f"{table.said}: say --logit COLUMN or --probability COLUMN"
    if not found:
        raise DataError(f"{table.name} has no column that is known to hold answers; {advice}")
    if len(found) > 1:
        several = " and ".join(", ".join(names) for _, names in found)
        raise DataError(f"{table.name}: both {several} may hold the answers; {advice}")
    [(kind, names)] = found
    others = _numbered_alike(table, names)
    if others:
        raise DataError(
            f"{table.name}: {', '.join(others[:3])} beside {' and '.join(names)} may be of another class, and an "
            f"answer is yes or no; {advice}, or two, NO,YES"
        )
    return kind, names


def find_column(table: Columns, kind: str, given: str | None, needed: bool = True) -> str | None:
    """The column of `label` or `group`; None if there is none and it is not needed.

    Raises:
        DataError: if it is missing or it is not clear which one is meant.
    """
    if given is not None:
        return _named(table, kind, given)[0]
    found = _usual(table, kind)
    if len(found) > 1 or (needed and not found):
        which = f"both {' and '.join(found)} may be" if found else "no column is known to be"
        raise DataError(f"{table.name}: {which} the {kind} of a row; {table.said}: say --{kind} COLUMN")
    return found[0] if found else None


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.strip().lower()).strip("_")


def _usual(table: Columns, kind: str) -> list[str]:
    return [name for name in table.columns if _plain(name) in _SINGLE[kind]]


def _pairs(table: Columns, kind: str) -> list[list[str]]:
    """Every pair of columns that may be the answers for labels 0 and 1."""
    called = defaultdict(list)
    for name in table.columns:
        called[_plain(name)].append(name)
    words = [(f"{stem}{between}0", f"{stem}{between}1") for stem in _STEMS[kind] for between in ("_", "")]
    return [list(pair) for no, yes in words for pair in product(called.get(no, ()), called.get(yes, ()))]


def _numbered_alike(table: Columns, chosen: list[str]) -> list[str]:
    """Other columns that are called like the chosen ones and differ in the number only."""
    stems = {match[1] for name in chosen if (match := _NUMBERED.fullmatch(_plain(name)))}
    matches = {name: _NUMBERED.fullmatch(_plain(name)) for name in table.columns if name not in chosen}
    return [name for name, match in matches.items() if match is not None and match[1] in stems]


def _named(table: Columns, kind: str, given: str, most: int = 1) -> list[str]:
    """The columns that are named, with a comma between two of them."""
    names = [name.strip() for name in given.split(",")]
    if given in table.columns or len(names) > most or len(set(names)) < len(names):
        names = [given]
    lacking = next((name for name in names if name not in table.columns), None)
    if lacking is not None:
        raise DataError(f"{table.name} has no column {cut(lacking)} for --{kind}; {table.said}")
    return names

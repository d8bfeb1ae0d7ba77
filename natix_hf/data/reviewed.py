"""Reviewed lists: rows that a person leaves out (`data.exclude`) or gives the other label (`data.relabel`).

The list of `natix-hf audit` with its column `action` filled in serves both keys. A list may also be plain: `row_id`
for `data.exclude`, `row_id,label` for `data.relabel`. The rows are divided as if there were no list, and only train
and val_select follow it: no row moves to another split, and no label that a figure or promise rests on is touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from natix_hf.data.splits import Splits
from natix_hf.errors import DataError, cut, did_you_mean
from natix_hf.intake.table_files import Table, read_table
from natix_hf.intake.words import meaning
from natix_hf.provenance.files import json_sha256

if TYPE_CHECKING:
    from natix_hf.data.config import DataConfig

EXCLUDED = "excluded after review"
ROW_ID, LABEL, SUGGESTED, NOW, ACTION = "row_id", "label", "suggested_label", "label_now", "action"
Kind = Literal["exclude", "relabel"]
EXCLUDE: Kind = "exclude"
RELABEL: Kind = "relabel"
ACTIONS = ("keep", EXCLUDE, RELABEL)
# The splits that a review may change.
REVIEWED_ROLES = ("train", "val_select")


@dataclass(frozen=True)
class Listed:
    """A row of a list: its new label, None to leave it out, and the file and line that say so."""

    row_id: str
    label: int | None
    file: str
    line: int

    @property
    def told(self) -> str:
        return f"{self.file}, line {self.line}"


def read_reviewed(files: str | Sequence[str] | None, kind: Kind) -> dict[str, Listed]:
    """Read the rows that the files of a key list, by row id.

    Raises:
        DataError: If a file is missing or is no such list, names a row twice in different ways, or lists nothing.
    """
    found: dict[str, Listed] = {}
    for file in [files] if isinstance(files, str) else files or []:
        for row in _read_file(Path(file).expanduser(), kind):
            other = found.setdefault(row.row_id, row)
            if other.label != row.label:
                raise DataError(
                    f"data.{kind}: row {row.row_id} gets the label {other.label} ({other.told}) and the label "
                    f"{row.label} ({row.told}): leave one"
                )
    return found


def reviewed_sha256(files: str | Sequence[str] | None, kind: Kind) -> str:
    """The digest of what the files of a key say, wherever they lie and however they are written.

    Raises:
        DataError: As `read_reviewed`.
    """
    return json_sha256(sorted((row.row_id, row.label) for row in read_reviewed(files, kind).values()))


def apply_review(splits: Splits, config: DataConfig) -> Splits:
    """Leave out and relabel the listed rows of divided data.

    Raises:
        DataError: As `read_reviewed`; or if a row is unknown, is in val_calib or test, is in both lists, has no place
            in the splits any more but would be relabelled, or if train or val_select would lose all rows of a label.
    """
    exclude, relabel = read_reviewed(config.exclude, EXCLUDE), read_reviewed(config.relabel, RELABEL)
    if not exclude and not relabel:
        return splits
    both = next((row_id for row_id in exclude if row_id in relabel), None)
    if both is not None:
        raise DataError(
            f"row {both} is to be left out ({exclude[both].told}) and to get the label {relabel[both].label} "
            f"({relabel[both].told}): leave one of data.exclude and data.relabel for it"
        )
    role_of = dict(zip(splits.ids, splits.roles, strict=True))
    gone = {row["id"]: row["reason"] for row in splits.dropped}
    names = {row_id.strip(): row_id for row_id in [*gone, *splits.ids]}  # a table's cells are stripped
    exclude, relabel = ({names.get(k, k): row for k, row in rows.items()} for rows in (exclude, relabel))
    _require_rows(EXCLUDE, exclude, role_of, gone)
    _require_rows(RELABEL, relabel, role_of, gone)
    dropped = [
        {"id": row_id, "role": role_of[row_id], "reason": f"{EXCLUDED}: {Path(row.file).name}"}
        for row_id, row in exclude.items()
        if row_id in role_of
    ]
    label_of = dict(zip(splits.ids, splits.labels, strict=True))
    relabelled: list[dict[str, Any]] = [
        {"id": row_id, "role": role_of[row_id], "label": row.label, "by": Path(row.file).name}
        for row_id, row in relabel.items()
        if label_of[row_id] != row.label
    ]
    kept = [i for i, row_id in enumerate(splits.ids) if row_id not in exclude]
    new = {row["id"]: row["label"] for row in relabelled}
    after = replace(
        splits,
        **{name: [getattr(splits, name)[i] for i in kept] for name in ("ids", "roles", "groups", "sha256")},
        labels=[new.get(splits.ids[i], splits.labels[i]) for i in kept],
        dropped=[*splits.dropped, *dropped],
        relabelled=relabelled,
    )
    _require_both_labels(after)
    return after


def labels_after_review(ids: Sequence[str], labels: np.ndarray, splits: Splits) -> np.ndarray:
    """The labels of a source's rows, int64 [n], with those that a review has changed."""
    if not splits.relabelled:
        return labels
    new = {row["id"]: row["label"] for row in splits.relabelled}
    return np.asarray([new.get(row_id, label) for row_id, label in zip(ids, labels, strict=True)], dtype=np.int64)


def review_of(splits: Splits, config: DataConfig) -> dict[str, Any] | None:
    """What a review changed, as JSON values: numbers of rows and names of files. None if there was none."""
    if not config.exclude and not config.relabel:
        return None
    given = [file for files in (config.exclude, config.relabel) for file in _as_list(files)]
    asked = read_reviewed(config.relabel, RELABEL) if config.relabel else {}
    return {
        "excluded": sum(row["reason"].startswith(EXCLUDED) for row in splits.dropped),
        "relabelled": len(splits.relabelled),
        "unchanged": len(asked) - len(splits.relabelled),
        "by": list(dict.fromkeys(Path(file).name for file in given)),
    }


def told_review(review: Mapping[str, Any]) -> str:
    """What a review changed, in words."""
    same = review["unchanged"]
    more = f" ({same:,} to relabel {'has' if same == 1 else 'have'} the label already)" if same else ""
    files = " and ".join(review["by"])
    return f"{review['excluded']:,} rows excluded, {review['relabelled']:,} relabelled, by {files} after review{more}"


def actions_in(path: Path) -> dict[str, str]:
    """The actions that a person has filled into an audit's list, by row id.

    Raises:
        DataError: If the file is no such list.
    """
    table = _table(path, EXCLUDE)
    return {str(row[ROW_ID]): str(row[ACTION]) for row in table.rows if row.get(ACTION) is not None}


def _as_list(files: str | Sequence[str] | None) -> list[str]:
    return [files] if isinstance(files, str) else list(files or [])


def _table(path: Path, kind: Kind) -> Table:
    key = f"data.{kind}"
    if path.exists() and not path.is_file():  # a named pipe would wait for ever, and a device never ends
        raise DataError(f"{key}: {path} is no regular file: name a table")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{key}: there is no file {path} (seen from {Path.cwd()}): check the path") from None
    except OSError as error:
        raise DataError(f"{key}: {path} cannot be read ({error.strerror}): name a table") from None
    if not content.strip():
        raise DataError(f"{key}: {path} is empty: its first line must name the columns, such as {ROW_ID}")
    try:
        table = read_table(str(path), content)
    except DataError as error:
        raise DataError(f"{key}: {error}") from None
    if ROW_ID not in table.columns:
        raise DataError(
            f"{key}: {path} has no column {cut(ROW_ID)}: it has {', '.join(table.columns[:8])}; fill in the list of "
            "natix-hf audit, or list row ids under that name"
        )
    return table


def _read_file(path: Path, kind: Kind) -> list[Listed]:
    table = _table(path, kind)
    key, file = f"data.{kind}", str(path)
    lines = list(zip(table.rows, table.lines, strict=True))
    lacking = next((line for row, line in lines if row.get(ROW_ID) is None), None)
    if lacking is not None:
        raise DataError(f"{key}: {file}, line {lacking} has no {ROW_ID}")
    if ACTION in table.columns:
        lines = _with_action(lines, kind, file)
    else:
        plain = [ROW_ID] if kind == EXCLUDE else [ROW_ID, LABEL]
        if sorted(table.columns) != sorted(plain):
            raise DataError(
                f"{key}: {file} has the columns {', '.join(table.columns[:12])}: without a column {cut(ACTION)} it "
                f"must "
                f"have {' and '.join(plain)} alone, so that no list is used before somebody has reviewed it"
            )
        if not lines:
            raise DataError(f"{key}: {file} lists no row: remove the key, or list rows below the header")
    return [
        Listed(str(row[ROW_ID]), None if kind == EXCLUDE else _label(row, file, line), file, line)
        for row, line in lines
    ]


def _with_action(lines: list[tuple[dict[str, Any], int]], kind: Kind, file: str) -> list[tuple[dict[str, Any], int]]:
    """The rows of an audit's list with this action."""
    chosen, seen = [], dict[str, tuple[str, int]]()
    for row, line in lines:
        given = row.get(ACTION)
        if given is None:
            continue
        action = str(given).strip().lower()
        if action not in ACTIONS:
            raise DataError(
                f"data.{kind}: {file}, line {line} has the {ACTION} {cut(given)}: write {', '.join(ACTIONS)} or "
                f"nothing{did_you_mean(action, ACTIONS)}"
            )
        before, first = seen.setdefault(str(row[ROW_ID]), (action, line))
        if before != action:
            raise DataError(
                f"data.{kind}: row {row[ROW_ID]} of {file} has the {ACTION} {before} in line {first} and {action} in "
                f"line {line}: leave one"
            )
        if action == kind:
            chosen.append((row, line))
    if not seen:
        raise DataError(
            f"data.{kind}: no row of {file} has an {ACTION}: look at the rows first, and write keep, exclude or "
            "relabel into that column"
        )
    return chosen


def _label(row: Mapping[str, Any], file: str, line: int) -> int:
    given = row.get(SUGGESTED) if SUGGESTED in row else row.get(LABEL)
    found = _plain_label(given)
    if found is None:
        raise DataError(f"data.relabel: {file}, line {line} gives the label {cut(given)}: write 0 (no) or 1 (yes)")
    if NOW in row and _plain_label(row[NOW]) == found:
        raise DataError(
            f"data.relabel: {file}, line {line} gives row {row[ROW_ID]} the label {found}, which it has: write the "
            f"other into {SUGGESTED}, or keep"
        )
    return found


def _plain_label(value: Any) -> int | None:
    """0 or 1, as people and programs write them; None if it is neither."""
    if value is None:  # an empty cell is no word, though "none" is one
        return None
    word = str(value).strip().lower().removesuffix(".0")
    return (meaning([word]) or {}).get(word)


def _require_rows(kind: Kind, rows: Mapping[str, Listed], role_of: Mapping[str, str], gone: Mapping[str, str]) -> None:
    unknown = [row for row_id, row in rows.items() if row_id not in role_of and row_id not in gone]
    if unknown:
        raise DataError(
            f"data.{kind} names {len(unknown)} of {len(rows)} rows that the source does not have, the first is "
            f"{unknown[0].row_id} ({unknown[0].told}): is the list of another source?"
        )
    measured = [row_id for row_id in rows if role_of.get(row_id, REVIEWED_ROLES[0]) not in REVIEWED_ROLES]
    if measured:
        raise DataError(
            f"data.{kind} names {len(measured)} of {len(rows)} rows of val_calib or test, the first is {measured[0]} "
            f"({role_of[measured[0]]}; {rows[measured[0]].told}): a promise and the figures rest on their labels, so "
            "only rows of train and val_select can be listed"
        )
    lost = next((row_id for row_id in rows if row_id in gone), None) if kind == RELABEL else None
    if lost is not None:
        raise DataError(
            f"data.relabel: row {lost} ({rows[lost].told}) is in no split ({gone[lost]}): correct its label in the "
            "source"
        )


def _require_both_labels(splits: Splits) -> None:
    for role in REVIEWED_ROLES:
        left = {splits.labels[i] for i in splits.positions(role)}
        if len(left) < 2:
            raise DataError(
                f"data.exclude and data.relabel leave {role} with {'no row' if not left else 'one label only'}: each "
                "split needs rows of both labels"
            )

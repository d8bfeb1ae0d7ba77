"""What was read from the source, in one block: the same in the log, `splits.json`, `inspect`, report and card."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from natix_hf.data.groups import NONE
from natix_hf.data.reviewed import review_of, told_review
from natix_hf.data.rows import ImageData, look_alikes
from natix_hf.data.splits import CONTRADICTION, ROLES, Splits, short_reason
from natix_hf.errors import VerificationError
from natix_hf.provenance.files import read_json

SOURCE, BY_GROUP, BY_ROW = "the source", "divided by group", "divided by row"
_EXAMPLES = 3
# Names such as `00012_f3.jpg`: two numbers, the last one that of a frame.
FRAME = r"([^/]*\d)[^/\d]+\d+\.[^/.]+$"
_SHOWN = 8

Reading = dict[str, Any]


def reading_of(data: ImageData) -> Reading:
    """Say what was read.

    Returns:
        A mapping of JSON values. `files`: `found`, `used`, and `left_out` as a list of `{file, reason}`. `rows`:
        number of rows in all splits. `labels`: count of each class that became "0" and "1", and of those "left_out".
        `splits`: for each split its rows with label "0" and "1", and `from`: what decided it. `groups`: `count`, and
        `from`: "column", "pattern", "near_duplicates" or "none". `contradictions`: pictures with both labels.
        `near_duplicates_across_splits`: rows that look like a row of another split. `sources`: rows by source, if
        there are several. `reviewed`: how many rows a review left out and relabelled, and by which files, if there
        was one. `warnings`: one line each.
    """
    rows, splits = data.rows, data.splits
    at = {row_id: i for i, row_id in enumerate(rows.ids)}
    dropped = {row["id"]: row["reason"] for row in splits.dropped}
    read = {"0": Counter[str](), "1": Counter[str](), "left_out": Counter[str]()}
    for row_id, name, label in zip(rows.ids, rows.classes, rows.labels.tolist(), strict=True):
        read["left_out" if row_id in dropped else str(label)][name] += 1
    left_out = [{"file": name, "reason": reason} for name, reason in rows.files.left_out.items()]
    used = rows.files.used
    files = {row_id: reason for row_id, reason in dropped.items() if rows.origins[at[row_id]] in rows.files.sources}
    left_out += [{"file": row_id, "reason": reason} for row_id, reason in files.items()]
    used -= len(files)
    alike = _alike_across(data, at)
    count_alike = sum(map(len, alike))
    digests = data.decoded["sha256"][:]
    both = {digests[at[row_id]] for row_id, reason in dropped.items() if reason.startswith(CONTRADICTION)}
    contradictions = rows.contradictions + len(both)
    labels = np.array([rows.labels[at[row_id]] for row_id in splits.ids], dtype=np.int64)
    given = np.array([rows.given[at[row_id]] is not None for row_id in splits.ids], dtype=bool)
    single = rows.groups_from == NONE and len(set(splits.groups)) == len(splits.ids)
    by_split = {}
    for role in ROLES:
        of_role = splits.positions(role)
        own = role != "train" and of_role.size and bool(given[of_role].all())
        counts = {str(label): int((labels[of_role] == label).sum()) for label in (0, 1)}
        by_split[role] = counts | {"from": SOURCE if own else BY_ROW if single else BY_GROUP}
    reading: Reading = {
        "files": {"found": rows.files.found, "used": used, "left_out": left_out},
        "rows": len(splits.ids),
        "labels": {key: dict(sorted(counts.items())) for key, counts in read.items()},
        "splits": by_split,
        "groups": {"count": len(set(splits.groups)), "from": rows.groups_from},
        "contradictions": contradictions,
        "near_duplicates_across_splits": count_alike,
        "warnings": list(rows.notes),
    }
    if len(set(rows.origins)) > 1:
        reading["sources"] = dict(Counter(rows.origins[at[row_id]] for row_id in splits.ids))
    review = review_of(splits, data.config)
    if review is not None:
        reading["reviewed"] = review
    if contradictions:
        reading["warnings"].append(f"{contradictions} pictures have both labels: neither is kept")
    if rows.groups_from == NONE:
        reading["warnings"] += _leak_warnings(splits, alike)
    # Names of files and classes may hold line breaks.
    reading["warnings"] = ["\\n".join(line.splitlines()) for line in reading["warnings"]]
    return reading


def _alike_across(data: ImageData, at: Mapping[str, int]) -> list[list[str]]:
    """The rows of each near-duplicate group that stands in several splits, one of another split second."""
    numbers, splits = look_alikes(data.decoded), data.splits
    members: dict[int, list[int]] = defaultdict(list)
    for i, row_id in enumerate(splits.ids):
        number = int(numbers[at[row_id]])
        if number >= 0:
            members[number].append(i)
    return _across(splits, list(members.values()))


def _across(splits: Splits, groups: list[list[int]]) -> list[list[str]]:
    """Those of the groups, as positions, that stand in several splits: their ids, one of another split second."""
    found = []
    for group in groups:
        other = next((i for i in group if splits.roles[i] != splits.roles[group[0]]), None)
        if other is not None:
            found.append([splits.ids[i] for i in (group[0], other, *(i for i in group[1:] if i != other))])
    return found


def _leak_warnings(splits: Splits, alike: list[list[str]]) -> list[str]:
    """Warnings for rows without known groups that stand in one split and belong to rows of another one."""
    found = []
    if alike:
        found.append(
            f"{sum(map(len, alike)):,} rows look like a row of another split, such as {_examples(splits, alike)}: the "
            "figures on test are too good unless pictures of one place stay together; set data.group_by to a column, "
            "to {pattern: REGEX} over the paths, or to near_duplicates"
        )
    named: dict[str, list[int]] = defaultdict(list)
    for i, row_id in enumerate(splits.ids):
        match = re.search(FRAME, row_id)
        if match is not None:
            named[match.group(1)].append(i)
    videos = _across(splits, [group for group in named.values() if len(group) > 1])
    if sum(map(len, videos)) > len(splits.ids) / 2:
        found.append(
            f"{sum(map(len, videos)):,} rows are named like frames of videos that also stand in another split, such "
            f"as {_examples(splits, videos)}: frames of one video are no independent test of each other; set "
            f"data.group_by=\"{{pattern: '{FRAME}'}}\" to keep them together"
        )
    return found


def _examples(splits: Splits, groups: list[list[str]]) -> str:
    role_of = dict(zip(splits.ids, splits.roles, strict=True))
    return "; ".join(f"{a} ({role_of[a]}) and {b} ({role_of[b]})" for a, b, *_ in groups[:_EXAMPLES])


def read_reading(path: Path) -> Reading | None:
    """The block in `splits.json`, or None if a run of an earlier version wrote the file.

    Raises:
        VerificationError: If the file is missing or damaged.
    """
    content: Any = read_json(path)
    reading = content.get("read") if isinstance(content, dict) else None
    if reading is None:
        return None
    try:
        reading_facts(reading)
        lines = [str(line) for line in reading["warnings"]]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise VerificationError(f"{path} does not say what was read: it was damaged after it was written") from None
    return {**reading, "warnings": lines}


def reading_facts(reading: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The block in short form, as pairs of a word and a text. The warnings are not among them."""
    files, labels, groups = reading["files"], reading["labels"], reading["groups"]
    facts = []
    if files["found"]:
        facts.append(("files", f"{files['found']:,} found, {files['used']:,} used" + _reasons(files["left_out"])))
    facts += [(f"label {key}", told_counts(labels[key])) for key in ("0", "1")]
    if labels["left_out"]:
        facts.append(("no row", told_counts(labels["left_out"])))
    if groups["from"] != NONE:
        known = f"{groups['count']:,}, from {_FROM[groups['from']]}"
    elif groups["count"] < reading["rows"]:
        known = f"known for some sources only; {groups['count']:,} with the single rows of the others"
    else:
        known = "no groups are known"
    facts.append(("groups", known))
    if "sources" in reading:
        facts.append(("sources", told_counts(reading["sources"])))
    if "reviewed" in reading:
        facts.append(("reviewed", told_review(reading["reviewed"])))
    by_origin: dict[str, list[str]] = defaultdict(list)
    for role, counts in reading["splits"].items():
        by_origin[counts["from"]].append(role)
    facts.append(("splits", "; ".join(f"{', '.join(roles)}: {origin}" for origin, roles in by_origin.items())))
    alike = reading["near_duplicates_across_splits"]
    facts.append(("alike", f"{f'{alike:,} rows look' if alike else 'no row looks'} like a row of another split"))
    return facts


def reading_lines(reading: Mapping[str, Any]) -> list[str]:
    """The block as lines for a terminal, without its splits: their table is apart."""
    lines = [f"{word:<8} {text}" for word, text in reading_facts(reading) if word != "splits"]
    return lines + [f"warning  {line}" for line in reading["warnings"]]


def split_lines(reading: Mapping[str, Any]) -> list[str]:
    """The sizes of the splits as a table, one line each."""
    rows = [
        f"{role:>10}  {counts['0'] + counts['1']:>8,}  {counts['0']:>8,}  {counts['1']:>8,}  {counts['from']}"
        for role, counts in reading["splits"].items()
    ]
    return [f"{'split':>10}  {'rows':>8}  {'label 0':>8}  {'label 1':>8}  from", *rows]


_FROM = {"column": "a column", "pattern": "a pattern in the paths", "near_duplicates": "pictures that look alike"}


def _reasons(left_out: list[dict[str, str]]) -> str:
    if not left_out:
        return ""
    grouped = _grouped(left_out)
    shown = ", ".join(f"{count:,} x {reason}" for reason, count in grouped[:_SHOWN])
    return f", {len(left_out):,} left out: {shown}" + (", and others" if len(grouped) > _SHOWN else "")


def _grouped(left_out: list[dict[str, str]]) -> list[tuple[str, int]]:
    """Reasons with their number of files, most frequent first. What only one file's reason says is cut off."""
    wordings: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in left_out:
        wordings[short_reason(entry["reason"])][entry["reason"]] += 1
    told = [(next(iter(c)) if len(c) == 1 else kind, c.total()) for kind, c in wordings.items()]
    return sorted(told, key=lambda item: -item[1])


def told_counts(counts: Mapping[str, int]) -> str:
    """Names with their counts, the most frequent ones first."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} ({count:,})" for name, count in ordered[:_SHOWN])
    rest = len(ordered) - _SHOWN
    return (shown or "no row") + (f" and {rest:,} more classes" if rest > 0 else "")

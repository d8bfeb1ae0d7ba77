"""The group of each row: rows of one group never stand in two splits."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from natix_hf.data.config import DataConfig, GroupPattern
from natix_hf.errors import DataError, cut

if TYPE_CHECKING:
    from natix_hf.data.part import Part

COLUMN, PATTERN, NEAR, NONE = "column", "pattern", "near_duplicates", "none"


def groups_of(part: Part, group_by: str | GroupPattern | None) -> list[str | None]:
    """The group of each row of a source; None: the row is its own group.

    Rows in which a pattern finds nothing are their own group, and `part.notes` counts them.

    Raises:
        DataError: If there is no such column, or the pattern finds nothing in any row.
    """
    if group_by is None:
        return [None] * len(part.ids)
    if isinstance(group_by, str):
        if group_by not in part.columns:
            held = ", ".join(part.columns) or "no columns beside picture and label"
            raise DataError(
                f"data.group_by: {part.name} has no column {cut(group_by)}: it has {held}; a pattern in the paths is "
                "written {pattern: REGEX}"
            )
        values = part.columns[group_by]
        return [None if g is None or g != g else str(g) for g in values]  # NaN is not itself
    found = [matched(group_by.pattern, path) for path in part.paths]
    lacking = [path for path, group in zip(part.paths, found, strict=True) if group is None]
    if len(lacking) == len(found):
        raise DataError(
            f"data.group_by.pattern {cut(group_by.pattern)} is found in no path of {part.name}, such as "
            f"{part.paths[0]}"
        )
    if lacking:
        part.notes.append(
            f"data.group_by.pattern is not found in {len(lacking):,} of {len(found):,} paths of {part.name}, such as "
            f"{lacking[0]}: each of these rows is its own group"
        )
    return found


def matched(pattern: str, path: str) -> str | None:
    """The part of a path that a pattern finds: its groups in brackets joined by a slash, or all of it; else None."""
    match = re.search(pattern, path)
    if match is None:
        return None
    return "/".join(part or "" for part in match.groups()) if match.groups() else match.group(0)


def group_rules(config: DataConfig) -> list[str | GroupPattern]:
    """The columns and patterns that the sources have groups from."""
    return list(dict.fromkeys(source.group_by for source in config.sources if source.group_by is not None))


def group_key(rule: str | GroupPattern, group: str) -> str:
    """A name for a group that is the same in every source with the rule."""
    return f"{rule.pattern if isinstance(rule, GroupPattern) else rule}={group}"

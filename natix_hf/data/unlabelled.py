"""Unlabelled images for self-supervised training: additional sources, without the pictures of val and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from natix_hf.data.config import DataConfig, GroupPattern
from natix_hf.data.decode import decode_once
from natix_hf.data.groups import group_key, group_rules, groups_of, matched
from natix_hf.data.part import Part
from natix_hf.data.rows import Rows
from natix_hf.data.sources import load_unlabelled
from natix_hf.data.splits import Splits
from natix_hf.errors import DataError

ROLE = "unlabelled"
# Pre-training must not see the rows on which the threshold, the calibration and the test are measured.
_PROTECTED = ("val_select", "val_calib", "test")


def unlabelled_rows(
    sources: Sequence[str],
    config: DataConfig,
    splits: Splits,
    commits: Mapping[str, str | None] | None = None,
    key: str = "phase4.unlabelled",
) -> tuple[list[Rows], dict[str, str]]:
    """Load the rows of every additional source. Their labels are 0 and mean nothing.

    Args:
        sources: Folders or Hub dataset ids.
        config: Settings of the labelled data. `on_overlap` decides about rows that overlap val or test.
        splits: Splits of the labelled data. Their groups and pictures in val_select, val_calib and test are excluded.
        commits: Revisions of the Hub sources. A source without one is read from its main branch.
        key: The key of the recipe that names the sources, for errors.

    Returns:
        One `Rows` per source, and the rows left out as id -> reason.

    Raises:
        DataError: As `load_unlabelled` does, or if an image cannot be read (`data.on_bad_image=error`), a row overlaps
            (`data.on_overlap=error`), or no row of a source is left.
    """
    pictures, groups = protected_rows(splits, config)
    found, left_out = [], {}
    for number, source in enumerate(sources):
        part = load_unlabelled(source, replace(config, revision=(commits or {}).get(source)))
        dataset, own_groups = part.images, _groups(part, config)
        names = [f"{Path(source).name}:{row_id}" for row_id in part.ids]
        same_name = [other for other in sources[:number] if Path(other).name == Path(source).name]
        ids = [f"{len(same_name)}:{name}" for name in names] if same_name else names
        decoded = decode_once(
            dataset, ids, config.image_column, config.cache_px, config.on_bad_image, config.cache,
            config.max_megapixels,
        )  # fmt: skip
        keep = []
        facts = zip(ids, own_groups, decoded["sha256"], decoded["problem"], strict=True)
        for at, (row_id, keys, sha256, problem) in enumerate(facts):
            other = pictures.get(sha256) or next((groups[key] for key in keys if key in groups), None)
            if problem is not None:
                left_out[row_id] = f"unreadable image: {problem}"
            elif other is None:
                keep.append(at)
            elif config.on_overlap == "error":
                raise DataError(
                    f"{key}: row {row_id} overlaps with row {other} of val or test: "
                    "set data.on_overlap=drop to leave such rows out"
                )
            else:
                left_out[row_id] = f"the same picture or group as row {other} of val or test"
        if not keep:
            raise DataError(f"{key}: no row of {source} is left: all overlap or are unreadable, use another source")
        found.append(
            Rows(
                role=ROLE,
                ids=[ids[at] for at in keep],
                labels=np.zeros(len(keep), dtype=np.int64),
                groups=np.asarray([next(iter(own_groups[at]), ids[at]) for at in keep]),
                source=dataset.select(keep),
                decoded=decoded.select(keep),
                image_column=config.image_column,
                max_megapixels=config.max_megapixels,
            )
        )
    return found, left_out


def _groups(part: Part, config: DataConfig) -> list[list[str]]:
    """The groups of each row of an additional source, by every rule of the labelled data that can be used on it."""
    found: list[list[str]] = [[] for _ in part.ids]
    for rule in group_rules(config):
        if isinstance(rule, GroupPattern):
            values = [matched(rule.pattern, path) for path in part.paths]
        else:
            values = groups_of(part, rule) if rule in part.columns else []
        for keys, value in zip(found, values, strict=False):
            keys += [group_key(rule, value)] if value is not None else []
    return found


def protected_rows(splits: Splits, config: DataConfig) -> tuple[dict[str, str], dict[str, str]]:
    """Row ids of val and test by the digest of their picture, and by the keys of their group."""
    held = [i for role in _PROTECTED for i in splits.positions(role)]
    pictures = {splits.sha256[i]: splits.ids[i] for i in held}
    groups = {}
    for source in config.sources:
        before = f"group:{source.name}:" if len(config.sources) > 1 else "group:"
        for i in held:
            if source.group_by is not None and splits.groups[i].startswith(before):
                groups[group_key(source.group_by, splits.groups[i].removeprefix(before))] = splits.ids[i]
    return pictures, groups


def joined(parts: Sequence[Rows]) -> Rows:
    """Join the rows of several sources. Only the image column is kept."""
    from datasets import concatenate_datasets

    if len(parts) == 1:
        return parts[0]
    column = parts[0].image_column
    return Rows(
        role=ROLE,
        ids=[row_id for part in parts for row_id in part.ids],
        labels=np.concatenate([part.labels for part in parts]),
        groups=np.concatenate([part.groups for part in parts]),
        source=concatenate_datasets([part.source.select_columns([column]) for part in parts]),
        decoded=concatenate_datasets([part.decoded for part in parts]),
        image_column=column,
        max_megapixels=parts[0].max_megapixels,
    )

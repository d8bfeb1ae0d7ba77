"""WebDataset shards: a picture and its label are files of one name in a tar archive."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from natix_hf.errors import cut
from natix_hf.intake.archives import read_members, without_ending
from natix_hf.intake.files import File, Found
from natix_hf.intake.labelled import LABEL_COLUMN
from natix_hf.intake.said import Said
from natix_hf.intake.splitwords import split_of_file
from natix_hf.intake.webdataset import group_samples, is_webdataset, sample_values
from natix_hf.intake.words import class_name


def read_samples(found: Found, image_column: str, label_column: str) -> Said | None:
    """Read the labels of WebDataset shards; None if the source is none.

    The label is the field or JSON key `data.label_column`, or if that is the default, else the field `cls`.

    Where no field holds the labels, the result has no classes, and its only note says so.
    """
    shards: dict[Path, dict[str, File]] = defaultdict(dict)
    for file in (*found.pictures, *found.tables, *found.others):
        if file.member is not None:
            shards[file.path][file.member] = file
    pictures = {file.name for file in found.pictures}
    said = Said(by="WebDataset samples")
    seen: set[str] = set()
    for path, members in shards.items():
        shown = {name for name, file in members.items() if file.name in pictures}
        if not is_webdataset(list(members), shown):
            return None
        values = dict(read_members(path, [name for name in members if name not in shown]))
        for key, fields in group_samples(list(members)).items():
            images = {field: name for field, name in fields.items() if name in shown}
            if not images:
                continue
            picture = members[images.get(image_column) or next(iter(images.values()))]
            facts = sample_values({field: values[name] for field, name in fields.items() if name in values}, key)
            said.files |= {members[name].name for name in fields.values() if name in values}
            column = "cls" if label_column == LABEL_COLUMN and label_column not in facts else label_column
            seen |= set(facts)
            where = f"{path.name}: {key}"
            if column in facts:
                said.classes[picture.place] = class_name(facts[column], where)
                said.origins[picture.place] = where
            split = split_of_file(without_ending(path.name))
            if split is not None:
                said.splits[picture.place] = split
            for name, value in facts.items():
                if name != column:
                    said.columns.setdefault(name, {})[picture.place] = value
    if shards and not said.class_names:
        said.notes = [
            f"the WebDataset shards of {found.source} have no field {cut(label_column)} or `cls` that holds the "
            f"labels: "
            f"they have {', '.join(sorted(seen)[:8]) or 'pictures alone'}; set data.label_column"
        ]
    return said if shards else None

"""Annotations in JSON: COCO (one file for many pictures) and LabelMe (one file a picture)."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Sequence
from typing import Any

from natix_hf.errors import DataError, first_line
from natix_hf.intake.boxes import (
    Boxes,
    Marks,
    counted,
    cut,
    gathered,
    one_picture,
    split_of_folder,
    split_of_name,
    sure,
)  # fmt: skip
from natix_hf.intake.names import Found, Index, find_pictures

_COCO, _LABELME = ("images", "annotations", "categories"), ("shapes", "imagePath")
_LONGEST = 2 * 2**30


def read_json(names: Sequence[str], index: Index, read: Callable[[str], bytes]) -> list[Boxes | None]:
    """What the COCO and what the LabelMe files of a source say: None where there are none."""
    coco, labelme = Marks("COCO"), Marks("LabelMe")
    for name in names:
        if not name.lower().endswith(".json"):
            continue
        content = read(name)
        if all(f'"{key}"'.encode() in content for key in _COCO):
            _coco(name, _parsed(name, content), index, coco)
        elif all(f'"{key}"'.encode() in content for key in _LABELME):
            _labelme(name, _parsed(name, content), index, labelme)
    return [gathered(coco), gathered(labelme)]


def _parsed(name: str, content: bytes) -> Any:
    if len(content) > _LONGEST:
        raise DataError(f"{name}: {len(content) / 2**30:.1f} GiB, more than the 2 GiB that are read")
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(f"{name}, line {error.lineno}: broken JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: broken JSON: {cut(first_line(error))}") from error


def _records(name: str, whole: dict[str, Any], key: str) -> list[dict[str, Any]]:
    for place, record in enumerate(whole[key]):
        if not isinstance(record, dict):
            raise DataError(f"{name}: {key}[{place}] is {cut(repr(record))}, not an object")
    return list(whole[key])


def _value(name: str, record: dict[str, Any], place: str, key: str, kind: type | tuple[type, ...]) -> Any:
    value = record.get(key)
    if not isinstance(value, kind):
        raise DataError(f"{name}: {place} has {'no' if value is None else 'a wrong'} {key}: {cut(repr(record))}")
    return value


def _coco(name: str, whole: Any, index: Index, marks: Marks) -> None:
    if not isinstance(whole, dict) or not all(isinstance(whole.get(key), list) for key in _COCO):
        return
    marks.files.add(name)
    number = (int, str)
    classes = {_value(name, record, f"categories[{place}]", "id", number):
               _value(name, record, f"categories[{place}]", "name", str).strip()
               for place, record in enumerate(_records(name, whole, "categories"))}  # fmt: skip
    marks.names.update(dict.fromkeys(classes.values()))
    marked: dict[int | str, set[str]] = {}
    images = _records(name, whole, "images")
    for place, record in enumerate(images):
        marked[_value(name, record, f"images[{place}]", "id", number)] = set()
    lost = 0
    for place, record in enumerate(_records(name, whole, "annotations")):
        kind = _value(name, record, f"annotations[{place}]", "category_id", number)
        if kind not in classes:
            raise DataError(f"{name}: annotations[{place}] has category_id {cut(repr(kind))}, which no category has")
        image = _value(name, record, f"annotations[{place}]", "image_id", number)
        if image in marked:
            marked[image].add(classes[kind])
        else:
            lost += 1
    if lost:
        marks.notes.append(f"{name}: {counted(lost, 'annotation')} of pictures that it does not list left out")
    written = [_value(name, record, f"images[{place}]", "file_name", str) for place, record in enumerate(images)]
    split = split_of_name(name) or split_of_folder(name)
    for record, text, found in zip(images, written, find_pictures(written, name, index, lambda _: False), strict=True):
        picture = sure(name, text, _of_split(found, split))
        if picture is None:
            marks.astray(name, text)
        else:
            marks.add(picture, sorted(marked[record["id"]]), name, split)


def _of_split(found: Found, split: str | None) -> Found:
    """Of several pictures, the one in a folder of the file's split: `val2017/1.jpg` for `instances_val2017.json`."""
    if not isinstance(found, tuple) or split is None:
        return found
    own = [picture for picture in found if split_of_folder(picture) == split]
    return own[0] if len(own) == 1 else found


def _labelme(name: str, whole: Any, index: Index, marks: Marks) -> None:
    if not isinstance(whole, dict) or not isinstance(whole.get("shapes"), list):
        return
    marks.files.add(name)
    classes = [_value(name, record, f"shapes[{place}]", "label", str).strip()
               for place, record in enumerate(_records(name, whole, "shapes"))]  # fmt: skip
    written = whole.get("imagePath")
    picture = one_picture(name, written if isinstance(written, str) else None, index)
    if picture is None:
        marks.astray(name, written or posixpath.basename(name))
    else:
        marks.add(picture, classes, name)

"""YOLO's annotations: a text file a picture, one line `class x y w h …` for each object.

The places follow Ultralytics: `images/…/X.jpg` has `labels/…/X.txt`, any other picture has `X.txt` beside it.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import yaml

from natix_hf.errors import DataError, cut, first_line
from natix_hf.intake.boxes import Boxes, Marks, counted, gathered, split_of_folder
from natix_hf.intake.names import Index, find_pictures

_LISTS = ("classes.txt", "obj.names", "_darknet.labels")
_CLASS = re.compile(r"(\d{1,9})(?:\.0*)?")
_LONGEST, _LONGEST_YAML = 16 * 2**20, 2**20
_KEYS = frozenset({"names", "nc", "path", "train", "val"})
_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "test": "test"}


@dataclass(frozen=True)
class _Settings:
    """A data.yaml or a list of classes: `names` by their numbers, and by split the folders and lists of pictures."""

    file: str
    names: dict[int, str]
    places: dict[str, list[str]]


def read_yolo(names: Sequence[str], index: Index, read: Callable[[str], bytes]) -> Boxes | None:
    """What the YOLO files of a source say, or None if there are none."""
    texts = {name.casefold(): name for name in names
             if name.lower().endswith(".txt") and posixpath.basename(name).lower() not in _LISTS}  # fmt: skip
    if not texts:
        return None
    apart = {picture: label for picture in index.known if (label := texts.get(_apart(picture) or ""))}
    settings = _settings(names, read)
    beside: dict[str, str] = {}
    if settings:
        beside = {picture: label for picture in index.known if picture not in apart
                  and (label := texts.get(f"{posixpath.splitext(picture)[0]}.txt".casefold()))}  # fmt: skip
    labels = apart | beside
    if not labels:
        return None
    marks = Marks("YOLO", files={setting.file for setting in settings} | set(labels.values()))
    known = _agreed_names(settings)
    marks.names.update(dict.fromkeys(known.values()))
    for picture, label in sorted(labels.items()):
        marks.add(picture, _marked(label, read(label), known), label)
    _background(index, apart, beside, marks)
    _said_splits(settings, index, frozenset(names), read, marks)
    orphans = sorted(
        name
        for name in set(texts.values()) - set(labels.values())
        if "labels" in posixpath.dirname(name).lower().split("/")
    )
    if orphans:
        marks.notes.append(f"YOLO: {counted(len(orphans), 'label file')} without a picture, such as {orphans[0]}")
    return gathered(marks)


def _apart(picture: str) -> str | None:
    """`labels/…/X.txt` of `images/…/X.jpg`, in lower case. The last folder called images counts."""
    folders, _, base = picture.casefold().rpartition("/")
    parts = folders.split("/")
    if "images" not in parts:
        return None
    at = len(parts) - 1 - parts[::-1].index("images")
    return "/".join([*parts[:at], "labels", *parts[at + 1 :], f"{posixpath.splitext(base)[0]}.txt"])


def _marked(name: str, content: bytes, known: dict[int, str]) -> list[str]:
    """The classes that one file marks."""
    if len(content) > _LONGEST:
        raise DataError(f"{name}: larger than 16 MiB, which no annotation of one picture is")
    found = []
    for number, line in enumerate(content.decode("utf-8-sig", "replace").splitlines(), 1):
        if not (cells := line.split()):
            continue
        kind = _CLASS.fullmatch(cells[0])
        if kind is None or len(cells) < 5 or not all(map(_is_finite, cells[1:])):
            raise DataError(f"{name}, line {number}: {cut(line)} is not YOLO's 'class x y width height'")
        if known and int(kind[1]) not in known:
            raise DataError(f"{name}, line {number}: class {kind[1]}, but the {len(known)} named classes are "
                            f"{min(known)} to {max(known)}")  # fmt: skip
        found.append(known.get(int(kind[1]), f"class {int(kind[1])}"))
    return found


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _background(index: Index, apart: dict[str, str], beside: dict[str, str], marks: Marks) -> None:
    """Pictures without a text file have nothing marked in them, unless their whole split or folder has none."""
    annotated = {_part(picture) for picture in apart} | {posixpath.dirname(picture) for picture in beside}
    empty, unspoken = [], []
    for picture in sorted(index.known - marks.present.keys()):
        if _part(picture) in annotated or posixpath.dirname(picture) in annotated:
            empty.append(picture)
        elif _apart(picture) is not None:
            unspoken.append(picture)
    for picture in empty:
        marks.add(picture, [], picture)
    if empty:
        marks.notes.append(f"YOLO: {counted(len(empty), 'picture')} without a text file, so nothing is marked there, "
                           f"such as {empty[0]}")  # fmt: skip
    if unspoken:
        marks.notes.append(f"YOLO: {counted(len(unspoken), 'picture')} without an annotation, because their split has "
                           f"none, such as {unspoken[0]}")  # fmt: skip


def _part(picture: str) -> tuple[str, str | None] | None:
    """The folder of labels of a picture under `images`, and its split."""
    label = _apart(picture)
    return None if label is None else (label.rpartition("labels/")[0], split_of_folder(picture))


def _settings(names: Sequence[str], read: Callable[[str], bytes]) -> list[_Settings]:
    found = []
    for name in names:
        base = posixpath.basename(name).lower()
        if base in _LISTS:
            lines = [line.strip() for line in _text(name, read(name)).splitlines()]
            found.append(_Settings(name, {number: line for number, line in enumerate(lines) if line}, {}))
        elif base.endswith((".yaml", ".yml")):
            content = read(name)
            if len(content) <= _LONGEST_YAML and (b"names" in content or b"nc" in content):
                found += _from_yaml(name, _text(name, content))
    return found


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}, line {line}: not UTF-8: save it as UTF-8") from error


def _from_yaml(name: str, text: str) -> list[_Settings]:
    """The settings of a data.yaml, or nothing if the file is another one. Words like `no` stay as typed."""
    try:
        whole = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        if not re.search(r"^(names|nc)\s*:", text, re.MULTILINE):
            return []
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise DataError(f"{name}, line {line}: broken YAML: {cut(first_line(error))}") from error
    if not isinstance(whole, dict) or not {"names", "nc"} & whole.keys() or len(_KEYS & whole.keys()) < 2:
        return []
    listed = whole.get("names", [])
    numbered = (
        listed if isinstance(listed, dict) else dict(enumerate(listed)) if isinstance(listed, list) else {"?": ""}
    )
    if not all(str(number).isdecimal() and isinstance(label, str) for number, label in numbered.items()):
        raise DataError(f"{name}: names must be a list of classes, or number: class: {cut(repr(listed))}")
    classes = {int(number): label.strip() for number, label in numbered.items()}
    if classes and str(whole.get("nc", len(classes))) != str(len(classes)):
        raise DataError(f"{name}: nc is {cut(str(whole['nc']))}, but names has {counted(len(classes), 'class')}")
    places = {}
    for key, split in _SPLITS.items():
        said = whole.get(key)
        wanted = said if isinstance(said, list) else [said]
        if paths := [posixpath.join(str(whole.get("path", "")), path) for path in wanted if isinstance(path, str)]:
            places[split] = paths
    return [_Settings(name, classes, places)]


def _agreed_names(settings: list[_Settings]) -> dict[int, str]:
    named = [setting for setting in settings if setting.names]
    for other in named[1:]:
        if other.names != named[0].names:
            raise DataError(f"{named[0].file} and {other.file} name other classes: keep one of them")
    return named[0].names if named else {}


def _said_splits(
    settings: list[_Settings], index: Index, names: Collection[str], read: Callable[[str], bytes], marks: Marks
) -> None:
    """The splits that a data.yaml names, instead of those that the folders' names tell."""
    said: dict[str, dict[str, str]] = {}
    for setting in settings:
        for split, paths in setting.places.items():
            for path in paths:
                place = _place(path, setting.file, names, index)
                if place in names:
                    marks.files.add(place)
                    lines = [line.strip() or None for line in _text(place, read(place)).splitlines()]
                    found = find_pictures(lines, place, index, lambda _: False)
                else:
                    found = [name for name in index.known if place and name.startswith(f"{place}/")]
                for name in found:
                    if name in marks.present:
                        said.setdefault(str(name), {}).setdefault(split, setting.file)
    marks.splits.update(said)


def _place(path: str, file: str, names: Collection[str], index: Index) -> str:
    """The folder of pictures, or the list of them, that a data.yaml means, or "".

    Roboflow writes `../train/images` for a folder beside the file, others the path on their machine: the longest end
    of the path that is here, beside the file or under the root, is meant.
    """
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for skipped in range(len(parts)):
        for base in (posixpath.dirname(file), ""):
            place = posixpath.join(base, *parts[skipped:])
            if place in names or any(name.startswith(f"{place}/") for name in index.known):
                return place
        if split_of_folder(f"{parts[skipped]}/"):  # without its `train`, `train/images` would be every `images`
            break
    return ""

"""Annotations that mark objects in pictures: YOLO, COCO, LabelMe and Pascal VOC. What is marked says what is there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from xml.parsers import expat

from natix_hf.errors import DataError, first_line
from natix_hf.intake import boxes_json, boxes_yolo
from natix_hf.intake.boxes import Boxes, Marks, gathered, one_picture
from natix_hf.intake.names import Index

__all__ = ["Boxes", "read_boxes"]

_LONGEST_XML = 16 * 2**20


def read_boxes(names: Sequence[str], pictures: Collection[str], read: Callable[[str], bytes]) -> Boxes | None:
    """Read the annotations among the files of a source.

    Args:
        names: Every file of the source, relative to its root.
        pictures: Those that are pictures.
        read: Gives the content of a file.

    Returns:
        None if there are no annotations of a known layout. Other text, JSON and XML files are not looked at twice.

    Raises:
        DataError: If an annotation file cannot be read, names no picture of the source or could mean several, or if
            there are annotations in two layouts. It names the file and, where there is one, the line.
    """
    index = Index(pictures)
    found = [
        boxes
        for boxes in (
            boxes_yolo.read_yolo(names, index, read),
            *boxes_json.read_json(names, index, read),
            _read_voc(names, index, read),
        )
        if boxes
    ]
    if len(found) > 1:
        kinds = " and ".join(f"{boxes.layout} ({min(boxes.files)})" for boxes in found)
        raise DataError(f"annotations in more than one layout: {kinds}: leave the files of one layout in the folder")
    return found[0] if found else None


def _read_voc(names: Sequence[str], index: Index, read: Callable[[str], bytes]) -> Boxes | None:
    marks = Marks("Pascal VOC")
    for name in names:
        if not name.lower().endswith(".xml"):
            continue
        content = read(name)
        parsed = _objects(name, content) if b"<annotation" in content else None
        if parsed is None:
            continue
        written, classes = parsed
        picture = one_picture(name, written, index)
        marks.files.add(name)
        if picture is None:
            marks.astray(name, written)
        else:
            marks.add(picture, classes, name)
    return gathered(marks)


def _objects(name: str, content: bytes) -> tuple[str | None, list[str]] | None:
    """`filename` and the names of the objects of a Pascal VOC file, or None if it is another kind of XML."""
    if len(content) > _LONGEST_XML:
        raise DataError(f"{name}: larger than 16 MiB, which no annotation of one picture is")
    path: list[str] = []
    text: list[str] = []
    values: dict[str, list[str]] = {"annotation/filename": [], "annotation/object/name": []}
    roots: list[str] = []

    def starts(tag: str, _: Mapping[str, str]) -> None:
        if not path:
            roots.append(tag)
        path.append(tag)
        text.clear()

    def ends(_: str) -> None:
        value = "".join(text).strip()
        if (place := "/".join(path)) in values and value:
            values[place].append(value)
        path.pop()
        text.clear()

    def refuses(*_: object) -> None:
        raise DataError(f"{name}: a DOCTYPE, which an annotation does not need: remove it")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = starts, ends
    parser.CharacterDataHandler = text.append
    parser.StartDoctypeDeclHandler = refuses
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        if roots and roots[0] != "annotation":
            return None
        raise DataError(f"{name}, line {error.lineno}: broken XML: {first_line(error)}") from error
    if roots != ["annotation"]:
        return None
    return next(iter(values["annotation/filename"]), None), values["annotation/object/name"]

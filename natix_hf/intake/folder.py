"""The pictures of a folder or archive, with the class, split and columns that its layout gives them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from natix_hf.errors import DataError, cut
from natix_hf.intake.annotations import Boxes, read_boxes
from natix_hf.intake.classfolders import common_wrapper, splits_and_classes
from natix_hf.intake.files import File, Found, why_no_row
from natix_hf.intake.labelled import read_tables
from natix_hf.intake.said import Said, classes_of_marks
from natix_hf.intake.samples import read_samples
from natix_hf.intake.words import meaning, spelled


@dataclass
class Listing:
    """The pictures of a source that can be rows, as aligned lists, and every other file with its reason.

    Args:
        pictures: The files.
        classes: Class of each picture; None: it has no label.
        splits: "train", "validation", "test", or None.
        origins: What gave the class, for errors: the picture's name or a line of a table.
        columns: Further columns by name.
        missing: One line for each row of a table whose picture does not exist.
        left_out: Files that are no rows, as name -> reason.
        found, used: Number of files, and of those that were read.
        labels_from: What gives the labels, for a person.
        yes: The class that means yes, where the layout is plain about it.
        contradictions: Pictures that tables give two classes.
        notes: What the user should hear.
    """

    pictures: list[File]
    classes: list[str | None]
    splits: list[str | None]
    origins: list[str]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    found: int = 0
    used: int = 0
    labels_from: str = "nothing"
    yes: str | None = None
    contradictions: int = 0
    notes: list[str] = field(default_factory=list)


def read_listing(
    found: Found,
    image_column: str = "image",
    label_column: str = "label",
    positive_class: str | None = None,
    exclude_classes: Sequence[str] = (),
) -> Listing:
    """Decide class and split of every picture of a folder.

    Class folders whose names plainly say which one means yes give the labels. Else they come from the samples of
    WebDataset shards, a table that names the pictures, class folders, or annotations of objects. Class folders win
    over a table whose labels say nothing else.

    Args:
        found: The files of the source.
        image_column, label_column, positive_class, exclude_classes: The recipe's keys.

    Raises:
        DataError: If there is no picture, or nothing gives the pictures a label. The line names the layout that was
            seen and what to do.
    """
    places = [file.place for file in found.pictures]
    given = [positive_class, *exclude_classes] if positive_class is not None else list(exclude_classes)
    folders = _say_folders(places, common_wrapper(places, given), given)
    names = folders.class_names
    kept = names - {spelled(name) for name in exclude_classes}
    plain = len(kept) > 1 and (
        meaning(kept) is not None or (positive_class is not None and spelled(positive_class) in names)
    )
    samples = None if plain else read_samples(found, image_column, label_column)
    if samples is not None and samples.class_names:
        return _listing(found, samples, samples, folders)
    tables = read_tables(found, image_column, label_column, positive_class, strict=len(names) < 2)
    agree = meaning(tables.class_names) is None and _folders_agree(folders, tables)
    by_table = tables.class_names and not (plain or agree)
    labels = tables if by_table else folders
    if not by_table and not plain and (len(names) < 2 or positive_class is not None):
        labels = _say_boxes(found, positive_class, sure=len(names) < 2) or folders
    if samples is not None and labels is folders and (len(names) < 2 or _are_shards(found)):
        raise DataError(samples.notes[0])
    if labels is folders and not plain and tables.missing and not tables.origins and len(names) < 2:
        raise DataError(
            f"no table names a picture that is here: {tables.missing[0]} ({len(tables.missing):,} rows have none): "
            "correct the paths, or put the pictures there"
        )
    flat = all(place.count("/") <= 1 for place in places)
    around = labels is folders and not given and names <= _GENERIC and (flat or bool(tables.columns))
    if not labels.class_names or around:
        _require_pictures(found)
        raise DataError(_no_labels(found, tables, label_column))
    if labels is folders and tables.class_names:
        _say_disagreement(folders, tables)
    return _listing(found, labels, tables, folders)


def read_pictures(found: Found, image_column: str = "image") -> Listing:
    """Every picture of a source as a row without a label: those of a folder, or those that a table names.

    Raises:
        DataError: If there is no picture, or the table cannot be read.
    """
    tables = Said(by="") if found.pictures else read_tables(found, image_column, "", None, strict=True)
    pictures = [*found.pictures, *tables.outside.values()]
    if not pictures:
        raise DataError(say_no_picture(found))
    nothing: list[str | None] = [None] * len(pictures)
    names = [file.name for file in pictures]
    listing = Listing(pictures, nothing, list(nothing), names, missing=list(tables.missing), notes=list(tables.notes))
    return _counted(listing, found, tables.files)


def read_marked(found: Found) -> Listing | None:
    """Every picture of a folder in which annotations mark an object, as a row without a label.

    Splits that the annotations name are not taken: all rows will have one label, and no split may lack the other.

    Returns:
        None if the folder holds no annotations of objects.

    Raises:
        DataError: If the annotations cannot be read, or mark nothing.
    """
    boxes, by_place = _boxes_of(found)
    if boxes is None:
        return None
    by = f"{boxes.layout} annotations"
    marked = [file for file in found.pictures if boxes.present.get(file.place)]
    if not marked:
        raise DataError(f"the {by} of {found.source} mark nothing in any picture: check them")
    nothing: list[str | None] = [None] * len(marked)
    names = [file.name for file in marked]
    listing = Listing(marked, nothing, list(nothing), names, labels_from=by, notes=list(boxes.notes))
    for file in found.pictures:
        if not boxes.present.get(file.place):
            what = "mark nothing in it" if file.place in boxes.present else "do not name it"
            listing.left_out[file.name] = f"the {by} {what}"
    return _counted(listing, found, {by_place[place].name for place in boxes.files})


def _require_pictures(found: Found) -> None:
    if not found.pictures:
        raise DataError(say_no_picture(found))


def say_no_picture(found: Found) -> str:
    """What a source without pictures holds instead."""
    kinds = Counter(found.left_out.values()) + Counter(why_no_row(file) for file in (*found.tables, *found.others))
    held = ", ".join(f"{count} x {reason}" for reason, count in kinds.most_common(3))
    return f"{found.source} holds no picture that can be read here" + (f": it holds {held}" if held else "")


# Folders around all pictures of a table, never a class.
_GENERIC = frozenset("data dataset files frames image images img imgs jpegimages photos pics pictures".split())


def _are_shards(found: Found) -> bool:
    """True if all pictures lie loose in tar archives. Then the archives' names are no classes, but those of shards."""
    shards = (f.member is not None and "/" not in f.member and ".zip" not in f.path.suffix for f in found.pictures)
    return bool(found.pictures) and all(shards)


def _say_folders(places: Sequence[str], wrapper: str, given: Sequence[str]) -> Said:
    said = Said(by="class folders")
    inner = [p.removeprefix(wrapper) if p.startswith(wrapper) else p.rpartition("/")[2] for p in places]
    for place, (split, name) in zip(places, splits_and_classes(inner, given), strict=True):
        if name is not None or split is not None:
            said.classes[place] = name
        if split is not None:
            said.splits[place] = split
    return said


def _folders_agree(folders: Said, tables: Said) -> bool:
    """True if there are several class folders, and each has one label in the table."""
    names = folders.class_names
    pairs = {
        (spelled(name), spelled(label))
        for place, name in folders.classes.items()
        if name is not None and (label := tables.classes.get(place)) is not None
    }
    return len(names) > 1 and len(pairs) == len(names) == len(tables.class_names)


def _say_disagreement(folders: Said, tables: Said) -> None:
    label_of: dict[str, Counter[str]] = {}
    for place, name in folders.classes.items():
        label = tables.classes.get(place)
        if name is not None and label is not None:
            label_of.setdefault(spelled(name), Counter())[spelled(label)] += 1
    other = sum(counts.total() - counts.most_common(1)[0][1] for counts in label_of.values())
    if other:
        folders.notes.append(
            f"{tables.by} gives {other} pictures another label than most of their class folder: the folder counts"
        )


def _say_boxes(found: Found, positive_class: str | None, sure: bool) -> Said | None:
    """What annotations say, or None if there are none. Unless `sure`, they must mark the positive class."""
    boxes, by_place = _boxes_of(found)
    marked = {spelled(name) for name in boxes.names} if boxes is not None else set()
    if boxes is None or not (sure or (positive_class is not None and spelled(positive_class) in marked)):
        return None
    by = f"{boxes.layout} annotations"
    classes, yes = classes_of_marks(boxes.present, boxes.names, positive_class, by)
    said = Said(by=by, classes=dict(classes), splits=dict(boxes.splits), yes=yes, notes=list(boxes.notes))
    said.files = {by_place[place].name for place in boxes.files}
    return said


def _boxes_of(found: Found) -> tuple[Boxes | None, dict[str, File]]:
    by_place = {file.place: file for file in (*found.pictures, *found.tables, *found.others)}
    pictures = {file.place for file in found.pictures}
    return read_boxes(list(by_place), pictures, lambda place: found.read(by_place[place])), by_place


def _listing(found: Found, labels: Said, tables: Said, folders: Said) -> Listing:
    """Join what was said: classes from `labels`, columns from `tables`, splits from both, else from the folders."""
    listing = Listing([], [], [], [], labels_from=labels.by, yes=labels.yes)
    said = [part for part in (labels, tables) if part is not None]
    said = said[:1] if labels is tables else said
    listing.notes = [note for part in said for note in part.notes]
    listing.missing = list(labels.missing if labels is tables else tables.missing)
    named = {folders.splits.get(place) for place in labels.classes}
    outside = {place: file for place, file in tables.outside.items() if place in labels.classes}
    for file in (*found.pictures, *outside.values()):
        place = file.place
        split = labels.splits.get(place) or tables.splits.get(place) or folders.splits.get(place)
        if place in labels.refused:
            listing.left_out[file.name] = labels.refused[place]
            listing.contradictions += 1
        elif place in labels.classes or (split is not None and split not in named):
            listing.pictures.append(file)
            listing.classes.append(labels.classes.get(place))
            listing.splits.append(split)
            listing.origins.append(labels.origins.get(place, file.name))
        else:
            listing.left_out[file.name] = (
                "in no class folder" if labels is folders else f"{labels.by} does not name it"
            )
    listing.columns = {
        name: [values.get(file.place) for file in listing.pictures] for name, values in tables.columns.items()
    }
    return _counted(listing, found, labels.files | tables.files)


def _counted(listing: Listing, found: Found, read: set[str]) -> Listing:
    """Give every file that nothing made use of a reason, and count."""
    others = {file.name: why_no_row(file) for file in (*found.tables, *found.others) if file.name not in read}
    columns = {file.name: "a parquet or arrow file beside pictures" for file in found.columns if file.name not in read}
    known = {file.name for file in found.pictures}
    outside = sum(file.name not in known for file in listing.pictures)
    listing.left_out = found.left_out | others | columns | listing.left_out
    listing.found = found.count + outside
    listing.used = listing.found - len(listing.left_out)
    return listing


def _no_labels(found: Found, tables: Said, label_column: str) -> str:
    many = f"{found.source} holds {len(found.pictures)} pictures and nothing that gives them a label"
    if tables.columns:
        names = ", ".join(sorted(tables.columns)[:8])
        return f"{many}: the table beside them has no column {cut(label_column)} but {names}; set data.label_column"
    sheet = next((file.name for file in found.others if file.name.lower().endswith((".xlsx", ".xls", ".ods"))), None)
    if sheet is not None:
        return f"{many}: save {sheet} as csv, if it does"
    return (
        f"{many}: put them into one folder for each class, or beside a labels.csv with the columns file_name and "
        "label; one of several sources may have its label in the recipe (label: yes or no)"
    )

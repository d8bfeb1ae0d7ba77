"""The split and the class that a picture's folders say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from natix_hf.intake.splitwords import TRAIN, split_of
from natix_hf.intake.words import says_yes_or_no, spelled


def common_wrapper(places: Sequence[str], known: Iterable[str]) -> str:
    """The folders around everything, with a final slash, if the folders in them plainly are splits or classes.

    It is "" if there are no such folders. Otherwise one class with subfolders would look the same.

    Args:
        places: POSIX paths of the pictures.
        known: Names of classes that the user has given.
    """
    given = {spelled(name) for name in known}
    wrapper, rest = "", [place.split("/") for place in places]
    while True:
        tops = {parts[0] for parts in rest if len(parts) > 1}
        splits = {split_of(top) for top in tops}
        plain = None not in splits or len(splits - {None}) > 1 or says_yes_or_no(tops)
        if tops and (plain or given & {spelled(top) for top in tops}):
            return wrapper
        if len(tops) != 1:
            return ""
        wrapper += f"{tops.pop()}/"
        rest = [parts[1:] for parts in rest if len(parts) > 1]


def splits_and_classes(places: Sequence[str], known: Iterable[str] = ()) -> list[tuple[str | None, str | None]]:
    """The split and the class of each picture; None where its folders say none.

    A class is the first folder, or the first one in a split's folder. Deeper folders mean nothing, unless all that is
    in the class folders are folders of splits. A folder is a split's if its whole name is a word for a split, and if
    the folders beside it do not make it a class: `train` beside `no_train` is a class, and so is `test` with folders
    of its own that no class is named after.

    Args:
        places: POSIX paths of the pictures, relative to the source.
        known: Names of classes that the user has given.
    """
    inside: dict[str, set[str]] = defaultdict(set)  # first folder -> second folders; "" for pictures right in it
    for place in places:
        parts = place.split("/")
        if len(parts) > 1:
            inside[parts[0]].add(parts[1] if len(parts) > 2 else "")
    words = _split_folders(inside, {spelled(name) for name in known})
    below = not words and _splits_are_below(inside)
    found: list[tuple[str | None, str | None]] = []
    for place in places:
        parts = place.split("/")
        if len(parts) == 1:
            found.append((None, None))
        elif parts[0] in words:
            found.append((split_of(parts[0]), parts[1] if len(parts) > 2 else None))
        else:
            found.append((split_of(parts[1]) if below else TRAIN if words else None, parts[0]))
    return found


def _split_folders(inside: Mapping[str, set[str]], known: set[str]) -> set[str]:
    """The first folders that are those of splits."""
    words = {top for top in inside if split_of(top) is not None and spelled(top) not in known}
    classes = {spelled(top) for top in inside if top not in words}
    if not classes:
        return words
    inner = {top: {spelled(name) for name in inside[top] if name} for top in words}
    found = set()
    for top in words:
        others = [names for other, names in inner.items() if split_of(other) != split_of(top)]
        if not inner[top]:  # unlabelled, as a test split may be
            is_split = len(classes) >= 2 and split_of(top) != TRAIN
        else:
            is_split = bool(inner[top] & classes.union(known, *others)) or says_yes_or_no(inner[top])
        if is_split:
            found.add(top)
    return found


def _splits_are_below(inside: Mapping[str, set[str]]) -> bool:
    """True if every class folder holds nothing but folders of splits: `cracked/train`, `cracked/test`."""
    below = {split_of(name) for names in inside.values() for name in names}
    return len(below) > 1 and None not in below

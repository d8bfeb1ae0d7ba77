"""Find the pictures that a table or an annotation file names, however it spells them."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Callable, Collection, Sequence

Found = str | tuple[str, ...] | None
_DRIVE = re.compile(r"[A-Za-z]:/|//")


class Index:
    """Pictures by the last parts of their paths, spelt alike. Each depth is indexed when it is first asked for."""

    def __init__(self, pictures: Collection[str]) -> None:
        self.known = pictures if isinstance(pictures, set | frozenset) else frozenset(pictures)
        self.depth = 1 + max((name.count("/") for name in self.known), default=0)
        self._ends: dict[tuple[int, bool], dict[str, str | tuple[str, ...]]] = {}

    def ending_in(self, path: str, parts: int, stem: bool) -> tuple[str, ...]:
        """The pictures whose last `parts` parts (0: all) are `path`, which has no ending where `stem` is true."""
        if (parts, stem) not in self._ends:
            self._ends[parts, stem] = self._build(parts, stem)
        names = self._ends[parts, stem].get(_alike(path), ())
        return (names,) if isinstance(names, str) else names

    def _build(self, parts: int, stem: bool) -> dict[str, str | tuple[str, ...]]:
        ends: dict[str, str | tuple[str, ...]] = {}
        several: dict[str, list[str]] = {}
        for name in self.known:
            end = _end(name, parts) if parts else name
            if end is None:
                continue
            key = _alike(posixpath.splitext(end)[0] if stem else end)
            other = ends.setdefault(key, name)
            if other is not name:
                several.setdefault(key, [str(other)]).append(name)
        return ends | {key: tuple(sorted(names)) for key, names in several.items()}


def find_pictures(
    written: Sequence[str | None], beside: str, index: Index, exists: Callable[[str], bool]
) -> list[Found]:
    """The picture that each written name means.

    A name is relative to the folder of the file `beside` that holds it, or to the root. Where no such picture is, the
    one with the longest equal end of the path is meant (`C:\\me\\images\\0.jpg` is `images/0.jpg`), with or without
    the ending. Upper and lower case and the Unicode form count only between names that differ in nothing else.

    Returns:
        For each name: the picture relative to the root (a file outside of it as `../img/0.jpg`, or absolute), None if
        there is none, or the pictures that it could mean. A file of the root that is no picture comes last.
    """
    folder = posixpath.dirname(beside)
    prefix = f"{folder}/" if folder else ""
    found: list[Found] = [prefix + text if text and prefix + text in index.known else None for text in written]
    paths = {row: _path(text) for row, text in enumerate(written) if text and found[row] is None}
    roots: dict[str, bool] = {}
    for row, path in paths.items():
        found[row] = _in_its_place(path, folder, beside, index, exists, roots)
    loose = [row for row in paths if found[row] is None]
    if loose:
        places = _places(written, found)
        for row in loose:
            found[row] = _by_its_end(paths[row], places, index)
        _take_back(loose, paths, found)
    for row in loose:
        if found[row] is None and not _is_absolute(paths[row]):
            spots = (spot for spot in _spots(paths[row], folder) if posixpath.splitext(spot)[1])
            found[row] = next((spot for spot in spots if exists(spot)), None)
    return found


def is_outside(name: str) -> bool:
    """Whether a name of `find_pictures` is that of a file outside the root."""
    return name.startswith("../") or _is_absolute(name)


def _alike(text: str) -> str:
    return text.casefold() if text.isascii() else unicodedata.normalize("NFC", text).casefold()


def _path(text: str) -> str:
    """A written name with `/` between its parts and without `.`, and `..` only where it leads outside."""
    text = text.removeprefix("file://").replace("\\", "/")
    path = posixpath.normpath(text)
    return f"/{path}" if _DRIVE.match(text) and text.startswith("//") and not path.startswith("//") else path


def _is_absolute(path: str) -> bool:
    return path.startswith("/") or bool(_DRIVE.match(path))


def _end(path: str, parts: int) -> str | None:
    at = len(path)
    for _ in range(parts):
        if at < 0:
            return None
        at = path.rfind("/", 0, at)
    return path[at + 1 :]


def _spots(path: str, folder: str) -> list[str]:
    """Where a relative name can lie: beside the file that names it, or under the root."""
    return [posixpath.normpath(f"{folder}/{path}"), path] if folder else [path]


def _in_its_place(
    path: str, folder: str, beside: str, index: Index, exists: Callable[[str], bool], roots: dict[str, bool]
) -> Found:
    spots = [path] if _is_absolute(path) else _spots(path, folder)
    for spot in spots:
        if spot in index.known:
            return spot
        if is_outside(spot):
            inside = _inside(spot, beside, index, exists, roots)
            if inside or exists(spot):
                return inside or spot
    for stem in (False, True):
        for spot in spots:
            names = index.ending_in(spot, 0, stem)
            if names:
                return names[0] if len(names) == 1 else names
    return None


def _inside(spot: str, beside: str, index: Index, exists: Callable[[str], bool], roots: dict[str, bool]) -> str | None:
    """The picture of the root that a way around it leads to: that way holds the naming file too."""
    for parts in range(1, min(index.depth, spot.count("/")) + 1):
        end = _end(spot, parts)
        if end and end in index.known:
            root = spot[: -len(end) - 1]
            if root not in roots:
                roots[root] = exists(f"{root}/{beside}")
            if roots[root]:
                return end
    return None


def _places(written: Sequence[str | None], found: Sequence[Found]) -> dict[str, set[str]]:
    """By written folder: the folders in which its pictures were found."""
    places: dict[str, set[str]] = {}
    for text, name in zip(written, found, strict=True):
        if text and isinstance(name, str):
            places.setdefault(posixpath.dirname(_path(text)), set()).add(posixpath.dirname(name))
    return places


def _by_its_end(path: str, places: dict[str, set[str]], index: Index) -> Found:
    """The pictures with the longest equal end. A folder that is here and lacks the file does not lend another's."""
    here = places.get(posixpath.dirname(path))
    for stem in (False, True):
        for parts in range(min(index.depth, path.count("/") + 1), 0, -1):
            names = index.ending_in(_end(path, parts) or path, parts, stem)
            if here is not None:
                names = tuple(name for name in names if any(not at or name.startswith(f"{at}/") for at in here))
            if names:
                return names[0] if len(names) == 1 else names
    return None


def _take_back(loose: Sequence[int], paths: dict[int, str], found: list[Found]) -> None:
    """Take back what was found by a part of its end only, where a name of another folder claims the same picture."""
    partly: dict[int, str] = {}
    for row in loose:
        name, path = found[row], _alike(paths[row])
        if isinstance(name, str) and "/" in path:
            whole = _alike(name)
            if not path.endswith((whole, posixpath.splitext(whole)[0])):
                partly[row] = name
    sure = {name for row, name in enumerate(found) if row not in partly}
    folders: dict[str, set[str]] = {}
    for row, name in partly.items():
        folders.setdefault(name, set()).add(posixpath.dirname(paths[row]))
    for row, name in partly.items():
        if name in sure or len(folders[name]) > 1:
            found[row] = None

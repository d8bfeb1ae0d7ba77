"""Every file of a source, by kind. A file that can be no row keeps the reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from natix_hf.errors import DataError
from natix_hf.intake.archives import list_members, read_each, read_members, without_ending
from natix_hf.intake.kinds import is_text, junk_reason, kind_of, looks_like_picture, other_reason, says_nothing
from natix_hf.intake.pointers import HEAD, stand_in
from natix_hf.intake.splitwords import split_of
from natix_hf.provenance.files import walk


@dataclass(frozen=True)
class File:
    """A file of a source.

    Args:
        name: POSIX path relative to the source, unique in it. A member of an archive has the archive's path before it.
        place: The path that says split and class. For a member: where it would lie if the archive were unpacked.
        path: The file on disk. For a member: its archive.
        member: Name inside the archive, or None.
    """

    name: str
    place: str
    path: Path
    member: str | None = None


@dataclass
class Found:
    """All files of a source.

    Args:
        source: The folder or file that was named.
        root: Folder that the names are relative to.
        pictures, tables, columns, others: Files by kind. `columns` are parquet and arrow files; `others` may be
            annotations.
        left_out: Files that can be no row, as name -> reason.
    """

    source: Path
    root: Path
    pictures: list[File] = field(default_factory=list)
    tables: list[File] = field(default_factory=list)
    columns: list[File] = field(default_factory=list)
    others: list[File] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    _texts: dict[Path, dict[str, bytes]] = field(default_factory=dict, repr=False)

    @property
    def count(self) -> int:
        kinds = (self.pictures, self.tables, self.columns, self.others, self.left_out)
        return sum(len(files) for files in kinds)

    def read(self, file: File) -> bytes:
        """The content of a file. Used for tables and annotations, never for pictures.

        Raises:
            DataError: If it cannot be read.
        """
        if file.member is None:
            try:
                return file.path.read_bytes()
            except OSError as error:
                raise DataError(f"{file.path} cannot be read ({error.strerror})") from None
        if file.path not in self._texts:  # all at once: each look into an archive reads it from its beginning
            of_archive = [other for other in (*self.tables, *self.others) if other.path == file.path]
            names = [str(other.member) for other in of_archive if is_text(str(other.member))]
            self._texts[file.path] = dict(read_members(file.path, names))
        known = self._texts[file.path].get(file.member)
        return next(content for _, content in read_members(file.path, [file.member])) if known is None else known


def find_files(source: Path) -> Found:
    """List every file of a folder, or the one file that `source` is.

    Links to folders are followed, each folder once. Archives are opened unless pictures or parquet files lie beside
    them.

    Raises:
        DataError: If a picture, table or column file is a Git LFS pointer, or an archive is damaged.
    """
    if not source.is_dir() and not source.is_file():
        raise DataError(f"{source} is neither a folder nor a regular file: name a folder, an archive or a table")
    if not _is_text(str(source)):
        raise DataError(f"the path of {str(source)!a} is not valid Unicode: rename it")
    root = source if source.is_dir() else source.parent
    found = Found(source, root)
    archives = []
    for name, path in _walk(root, found) if source.is_dir() else [(source.name, source)]:
        reason = junk_reason(name) if source.is_dir() else None
        if reason is not None:
            found.left_out[name] = reason
        elif kind_of(name) == "archive":
            archives.append((name, path))
        else:
            _sort_in(found, File(name, name, path))
    unpacked = bool(found.pictures or found.columns)
    taken: set[str] = set()
    for name, path in archives:
        if unpacked:
            found.left_out[name] = "an archive beside unpacked data: unpack it, or name it as a source of its own"
        else:
            _open_archive(found, name, path, taken)
    return found


def _walk(root: Path, found: Found) -> Iterator[tuple[str, Path]]:
    """Yield every regular file as (relative POSIX name, path). Record what is no regular file."""

    def refuse(name: str, reason: str) -> None:
        found.left_out[os.fsencode(name).decode("utf-8", "backslashreplace")] = reason

    try:
        for name, entry in walk(root, refuse):
            if _is_text(name):
                yield name, Path(entry.path)
            else:
                refuse(name, "its name is not valid Unicode: rename it")
    except OSError as error:
        raise DataError(f"{root} cannot be opened ({error.strerror})") from None


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _sort_in(found: Found, file: File, shown: bool = False) -> None:
    """Sort in a file. `shown`: the first bytes of a member are a picture's."""
    kind = kind_of(file.place)
    if kind == "other" and file.member is None and says_nothing(file.place):
        shown = looks_like_picture(_head(file.path))
    if kind == "other" and shown:
        kind = "picture"
    if kind in ("picture", "columns", "table") and file.member is None:
        _require_content(file.path)
    {"picture": found.pictures, "table": found.tables, "columns": found.columns}.get(kind, found.others).append(file)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as handle:
            return handle.read(HEAD)
    except OSError:
        return b""


def _require_content(path: Path) -> None:
    """Raise DataError if a small file only stands for another one, as the pointers of Git LFS do."""
    kept_elsewhere = stand_in(_head(path)) if path.stat().st_size <= HEAD else None
    if kept_elsewhere is not None:
        raise DataError(f"{path}: {kept_elsewhere}")


def _open_archive(found: Found, name: str, path: Path, taken: set[str]) -> None:
    """Sort in the members of an archive. `taken` holds the places of all archives before it, and gets its own."""
    _require_content(path)
    members, refused = list_members(path)
    found.left_out.update({f"{name}/{member}": reason for member, reason in refused})
    where = _mounted_at(name, [member.name for member in members])
    unknown = [
        m.name for m in members if kind_of(m.name) == "other" and says_nothing(m.name) and not junk_reason(m.name)
    ]
    shown = {
        m
        for m, head in (read_each(path, unknown) if unknown else ())
        if isinstance(head, bytes) and looks_like_picture(head[:HEAD])
    }
    for member in members:
        inside = f"{name}/{member.name}"
        reason = junk_reason(member.name)
        if reason is not None:
            found.left_out[inside] = reason
        elif kind_of(member.name) == "archive":
            found.left_out[inside] = "an archive inside an archive: unpack it"
        else:
            place = f"{where}{member.name}"
            if place in taken:  # two archives hold a file of one name: each keeps a place of its own
                folder, _, base = place.rpartition("/")
                place = f"{folder}/{name}/{base}" if folder else f"{name}/{base}"
            taken.add(place)
            _sort_in(found, File(inside, place, path, member.name), member.name in shown)


def _mounted_at(name: str, members: list[str]) -> str:
    """The folder that an archive stands for, with a final slash: its own if it names a split or holds loose files."""
    path = PurePosixPath(name)
    parent = "" if path.parent == PurePosixPath() else f"{path.parent.as_posix()}/"
    stem = without_ending(path.name)
    tops = {member.split("/")[0] for member in members if "/" in member}
    loose = any("/" not in member and kind_of(member) == "picture" for member in members)
    if tops == {stem} and not loose:
        return parent
    return f"{parent}{stem}/" if split_of(stem) is not None or (loose and not tops) else parent


def why_no_row(file: File) -> str:
    """Why a file that nothing in a layout makes use of is no row."""
    reasons = {
        "table": "a table that names no picture",
        "picture": "a picture that is in no parquet or arrow file and no configuration",
        "columns": "a parquet or arrow file that the configuration does not name",
    }
    return reasons.get(kind_of(file.place)) or other_reason(file.place)

"""What a bulk call leaves beside its table: pictures sorted into folders by decision, and heatmaps. Nothing is
overwritten, and what is there already with the same content is done."""

from __future__ import annotations

import filecmp
import glob
import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from natix_hf.bulk.rows import Item
from natix_hf.bulk.sources import fixed_part
from natix_hf.errors import NatixError, UsageError
from natix_hf.labels import ABSTAIN, LabelNames
from natix_hf.provenance.durable import discard, make_folder, sync_folder, temporary_sibling

_LONGEST = 180  # bytes of a name, so that an ending and a number fit into the 255 that file systems allow
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def decision_folders(labels: LabelNames) -> dict[str, str]:
    """The name of the folder of each decision. A name that is no plain name of a folder becomes yes or no: it may come
    from a stranger's bundle."""
    found = {labels.no: _folder_name(labels.no, "no"), labels.yes: _folder_name(labels.yes, "yes")}
    if len({name.casefold() for name in (*found.values(), ABSTAIN)}) < 3:
        found = {labels.no: "no", labels.yes: "yes"}
    return found | {ABSTAIN: ABSTAIN}


def _folder_name(label: str, otherwise: str) -> str:
    plain = re.fullmatch(r"[\w][\w .,+()-]*", label) and not label.endswith((".", " "))
    return label if plain and not _RESERVED.fullmatch(label) else otherwise


def require_apart(
    arguments: Iterable[str],
    copy_to: Path | None,
    explain: Path | None,
    labels: LabelNames,
    tables: Iterable[Path] = (),
) -> None:
    """Refuse to write pictures where pictures are read, which the next call would read, or where a table is made.

    Args:
        arguments: The sources. Those that are no paths say nothing.
        tables: The table, and what lies beside it while it is made.

    Raises:
        UsageError: if a folder that is written to lies in a source, or a source in it; if it lies in place of a table;
            or if it is no folder.
    """
    written: list[tuple[str, Path, Path]] = []
    if copy_to is not None:
        written += [("--copy-to", copy_to, copy_to / name) for name in decision_folders(labels).values()]
    written += [] if explain is None else [("--explain", explain, explain)]
    made = [Path(os.path.realpath(path)) for path in tables]
    for option, folder, target in written:
        for place in (target, *target.parents):
            if os.path.lexists(place) and not place.is_dir():
                raise UsageError(f"{option} {folder}: {place} is no folder: name another one")
        inside = Path(os.path.realpath(target))
        if any(path in (inside, *inside.parents) for path in made):
            raise UsageError(f"{option} {folder} lies where the table is made: name another folder")
    for argument in arguments:
        source = os.path.expanduser(argument)
        if not os.path.lexists(source) and glob.has_magic(source):
            source = fixed_part(source)
        place = Path(os.path.realpath(source))
        for option, folder, target in written:
            inside = Path(os.path.realpath(target))
            within = place == inside or inside in place.parents or (place.is_dir() and place in inside.parents)
            if os.path.lexists(source) and within:
                raise UsageError(f"{option} {folder} lies in the source {argument}, or holds it: name another folder")


def flat_name(name: str) -> str:
    """A file name for the name of a picture, without folders: `a/b.jpg` is `a__b.jpg`."""
    flat = name.removeprefix("./").replace("\\", "/").replace("/", "__")
    flat = re.sub(r'[\x00-\x1f<>:"|?*]', "_", flat).rstrip(". ") or "picture"
    if _RESERVED.fullmatch(flat):
        flat = f"_{flat}"
    if len(flat.encode("utf-8", "replace")) > _LONGEST:
        digest = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:16]
        stem, ending = os.path.splitext(flat)
        ending = ending if len(ending.encode()) < 12 else ""
        flat = f"{digest}-{stem.encode()[-100:].decode('utf-8', 'ignore')}{ending}"
    return flat


def deposit(folder: Path, name: str, content: bytes) -> bool:
    """Put a file into a folder under a name that is free, or see that it is there already.

    Returns:
        False if a file of this name and content was there.
    """
    if not folder.is_dir():
        make_folder(folder)
    temporary = temporary_sibling(folder / "picture")
    stem, ending = os.path.splitext(name)
    try:
        with temporary.open("xb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        for number in range(1, 1_000_000):
            target = folder / (f"{stem}{ending}" if number == 1 else f"{stem}-{number}{ending}")
            if _put(temporary, target):
                sync_folder(folder)
                return True
            if filecmp.cmp(temporary, target, shallow=False):
                return False
        raise NatixError(f"{folder} holds a million files called {name}: name another folder")
    finally:
        discard(temporary)


def _put(temporary: Path, target: Path) -> bool:
    """Give a file its name, unless the name is taken."""
    try:
        os.link(temporary, target)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            return False
        with target.open("xb") as out, temporary.open("rb") as content:
            shutil.copyfileobj(content, out)
        return True


def copy_picture(folder: Path, item: Item) -> bool:
    """Copy a picture as it is, undecoded. Returns False if it was there."""
    content = item.content()
    name, suffix = flat_name(item.name), item.suffix(content)
    if suffix and not name.lower().endswith(suffix):
        name += suffix
    return deposit(folder, name, content)


def explain_picture(folder: Path, item: Item, bundle: Any) -> bool:
    """Write the heatmap of an answer as PNG. Returns False if it was there."""
    picture = bundle.explain(item.cell).picture()
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return deposit(folder, f"{flat_name(item.name)}.png", buffer.getvalue())

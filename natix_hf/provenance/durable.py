"""Files and folders that outlive a power loss, with the permissions that `open()` gives a new file.

A rename is durable once its folder has been flushed, and a file's content once the file has.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import stat
import uuid
from contextlib import suppress
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"
# What a file system answers that cannot flush a folder.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF, errno.EISDIR)


def temporary_sibling(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}")


def settle(folder: Path) -> None:
    """Make everything in a folder durable, and readable by whoever may read the folder.

    Call it before anything names the files. A library may have written them without a flush and for the owner alone.
    """
    mode = stat.S_IMODE(folder.stat().st_mode)
    for place, folders, names in os.walk(folder, topdown=False):
        for name in names:
            if not os.path.islink(os.path.join(place, name)):
                settle_file(Path(place, name), mode & 0o666)
        for name in folders:
            if not os.path.islink(os.path.join(place, name)):
                _set_mode(Path(place, name), mode)
        sync_folder(Path(place))
    sync_folder(folder.parent)


def settle_file(path: Path, mode: int) -> None:
    _set_mode(path, mode)
    opened = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows flushes only what it may write
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _set_mode(path: Path, mode: int) -> None:
    """Set the permissions of what a library wrote for its owner alone. Windows has none."""
    if os.name != "nt" and stat.S_IMODE(path.stat().st_mode) != mode:
        with suppress(PermissionError):  # the file of another user, in a folder that several share
            path.chmod(mode)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can. Windows and some network file systems cannot."""
    if os.name == "nt":
        return
    try:
        opened = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written but not listed
        return
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(opened)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, and make their names durable."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync_folder(path.parent)


def replace(source: Path, target: Path) -> None:
    """Rename a file or folder as `os.replace` does, and make both names durable."""
    os.replace(source, target)
    for folder in {source.parent, target.parent}:
        sync_folder(folder)


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there, so that no half of it is ever seen under its name.

    It also removes what an interrupted call has left of it.
    """
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        try:
            replace(folder, temporary_sibling(folder))
        except PermissionError:
            if os.name != "nt":
                raise
            shutil.rmtree(folder, ignore_errors=True)  # Windows renames no folder of which a file is open
    if folder.parent.is_dir():
        for left in folder.parent.glob(f"{glob.escape(f'{TEMPORARY_PREFIX}{folder.name}')}-*"):
            discard(left)


def discard(path: Path) -> None:
    """Remove a temporary file or folder, as far as the system lets us. `verify` names what stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()

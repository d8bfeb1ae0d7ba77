"""The disk, in words: what is full, what may not be written to, and the setting that moves it elsewhere.

Libraries report a full disk in their own ways: torch as a failed check in its zip writer, safetensors and pyarrow
without the name of the file. One function recognises them all.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
# Errors of a disk that may come without a file name. Other errors without a file name may come from a socket.
OF_A_DISK = (*FULL, errno.EROFS, errno.EIO, errno.EFBIG)
# What a library's own error says of the disk. torch's zip writer checks its position and never names the cause.
_SAID = {
    r"no space left on device|os error 28\b|\berrno 28\b": errno.ENOSPC,
    r"database or disk is full": errno.ENOSPC,  # of sqlite
    r"disk i/o error": errno.EIO,
    r"disk quota exceeded|os error 122\b|\berrno 122\b": errno.EDQUOT,
    r"read-only file system|os error 30\b|\berrno 30\b": errno.EROFS,
    r"file too large|os error 27\b|\berrno 27\b": errno.EFBIG,
    r"permission denied \(os error 13\)": errno.EACCES,
    r"enforce fail at inline_container|pytorchstreamwriter failed|iostream error|unexpected pos \d": errno.ENOSPC,
    r"no usable temporary directory": errno.EROFS,
}
_PROBE = b"\0" * 65536  # a quota or a full disk refuses this much, although it lets an empty file be made


def disk_error(error: BaseException | None) -> OSError | None:
    """Find the error of the disk behind an exception of any library, or None if there is none.

    A file that may not be opened is an error of the disk too, unless it came up on the way to another error.
    """
    refused: tuple[int, ...] = _CLOSED
    while error is not None:
        if isinstance(error, OSError) and (
            error.errno in OF_A_DISK or (error.errno in refused and error.filename is not None)
        ):
            return error
        code = next((code for words, code in _SAID.items() if re.search(words, str(error).lower())), None)
        if code is not None:
            return OSError(code, os.strerror(code))
        if error.__cause__ is None:
            refused = ()
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def cache_folders() -> dict[str, tuple[str, Path]]:
    """The folders outside a run that are written to: by use, the environment variable that moves each, and the path.

    The variable is the one that decides now: `HF_DATASETS_CACHE` if it is set, else `HF_HOME`.
    """
    home = Path(_set("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    root = Path(_set("HF_HOME") or home).expanduser()
    folders = {}
    for use, below, names in (
        ("datasets", "datasets", ("HF_DATASETS_CACHE",)),
        ("hub", "hub", ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")),
        ("features", "natix_hf", ("NATIX_HF_CACHE",)),
    ):
        name = next((name for name in names if _set(name)), None)
        folders[use] = (name or "HF_HOME", Path(_set(name)).expanduser() if name else root / below)
    folders["temporary"] = ("TMPDIR", _temporary_folder())
    for name in ("MPLCONFIGDIR", "TORCH_HOME"):
        if _set(name):
            folders[name] = (name, Path(_set(name)).expanduser())
    return folders


def _set(name: str) -> str:
    return os.environ.get(name, "")


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:  # none of the usual ones can be written to
        return Path(_set("TMPDIR") or Path.cwd())


def sockets_fit() -> bool:
    """Whether the processes of a loader can make their sockets in the folder of temporary files. multiprocessing gives
    these names of 32 bytes, and a socket's path ends at 104 bytes on macOS, and a little later on Linux."""
    return os.name != "posix" or len(os.fsencode(_temporary_folder())) + 32 < 104


@contextmanager
def naming_cache(use: str) -> Iterator[None]:
    """Name the cache of this use in an error of the disk that names no file, because nothing else is written inside.

    Once the library has removed its half-written file, the disk may look as if it had space.
    """
    try:
        yield
    except Exception as error:
        disk = disk_error(error)
        if disk is None or disk.errno not in OF_A_DISK:
            raise
        if disk.filename is None:
            disk.filename = str(cache_folders()[use][1])
        raise disk from error


def refused_write(folder: Path) -> OSError | None:
    """Try to write into a folder, or into the nearest one above it that exists. Return the error, or None."""
    place = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    probe = place / f".tmp-probe-{uuid.uuid4().hex[:8]}"
    try:
        try:
            with probe.open("xb") as file:
                file.write(_PROBE)
                file.flush()
                os.fsync(file.fileno())
        finally:
            if probe.exists():
                probe.unlink()
    except OSError as error:
        error.filename = str(folder)
        return error
    return None


def require_writable(uses: Iterable[str]) -> Iterator[str]:
    """Yield one line for each cache of these uses that cannot be written to, with the variable that moves it."""
    folders = cache_folders()
    for use in uses:
        error = refused_write(folders[use][1])
        if error is not None:
            yield disk_line(error)


def disk_line(error: OSError, run_dir: Path | None = None) -> str:
    """One line about an error of the disk: what, where, how much is free, and what to do.

    Args:
        run_dir: The run that was written to, if any.
    """
    path = Path(os.fsdecode(error.filename)).absolute() if error.filename is not None else None
    if path is None and error.errno in (*FULL, errno.EROFS, errno.EFBIG):
        path = _suspect(run_dir)
    in_run = path is not None and run_dir is not None and _within(path, run_dir)
    variable = _variable(path) if path is not None and not in_run else None
    what = str(path) if path is not None else "a file"
    elsewhere = f"set {variable} to a folder on" if variable else "name a --run-dir on"
    if path is None:
        elsewhere = "set HF_HOME, TMPDIR or --run-dir to a folder on"
    again = "; the same command with this --run-dir continues" if run_dir is not None else ""
    if error.errno in FULL:
        full = "your quota is used up" if error.errno == errno.EDQUOT else "the disk is full"
        free = f", {as_size(free_bytes(path))} free" if path is not None else ""
        cause = f"{what} could not be written ({_reason(error)}{free})"
        return f"{full}: {cause}: free some space, or {elsewhere} another disk{again}"
    if error.errno == errno.EFBIG:
        return f"{what} is larger than its disk or `ulimit -f` allows: raise the limit, or {elsewhere} another{again}"
    if error.errno == errno.EROFS or (error.errno in (*_CLOSED, errno.ENOTDIR) and (variable or in_run)):
        return f"{what} cannot be written to ({_reason(error)}): {elsewhere} a disk that you may write to{again}"
    if error.errno in _CLOSED:
        return f"{what} cannot be opened ({_reason(error)}): check who may read and write it"
    return f"{what}: {_reason(error)}: check the disk{again}"


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _variable(path: Path) -> str | None:
    """The environment variable that moves a path, or None if it lies in no cache."""
    path = path.absolute()
    inside = [(len(folder.parts), name) for name, folder in cache_folders().values() if _within(path, folder)]
    return max(inside)[1] if inside else None


def _within(path: Path, folder: Path) -> bool:
    folder = folder.absolute()
    return folder == path or folder in path.parents


def _suspect(run_dir: Path | None) -> Path | None:
    """The run, the cache or the current folder that cannot be written to now, of which an error names none."""
    places = [run_dir] if run_dir is not None else []
    places += [folder for _, folder in cache_folders().values()] + [Path.cwd()]
    return next((place for place in places if refused_write(place) is not None), run_dir)


def free_bytes(folder: Path) -> int:
    """The free bytes of the disk that a file or folder is on, or will be on."""
    folder = folder.absolute()
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def on_one_disk(one: Path, other: Path) -> bool:
    """Whether two folders, which need not exist yet, lie on the same disk."""
    places = [next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
              for folder in (one, other)]  # fmt: skip
    return places[0].stat().st_dev == places[1].stat().st_dev


def as_size(count: float) -> str:
    """A number of bytes for people: `512 B`, `3.2 MB`, `1.4 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"

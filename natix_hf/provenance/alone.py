"""Work that several processes would do alike: one does it, the others wait for it and use the result."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from natix_hf.terminal import tell

_PATIENCE_S = 1.0  # a shorter wait is not worth a line


@contextmanager
def alone(path: Path, doing: str) -> Iterator[None]:
    """Inside the block no other process on this machine makes `path`. Look for it inside the block.

    The lock is the operating system's, so it ends with its process: if that dies, the next one begins anew. On a file
    system without locks nobody waits, and several processes may do the same work.

    Args:
        path: The file to make. The lock is a file beside it.
        doing: What is done, for the line that says so while it waits, such as "decoding the same images".
    """
    lock, owner = FileLock(f"{path}.lock"), path.with_name(f"{path.name}.lock.owner")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=_PATIENCE_S)
        except Timeout:
            tell(f"waiting  for {_owner(owner)}, which is {doing}")
            lock.acquire()
        with suppress(OSError):
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    except (OSError, NotImplementedError):  # no locks here, or no right to write: the work itself says so
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            owner.unlink(missing_ok=True)
        lock.release()


def _owner(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")[:120] or "another process"
    except (OSError, ValueError):
        return "another process"

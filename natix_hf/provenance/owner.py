"""Who is at work in a run folder. One process at a time, by a mark with a heartbeat.

The marks are the files `owner/<number>.json`. The highest number is the mark that counts. A process begins by creating
the next number exclusively, which one process alone can do, on network file systems too. It touches its mark every few
seconds, and says in it when it has ended. Nobody writes into the mark of another, so no two processes that find a dead
one can both take over, and a process that was suspended meanwhile sees the higher number before it writes.

No lock of the operating system is used: some network file systems ignore them.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import signal
import socket
import sys
import textwrap
import threading
import time
import uuid
from _thread import interrupt_main
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil

from natix_hf.errors import RunError, UsageError, VerificationError, redacted
from natix_hf.provenance.durable import TEMPORARY_PREFIX
from natix_hf.provenance.files import GUARDS, read_json, write_json
from natix_hf.terminal import minutes, tell

OWNER = "owner"
# The environment variable by which a process tells those that it launches that they work under its mark.
TOKEN = "NATIX_HF_OWNER"
_BEAT_S = 10.0  # time between two heartbeats
_SILENT_S = 120.0  # without a heartbeat for this long, a process on another machine may be dead
_WATCH_S = 30.0  # and it is, if none comes within this time either: the clocks of two machines may differ
_LOOK_S = 2.0  # how often a launched process looks for the one that launched it
_SAME_S = 5.0  # two readings of one start time differ by less
_MARK = re.compile(r"\d{6,15}\.json")


@dataclass(frozen=True)
class Mark:
    """What a process says of itself.

    Args:
        token: A name that no other mark has.
        pid, host: The process and its machine.
        boot, started: When the machine (or container) and the process began, by its clock, in s since 1970.
        folder: The run folder, as this process sees it.
        since: UTC time of the beginning.
        command: Its command line, without credentials.
        ended: True if the process has left the folder in order.
    """

    token: str
    pid: int
    host: str
    boot: float
    started: float
    folder: str
    since: str
    command: str
    ended: bool = False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since}: {self.command})"


@contextmanager
def owning(run_dir: Path) -> Iterator[None]:
    """Be the one process at work in a run folder, inside the block. A process that was launched by the owner works
    under the owner's mark.

    Raises:
        UsageError: If another process is at work there. Nothing was changed then.
        RunError: In the block, from what writes, if another process has taken the folder over.
    """
    folder = run_dir.resolve()
    token = os.environ.get(TOKEN)
    number, mark = _newest(folder)
    launched = mark is not None and not mark.ended and mark.token == token
    if not launched:
        try:
            number, mark = _claim(folder)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM):
                raise
            yield  # nobody can write there, so nobody can disturb anybody: the first write says so
            return
    assert mark is not None
    stop = threading.Event()

    def require_mine(target: Path) -> None:
        if folder in target.parents:
            _require_mine(folder, number)

    beat = threading.Thread(target=_beat, args=(folder, number, mark if launched else None, stop), daemon=True)
    GUARDS.append(require_mine)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        GUARDS.remove(require_mine)
        if not launched:
            with suppress(OSError, RunError):  # the folder was moved, or another process has it now
                _require_mine(folder, number)
                write_json(_path(folder, number), asdict(mark) | {"ended": True})


def token_of(run_dir: Path) -> str:
    """The token of the newest mark, for the processes that its owner launches, or "" without one."""
    _, mark = _newest(run_dir.resolve())
    return mark.token if mark is not None else ""


def at_work(run_dir: Path) -> str | None:
    """The process that is at work in a run folder, in words, or None. It does not wait: a process on another machine
    counts until it has been silent for two minutes."""
    folder = run_dir.resolve()
    number, mark = _newest(folder)
    if number == 0 or (mark is not None and mark.ended):
        return None
    state = _state(mark, folder)
    if state == "gone" or (state == "unknown" and abs(time.time() - _touched(folder, number)) > _SILENT_S):
        return None
    return str(mark or "a process")


def _claim(folder: Path) -> tuple[int, Mark]:
    """Create the next mark, once no process is at work."""
    mine = _own_mark(folder)
    while True:
        number, mark = _newest(folder)
        if mark is not None and mark.token == mine.token:  # a network file system may lose the answer to a creation
            return number, mark
        dead = number > 0 and not (mark is not None and mark.ended)
        if dead and not _is_dead(folder, number, mark):
            raise _taken(folder, number, mark)
        try:
            _create(_path(folder, number + 1), mine)
        except FileExistsError:  # another process was quicker
            continue
        if _numbers(folder)[-1] > number + 1:  # others came and went since this process had looked
            _path(folder, number + 1).unlink(missing_ok=True)
            continue
        if dead:
            tell(f"owner    {mark or 'a process'} is gone and had not finished: this process continues")
        for below in _numbers(folder):
            if below <= number:
                _path(folder, below).unlink(missing_ok=True)
        return number + 1, mine


def _create(path: Path, mark: Mark) -> None:
    """Create a mark with its content in one step.

    Raises:
        FileExistsError: If another process has created it.
    """
    path.parent.mkdir(exist_ok=True)
    written = path.with_name(f"{TEMPORARY_PREFIX}{mark.token}")
    try:
        write_json(written, asdict(mark))
        try:
            os.link(written, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            with path.open("xb") as file:
                file.write(written.read_bytes())
    finally:
        written.unlink(missing_ok=True)


def _is_dead(folder: Path, number: int, mark: Mark | None) -> bool:
    """True if the process of a mark has ended. This may wait for a heartbeat."""
    state = _state(mark, folder)
    touched = _touched(folder, number)
    silence = abs(time.time() - touched)
    if state != "unknown" or silence <= _SILENT_S:
        return state == "gone"
    tell(f"owner    {mark or 'a process'} has been silent for {minutes(silence)}: waiting {minutes(_WATCH_S)} for it")
    end = time.monotonic() + _WATCH_S
    while time.monotonic() < end:
        time.sleep(min(1.0, _WATCH_S / 10))
        if _touched(folder, number) != touched:
            return False
    return True


def _taken(folder: Path, number: int, mark: Mark | None) -> UsageError:
    silence = abs(time.time() - _touched(folder, number))
    silent = f", silent for {minutes(silence)}, perhaps suspended" if silence > _SILENT_S else ""
    return UsageError(
        f"{mark or 'a process'} is at work in {folder}{silent}: wait for it or end it, or name another --run-dir"
    )


def _state(mark: Mark | None, folder: Path) -> Literal["here", "gone", "unknown"]:
    """Whether the process of a mark runs on this machine, has ended, or cannot be seen from here: it runs on another
    machine or in another container, or the mark was copied with the run folder."""
    if mark is None or mark.host != socket.gethostname() or abs(mark.boot - _boot()) > _SAME_S:
        return "unknown"
    try:
        process = psutil.Process(mark.pid)
        same = abs(_since_boot(process) - (mark.started - mark.boot)) < _SAME_S  # else the number was given anew
        if not same or process.status() == psutil.STATUS_ZOMBIE:
            return "gone"
    except psutil.AccessDenied:
        return "unknown"
    except psutil.Error:
        return "gone"
    return "here" if mark.folder == str(folder) else "unknown"


def _boot() -> float:
    """The start of the first process, which tells machines and containers of one name apart."""
    try:
        return float(psutil.Process(1).create_time())
    except psutil.Error:  # Windows
        return float(psutil.boot_time())


def _since_boot(process: psutil.Process) -> float:
    """The start of a process. The clock may be set while it runs, which moves both readings."""
    return float(process.create_time()) - _boot()


def _own_mark(folder: Path) -> Mark:
    boot, process = _boot(), psutil.Process()
    command = redacted(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    return Mark(
        token=uuid.uuid4().hex,
        pid=process.pid,
        host=socket.gethostname(),
        boot=boot,
        started=boot + _since_boot(process),
        folder=str(folder),
        since=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        command=textwrap.shorten(command, 120, placeholder=" ..."),
    )


def _beat(folder: Path, number: int, launched_by: Mark | None, stop: threading.Event) -> None:
    """Touch the mark until `stop` is set. If another process has taken over, or the one that launched this process is
    gone, end this process as SIGTERM does."""
    touched = time.monotonic()
    while not stop.wait(_LOOK_S):
        if time.monotonic() - touched >= _BEAT_S:
            touched = time.monotonic()
            with suppress(OSError):
                os.utime(_path(folder, number))
        try:
            _require_mine(folder, number)
        except OSError:  # a network file system that is away for a while
            continue
        except RunError:
            break
        if launched_by is not None and _state(launched_by, Path(launched_by.folder)) == "gone":
            break
    if not stop.is_set():
        interrupt_main(signal.SIGTERM)


def _require_mine(folder: Path, number: int) -> None:
    """Raise a `RunError` if another process has taken over, or if the folder was moved."""
    highest = max(_numbers(folder), default=0)
    if highest == number:
        return
    if highest < number:
        raise RunError(f"{folder} was moved or removed while this process was at work in it: this process stops")
    _, mark = _newest(folder)
    raise RunError(f"{mark or 'another process'} has taken {folder} over, because this one was silent: this one stops")


def _newest(folder: Path) -> tuple[int, Mark | None]:
    """The highest number and its mark. 0 without a mark. The mark is None if it cannot be read."""
    number = max(_numbers(folder), default=0)
    try:
        mark = Mark(**read_json(_path(folder, number)))
        if isinstance(mark.pid, int) and mark.pid > 0 and isinstance(mark.boot, float) and mark.started > 0:
            return number, mark
        return number, None
    except (VerificationError, TypeError):
        after = max(_numbers(folder), default=0)  # the owner may have changed between the two looks
        return (number, None) if after == number else _newest(folder)


def _numbers(folder: Path) -> list[int]:
    """The numbers of all marks, sorted."""
    try:
        names = os.listdir(folder / OWNER)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(name[:-5]) for name in names if _MARK.fullmatch(name))


def _path(folder: Path, number: int) -> Path:
    return folder / OWNER / f"{number:06d}.json"


def _touched(folder: Path, number: int) -> float:
    """When a mark was last touched, or 0. It is opened, because network file systems answer `stat` from memory."""
    try:
        with _path(folder, number).open("rb") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return 0.0

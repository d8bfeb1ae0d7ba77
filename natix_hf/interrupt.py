"""SIGINT, SIGTERM and SIGHUP: work ends in order, a training with a checkpoint, and the exit code says which it was.

The first signal ends work at once, or, after `defer`, when the work asks for it. A second one ends it at once in any
case. A signal that this process ignores (`nohup`) or that the caller handles stays as it is.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from _thread import interrupt_main
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from natix_hf.terminal import note

EXIT_CODES = (129, 130, 143)
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
# A terminal sends a signal to every process of a command, and a launcher sends it to its ranks again.
_ECHO_S = 1.0
_ECHO_OF_LAUNCHER_S = 5.0
_AGAIN_S = 0.05


class _State:
    """What this process has received. Only the main thread writes it."""

    pid = 0  # the process that installed the handlers, or 0
    signum = 0
    at = 0.0
    deferred = False
    until = ""
    raised = False
    told = False


@contextmanager
def catching() -> Iterator[None]:
    """Handle the signals inside the block, if this is the main thread. Blocks may be nested.

    Raises:
        KeyboardInterrupt: In the block, on SIGINT.
        SystemExit: In the block, on SIGTERM and SIGHUP, with the exit code 143 or 129.
    """
    if threading.current_thread() is not threading.main_thread() or _State.pid == os.getpid():
        yield
        return
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    known = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    before = {signum: handler for signum in known if (handler := signal.getsignal(signum)) in defaults}
    _State.pid, _State.signum, _State.deferred, _State.raised, _State.told = os.getpid(), 0, False, False, False
    unraisable = sys.unraisablehook

    def send_again(swallowed: Any) -> None:
        """Python drops an exception that a destructor or a callback of the garbage collection raises."""
        if _State.raised and isinstance(swallowed.exc_value, KeyboardInterrupt | SystemExit):
            signum, _State.signum, _State.raised = _State.signum, 0, False
            threading.Timer(_AGAIN_S, interrupt_main, [signum]).start()
        else:
            unraisable(swallowed)

    try:
        sys.unraisablehook = send_again
        for signum in before:
            signal.signal(signum, _handle)
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        sys.unraisablehook = unraisable
        _State.pid = 0


def defer(until: str = "") -> None:
    """From here on the first signal is only noted, until `act` or `stop_deferring`. `received` tells of it.

    Args:
        until: What is printed when the signal comes. "": nothing.
    """
    if threading.current_thread() is threading.main_thread():
        _State.deferred, _State.until = True, until


def stop_deferring() -> None:
    """From here on a signal ends the work at once."""
    _State.deferred = False


def act() -> None:
    """Stop deferring, and end the work if a signal has come meanwhile.

    Raises:
        KeyboardInterrupt, SystemExit: As `catching` says.
    """
    stop_deferring()
    if received():
        end(received())


def received() -> int:
    """The number of the signal that was received, or 0."""
    return _State.signum if _State.pid == os.getpid() else 0


def end(signum: int) -> NoReturn:
    """End the work because of a signal, which another process may have received.

    Raises:
        KeyboardInterrupt, SystemExit: As `catching` says.
    """
    _State.signum, _State.raised = signum, True
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(exit_code(signum))


def exit_code(signum: int) -> int:
    """The exit code of a process that a signal ended, as a shell gives it: 130, 143 or 129."""
    return 128 + signum


def name_of(signum: int) -> str:
    return signal.Signals(signum).name


def end_tree(pid: int) -> None:
    """Kill a process and all that it has started."""
    import psutil

    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in [*process.children(recursive=True), process]:
            with suppress(psutil.Error):
                each.kill()


def tell_end(line: str) -> None:
    """Print, on standard error, how the work ended and goes on. It is printed once."""
    if not _State.told:
        _State.told = True
        _write(line)


def was_told() -> bool:
    """True if `tell_end` has printed a line."""
    return _State.told


def leave_to_parent(worker: int = 0) -> None:
    """Let a loader's worker process survive a signal that the whole process group receives: its parent needs its
    batches until the next checkpoint. The second signal ends the worker."""
    for name in _NAMES:
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), _survive_once)


def _survive_once(signum: int, frame: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_DFL)


def _handle(signum: int, frame: FrameType | None) -> None:
    if os.getpid() != _State.pid:  # a forked worker
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
        return
    now = time.monotonic()
    if _State.signum:
        echo = _ECHO_OF_LAUNCHER_S if int(os.environ.get("WORLD_SIZE", "1")) > 1 else _ECHO_S
        if now - _State.at < echo:
            return
        if _State.raised:
            os._exit(exit_code(signum))
        end(signum)
    _State.signum, _State.at = signum, now
    if not _State.deferred:
        end(signum)
    if _State.until:
        _write(f"{name_of(signum)}: {_State.until}; a second one ends at once")


def _write(line: str) -> None:
    note(line)
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except RuntimeError:  # the signal came while this very stream was written
        pass
    except OSError:  # the terminal is gone: what is printed until the checkpoint must not end the work
        with suppress(OSError):
            sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")

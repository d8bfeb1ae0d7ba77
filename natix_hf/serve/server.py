"""Run the application: the port, connections that come too slowly, and an end in order."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from natix_hf.errors import UsageError, cut
from natix_hf.serve.app import make_app
from natix_hf.serve.service import Service

_HEAD_S = 15.0  # a request's head must have arrived by then
_KEEP_ALIVE_S = 15
_LAST_S = 1  # what is still being sent when all is answered
_TICK_S = 0.05
_BACKLOG = 512
_SPARE_FILES = 64


class Connection(H11Protocol):
    """A connection that is closed if the head of a request does not arrive in time, however slowly it is sent."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._mind()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._mind()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._mind()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def _mind(self) -> None:
        waits = self.conn.their_state is h11.IDLE
        if self._late is not None and not waits:
            self._late.cancel()
            self._late = None
        elif self._late is None and waits:
            self._late = self.loop.call_later(_HEAD_S, self._close)

    def _close(self) -> None:
        self._late = None
        if not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """The command line handles signals itself."""
        yield


def bound(host: str, port: int) -> socket.socket:
    """A socket that holds the address, and takes no connection yet.

    Raises:
        UsageError: if the address does not exist or is taken.
    """
    nowhere = UsageError(f"--host {cut(host)} is no address of this machine: 127.0.0.1 or 0.0.0.0 is one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError, OverflowError):
        raise nowhere from None
    made = socket.socket(family, kind, protocol)
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # on Windows the other option lets two servers share a port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise nowhere from None
        raise UsageError(
            f"port {port} of {host} cannot be used ({error.strerror}): end the other server, or choose another --port"
        ) from None
    return made


def url_of(made: socket.socket, host: str) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{made.getsockname()[1]}"


def run(
    service: Service,
    made: socket.socket,
    grace_s: float,
    should_stop: Callable[[], object],
    ready: Callable[[], None] | None = None,
) -> None:
    """Serve until `should_stop()` is true. Then answer what was accepted, for `grace_s` seconds at most, while every
    new request gets 503, and end.

    Args:
        made: The socket of `bound`. It is closed at the end.
        ready: Called once, when connections are taken.
    """
    asyncio.run(_run(service, made, grace_s, should_stop, ready))


async def _run(
    service: Service,
    made: socket.socket,
    grace_s: float,
    should_stop: Callable[[], object],
    ready: Callable[[], None] | None,
) -> None:
    config = uvicorn.Config(
        make_app(service),
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_LAST_S,
        limit_concurrency=_most_connections(),
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[made]))
    try:
        while not server.started and not task.done():
            await asyncio.sleep(_TICK_S)
        if ready is not None and server.started:
            ready()
        while not should_stop() and not task.done():
            await asyncio.sleep(_TICK_S)
        service.stopping = True
        end = time.monotonic() + grace_s
        while service.requests and time.monotonic() < end and not task.done():
            await asyncio.sleep(_TICK_S)
        server.should_exit = True
        await task
    finally:
        service.close()
        made.close()


def _most_connections() -> int:
    """Most connections at once, below the files that this process may open."""
    most = 1024
    if find_spec("resource") is not None:  # not on Windows
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = min(most, soft) if soft > 0 else most
    return max(most - _SPARE_FILES, _SPARE_FILES)


@contextmanager
def running(
    service: Service, host: str = "127.0.0.1", port: int = 0, grace_s: float = 5.0
) -> Generator[str, None, None]:
    """A server in a thread of its own, for notebooks and tests: inside the block it answers at the yielded URL.

    Raises:
        UsageError: as in `bound`.
    """
    made, stop, ready = bound(host, port), threading.Event(), threading.Event()
    url = url_of(made, host)
    thread = threading.Thread(target=run, args=(service, made, grace_s, stop.is_set, ready.set), daemon=True)
    thread.start()
    try:
        while not ready.wait(0.1) and thread.is_alive():
            pass
        yield url
    finally:
        stop.set()
        thread.join()

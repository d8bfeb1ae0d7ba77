"""Pictures are read by threads of a fixed number, each within its time, through the one decoder of the package."""

from __future__ import annotations

import io
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from natix_hf.bundle.stream import BadImage
from natix_hf.data.images import open_image
from natix_hf.data.metadata import without_metadata
from natix_hf.data.pixel_budget import open_within
from natix_hf.errors import DataError

_TICK_S = 0.1
_MOST_LEFT = 16  # threads that are left behind with a picture; beyond that none is replaced


def too_many_pixels(content: bytes, megapixels: float) -> str | None:
    """The reason not to decode a picture, by the size in its header. None if it is small enough, or no picture."""
    bare = without_metadata(content).content
    with suppress(Exception):  # open_image says what is wrong with it
        image = open_within(io.BytesIO(bare), bare, megapixels=float("inf"))
        if image is not None:
            with image:
                width, height = image.size
            if width * height > megapixels * 1e6:
                return f"it has {width} x {height} px, and this server takes {megapixels:g} megapixels: shrink it"
    return None


@dataclass(eq=False)
class _Task:
    content: bytes
    name: str
    future: Future[Any] = field(default_factory=Future)
    begun: float = 0.0
    given_up: bool = False


class Readers:
    """Threads that turn encoded pictures into the views of a model, first come, first served.

    A picture that takes longer than `timeout_s` is a [`SlowImage`], and its thread is replaced: nothing can stop it,
    and nothing waits for it.
    """

    def __init__(
        self, preprocess: Callable[[Image.Image], Any], megapixels: float, timeout_s: float, threads: int
    ) -> None:
        self._preprocess, self._megapixels, self._timeout_s = preprocess, megapixels, timeout_s
        self._queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._running: set[_Task] = set()
        self._closed = threading.Event()
        self._threads = threads
        self.left_behind = 0
        for _ in range(threads):
            self._start()
        threading.Thread(target=self._watch, name="natix_hf watch", daemon=True).start()

    def read(self, content: bytes, name: str) -> Future[Any]:
        """The view of a picture, or a `BadImage` that says why there is none, as soon as there is one."""
        task = _Task(content, name)
        self._queue.put(task)
        return task.future

    def close(self) -> None:
        """End the threads that wait. One that reads ends with the process."""
        self._closed.set()
        for _ in range(self._threads):
            self._queue.put(None)

    def _start(self) -> None:
        threading.Thread(target=self._work, name="natix_hf images", daemon=True).start()

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            if not task.future.set_running_or_notify_cancel():  # its client has gone
                continue
            task.begun = time.monotonic()
            with self._lock:
                self._running.add(task)
            answer = self._view(task.content, task.name)
            with self._lock:
                self._running.discard(task)
                left = task.given_up
                self.left_behind -= left
            if left:
                return
            task.future.set_result(answer)
            del task, answer  # nothing stays in memory until the next picture comes

    def _view(self, content: bytes, name: str) -> Any:
        try:
            problem = too_many_pixels(content, self._megapixels)
            if problem is not None:
                return BadImage(name, f"{name} is not read: {problem}")
            return self._preprocess(open_image(content, name))
        except DataError as error:
            return BadImage(name, str(error))
        except Exception as error:  # a picture must not end a thread
            return BadImage(name, f"{name} cannot be read as an image ({type(error).__name__})")

    def _watch(self) -> None:
        while not self._closed.wait(_TICK_S):
            late = time.monotonic() - self._timeout_s
            with self._lock:
                slow = [task for task in self._running if task.begun < late and self.left_behind < _MOST_LEFT]
                for task in slow:
                    task.given_up = True
                    self.left_behind += 1
                    self._running.discard(task)
            for task in slow:
                self._start()
                task.future.set_result(SlowImage(task.name, f"{task.name} was not read within {self._timeout_s:g} s"))


class SlowImage(BadImage):
    """A picture whose time was over."""

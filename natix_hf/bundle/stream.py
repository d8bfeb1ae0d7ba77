"""A stream of images in batches: decoded ahead while the model computes, with bad images reported in their place."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
from PIL import Image

from natix_hf.bundle.asked import check_batch_size, check_images, check_timeout
from natix_hf.bundle.inference import image_name
from natix_hf.data.images import open_image
from natix_hf.errors import DataError

# Seconds after which an image that is still being read is a bad one.
TIMEOUT_S = 60.0
_MOST_THREADS = 8  # enough to feed an accelerator; Python's lock slows down more
_TO_END_S = 2.0  # a thread that still reads when the stream ends is waited for so long


@dataclass(frozen=True, slots=True)
class BadImage:
    """The answer for an image that cannot be read.

    Args:
        name (`str`): The path of the image, or its position.
        problem (`str`): One line that names the image and says what is wrong.
    """

    name: str
    problem: str


def batches(
    images: Iterable[Any],
    preprocess: Callable[[Image.Image], np.ndarray],
    batch_size: int,
    timeout_s: float | None = TIMEOUT_S,
) -> Iterator[list[np.ndarray | BadImage]]:
    """Yield batches of `pixel_values` [3, H, W] in the order of the images. The last batch may be smaller.

    At most two batches are taken from `images` at any moment. Threads open files, encoded bytes and cells one batch
    ahead. PIL images and arrays are read before the next one is requested, because a camera may reuse its buffer and a
    generator may close its file.

    Args:
        timeout_s: Seconds after which an image that is still being read is a bad one. None waits for ever. `images`
            itself is waited for without a limit, as a camera may be.

    Raises:
        UsageError: at once, if `images` holds no images, `batch_size` is below 1, or `timeout_s` is no time.
    """
    wanted = each(images)
    check_images(wanted)
    return _batches(wanted, preprocess, check_batch_size(batch_size), check_timeout(timeout_s))


def _batches(
    images: Iterable[Any], preprocess: Callable[[Image.Image], np.ndarray], batch_size: int, timeout_s: float | None
) -> Iterator[list[np.ndarray | BadImage]]:
    taken: deque[_Task] = deque()
    readers = _Readers(preprocess, timeout_s)
    try:
        for index, image in enumerate(images):
            taken.append(readers.begin(image, index))
            enough = 2 * batch_size
            if isinstance(image, Image.Image | np.ndarray):
                readers.wait(taken[-1])
                enough = batch_size
            if len(taken) >= enough:
                yield [readers.result(taken.popleft()) for _ in range(batch_size)]
        while taken:
            yield [readers.result(taken.popleft()) for _ in range(min(batch_size, len(taken)))]
    finally:  # a consumer that stops early waits for no further image
        readers.close()


@dataclass(slots=True, eq=False)
class _Task:
    """An image that is to be read, and then what became of it."""

    image: Any
    name: str
    begun: float | None = None
    answer: np.ndarray | BadImage | None = None
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    given_up: bool = False


class _Readers:
    """Threads that read images, first come, first served.

    A thread that takes too long is replaced and left behind. Nothing can stop it, and nothing waits for it: neither
    the stream nor the end of the process, which waits for the threads of `concurrent.futures`.
    """

    def __init__(self, preprocess: Callable[[Image.Image], np.ndarray], timeout_s: float | None) -> None:
        self.preprocess = preprocess
        self.timeout_s = timeout_s
        self.queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self.lock = threading.Lock()
        self.threads: set[threading.Thread] = set()  # those that are not left behind
        self.closed = False

    def begin(self, image: Any, index: int) -> _Task:
        """Hand an image to the threads."""
        task = _Task(image, image_name(image, index))
        self.queue.put(task)
        if len(self.threads) <= index and len(self.threads) < min(_MOST_THREADS, os.cpu_count() or 1):
            self._start()
        return task

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name="natix_hf images", daemon=True)
        self.threads.add(thread)
        thread.start()

    def _work(self) -> None:
        while (task := self.queue.get()) is not None and not self.closed:
            task.thread, task.begun = threading.current_thread(), time.monotonic()
            try:
                answer, error = _prepare(task.image, task.name, self.preprocess), None
            except BaseException as raised:  # raised again where the answer is asked for
                answer, error = None, raised
            with self.lock:
                left_behind = task.given_up
                if not left_behind:
                    task.answer, task.error, task.image = answer, error, None
                    task.done.set()
            del task, answer, error  # nothing stays in memory until the next image comes
            if left_behind:
                return

    def wait(self, task: _Task) -> None:
        """Wait until an image is read, or until its time is over."""
        while self.timeout_s is not None and not task.done.is_set():
            spent = 0.0 if task.begun is None else time.monotonic() - task.begun
            if task.done.wait(self.timeout_s - spent) or task.begun is None or spent < self.timeout_s:
                continue
            with self.lock:
                if task.done.is_set():
                    return
                problem = f"{task.name} was not read within {self.timeout_s:g} s: look at its disk, network or file"
                task.answer, task.given_up = BadImage(task.name, problem), True
                task.done.set()
                self.threads -= {task.thread}
            self._start()
        task.done.wait()

    def result(self, task: _Task) -> np.ndarray | BadImage:
        """The answer for an image, as soon as there is one."""
        self.wait(task)
        if task.error is not None:
            raise task.error
        assert task.answer is not None
        return task.answer

    def close(self) -> None:
        """End the threads: those that wait at once, and those that read after their image, or after two seconds
        without them."""
        self.closed = True
        for _ in self.threads:
            self.queue.put(None)
        end = time.monotonic() + _TO_END_S
        for thread in self.threads:
            thread.join(max(0.0, end - time.monotonic()))


def each(images: Iterable[Any]) -> Iterable[Any]:
    """The images in an argument that may also be a single image."""
    single = isinstance(images, str | bytes | bytearray | memoryview | PathLike | Image.Image | dict)
    single = single or hasattr(images, "read") or (isinstance(images, np.ndarray) and images.ndim < 4)
    return [images] if single else images


def _prepare(image: Any, name: str, preprocess: Callable[[Image.Image], np.ndarray]) -> np.ndarray | BadImage:
    try:
        return preprocess(open_image(image, name))
    except DataError as error:
        return BadImage(name, str(error))

"""One thread owns the model. A forward pass takes what waits, in sizes that were seen to change no answer."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import Any

import numpy as np

from natix_hf.bundle.load import Bundle

_WEIGHT_OF_LAST = 0.1  # of the running mean of a picture's seconds


def batch_sizes(bundle: Bundle, most: int) -> tuple[tuple[int, ...], float]:
    """The sizes of a forward pass in which a picture has the very answer that it has alone, here and now.

    A matrix product may sum in another order for another number of rows. For given shapes the order does not depend on
    the numbers, so `most` pictures of noise tell: powers of two up to `most` are compared with one picture at a time,
    bit by bit. If one size differs, only 1 is left. So it is with a learned gate, whose confidence no caller sees, and
    where noise has no number for an answer.

    Returns:
        The sizes in rising order, and the largest difference of a logit that was seen.
    """
    sizes = sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})
    side = bundle.preprocess.image_size
    pictures = list(np.random.default_rng(0).integers(0, 256, (most, side, side, 3), dtype=np.uint8))
    alone = bundle.logits(pictures, batch_size=1)  # it warms up, too
    if bundle.policy.gate.kind == "learned" or not np.isfinite(alone).all():  # what is no number compares with nothing
        return (1,), 0.0
    differences = [float(np.abs(bundle.logits(pictures, batch_size=size) - alone).max()) for size in sizes[1:]]
    worst = max(differences, default=0.0)
    return (tuple(sizes) if worst == 0 else (1,)), worst


class Model:
    """The thread that answers views by a bundle, in batches of what waits. It waits for nobody."""

    def __init__(self, bundle: Bundle, sizes: tuple[int, ...]) -> None:
        self._bundle, self._sizes = bundle, sizes
        self._waiting: deque[tuple[Any, Future[Any]]] = deque()
        self._change = threading.Condition()
        self._closed = False
        self.answered = 0
        self.passes = 0
        self.seconds_a_picture = 0.0
        self._thread = threading.Thread(target=self._work, name="natix_hf model", daemon=True)
        self._thread.start()

    def answer(self, view: Any) -> Future[Any]:
        """The [`Prediction`] for a view, as soon as there is one."""
        future: Future[Any] = Future()
        with self._change:
            self._waiting.append((view, future))
            self._change.notify()
        return future

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """End the thread after its batch."""
        with self._change:
            self._closed = True
            self._change.notify()

    def _take(self) -> list[tuple[Any, Future[Any]]]:
        """The next batch; none when the thread is to end. Whose client has gone is left out."""
        with self._change:
            while True:
                self._waiting = deque(item for item in self._waiting if not item[1].cancelled())
                if self._closed:
                    return []
                if self._waiting:
                    size = max(size for size in self._sizes if size <= len(self._waiting))
                    batch = [self._waiting.popleft() for _ in range(size)]
                    return [item for item in batch if item[1].set_running_or_notify_cancel()] or self._take()
                self._change.wait()

    def _work(self) -> None:
        while batch := self._take():
            begun = time.perf_counter()
            try:
                answers = self._bundle._answers([view for view, _ in batch])
            except Exception as error:  # such as a device out of memory: these requests fail, the thread goes on
                for _, future in batch:
                    future.set_exception(error)
                continue
            spent = (time.perf_counter() - begun) / len(batch)
            known = self.seconds_a_picture or spent
            self.seconds_a_picture = known + _WEIGHT_OF_LAST * (spent - known)
            self.answered, self.passes = self.answered + len(batch), self.passes + 1
            for (_, future), answer in zip(batch, answers, strict=True):
                future.set_result(answer)
            del batch, answers

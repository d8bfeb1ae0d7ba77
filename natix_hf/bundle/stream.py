"""Images as they come, in batches: decoded ahead while the model computes, a bad one reported in its place."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from natix_hf.bundle.inference import image_name
from natix_hf.data.images import open_image
from natix_hf.errors import DataError

_MOST_THREADS = 8  # more than an accelerator's appetite: Python is in the way of further ones


@dataclass(frozen=True, slots=True)
class BadImage:
    """What stands in the place of an answer where an image cannot be read: `name`, its path or its place among the
    images, and `problem`, one line that holds it."""

    name: str
    problem: str


def batches(
    images: Iterable[Any], preprocess: Callable[[Image.Image], torch.Tensor], batch_size: int
) -> Iterator[list[torch.Tensor | BadImage]]:
    """`pixel_values` [3, H, W] of images in their order, `batch_size` at a time, the last ones fewer.

    At most two batches of the images are taken at any moment, whatever their number. Files, encoded bytes and cells
    are opened by threads, one batch ahead. PIL images and arrays are read before the next is asked for: a camera may
    use the same buffer again, and a generator may close its file.
    """
    taken: deque[Future[torch.Tensor | BadImage]] = deque()
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        try:
            for index, image in enumerate(each(images)):
                if isinstance(image, Image.Image | np.ndarray):
                    ready: Future[torch.Tensor | BadImage] = Future()
                    ready.set_result(_prepare(image, index, preprocess))
                    taken.append(ready)
                    enough = batch_size
                else:
                    taken.append(pool.submit(_prepare, image, index, preprocess))
                    enough = 2 * batch_size
                if len(taken) >= enough:
                    yield [taken.popleft().result() for _ in range(batch_size)]
            while taken:
                yield [taken.popleft().result() for _ in range(min(batch_size, len(taken)))]
        finally:  # whoever stops listening waits for no further image
            pool.shutdown(cancel_futures=True)


def each(images: Iterable[Any]) -> Iterable[Any]:
    """The images of an argument, which may be a single one."""
    single = isinstance(images, str | bytes | Path | Image.Image | dict) or (
        isinstance(images, np.ndarray) and images.ndim < 4
    )
    return [images] if single else images


def _prepare(image: Any, index: int, preprocess: Callable[[Image.Image], torch.Tensor]) -> torch.Tensor | BadImage:
    name = image_name(image, index)
    try:
        return preprocess(open_image(image, name))
    except DataError as error:
        return BadImage(name, str(error))

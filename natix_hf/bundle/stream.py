"""A stream of images in batches: decoded ahead while the model computes, with bad images reported in their place."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image

from natix_hf.bundle.asked import check_batch_size, check_images
from natix_hf.bundle.inference import image_name
from natix_hf.data.images import open_image
from natix_hf.errors import DataError

_MOST_THREADS = 8  # enough to feed an accelerator; Python's lock slows down more


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
    images: Iterable[Any], preprocess: Callable[[Image.Image], torch.Tensor], batch_size: int
) -> Iterator[list[torch.Tensor | BadImage]]:
    """Yield batches of `pixel_values` [3, H, W] in the order of the images. The last batch may be smaller.

    At most two batches are taken from `images` at any moment. Threads open files, encoded bytes and cells one batch
    ahead. PIL images and arrays are read before the next one is requested, because a camera may reuse its buffer and a
    generator may close its file.

    Raises:
        UsageError: at once, if `images` holds no images or `batch_size` is below 1.
    """
    taken = each(images)
    check_images(taken)
    return _batches(taken, preprocess, check_batch_size(batch_size))


def _batches(
    images: Iterable[Any], preprocess: Callable[[Image.Image], torch.Tensor], batch_size: int
) -> Iterator[list[torch.Tensor | BadImage]]:
    taken: deque[Future[torch.Tensor | BadImage]] = deque()
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        try:
            for index, image in enumerate(images):
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
        finally:  # a consumer that stops early waits for no further image
            pool.shutdown(cancel_futures=True)


def each(images: Iterable[Any]) -> Iterable[Any]:
    """The images in an argument that may also be a single image."""
    single = isinstance(images, str | bytes | bytearray | memoryview | PathLike | Image.Image | dict)
    single = single or hasattr(images, "read") or (isinstance(images, np.ndarray) and images.ndim < 4)
    return [images] if single else images


def _prepare(image: Any, index: int, preprocess: Callable[[Image.Image], torch.Tensor]) -> torch.Tensor | BadImage:
    name = image_name(image, index)
    try:
        return preprocess(open_image(image, name))
    except DataError as error:
        return BadImage(name, str(error))

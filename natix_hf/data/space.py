"""The disk space that decoded copies will need, known before the first is made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from natix_hf.data.images import EXTREME_ASPECT, open_image, shrink, tame_aspect
from natix_hf.disk import as_size, cache_folders, free_bytes
from natix_hf.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

_SAMPLE = 32
_JPEG_SHARE = 6  # docs/data.md: a copy as JPEG takes about a sixth of its pixels
_ROW_BYTES = 512  # digest, thumbprint and sizes


def require_space(
    dataset: Dataset, image_column: str, cache_px: int, cache: Literal["raw", "jpeg"], file: Path
) -> None:
    """Refuse to decode images whose copies would not fit on the disk of the cache.

    Only where the largest possible copies would not fit are some images opened, to estimate the size of all.

    Raises:
        DataError: with the estimate, the free space, and what to change.
    """
    if any(file.parent.glob(f"{file.stem}*")):  # several workers write a file each
        return
    free = free_bytes(file)
    if len(dataset) * (cache_px**2 * 3 * EXTREME_ASPECT + _ROW_BYTES) < free:
        return
    rows = range(0, len(dataset), max(1, len(dataset) // _SAMPLE))
    sizes = [_copy_bytes(cell, cache_px) for cell in dataset.select(rows)[image_column]]
    known = [size for size in sizes if size is not None]
    if not known:
        return
    share = _JPEG_SHARE if cache == "jpeg" else 1
    needed = len(dataset) * (sum(known) / len(known) / share + _ROW_BYTES)
    if needed > free:
        smaller = "" if cache == "jpeg" else ", set data.cache=jpeg for a sixth of the size"
        variable = cache_folders()["datasets"][0]
        raise DataError(
            f"the decoded copies of {len(dataset)} images need about {as_size(needed)} in {file.parent}, which has "
            f"{as_size(free)} free: free some space{smaller}, or set {variable} to a folder on a larger disk"
        )


def _copy_bytes(cell: object, cache_px: int) -> int | None:
    """The bytes of a copy's pixels, or None if the image cannot be read."""
    try:
        copy = shrink(tame_aspect(open_image(cell, name="an image")), cache_px)
    except DataError:
        return None
    return copy.width * copy.height * 3

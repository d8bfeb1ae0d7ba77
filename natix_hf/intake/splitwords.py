"""The words that people use for the splits of a data set."""

from __future__ import annotations

import re

SPLITS = TRAIN, VALIDATION, TEST = "train", "validation", "test"
_WORDS = {
    "train": TRAIN,
    "training": TRAIN,
    "validation": VALIDATION,
    "valid": VALIDATION,
    "val": VALIDATION,
    "dev": VALIDATION,
    "test": TEST,
    "testing": TEST,
    "eval": TEST,
    "evaluation": TEST,
}
# `train2017`, `training_set`, `test images`: a year, or a word for what every split holds.
_LONGER = re.compile(
    r"^([a-z]+?)[-_ ]?(?:(?:19|20)\d\d|set|split|data|dataset|images?|imgs?|photos|pictures|labels|annotations)$"
)
# A file of a split: `train`, `train-00000-of-00004`, `train_0001`, `val.v2`, `train-abc123ef` as the Hub writes them.
_SHARD = re.compile(r"^([A-Za-z]+)(?:[-_.]?\d+)?(?:-of-\d+)?(?:-[0-9a-f]{8,16})?$")


def split_of(folder: str) -> str | None:
    """The split that a folder's name means as a whole, in any case, or None."""
    name = folder.strip().lower()
    longer = _LONGER.match(name)
    return _WORDS.get(name) or (_WORDS.get(longer.group(1)) if longer else None)


def split_of_file(stem: str) -> str | None:
    """The split that a parquet file, shard or table is named after, such as `train-00000-of-00004`, or None."""
    match = _SHARD.match(stem.strip())
    return split_of(stem) or (split_of(match.group(1)) if match else None)

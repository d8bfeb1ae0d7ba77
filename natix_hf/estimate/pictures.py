"""A few pictures of a recipe's source, and what a core of this machine needs for each."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from natix_hf.data.asked import ask
from natix_hf.data.config import DataConfig
from natix_hf.data.decode import decode_row, decoded_columns
from natix_hf.data.rows import Rows
from natix_hf.data.views import AskedViews, TrainViews, choose_place
from natix_hf.errors import DataError
from natix_hf.estimate.source import Source
from natix_hf.models.preprocess import Preprocess
from natix_hf.recipe import Recipe
from natix_hf.ssl.objectives import default_objective, objective_class, settings_of
from natix_hf.subnet.challenge import decode_jpeg

_FEW = 32
_SECONDS = 0.5  # how long each kind of picture is made


@dataclass(frozen=True)
class Few:
    """A few decoded pictures, with the seconds to decode one and the bytes of its copy."""

    rows: Rows
    decode_s: float
    copy_bytes: float


def few_pictures(config: DataConfig, source: Source | None) -> Few:
    """Decode a few pictures of a source as phase 0 does; without a source, made-up frames of 1920 x 1080 px."""
    from datasets import Dataset, Features, Value

    if source is not None:
        at = source.spread(_FEW, config.seed)
        images, column = source.rows.images.select(at), config.image_column
    else:
        images, column = _frames(config.image_column), config.image_column
    begin, decoded = time.perf_counter(), []
    names = [f"picture {i}" for i in range(len(images))]
    for i, cell in enumerate(images[column]):
        done = decode_row(
            {column: cell}, i, names, column, config.cache_px, config.cache, False, config.max_megapixels
        )
        if done["problem"] is None:
            decoded.append(done | {"at": i})
    if not decoded:
        raise DataError("none of the first pictures can be read: look at the source with natix-hf inspect")
    took = (time.perf_counter() - begin) / len(images)
    kept = images.select([row.pop("at") for row in decoded])
    kind = "pixels" if config.cache == "raw" else "jpeg"
    features = Features({name: Value(kind) for name, kind in decoded_columns(config.cache).items()})
    labels = np.arange(len(decoded)) % 2
    rows = Rows(
        role="train",
        ids=[f"picture {i}" for i in range(len(decoded))],
        labels=labels.astype(np.int64),
        groups=np.asarray([f"picture {i}" for i in range(len(decoded))]),
        source=kept,
        decoded=Dataset.from_list(decoded, features=features),
        image_column=column,
        max_megapixels=config.max_megapixels,
    )
    return Few(rows, took, sum(len(row[kind]) for row in decoded) / len(decoded))


def _frames(column: str) -> Any:
    """Frames as a dash camera leaves them: smooth, with some texture, as JPEG files."""
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    rng = np.random.default_rng(0)
    cells = []
    for _ in range(8):
        coarse = Image.fromarray(rng.integers(0, 256, (54, 96, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((1920, 1080), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        cells.append({"bytes": buffer.getvalue(), "path": None})
    return Dataset.from_dict({column: cells}, features=Features({column: ImageFeature(decode=False)}))


@dataclass(frozen=True)
class CoreRates:
    """What one core of this machine makes in a second: training views of phase 1, items of phase 4, pictures or exam
    views that are asked, and exam views that are kept. 0 where the recipe has none."""

    train: float
    objective: float
    asked: float
    scored: float
    drawn: float


def core_rates(recipe: Recipe, processor: Any, model: Any, few: Few, device: torch.device) -> CoreRates:
    """Measure a core for about half a second each.

    Args:
        model: The classifier, which may be on the meta device.
        device: Where the training would run. Where views are made on it, a core only hands over the copies.
    """
    data, preprocess, rows = recipe.data, Preprocess(processor), few.rows
    keys = [(1, i) for i in range(len(rows))]
    mean, std = processor.image_mean, processor.image_std
    train = TrainViews(rows, data.augment, preprocess.image_size, mean, std, seed=0)
    objective = objective_views(recipe, processor, model, rows)
    for views in (train, objective):
        choose_place(views, data.views_on, device)
    whole = AskedViews(ask(rows, data.drawn_exam), preprocess)
    asked = scored = _rate(whole.__getitems__, list(range(min(len(whole), 64))))
    drawn = 0.0
    if data.choice_exam is not None:
        exam, some = ask(rows, data.choice_exam), list(range(min(4, len(rows))))
        drawn = _rate(lambda at: [exam.jpegs_of(i) for i in at], some) * exam.views
        jpegs = [jpeg for row in some for jpeg in exam.jpegs_of(row)]
        scored = _rate(lambda at: [preprocess(decode_jpeg(jpegs[i])) for i in at], list(range(len(jpegs))))
    return CoreRates(
        train=_rate(train.__getitems__, keys),
        objective=_rate(objective.__getitems__, keys[:8]) if objective is not None else 0.0,
        asked=asked,
        scored=scored,
        drawn=drawn,
    )


def objective_views(recipe: Recipe, processor: Any, model: Any, rows: Rows) -> Any:
    """The training views of phase 4's objective, or None where it does not run."""
    if 4 not in recipe.phases:
        return None
    backbone = model.base_model
    cls = objective_class(recipe.phase4.objective or default_objective(backbone.config.model_type))
    patch, sections = int(backbone.config.patch_size), settings_of(cls, recipe.phase4)
    return cls.views(rows, processor, patch, recipe.data.augment, 0, **sections)


def _rate(make: Callable[[Any], Any], keys: Sequence[Any]) -> float:
    """Units a second on one core: of several rounds the fastest, because other work can only slow a round down."""
    make(keys[:1])
    best, end = math.inf, time.perf_counter() + _SECONDS
    while best == math.inf or time.perf_counter() < end:
        begin = time.perf_counter()
        make(keys)
        best = min(best, time.perf_counter() - begin)
    return len(keys) / best

"""Training views of frames that are read once from their source: nothing is stored, and memory stays flat.

A pass comes in an order that `datasets` draws: it shuffles the shards, divides them among the readers (the loader
workers of all ranks), and mixes the frames in a buffer. Each reader makes whole batches, one pass after the other
without an end. A note with each batch says how far its reader has come. From there an interrupted training continues
with the very next frame: what lies before is read again, but not decoded. The view of a frame depends only on the
seed, the number of the pass and the frame's id.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset, default_collate

from natix_hf.data.config import DataConfig
from natix_hf.data.decode import as_jpeg
from natix_hf.data.frames import Frame, Shard
from natix_hf.data.images import open_image, pixel_sha256, shrink, tame_aspect
from natix_hf.data.rows import Rows
from natix_hf.data.splits import Splits
from natix_hf.data.unlabelled import ROLE, protected_rows
from natix_hf.data.views import finished
from natix_hf.errors import DataError

if TYPE_CHECKING:
    import datasets

Batch = dict[str, torch.Tensor]
UNREADABLE, OVERLAPS = "unreadable", "overlaps"
LISTED = 1000  # frames that are left out are all counted, and so many are listed


@runtime_checkable
class Draws(Protocol):
    """Training views that can be drawn from pictures which they do not hold."""

    def draw(self, keys: Sequence[tuple[int, int]], copies: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Draw a view of each copy, uint8 [H, W, 3]. Every draw depends only on the seed and its key."""


@dataclass(frozen=True)
class Position:
    """How far a reader has come: the number of its pass, and the frames that it has taken from it."""

    in_pass: int = 0
    taken: int = 0


@dataclass
class Note:
    """What happened while a reader made a batch.

    Attributes:
        position: Where the reader stood when the batch was full.
        seen: Frames of the batch by source, if this is their first pass.
        left_out: Number of frames of the first pass that are not trained on, by kind.
        reasons: The first of them, as id -> reason.
        error: A line that must stop the run.
    """

    position: Position = field(default_factory=Position)
    seen: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    error: str | None = None


class Stream:
    """Frames in a shuffled order, opened one by one.

    Args:
        shards: The frames of all sources (`open_sources`).
        config: Size of the copies, and what to do with a frame that cannot be read or overlaps with val or test.
        splits: Splits of the labelled data, whose pictures and groups in val and test are left out.
        buffer: Undecoded frames that each reader mixes.
        seed: Seed of the order.
    """

    def __init__(self, shards: Sequence[Shard], config: DataConfig, splits: Splits, buffer: int, seed: int) -> None:
        from datasets import IterableDataset as Frames

        self.frames: datasets.IterableDataset = Frames.from_generator(_read, gen_kwargs={"shards": list(shards)})
        self.config = config
        self.pictures, self.groups = protected_rows(splits, config)
        self.buffer = buffer
        self.seed = seed

    def in_pass(self, number: int, reader: int = 0, readers: int = 1) -> datasets.IterableDataset:
        """The frames of one of so many readers in a pass. Together the readers get every frame once."""
        from datasets.distributed import split_dataset_by_node

        mixed = self.frames.shuffle(generator=np.random.default_rng([self.seed, number]), buffer_size=self.buffer)
        # With fewer shards than readers each reads all frames and keeps its share.
        strategy = "shards" if mixed.num_shards >= readers else "examples"
        return split_dataset_by_node(mixed, reader, readers, strategy)

    def workers(self, wanted: int, world: int) -> int:
        """Number of loader workers on each rank that have shards to read; 0 reads in the main process."""
        shards: int = self.frames.num_shards
        return min(wanted, max(1, shards // world))

    def decode(self, frame: Frame) -> tuple[np.ndarray | None, tuple[str, str] | None]:
        """Decode a frame to the copy that views are drawn from, or say why it is left out: (kind, reason).

        Raises:
            DataError: If the recipe stops at such frames. The message names the frame.
        """
        strict_reading, strict_overlap = self.config.on_bad_image == "error", self.config.on_overlap == "error"
        problem, image = frame["problem"], None
        if problem is None:
            try:
                # A digest needs all pixels. Without one a JPEG is decoded no larger than its copy needs.
                enough = None if self.pictures else self.config.cache_px
                most = self.config.max_megapixels
                image = open_image(frame["cell"], f"the image {frame['id']}", enough, most)
            except DataError as error:
                problem = str(error)
        if image is None:
            if strict_reading:
                raise DataError(f"{problem}: repair the file, or leave such frames out with data.on_bad_image=skip")
            return None, (UNREADABLE, f"unreadable image: {problem}")
        other = self.pictures.get(pixel_sha256(image)) if self.pictures else None
        if other is None:
            other = next((self.groups[key] for key in frame["groups"] if key in self.groups), None)
        if other is None:
            return np.asarray(shrink(tame_aspect(image), self.config.cache_px)), None
        if strict_overlap:
            raise DataError(
                f"phase4.unlabelled: frame {frame['id']} overlaps with row {other} of val or test: "
                "set data.on_overlap=drop to leave such frames out"
            )
        return None, (OVERLAPS, f"the same picture or group as row {other} of val or test")

    def sample(self, most: int) -> Rows:
        """The first frames of the first pass as rows without labels, undecoded: to compare backbones on.

        Raises:
            DataError: As `open` does, or if no frame can be used.
        """
        from datasets import Dataset, Features, Value
        from datasets import Image as ImageColumn

        ids, cells, copies, first = [], [], [], None
        for frame in self.in_pass(0):
            copy, why = self.decode(frame)
            first = first or why
            if copy is not None:
                ids.append(frame["id"])
                cells.append(frame["cell"])
                small = Image.fromarray(copy)
                copies.append({"height": small.height, "width": small.width, "jpeg": as_jpeg(small)})
            if len(ids) == most:
                break
        if not ids:
            cause = f"({first[1]})" if first else "(there is none)"
            raise DataError(f"phase4.unlabelled: no frame can be used {cause}: use another source")
        column = self.config.image_column
        source = Dataset.from_dict({column: cells}, features=Features({column: ImageColumn(decode=False)}))
        kinds = {"height": Value("int32"), "width": Value("int32"), "jpeg": Value("large_binary")}
        decoded = Dataset.from_list(copies, features=Features(kinds))
        labels = np.zeros(len(ids), dtype=np.int64)
        budget = self.config.max_megapixels
        return Rows(ROLE, ids, labels, np.asarray(ids), source, decoded, column, max_megapixels=budget)


class StreamedViews(IterableDataset[tuple[Batch | None, Note]]):
    """Whole batches of training views from a stream, without an end, each with its note.

    Args:
        stream: The frames.
        views: Draws the views. Their keys are (number of the pass, a number of the frame's id).
        batch_size: Views in a batch.
        reader, readers: Which share of the frames is read.
        start: Where the reader begins.
    """

    def __init__(
        self,
        stream: Stream,
        views: Draws,
        batch_size: int,
        reader: int = 0,
        readers: int = 1,
        start: Position = Position(),
    ) -> None:
        self.stream = stream
        self.views = views
        self.batch_size = batch_size
        self.reader = reader
        self.readers = readers
        self.start = start

    def share(self, reader: int, readers: int, start: Position) -> StreamedViews:
        """The same views of another share of the frames."""
        return StreamedViews(self.stream, self.views, self.batch_size, reader, readers, start)

    def finish(self, batch: Batch) -> Batch:
        """Turn a batch into the inputs of a model, on its device."""
        return finished(self.views, batch)

    def __iter__(self) -> Iterator[tuple[Batch | None, Note]]:
        try:
            yield from self._batches()
        except DataError as error:  # raised here, it would reach a person with the traceback of the worker
            yield None, Note(error=str(error))

    def _batches(self) -> Iterator[tuple[Batch, Note]]:
        begin = self.start
        note, keys, copies = Note(), [], []
        for number in count(begin.in_pass):
            taken = begin.taken if number == begin.in_pass else 0
            usable = taken > 0
            for frame in islice(self.stream.in_pass(number, self.reader, self.readers), taken, None):
                taken += 1
                copy, why = self.stream.decode(frame)
                if copy is None:
                    if number == 0 and why is not None:
                        note.left_out[why[0]] += 1
                        if len(note.reasons) < LISTED:
                            note.reasons[frame["id"]] = why[1]
                    continue
                usable = True
                keys.append((number, number_of(frame["id"])))
                copies.append(copy)
                if number == 0:
                    note.seen[frame["source"]] += 1
                if len(keys) == self.batch_size:
                    note.position = Position(number, taken)
                    yield default_collate(self.views.draw(keys, copies)), note
                    note, keys, copies = Note(), [], []
            if not usable:
                first = next((f" ({why})" for why in note.reasons.values()), "")
                raise DataError(f"phase4.unlabelled: none of {taken} frames can be used{first}: use another source")


def number_of(frame_id: str) -> int:
    """A number that stands for a frame in the keys of its views, the same in every run."""
    return int.from_bytes(hashlib.sha256(frame_id.encode(errors="surrogateescape")).digest()[:7], "big")


def _read(shards: list[Shard]) -> Iterator[Frame]:
    for shard in shards:
        yield from shard.frames()

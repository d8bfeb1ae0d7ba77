"""A Trainer that trains on a stream: it keeps the notes of the loader's workers, and resumes from them exactly."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from natix_hf.data.stream import LISTED, Batch, Note, Position, StreamedViews
from natix_hf.errors import DataError, UsageError
from natix_hf.provenance.files import read_json, write_json
from natix_hf.terminal import tell
from natix_hf.trainers.base import BaseTrainer
from natix_hf.trainers.interruption import survive_with_parent

STREAM = "stream.json"


class Ledger:
    """What a rank has read of a stream, for its checkpoints and for people.

    Attributes:
        positions: Where each worker continues.
        turns: Number of the last batch that each worker has given.
        batches: Batches that training has taken.
        seen: Frames trained on by source, each counted once.
        left_out: Frames that were left out by kind, each counted once.
        reasons: The first of them, as id -> reason.
    """

    def __init__(self, workers: int) -> None:
        self.positions = [Position()] * max(1, workers)
        self.turns = [0] * max(1, workers)
        self.batches = 0
        self.seen: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}

    def next_worker(self) -> int:
        """The worker that gives the next batch. They take turns, and one that is a pass ahead waits for the others:
        otherwise the frames of a worker with small shards would come more often.
        """
        return min(range(len(self.turns)), key=lambda i: (self.positions[i].in_pass, self.turns[i], i))

    def add(self, worker: int, note: Note) -> None:
        self.batches += 1
        self.positions[worker], self.turns[worker] = note.position, self.batches
        self.seen += note.seen
        self.left_out += note.left_out
        self.reasons |= dict(islice(note.reasons.items(), LISTED - len(self.reasons)))

    def state(self) -> dict[str, Any]:
        """Everything as JSON values."""
        state: dict[str, Any] = {"positions": [astuple(position) for position in self.positions]}
        state |= {name: dict(getattr(self, name)) for name in ("seen", "left_out", "reasons")}
        return state | {"turns": list(self.turns), "batches": self.batches}

    def restore(self, state: dict[str, Any]) -> None:
        self.positions = [Position(*position) for position in state["positions"]]
        self.turns, self.batches, self.reasons = list(state["turns"]), state["batches"], dict(state["reasons"])
        self.seen, self.left_out = Counter(state["seen"]), Counter(state["left_out"])


class StreamLoader:
    """Batches of a stream for training. It has no length, and it begins where the ledger says.

    Args:
        views: The views. The loader divides them among ranks and workers.
        ledger: Kept up to date with every batch that training takes.
        workers: Loader processes; 0 reads in this process.
        rank, world: Number of this process, and of all.
        settings: Further arguments of each worker's `DataLoader`.
    """

    def __init__(
        self, views: StreamedViews, ledger: Ledger, workers: int, rank: int = 0, world: int = 1, **settings: Any
    ) -> None:
        self.views = views
        self.ledger = ledger
        self.workers = workers
        self.rank = rank
        self.world = world
        self.settings = settings

    def __iter__(self) -> Iterator[Batch]:
        each = max(1, self.workers)
        # One DataLoader a worker: a loader of several would take a batch of each in turn, however far they are.
        loaders: list[Any] = [
            iter(
                DataLoader(
                    self.views.share(self.rank * each + worker, self.world * each, self.ledger.positions[worker]),
                    batch_size=None,
                    num_workers=min(1, self.workers),
                    **self.settings,
                )
            )
            for worker in range(each)
        ]
        while True:
            worker = self.ledger.next_worker()
            batch, note = next(loaders[worker])
            if note.error is not None:
                raise DataError(note.error)
            self.ledger.add(worker, note)
            yield batch


class StreamTrainer(BaseTrainer):
    """`BaseTrainer` whose `train_dataset` may be `StreamedViews`. Any other dataset is used as there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ledger: Ledger | None = None
        self._ledgers: list[dict[str, Any]] = []
        given = self.train_dataset
        self._views = given if isinstance(given, StreamedViews) else None
        self._workers = 0
        if self._views is not None:
            wanted = self.args.dataloader_num_workers
            self._workers = self._views.stream.workers(wanted, self.args.world_size)
            if self._workers < wanted and self.is_world_process_zero():
                tell(
                    f"the stream has shards for {self._workers} of {wanted} loader workers: the others are not started"
                )
            self._ledger = Ledger(self._workers)
            self.args.ignore_data_skip = True  # a resumed stream begins at its positions, so nothing is skipped
            self.add_callback(_Epoch())

    def streamed(self) -> dict[str, Any]:
        """What all ranks together have read: `seen` and `left_out` (counts), `reasons`, and `batches`. Every rank must
        call this."""
        assert self._ledger is not None
        ledgers = gather_object([self._ledger.state()])
        total: dict[str, Any] = {
            name: dict(sum((Counter(ledger[name]) for ledger in ledgers), Counter())) for name in ("seen", "left_out")
        }
        reasons = (reason for ledger in ledgers for reason in ledger["reasons"].items())
        return total | {
            "reasons": dict(islice(reasons, LISTED)),
            "batches": sum(ledger["batches"] for ledger in ledgers),
        }

    def get_train_dataloader(self) -> Any:
        """Make the loader. A stream is not prepared by accelerate, which would read every frame on rank 0."""
        if self._views is None or self._ledger is None:
            return super().get_train_dataloader()
        args, workers = self.args, self._workers
        return StreamLoader(
            self._views,
            self._ledger,
            workers,
            args.process_index,
            args.world_size,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor if workers else None,
            multiprocessing_context=args.dataloader_multiprocessing_context if workers else None,
            worker_init_fn=functools.partial(survive_with_parent, None) if workers else None,
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self._ledger is not None:
            self._ledgers = gather_object([self._ledger.state()])
        super()._save_checkpoint(model, trial)

    def save_extra(self, checkpoint: Path) -> None:
        if self._ledger is not None:
            write_json(checkpoint / STREAM, {"ranks": self._ledgers})

    def load_extra(self, checkpoint: Path, best: bool) -> None:
        if self._ledger is None or best:
            return
        ranks = read_json(checkpoint / STREAM)["ranks"]
        was = [len(rank["positions"]) for rank in ranks]
        now = [len(rank["positions"]) for rank in gather_object([self._ledger.state()])]
        if was != now:
            raise UsageError(
                f"{checkpoint} was read by {_layout(was)}, and now there would be {_layout(now)}: a stream continues "
                "with the same number of processes and loader workers only; launch as many, or begin a new run"
            )
        self._ledger.restore(ranks[self.args.process_index])


def _layout(workers: Sequence[int]) -> str:
    return f"{len(workers)} processes with {', '.join(map(str, workers))} readers"


class _Epoch(TrainerCallback):
    """A stream has no epochs. The share of the steps stands for them, also after a resume."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        state.epoch = state.global_step / state.max_steps

"""What the routes share: the bundle, the threads that read and answer, what is waiting, whether the end has begun."""

from __future__ import annotations

import asyncio
import math
import os
import time
from dataclasses import dataclass
from typing import Any

import natix_hf
from natix_hf.bundle.load import Bundle, named
from natix_hf.bundle.names import BUNDLE_MANIFEST, CONFIG
from natix_hf.bundle.stream import BadImage
from natix_hf.provenance.files import file_sha256, read_json
from natix_hf.serve.answers import policy_json
from natix_hf.serve.batching import Model, batch_sizes
from natix_hf.serve.bodies import Held, Sent
from natix_hf.serve.limits import Limits, RefusedError
from natix_hf.serve.reading import Readers

_MOST_THREADS = 8
_LONGEST_WAIT_S = 60


@dataclass(frozen=True)
class Facts:
    """What `/health` says of the bundle. None of it is a path."""

    model: str
    backend: str
    precision: str
    image_size: int
    manifest_sha256: str | None
    batch_sizes: tuple[int, ...]
    batch_difference: float


class Service:
    """A bundle that answers requests, until `stopping`.

    Args:
        any_batch: Let batches of every size form, although an answer may then depend on its batch by rounding.
    """

    def __init__(self, bundle: Bundle, limits: Limits, token: str | None = None, any_batch: bool = False) -> None:
        sizes, difference = batch_sizes(bundle, limits.batch_size)
        if any_batch:
            sizes = tuple(range(1, limits.batch_size + 1))
        manifest = bundle.folder / BUNDLE_MANIFEST
        self.facts = Facts(
            str(read_json(bundle.folder / CONFIG).get("model_type", "")),
            str(bundle.backend),
            str(bundle.precision),
            bundle.preprocess.image_size,
            file_sha256(manifest) if manifest.is_file() else None,
            sizes,
            difference,
        )
        self.limits, self.token = limits, token
        self.policy = policy_json(bundle.policy)
        self.held = Held(limits.all_bytes)
        self.model = Model(bundle, sizes)
        threads = min(_MOST_THREADS, os.cpu_count() or 1)
        self.readers = Readers(bundle.preprocess, limits.megapixels, limits.timeout_s, threads)
        self.stopping = False
        self.requests = 0  # in work
        self.pictures = 0  # accepted and not yet answered
        self._begun = time.monotonic()

    def close(self) -> None:
        self.readers.close()
        self.model.close()

    def require_open(self) -> None:
        """Refuse a request while the server ends, or while too much is waiting."""
        if self.stopping:
            raise RefusedError(503, "the server is stopping: send the request again", 2)
        if self.pictures >= self.limits.queue:
            raise self._full()

    async def answer(self, sent: list[Sent]) -> list[Any]:
        """An answer for each picture, in order: a [`Prediction`], or a [`BadImage`].

        Raises:
            RefusedError: if the queue has no room for them.
        """
        if len(sent) > self.limits.queue:
            raise RefusedError(413, f"{len(sent)} pictures are more than wait here: send at most {self.limits.queue}")
        if self.pictures + len(sent) > self.limits.queue:
            raise self._full()
        self.pictures += len(sent)
        try:
            return list(await asyncio.gather(*map(self._one, sent)))
        finally:
            self.pictures -= len(sent)

    async def _one(self, picture: Sent) -> Any:
        if picture.content is None:
            return BadImage(picture.name, picture.problem or "")
        view = await asyncio.wrap_future(self.readers.read(picture.content, picture.name))
        if isinstance(view, BadImage):
            return view
        return named(await asyncio.wrap_future(self.model.answer(view)), picture.name)

    def _full(self) -> RefusedError:
        wait = math.ceil(self.pictures * self.model.seconds_a_picture)
        return RefusedError(
            503,
            f"{self.pictures} pictures are waiting, and {self.limits.queue} is the most: send it again later",
            min(max(wait, 1), _LONGEST_WAIT_S),
        )

    def health(self) -> dict[str, Any]:
        ready = self.model.alive and not self.stopping
        facts = self.facts
        return {
            "status": "stopping" if self.stopping else "ready" if ready else "broken",
            "ready": ready,
            "version": natix_hf.__version__,
            "model": facts.model,
            "image_size": facts.image_size,
            "backend": facts.backend,
            "precision": facts.precision,
            "manifest_sha256": facts.manifest_sha256,
            "uptime_s": round(time.monotonic() - self._begun, 1),
            "queue": {"pictures": self.pictures, "most": self.limits.queue, "body_bytes": self.held.now},
            "batches": {
                "sizes": list(facts.batch_sizes),
                "difference": facts.batch_difference,
                "passes": self.model.passes,
                "answers": self.model.answered,
            },
            "slow_pictures": self.readers.left_behind,
        }

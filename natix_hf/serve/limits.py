"""What a server takes, and refusals: one line and a status for everything that it does not take."""

from __future__ import annotations

from dataclasses import dataclass

from natix_hf.data.config import MOST_MEGAPIXELS


@dataclass(frozen=True)
class Limits:
    """The limits of a server. Nothing above them is held in memory.

    Args:
        megabytes (`float`): The body of a request, counted while it arrives.
        megapixels (`float`): A picture, by the size in its header; at most what `predict` reads.
        images (`int`): Pictures of a request.
        queue (`int`): Pictures that are accepted and not yet answered, of all requests.
        bodies_megabytes (`float`): The bodies of all requests together.
        timeout_s (`float`): Seconds that reading one picture may take.
        body_s (`float`): Seconds in which a body must have arrived.
        batch_size (`int`): Most pictures in one forward pass.
    """

    megabytes: float = 32.0
    megapixels: float = MOST_MEGAPIXELS
    images: int = 64
    queue: int = 256
    bodies_megabytes: float = 512.0
    timeout_s: float = 30.0
    body_s: float = 60.0
    batch_size: int = 8

    @property
    def body_bytes(self) -> int:
        return int(self.megabytes * 1e6)

    @property
    def all_bytes(self) -> int:
        return max(int(self.bodies_megabytes * 1e6), self.body_bytes)


class RefusedError(Exception):
    """A request that is not answered: an HTTP status and one line."""

    def __init__(self, status: int, problem: str, retry_after_s: int | None = None) -> None:
        super().__init__(problem)
        self.status, self.problem, self.retry_after_s = status, problem, retry_after_s

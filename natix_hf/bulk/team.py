"""The processes that share a bulk call: this one alone, or those of `accelerate launch`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

_PATIENCE = timedelta(days=7)  # one process finds and joins while the others wait


class Team:
    """What one process knows of the others."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world, self.first = rank, world, rank == 0

    def share(self, value: Any) -> Any:
        """The first process's value, in every process."""
        if self.world == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, once all have come here."""
        if self.world == 1:
            return [value]
        from accelerate.utils import gather_object

        return list(gather_object([value]))

    def part(self) -> None:
        """Leave the others, at the end of this process."""
        if self.world > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()


@contextmanager
def processes() -> Iterator[Team]:
    """This process among those of `accelerate launch`."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Team()
        return
    from accelerate import PartialState

    from natix_hf.models.device import runs_on_cpu

    state = PartialState(cpu=runs_on_cpu(), timeout=_PATIENCE)
    yield Team(state.process_index, state.num_processes)
    state.wait_for_everyone()

"""A rank that trains; one rank gets a signal. Afterwards each rank says at which step it has stopped."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "trainers"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import test_interruption as single

from natix_hf import interrupt
from natix_hf.launch import ending_together
from natix_hf.terminal import say


def main() -> None:
    folder, name, to_rank, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    rank = int(os.environ["RANK"])
    signum = getattr(single.signal, name, 0)
    hit = [single.At(step, single.send(signum), "on_step_begin")] if signum and rank == to_rank else []
    trained: Any = single.trainer(folder, *hit, per_device_train_batch_size=2)
    kept = single.newest_complete_checkpoint(folder)
    with interrupt.catching(), ending_together():
        try:
            result = trained.train(str(kept) if kept else None)
            say(f"loss {result.training_loss!r} weights {single.weights(trained)!r}")
        finally:
            say(f"rank {rank} stopped at {trained.state.global_step}")


if __name__ == "__main__":
    main()

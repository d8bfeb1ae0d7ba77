"""One rank of tests/distributed/test_plain_two_ranks.py, under a launcher: `plain_rank.py BACKBONE PARQUET FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from safetensors.torch import save_file

from natix_hf import ExploraTrainer, RoadworkTrainer

if __name__ == "__main__":
    backbone, source, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    rank = PartialState(cpu=True).process_index
    rows = datasets.Dataset.from_parquet(source, cache_dir=str(folder / f"cache-{rank}")).shuffle(seed=0)
    args: dict[str, Any] = {"per_device_train_batch_size": 8, "dataloader_num_workers": 0, "learning_rate": 5e-3}
    trainer = RoadworkTrainer(
        backbone, args | {"num_train_epochs": 1, "output_dir": str(folder / "lora")}, rows.select(range(32)),
        rows.select(range(32, 64)), adapter="lora",
    )  # fmt: skip
    trainer.train()
    print(f"rank {rank} of {trainer.args.world_size}: {trainer.evaluate()['eval_mcc']:.6f}")
    explora = ExploraTrainer(
        backbone, "mae", rows.select(range(32)), args | {"max_steps": 2, "output_dir": str(folder / "mae")}, rank=2
    )
    explora.train()
    for name, model in (("a", trainer.model), ("b", explora.merged())):
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / f"{rank}.{name}")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()

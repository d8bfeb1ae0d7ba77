"""One rank of tests/distributed/test_stream_two_ranks.py, under a launcher: `stream_rank.py FRAMES FOLDER`.

It trains on a stream without interruption (`whole`) and again with a cut after step 5 (`cut`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accelerate import PartialState
from conftest import Killed, kill_at, tiny_backbone

from natix_hf.data.config import AugmentConfig, DataConfig
from natix_hf.data.frames import open_sources
from natix_hf.data.splits import Splits
from natix_hf.data.stream import Stream
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.provenance.files import write_json
from natix_hf.recipe import parse_recipe
from natix_hf.trainers.explora import ExploraTrainer
from natix_hf.trainers.self_supervised import pretrain_backbone

SECTION: dict[str, Any] = {
    "objective": "mae", "rank": 4, "max_steps": 8, "probe_steps": 3, "learning_rate": 2e-3, "logging_steps": 1,
    "per_device_train_batch_size": 4, "dataloader_num_workers": 2, "stream": True, "shuffle_buffer": 8,
    "mae": {"decoder_width": 16, "decoder_heads": 2, "decoder_layers": 1},
}  # fmt: skip


def pretrain(frames: str, folder: Path) -> dict[str, Any]:
    config = parse_recipe({"phase4": SECTION | {"unlabelled": [frames]}}).phase4
    data = DataConfig(source=None, on_bad_image="skip")
    stream = Stream(open_sources([frames], data, {})[0], data, Splits([], [], [], [], []), 8, config.seed)
    processor = make_processor(ModelConfig(config={"model_type": "dinov2", "patch_size": 7}, image_size=28))

    def save(merged: Any) -> Path:
        merged.save_pretrained(folder / "backbone")
        return folder / "backbone"

    return pretrain_backbone(
        tiny_backbone("dinov2"), processor, stream.sample(10), None, config, AugmentConfig(), save,
        folder / "checkpoints", None, stream,
    )  # fmt: skip


if __name__ == "__main__":
    frames, folder = sys.argv[1], Path(sys.argv[2])
    state = PartialState(cpu=True)
    reports = [pretrain(frames, folder / "whole")]
    state.wait_for_everyone()
    init = ExploraTrainer.__init__

    def with_killer(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.add_callback(kill_at(5))

    ExploraTrainer.__init__ = with_killer  # type: ignore[method-assign]
    try:
        pretrain(frames, folder / "cut")
    except Killed:
        pass
    ExploraTrainer.__init__ = init  # type: ignore[method-assign]
    state.wait_for_everyone()
    reports.append(pretrain(frames, folder / "cut"))
    write_json(folder / f"rank-{state.process_index}.json", {"world": state.num_processes, "reports": reports})
    state.wait_for_everyone()
    state.destroy_process_group()

"""A stream on two gloo ranks: no frame goes to both, and a cut changes no bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import stream_rank
import torch
from conftest import striped_image
from ranks import launch
from safetensors.torch import load_file

from natix_hf.provenance.files import read_json

pytestmark = pytest.mark.xdist_group("ranks")  # which are forked from one process


def test_two_ranks_share_a_stream_and_resume_it_exactly(tmp_path: Path) -> None:
    frames, rng = tmp_path / "drive", np.random.default_rng(0)
    frames.mkdir()
    for number in range(45):
        striped_image(number % 2, rng).save(frames / f"{number}.png")
    (frames / "bad.png").write_bytes(b"no picture")
    done = launch("cpu_2proc.yaml", Path(stream_rank.__file__), tmp_path, str(frames), str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [read_json(tmp_path / f"rank-{rank}.json") for rank in (0, 1)]
    assert [rank["world"] for rank in ranks] == [2, 2]
    whole, cut = ranks[0]["reports"]
    assert cut["resumed_from"] == "checkpoint-3" and cut["streamed"] == whole["streamed"]
    # 2 ranks x 8 batches of 4 are more than the 45 frames: each was seen, and none by both in one pass
    assert whole["streamed"]["seen"] == {"drive": 45} and whole["streamed"]["left_out"] == {"unreadable": 1}
    assert whole["streamed"]["batches"] == 16 and whole["images"] == 45
    stored = read_json(tmp_path / "whole" / "checkpoints" / "checkpoint-8" / "stream.json")
    own = [rank["seen"]["drive"] for rank in stored["ranks"]]
    assert sum(own) == 45 and min(own) > 15
    one, other = (load_file(tmp_path / name / "backbone" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], stream_rank.tiny_backbone("dinov2").state_dict()[name]) for name in one)

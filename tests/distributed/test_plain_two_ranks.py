"""Both trainers on a plain dataset and two gloo ranks: every rank is left with the same merged model."""

from __future__ import annotations

from pathlib import Path

import plain_rank
import pytest
import torch
from ranks import launch
from safetensors.torch import load_file

pytestmark = pytest.mark.xdist_group("ranks")  # which are forked from one process


def test_every_rank_has_the_merged_model(pretrained: Path, parquet_source: Path, tmp_path: Path) -> None:
    [source] = (parquet_source / "data").glob("train-*.parquet")
    script = Path(plain_rank.__file__)
    done = launch("cpu_2proc.yaml", script, tmp_path, str(pretrained), str(source), str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    told = [line.partition(":")[2] for line in done.stdout.splitlines() if " of 2: " in line]
    assert len(told) == 2 and told[0] == told[1]
    assert done.stdout.count("val MCC") == 1, "rank 0 alone prints the table"
    start = load_file(pretrained / "model.safetensors")
    for part in "ab":
        one, other = (load_file(tmp_path / f"{rank}.{part}") for rank in (0, 1))
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        assert not any("lora" in name for name in one) and any("q_proj" in name for name in one) and start

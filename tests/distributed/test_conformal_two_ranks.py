"""A conformal gate on two gloo ranks: each calibrates its own half batch, and all end with the same weights."""

from __future__ import annotations

from pathlib import Path

import conformal_rank
import pytest
import torch
from ranks import launch
from safetensors.torch import load_file

from natix_hf.provenance.files import read_json

pytestmark = pytest.mark.xdist_group("ranks")  # which are forked from one process


def test_two_ranks_learn_one_conformal_gate(tmp_path: Path) -> None:
    done = launch("cpu_2proc.yaml", Path(conformal_rank.__file__), tmp_path, str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    batches = [read_json(tmp_path / f"{rank}.json") for rank in (0, 1)]
    assert len(batches[0]) == len(batches[1]) == 3 * 4  # seven batches of 80 an epoch, shared
    for low, high, _ in (batch for of_rank in batches for batch in of_rank):
        assert low >= 2 > 1 >= high  # positives and negatives alternate on every rank
    sums = [batch[2] for of_rank in batches for batch in of_rank]
    assert len({round(total, 6) for total in sums}) >= len(sums) - 3  # the ranks see different rows

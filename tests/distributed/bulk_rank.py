"""One rank of tests/distributed/test_bulk_two_ranks.py, under a launcher: `bulk_rank.py ARGUMENTS of natix-hf`."""

from __future__ import annotations

import sys

import torch

from natix_hf import cli
from natix_hf.bulk import work

torch.set_num_threads(1)
work._CHUNK = 6
work._KEEP_S = 0.0

if __name__ == "__main__":
    cli.main(sys.argv[1:])

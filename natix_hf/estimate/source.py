"""The source of a recipe, listed and divided, but not decoded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from natix_hf.data.config import DataConfig
from natix_hf.data.division import SHARES, make_splits
from natix_hf.data.part import SYNTHETIC
from natix_hf.data.sources import SourceRows, load_source, load_unlabelled
from natix_hf.data.splits import Splits
from natix_hf.disk import cache_folders
from natix_hf.estimate.work import Counts
from natix_hf.recipe import Recipe


@dataclass(frozen=True)
class Source:
    """A source that was listed but not decoded, with the division of its rows as far as it can be known before."""

    rows: SourceRows
    splits: Splits

    def counts(self, unlabelled: int = 0) -> Counts:
        of_role = {role: count["rows"] for role, count in self.splits.counts().items()}
        return Counts(unlabelled=unlabelled, **of_role)

    def spread(self, count: int, seed: int) -> list[int]:
        """Positions of so many kept rows, of as many groups as possible. Both labels have their share of all rows, but
        at least a tenth."""
        index = {row_id: i for i, row_id in enumerate(self.rows.ids)}
        rng = np.random.default_rng(seed)
        seen: dict[str, int] = {}
        ranked: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
        for at in rng.permutation(len(self.splits.ids)).tolist():
            group = self.splits.groups[at]
            rank = seen[group] = seen.get(group, -1) + 1
            ranked[self.splits.labels[at]].append((rank, at))
        rare, other = sorted(ranked.values(), key=len)
        share = max(0.1, len(rare) / len(index))
        of_rare = min(len(rare), max(round(share * count), count - len(other)))
        chosen = [at for of_label, size in ((rare, of_rare), (other, count - of_rare))
                  for _, at in sorted(of_label)[:size]]  # fmt: skip
        return sorted(index[self.splits.ids[at]] for at in chosen)

    def cached_bytes(self) -> int:
        """Bytes of the copy of the source that `datasets` keeps in its cache."""
        cache = cache_folders()["datasets"][1].resolve()
        files = {Path(entry["filename"]).resolve() for entry in self.rows.images.cache_files}
        return sum(file.stat().st_size for file in files if cache in file.parents and file.is_file())


def list_source(config: DataConfig) -> Source | None:
    """List the rows of `data.source` and divide them by their groups, without decoding any. None without a source."""
    if config.source is None:
        return None
    rows = load_source(config)
    splits = make_splits(
        rows.ids, rows.labels, rows.groups, rows.ids, rows.given, rows.left_out, config.seed, "drop",
        origins=rows.origins,
    )  # fmt: skip
    return Source(rows, splits)


def counts_by_shares(rows: int, unlabelled: int = 0) -> Counts:
    """The counts of a source that is not here."""
    roles = {role: max(1, math.floor(share * rows)) for role, share in SHARES.items()}
    return Counts(unlabelled=unlabelled, **roles)


def count_unlabelled(recipe: Recipe) -> int:
    """The number of rows of `phase4.unlabelled`; those of a stream are not counted."""
    if recipe.phase4.stream:
        return 0
    return sum(len(load_unlabelled(source, recipe.data).ids) for source in recipe.phase4.unlabelled)


def is_here(config: DataConfig) -> bool:
    """Whether every source can be listed without the network."""
    return all(source.source == SYNTHETIC or Path(source.source).expanduser().exists() for source in config.sources)

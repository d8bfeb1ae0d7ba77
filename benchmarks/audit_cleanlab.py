"""The peer of audit.py, in an environment of its own: python audit_cleanlab.py ANSWERS.npz FOUND.npz

Reads the probabilities and labels of each cell and writes the rows that each filter of cleanlab's `find_label_issues`
flags, ranked by normalised margin.
"""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import version
from typing import Any

import numpy as np

FILTERS = (
    "prune_by_noise_rate",
    "prune_by_class",
    "both",
    "confident_learning",
    "predicted_neq_given",
    "low_normalized_margin",
    "low_self_confidence",
)

if __name__ == "__main__":
    from cleanlab.filter import find_label_issues  # type: ignore[import-not-found]  # audit.py wants the names alone

    warnings.simplefilter("ignore")
    given = np.load(sys.argv[1])
    found: dict[str, Any] = {"version": np.array(version("cleanlab"))}
    for name in sorted({key.rpartition("/")[0] for key in given.files}):
        p, labels = given[f"{name}/p"], given[f"{name}/labels"]
        both = np.stack([1 - p, p], axis=1)
        for rule in FILTERS:
            ranked = find_label_issues(
                labels, both, return_indices_ranked_by="normalized_margin", filter_by=rule, n_jobs=1
            )
            found[f"{name}/{rule}"] = ranked
    np.savez(sys.argv[2], **found)

"""Folds of train and val_select, for answers by models that have not seen the row's group."""

from __future__ import annotations

import warnings

import numpy as np

from natix_hf.errors import UsageError


def divide_folds(roles: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Divide groups into folds with about equal shares of each role and label.

    Args:
        roles: `train` or `val_select`, str [n].
        labels: 0 or 1, int64 [n].
        groups: Group of each row, [n]. A group is never in two folds.
        folds: Number of folds, at least 2.
        seed: Seed of the division.

    Returns:
        The fold of each row, int64 [n].

    Raises:
        UsageError: If there are too few groups: a fold would be empty, or without it a role would lack a label.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    strata = 2 * (roles == "val_select") + labels
    found = np.full(len(groups), -1, dtype=np.int64)
    divider = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    if folds <= min(len(np.unique(groups)), int(np.bincount(strata).max())):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a label with fewer rows than folds is looked at below
            for fold, (_, held) in enumerate(divider.split(strata, strata, groups)):
                found[held] = fold
    for fold in range(folds):
        seen = {role: set(labels[(roles == role) & (found != fold)].tolist()) for role in ("train", "val_select")}
        lacking = next((role for role, of_role in seen.items() if of_role != {0, 1}), None)
        if lacking is not None or not (found == fold).any():
            why = f"without fold {fold + 1} {lacking} would lack a label" if lacking else f"fold {fold + 1} is empty"
            raise UsageError(
                f"phase1.folds is {folds}, but {len(np.unique(groups))} groups of train and val_select are too few "
                f"({why}): set fewer folds, or phase1.folds=null"
            )
    return found

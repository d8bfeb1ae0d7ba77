"""Threshold and temperature from out-of-fold answers to train and val_select, or from val_select alone.

The photographs' tracks are divided anew for every seed. Phase 1 trains the classifier layer on the frozen backbone
(`adapter: none`, the features of all rows are computed once), for the baseline and without each fold of groups. The
baseline's answers to the tracks that are left out (val_calib and test) then show what each threshold and temperature$
is worth. Intervals resample tracks, the same in every division.

    python benchmarks/out_of_fold_threshold.py [--source FOLDER] [--divisions N] [--only roadwork | speed_limits]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from exam_choice import speed_limits
from results import record
from torch import nn

from natix_hf.calibration import fit_calibration
from natix_hf.data.asked import Asked, ask
from natix_hf.data.folds import divide_folds
from natix_hf.data.rows import ImageData, Rows, load_image_data
from natix_hf.data.views import AskedViews
from natix_hf.metrics import prior_weights, select_threshold
from natix_hf.metrics.classification import matthews
from natix_hf.models.classifier import build_classifier, head_of, logit_difference
from natix_hf.models.features import cached_features
from natix_hf.models.preprocess import Preprocess, make_processor
from natix_hf.recipe import Recipe, load_recipe
from natix_hf.trainers import stage
from natix_hf.trainers.supervised import train_classifier

FOLDS, RESAMPLES = 5, 1000
ROLES = ("train", "val_select", "val_calib", "test")


class Features:
    """The features of all rows of a source, by row id, in place of `cached_features`."""

    def __init__(self, recipe: Recipe, data: ImageData) -> None:
        asked = [ask(data.role(role)) for role in ROLES]
        model, preprocess = build_classifier(recipe.model, 0), Preprocess(make_processor(recipe.model))
        found = [
            cached_features(model, [(AskedViews(one, preprocess), range(len(one)))], [one.fingerprint, one.row_ids],
                            128, 1, torch.device("cpu"))[0]
            for one in asked
        ]  # fmt: skip
        ids = [row_id for one in asked for row_id in one.row_ids]
        self.of_row = dict(zip(ids, np.concatenate(found), strict=True))

    def __call__(self, model: nn.Module, views: Any, *_: Any) -> np.ndarray:
        return np.stack([self.of(dataset.asked) for dataset, _ in views])

    def of(self, asked: Asked) -> np.ndarray:
        return np.stack([self.of_row[row_id] for row_id in asked.row_ids])


def answers(recipe: Recipe, train: Rows, val: Asked, wanted: list[Asked], features: Features, folder: Path) -> Any:
    """Train the classifier layer as phase 1 does, and answer."""
    model, processor = build_classifier(recipe.model, recipe.phase1.seed), make_processor(recipe.model)
    with patch.object(stage, "cached_features", features):
        train_classifier(
            model, processor, train, val, recipe.phase1, recipe.data.augment, recipe.data.target_prior, folder,
            save=lambda merged: folder, quiet=True,
        )  # fmt: skip
    head = head_of(model)
    with torch.inference_mode():
        return [logit_difference(head(torch.from_numpy(features.of(asked))).numpy()) for asked in wanted]


def division(recipe: Recipe, features: Features | None, folder: Path) -> tuple[dict[str, Any], Features]:
    data, prior = load_image_data(recipe.data), recipe.data.target_prior
    features = features or Features(recipe, data)
    train, val = data.role("train"), data.role("val_select")
    left_out = [ask(data.role(role)) for role in ("val_calib", "test")]
    [select, *out] = answers(recipe, train, ask(val), [ask(val), *left_out], features, folder)
    labels = np.concatenate([train.labels, val.labels])
    roles = np.repeat(["train", "val_select"], [len(train), len(val)])
    folds = divide_folds(roles, labels, np.concatenate([train.groups, val.groups]), FOLDS, recipe.phase1.seed)
    pooled = np.empty(len(labels))
    for fold in range(FOLDS):
        of_train, of_val = folds[: len(train)], folds[len(train) :]
        seen = train.select(np.flatnonzero(of_train != fold)), ask(val.select(np.flatnonzero(of_val != fold)))
        held = [ask(rows.select(np.flatnonzero(of == fold))) for rows, of in ((train, of_train), (val, of_val))]
        pooled[folds == fold] = np.concatenate(answers(recipe, *seen, held, features, folder))
    samples = {"val_select": (select, val.labels), "out_of_fold": (pooled, labels)}
    z, y = np.concatenate(out), np.concatenate([asked.labels for asked in left_out])
    found: dict[str, Any] = {"labels": y, "groups": np.concatenate([asked.groups for asked in left_out])}
    for name, (logits, of) in samples.items():
        cut = select_threshold(logits, of, target_prior=prior).threshold
        p = fit_calibration(logits, of, "temperature", prior_weights(of, prior)).probability(z)
        found[name] = (z > cut, -np.log(np.clip(np.where(y == 1, p, 1 - p), 1e-12, 1)), cut)
    found["best"] = select_threshold(z, y, target_prior=prior).value
    return found, features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=Path("../shared/data/gtsrb_roadwork"))
    parser.add_argument("--divisions", type=int, default=20)
    parser.add_argument("--only", choices=["roadwork", "speed_limits"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for question in [given.only] if given.only else ["roadwork", "speed_limits"]:
            source = speed_limits(given.source, scratch / "speed") if question == "speed_limits" else given.source
            rule = "none" if question == "speed_limits" else "scene_description"
            features, runs = None, []
            for seed in range(given.divisions):
                changes = [f"data.source={source}", f"data.label_rule={rule}", "data.target_prior=0.5"]
                changes += [f"data.seed={seed}", "phase1.adapter=none", "phase1.num_train_epochs=30"]
                changes += ["phase1.save_strategy=no", "phase1.eval_strategy=no", "phase1.metric_for_best_model=null"]
                found, features = division(load_recipe("gtsrb_roadwork", changes), features, scratch / "train")
                runs.append(found)
                print(f"{question}: {seed + 1} of {given.divisions} divisions", flush=True)
            tell(question, given.divisions, runs)


def tell(question: str, divisions: int, runs: list[dict[str, Any]]) -> None:
    names = sorted({group for run in runs for group in run["groups"].tolist()})
    number = {name: i for i, name in enumerate(names)}
    rng = np.random.default_rng(0)
    drawn = np.vstack([np.ones(len(names)), rng.multinomial(len(names), [1 / len(names)] * len(names), RESAMPLES)])
    gains, losses = [], []
    means: dict[str, list[float]] = {"val_select": [], "out_of_fold": []}
    for run in runs:
        at, y = np.array([number[group] for group in run["groups"].tolist()]), run["labels"]
        mcc, nll = {}, {}
        for name in means:
            decided, loss, _ = run[name]
            mcc[name], nll[name] = np.empty(len(drawn)), np.empty(len(drawn))
            for i, weights in enumerate(drawn[:, at]):
                both = np.where(y == 1, 0.5 / (weights @ (y == 1)), 0.5 / (weights @ (y == 0))) * weights
                mcc[name][i] = _mcc(decided, y, both)
                nll[name][i] = both @ loss
            means[name].append(mcc[name][0])
        gains.append(mcc["out_of_fold"] - mcc["val_select"])
        losses.append(nll["out_of_fold"] - nll["val_select"])
    gain, loss = np.mean(gains, axis=0), np.mean(losses, axis=0)
    better = sum(each[0] > 0 for each in gains), sum(each[0] < 0 for each in gains)
    spread = {name: float(np.std([run[name][2] for run in runs])) for name in means}
    record(
        f"out_of_fold_threshold.py --only {question} --divisions {divisions}",
        f"MCC on left-out tracks {np.mean(means['val_select']):.3f} with the threshold from val_select, "
        f"{np.mean(means['out_of_fold']):.3f} from out-of-fold answers (the best threshold there: "
        f"{np.mean([run['best'] for run in runs]):.3f}); gain {gain[0]:+.3f} "
        f"[{np.quantile(gain[1:], 0.025):+.3f}, {np.quantile(gain[1:], 0.975):+.3f}], better in {better[0]} and worse "
        f"in {better[1]} of {divisions} divisions; s.d. of the threshold {spread['val_select']:.2f} and "
        f"{spread['out_of_fold']:.2f}; NLL with the temperature from out-of-fold answers {loss[0]:+.4f} "
        f"[{np.quantile(loss[1:], 0.025):+.4f}, {np.quantile(loss[1:], 0.975):+.4f}]",
    )


def _mcc(decided: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    yes, no = labels == 1, labels == 0
    cells = (
        weights @ (answer & of) for answer, of in ((decided, yes), (decided, no), (~decided, no), (~decided, yes))
    )
    return float(matthews(*cells))


if __name__ == "__main__":
    main()

"""PROFIT against plain fine-tuning: phase 1's own model of camera a of the scenes, continued on camera b.

    python benchmarks/profit.py FOLDER [--seeds 0 1 2] [--steps 100] [--learning-rate 1e-4]

Arms, all from one classifier that has converged on camera a, with the same rows of camera b, AdamW and schedule:

    start    not continued
    plain    --steps optimizer steps
    profit   as many optimizer steps of PROFIT, each with one reference step, so it reads twice as many batches
    longer   twice as many plain steps: as many batches as profit

The figures are the MCC on test of camera b (what is learned) and of camera a (what is kept), each at the threshold
that is best on val_select of camera b, mean of the seeds; the gains of profit are paired by video. FOLDER keeps every
training.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from levers import ANSWERS, MODEL, answers
from results import record

from natix_hf.data.asked import ask
from natix_hf.data.rows import Rows, load_image_data
from natix_hf.data.views import AskedViews
from natix_hf.metrics import group_weights, select_threshold
from natix_hf.metrics.classification import matthews
from natix_hf.models.classifier import build_classifier, load_classifier, save_model
from natix_hf.models.preprocess import Preprocess, make_processor
from natix_hf.provenance.files import atomic_folder
from natix_hf.recipe import Recipe, load_recipe
from natix_hf.trainers.supervised import train_classifier

ARMS: dict[str, list[str]] = {"plain": [], "profit": ["phase1.profit={reference_steps: 1}"], "longer": []}
ASKED = {"b": ("val_select", "test"), "a": ("test",)}  # camera -> roles
_LAST = ["phase1.eval_strategy=no", "phase1.save_strategy=no", "phase1.load_best_model_at_end=false"]
_LAST += ["phase1.metric_for_best_model=null"]


def scenes(camera: str, overrides: list[str]) -> tuple[Recipe, dict[str, Rows]]:
    made = f"data.synthetic={{camera: {camera}, videos: 900, frames: 3, image_size: 64, seed: {ord(camera)}}}"
    recipe = load_recipe("quickstart", [made, *_LAST, *overrides])
    data = load_image_data(recipe.data)
    return recipe, {role: data.role(role) for role in ("train", "val_select", "test")}


def train(recipe: Recipe, rows: dict[str, Rows], start: Path | None, folder: Path) -> Path:
    """Train as phase 1 does, unless FOLDER holds the model."""
    if not folder.is_dir():
        model = recipe.model if start is None else replace(recipe.model, backbone=str(start))
        stage, processor = recipe.phase1, make_processor(recipe.model)
        built = build_classifier(model, 0, recipe.data.labels, keep_head=start is not None)

        def save(merged: Any) -> Path:
            with atomic_folder(folder) as temporary:
                save_model(temporary / MODEL, merged, processor)
            return folder / MODEL

        with tempfile.TemporaryDirectory() as scratch:
            asked, prior = ask(rows["val_select"]), recipe.data.target_prior
            rest = (recipe.data.augment, prior, Path(scratch), save)
            train_classifier(built, processor, rows["train"], asked, stage, *rest, quiet=True)
    return folder


def logits(folder: Path, cameras: dict[str, dict[str, Rows]], recipe: Recipe) -> dict[str, np.ndarray]:
    """The answers of a model, which FOLDER keeps, by camera and role."""
    if not (folder / ANSWERS).is_file():
        model, preprocess = load_classifier(folder / MODEL), Preprocess(make_processor(recipe.model))
        found = {
            f"{camera}/{role}": answers(model, AskedViews(ask(cameras[camera][role]), preprocess))
            for camera, roles in ASKED.items()
            for role in roles
        }
        np.savez(folder / ANSWERS, **found)  # type: ignore[arg-type]
    with np.load(folder / ANSWERS) as stored:
        return dict(stored)


def scores(
    found: list[dict[str, np.ndarray]], camera: str, cameras: dict[str, dict[str, Rows]], weights: np.ndarray
) -> np.ndarray:
    """Mean over the seeds of the MCC on a camera's test rows, for each weighting of them: [b, n] -> [b]."""
    chosen_by, labels = cameras["b"]["val_select"].labels, cameras[camera]["test"].labels
    means = []
    for one in found:
        called = one[f"{camera}/test"] > select_threshold(one["b/val_select"], chosen_by).threshold
        yes = labels == 1
        cells = (called & yes, called & ~yes, ~called & ~yes, ~called & yes)
        means.append(np.asarray(matthews(*(weights @ cell.astype(np.float64) for cell in cells))))
    return np.asarray(np.mean(means, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    first, of_a = scenes("a", ["phase1.num_train_epochs=6"])
    rate = f"phase1.learning_rate={given.learning_rate}"
    recipe, of_b = scenes("b", [rate])
    cameras = {"a": of_a, "b": of_b}
    start = train(first, of_a, None, given.folder / "start")
    found = {"start": [logits(start, cameras, recipe)]}
    for arm, overrides in ARMS.items():
        steps = given.steps * (2 if arm == "longer" else 1)
        found[arm] = []
        for seed in given.seeds:
            settings = [rate, f"phase1.max_steps={steps}", f"phase1.seed={seed}", *overrides]
            stage = load_recipe("quickstart", [*_LAST, *settings]).phase1
            folder = given.folder / f"{arm}-{steps}-{given.learning_rate:g}-{seed}"
            model = train(replace(recipe, phase1=stage), of_b, start / MODEL, folder)
            found[arm].append(logits(model, cameras, recipe))
            print(folder.name, flush=True)
    told = []
    for camera, words in (("b", "camera b"), ("a", "camera a")):
        test = cameras[camera]["test"]
        drawn = np.concatenate(list(group_weights(test.groups, test.labels, 2000, 0)))
        weights = np.concatenate([np.ones((1, len(test))), drawn]).astype(np.float64)
        of = {arm: scores(several, camera, cameras, weights) for arm, several in found.items()}
        figures = ", ".join(f"{arm} {values[0]:.3f}" for arm, values in of.items())
        gains = []
        for other in ("plain", "longer"):
            low, high = np.quantile((of["profit"] - of[other])[1:], [0.025, 0.975])
            gains.append(f"over {other} {(of['profit'] - of[other])[0]:+.3f} [{low:+.3f}, {high:+.3f}]")
        told.append(f"{words}: {figures}; profit {', '.join(gains)}")
    length = f"{given.steps} steps at {given.learning_rate:g}, {len(given.seeds)} seeds"
    record("profit", f"test MCC, {'; '.join(told)}; {length}")


if __name__ == "__main__":
    main()

"""Twenty epochs of a head on a frozen backbone: phase 1's `adapter: none` against a plain Trainer.

    python benchmarks/frozen_head.py [--repeats 3]

Model and data are the quickstart's: the packaged DINOv2 (6 layers, width 96) and 4200 synthetic scenes at 64 px, as
found, without label noise. Ours runs the backbone once over train and val_select (cold feature cache, its time is
included) and then trains the head on what it kept. The plain Trainer freezes the backbone with `requires_grad_(False)`
and forwards it every epoch, over `with_transform` with the image processor. Same batch, optimiser, learning rate,
schedule, threads and one loader worker on both sides. Both are scored on val_select after every epoch with the same
metrics, and neither writes checkpoints. The sides alternate.

With `--no-evaluation` neither is scored in training; ours still computes the features of val_select.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measure import plain_arguments, plain_rows
from results import record
from timing import median_ratio
from torch.utils.data import DataLoader
from transformers import Trainer

from natix_hf.data.asked import ask
from natix_hf.data.rows import ImageData, Rows, load_image_data
from natix_hf.data.views import AskedViews
from natix_hf.metrics import select_threshold
from natix_hf.models.classifier import build_classifier, logit_difference
from natix_hf.models.preprocess import Preprocess, make_processor
from natix_hf.recipe import Recipe, load_recipe
from natix_hf.trainers.scores import EvaluationMetrics
from natix_hf.trainers.supervised import train_classifier

EPOCHS = 20
SETTINGS = ["data.target_prior=null", "data.label_noise=0", "phase1.adapter=none", f"phase1.num_train_epochs={EPOCHS}"]
SETTINGS += ["phase1.learning_rate=1e-2"]  # a head alone bears, and needs, more than a whole model


def ours(recipe: Recipe, data: ImageData, model: Any, evaluation: str, scratch: Path) -> None:
    os.environ["NATIX_HF_CACHE"] = str(scratch / "cache")
    changes = {"eval_strategy": evaluation, "save_strategy": "no", "load_best_model_at_end": False}
    config = recipe.phase1.with_training(changes)
    rows = data.role("train"), ask(data.role("val_select"))
    folder, processor = scratch / "ours", make_processor(recipe.model)
    train_classifier(model, processor, *rows, config, recipe.data.augment, None, folder, save=lambda merged: folder)


def plain(recipe: Recipe, data: ImageData, model: Any, evaluation: str, scratch: Path) -> None:
    processor = make_processor(recipe.model)

    def to_pixels(images: list[Any]) -> torch.Tensor:
        pixels: torch.Tensor = processor(images, return_tensors="pt")["pixel_values"]
        return pixels

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier."))
    Trainer(
        model=model,
        args=plain_arguments(recipe.phase1.training_fields(), scratch / "plain", eval_strategy=evaluation),
        train_dataset=plain_rows(data.role("train"), to_pixels),
        eval_dataset=plain_rows(data.role("val_select"), to_pixels),
        compute_metrics=EvaluationMetrics(None),
    ).train()


def best_mcc(recipe: Recipe, rows: Rows, model: Any) -> float:
    """MCC on the rows at the threshold that is best for them."""
    views = AskedViews(ask(rows), Preprocess(make_processor(recipe.model)))
    with torch.inference_mode():
        batches = DataLoader(views, batch_size=128)
        z = [logit_difference(model(pixel_values=b["pixel_values"]).logits.numpy()) for b in batches]
    return select_threshold(np.concatenate(z), rows.labels).value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-evaluation", action="store_true")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args()
    evaluation = "no" if given.no_evaluation else "epoch"
    recipe = load_recipe("quickstart", [*SETTINGS, *given.overrides])
    data = load_image_data(recipe.data)
    sides: dict[str, Callable[..., None]] = {"ours": ours, "plain": plain}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    mcc: dict[str, list[float]] = {name: [] for name in sides}
    for seed in range(given.repeats):
        for name, train in sides.items():
            model: Any = build_classifier(recipe.model, seed)
            with tempfile.TemporaryDirectory() as scratch:
                begin = time.perf_counter()
                train(recipe, data, model, evaluation, Path(scratch))
                seconds[name].append(time.perf_counter() - begin)
            mcc[name].append(best_mcc(recipe, data.role("val_select"), model.to("cpu").eval()))
            print(f"seed {seed}, {name}: {seconds[name][-1]:.1f} s, MCC {mcc[name][-1]:.3f}", flush=True)
    gap = max(abs(a - b) for a, b in zip(mcc["ours"], mcc["plain"], strict=True))
    record(
        "frozen_head",
        f"{EPOCHS} epochs, {len(data.role('train'))} images of {recipe.model.image_size} px, scored "
        f"{'after every epoch' if evaluation == 'epoch' else 'only at the end'}: ours "
        f"{median(seconds['ours']):.1f} s with the features computed, plain {median(seconds['plain']):.1f} s, "
        f"{median_ratio(seconds['plain'], seconds['ours']):.1f} times faster; val_select MCC "
        f"{median(mcc['ours']):.3f} and {median(mcc['plain']):.3f}, at most {gap:.3f} apart "
        f"(medians of {given.repeats} alternating repeats)",
    )


if __name__ == "__main__":
    main()

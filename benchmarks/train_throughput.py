"""Images a second of phase 1 (`adapter: full`) on gtsrb_roadwork, beside a bare PyTorch loop and a plain Trainer.

    python benchmarks/train_throughput.py [--turns 5] [--challenge] [KEY=VALUE ...]

Three sides, each in a process of its own, take turns of one epoch: 48 steps, after a few untimed ones that refill the
loader. All train the recipe's ViT on the same rows with the recipe's batch, AdamW (fused), schedule and gradient clip.

- ours: `train_classifier` as phase 1 calls it: views augmented from the decode-once cache, by one loader worker.
- bare: forward, loss, backward, clip, step, in a plain loop over tensors that lie ready in memory: no decoding, no
  augmentation, no worker. It is the most that this machine can do.
- plain: `Trainer` over `with_transform`, decoding and augmenting with PIL (rotation, random resized crop, blur,
  brightness, contrast and saturation by the recipe's figures, one call each) and the image processor on the whole
  batch, by one loader worker. It averages no weights, where the recipe asks ours to.

With `--challenge` ours with `data.augment: challenge`, views as the subnet's exam draws them, beside ours with the
recipe's own augmentation. KEY=VALUE change the recipe.

Evaluation and checkpoints are off on all sides. Memory is what lies in a side's process and its worker between two
turns (proportional set size: shared pages count once), the largest of all turns.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measure import Side, Turns, plain_arguments, plain_rows
from PIL import Image, ImageEnhance, ImageFilter
from results import record
from timing import median_ratio
from torch.nn.functional import cross_entropy
from transformers import Trainer, get_scheduler

from natix_hf.data.asked import ask
from natix_hf.data.config import AugmentConfig
from natix_hf.data.rows import Rows, load_image_data
from natix_hf.data.views import AskedViews
from natix_hf.models.classifier import build_classifier
from natix_hf.models.preprocess import Preprocess, make_processor
from natix_hf.recipe import Recipe, load_recipe
from natix_hf.trainers.supervised import train_classifier

RECIPE = "gtsrb_roadwork"


def ours(recipe: Recipe, train: Rows, val: Rows, model: Any, total: int, scratch: Path) -> None:
    only_train = {"max_steps": total, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    config = recipe.phase1.with_training(only_train)
    processor = make_processor(recipe.model)
    augment, prior = recipe.data.augment, recipe.data.target_prior
    train_classifier(model, processor, train, ask(val), config, augment, prior, scratch, save=lambda merged: scratch)


def challenge(recipe: Recipe, train: Rows, val: Rows, model: Any, total: int, scratch: Path) -> None:
    ours(replace(recipe, data=replace(recipe.data, augment="challenge")), train, val, model, total, scratch)


def bare(recipe: Recipe, train: Rows, val: Rows, model: Any, total: int, scratch: Path) -> None:
    settings = recipe.phase1.training_fields()
    views = AskedViews(ask(train), Preprocess(make_processor(recipe.model)))
    pixels = torch.stack([views[row]["pixel_values"] for row in range(len(train))])
    labels = torch.from_numpy(train.labels)
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings["learning_rate"], fused=True)
    warm_up = math.ceil(total * settings["warmup_steps"])
    scheduler = get_scheduler(settings["lr_scheduler_type"], optimizer, warm_up, total)
    model.train()
    step = 0
    while step < total:
        order: Any = torch.randperm(len(train))
        for rows in order.split(settings["per_device_train_batch_size"]):
            loss: Any = cross_entropy(model(pixel_values=pixels[rows]).logits, labels[rows])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step += 1
            if step == total:
                break


def plain(recipe: Recipe, train: Rows, val: Rows, model: Any, total: int, scratch: Path) -> None:
    processor, config = make_processor(recipe.model), recipe.data.augment
    assert config != "challenge"
    rng = np.random.default_rng()

    def to_pixels(images: list[Image.Image]) -> torch.Tensor:
        views = [pil_view(image, config, recipe.model.image_size, rng) for image in images]
        pixels: torch.Tensor = processor(views, return_tensors="pt")["pixel_values"]
        return pixels

    arguments = plain_arguments(recipe.phase1.training_fields(), scratch, max_steps=total)
    Trainer(model=model, args=arguments, train_dataset=plain_rows(train, to_pixels)).train()


def pil_view(image: Image.Image, config: AugmentConfig, size: int, rng: np.random.Generator) -> Image.Image:
    """The recipe's augmentation as torchvision's v1 transforms would do it with PIL."""
    image = image.convert("RGB").rotate(rng.uniform(-config.rotate, config.rotate), Image.Resampling.BILINEAR)
    area = image.width * image.height * rng.uniform(config.crop_scale[0], config.crop_scale[1])
    ratio = math.exp(rng.uniform(math.log(config.crop_ratio[0]), math.log(config.crop_ratio[1])))
    width, height = min(image.width, math.sqrt(area * ratio)), min(image.height, math.sqrt(area / ratio))
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    view = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    if rng.random() < config.blur:
        view = view.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0) * size / 224))
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        view = enhance(view).enhance(rng.uniform(1 - config.jitter, 1 + config.jitter))
    return view


SIDES: dict[str, Callable[[Recipe, Rows, Rows, Any, int, Path], None]] = {
    "ours": ours,
    "bare": bare,
    "plain": plain,
    "challenge": challenge,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="epochs of each side")
    parser.add_argument("--challenge", action="store_true", help="two augmentations beside each other")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args()
    recipe = load_recipe(RECIPE, given.overrides)
    data = load_image_data(recipe.data)  # decoded before the sides begin, for all of them
    train = data.role("train")
    steps = math.ceil(len(train) / recipe.phase1.per_device_train_batch_size)
    if given.side:
        model: Any = build_classifier(recipe.model, seed=0)
        total = Turns(model, given.turns, steps).total
        with tempfile.TemporaryDirectory() as scratch:
            SIDES[given.side](recipe, train, data.role("val_select"), model, total, Path(scratch))
        return
    names = ("ours", "challenge") if given.challenge else ("ours", "bare", "plain")
    sides = {name: Side(__file__, "--side", name, "--turns", str(given.turns), *given.overrides) for name in names}
    for side in sides.values():
        side.figures()  # it waits for its first turn
    seconds: dict[str, list[float]] = {name: [] for name in names}
    memory = dict.fromkeys(names, 0.0)
    for _ in range(given.turns):
        for name, side in sides.items():
            seconds[name].append(side.take_turn())
            memory[name] = max(memory[name], side.memory())
        print({name: f"{len(train) / took[-1]:.0f} images/s" for name, took in seconds.items()}, flush=True)
    for side in sides.values():
        side.finish()
    speed = {name: len(train) / median(took) for name, took in seconds.items()}
    each = ", ".join(f"{name} {speed[name]:.0f} images/s with {memory[name]:.0f} MiB" for name in names)
    if given.challenge:
        compared = (
            f"challenge is {median_ratio(seconds['ours'], seconds['challenge']):.2f} of the recipe's augmentation"
        )
    else:
        compared = f"ours is {median_ratio(seconds['bare'], seconds['ours']):.2f} of the bare loop and "
        compared += f"{median_ratio(seconds['plain'], seconds['ours']):.2f} times the plain Trainer"
    title = " ".join(["train_throughput", RECIPE, *given.overrides])
    record(title, f"{each}; {compared} (medians of {given.turns} alternating epochs)")


if __name__ == "__main__":
    main()

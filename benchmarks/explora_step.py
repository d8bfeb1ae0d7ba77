"""Images a second of phase 4's self-supervised step, beside a bare loop over crops that lie ready in memory.

    python benchmarks/explora_step.py [--model gtsrb] [--objective dinov2] [--turns 5] [--steps N] [KEY=VALUE ...]

Models: the ViT of recipe gtsrb_roadwork at 48 px (`gtsrb`); DINOv2-S, -B and -L at 224 px with random weights
(`dinov2_small`, `dinov2_base`, `dinov2_large`; speed does not depend on what weights say), on the photographs enlarged
to what a camera gives. KEY=VALUE overrides the recipe: data.source=FOLDER, phase4.per_device_train_batch_size=8,
phase4.dataloader_num_workers=12. With a GPU both sides compute under bf16 autocast.

Two sides, each in a process of its own, take turns, the first steps of a turn untimed. Both train the same ExPLoRA
student, teacher, heads and losses with the recipe's batch, AdamW (fused), schedule, gradient clip and moving average.

- full: `pretrain_backbone` as phase 4 calls it: crops and masks from the decode-once cache, by loader workers. Probes
  and checkpoints are off.
- bare: its model and optimizer in a plain loop over a few batches of crops made before it begins: no augmentation, no
  loader, no Trainer around a step. It is the most that this machine can do.

Memory is the most that a side's process and its workers hold in one more, untimed turn (proportional set size, looked
up 10 times a second: shared pages count once), on a GPU also what torch allocated there at most. Another process then
runs the full side with a clock around the parts of its step. With a GPU the clock waits for it before and after each
part, which the step itself does not do.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from measure import MIB, Side, Turns, report
from PIL import Image
from results import record
from timing import median_ratio
from torch import nn
from torch.utils.data import Dataset, get_worker_info
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.data.data_collator import default_data_collator
from transformers.trainer_utils import SaveStrategy

from natix_hf.data.rows import Rows, load_image_data
from natix_hf.models.classifier import build_backbone
from natix_hf.models.device import runs_on_cpu
from natix_hf.models.preprocess import make_processor
from natix_hf.recipe import Recipe, load_recipe
from natix_hf.ssl import mae
from natix_hf.ssl.dinov2 import DinoV2Objective
from natix_hf.trainers.explora import ExploraTrainer
from natix_hf.trainers.self_supervised import pretrain_backbone

RECIPE = "gtsrb_roadwork"
CAMERA = (448, 336)  # px, width and height of an enlarged photograph
READY_BATCHES = 8


@dataclass(frozen=True)
class Model:
    """`overrides` of the recipe; `steps` of a turn, after `warm_up` untimed ones, fitted to the machine it is for."""

    steps: int
    warm_up: int
    overrides: tuple[str, ...] = ()
    enlarged: int = 0  # photographs that are enlarged; 0: all of them as they are


def dinov2(width: int, layers: int, batch: int, steps: int, warm_up: int) -> Model:
    shape = f"hidden_size: {width}, num_hidden_layers: {layers}, num_attention_heads: {width // 64}, patch_size: 14"
    backbone = ("model.backbone=null", f"model.config={{model_type: dinov2, {shape}}}", "model.image_size=224")
    return Model(steps, warm_up, (*backbone, f"phase4.per_device_train_batch_size={batch}"), 16 * batch)


MODELS = {
    "gtsrb": Model(steps=12, warm_up=2),
    "dinov2_small": dinov2(384, 12, batch=4, steps=3, warm_up=2),
    "dinov2_base": dinov2(768, 12, batch=32, steps=20, warm_up=5),
    "dinov2_large": dinov2(1024, 24, batch=16, steps=20, warm_up=5),
}


class Made(Exception):
    """Carries the trainer out of `pretrain_backbone`, at the call of its `train`."""

    def __init__(self, trainer: ExploraTrainer) -> None:
        super().__init__()
        self.trainer = trainer


def make_trainer(recipe: Recipe, images: Rows, scratch: Path) -> Any:
    """The trainer that phase 4 would train with: its model, views and arguments, without probes and checkpoints."""

    def made(trainer: ExploraTrainer, **kwargs: Any) -> None:
        raise Made(trainer)

    config = replace(recipe.phase4, probe_steps=0)
    backbone = build_backbone(recipe.model, config.seed)
    processor, augment = make_processor(recipe.model), recipe.data.augment
    try:
        with patch.object(ExploraTrainer, "train", made):
            pretrain_backbone(backbone, processor, images, None, config, augment, lambda merged: scratch, scratch)
    except Made as found:
        trainer = found.trainer
    trainer.args.save_strategy = SaveStrategy.NO
    trainer.args.dataloader_drop_last = True  # every step has as many images
    return trainer


def enlarge(rows: Rows, most: int, scratch: Path) -> Rows:
    """Some of the rows, their pictures as large as those of a car's camera, in a decode cache of their own."""

    def enlarged(row: dict[str, Any]) -> dict[str, Any]:
        small = Image.frombytes("RGB", (row["width"], row["height"]), row["pixels"])
        large = small.resize(CAMERA, Image.Resampling.BILINEAR)
        return {"width": large.width, "height": large.height, "pixels": large.tobytes()}

    chosen = torch.linspace(0, len(rows) - 1, most).long().tolist()
    cache = str(scratch / "enlarged.arrow")
    decoded = rows.decoded.select(chosen).map(enlarged, features=rows.decoded.features, cache_file_name=cache)
    return replace(rows, decoded=decoded, ids=[rows.ids[row] for row in chosen], labels=rows.labels[chosen])


def full(trainer: Any, total: int) -> None:
    trainer.args.max_steps = total
    trainer.train()


def bare(trainer: Any, total: int) -> None:
    model, args = trainer.model, trainer.args
    size, device = args.per_device_train_batch_size, args.device
    order: Any = torch.randperm(len(trainer.train_dataset))[: READY_BATCHES * size]
    views = trainer.train_dataset
    batches = [
        views.finish({name: crops.to(device) for name, crops in collated(views, rows.tolist()).items()})
        for rows in order.split(size)
        if len(rows) == size
    ]
    optimizer = trainer.create_optimizer()
    scheduler = trainer.create_scheduler(total, optimizer)
    model.train()
    for step in range(total):
        model.on_step_begin(step, total)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            loss = model(**batches[step % len(batches)])["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        model.on_gradients(step, total)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        model.on_step_end(step + 1, total)


def collated(views: Any, rows: Sequence[int]) -> dict[str, torch.Tensor]:
    batch: dict[str, torch.Tensor] = default_data_collator(views.__getitems__([(0, row) for row in rows]))
    return batch


class DeviceTurns(Turns):
    """Turns that begin and end when the GPU, if there is one, has done what it was given."""

    def _at_forward(self) -> None:
        if self._step % (self.warm_up + self.steps) in (0, self.warm_up):
            wait_for_device()
        super()._at_forward()


def wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Clock:
    """Seconds by part of a step, of the main process. A part inside another counts to both."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Counts every call of `owner.name` to `part`."""
        function = getattr(owner, name)

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            wait_for_device()
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            wait_for_device()
            self.seconds[part] += time.perf_counter() - begin
            return result

        setattr(owner, name, timed)


class TimedViews(Dataset[Any]):
    """Views that note what they cost: `spent` float64 [workers, 3] is seconds, seconds of a core, batches."""

    def __init__(self, views: Any, workers: int) -> None:
        self.views = views
        self.finish = views.finish
        self.spent = torch.zeros(max(1, workers), 3, dtype=torch.float64)
        self.spent.share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.views)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Any]:
        begin, begin_core = time.perf_counter(), time.thread_time()
        items: list[Any] = self.views.__getitems__(keys)
        spent = (time.perf_counter() - begin, time.thread_time() - begin_core, 1.0)
        worker = get_worker_info()
        self.spent[worker.id if worker is not None else 0] += torch.tensor(spent, dtype=torch.float64)
        return items


class SplitSteps(TrainerCallback):
    """Watches the optimizer, which Trainer makes late, forgets the first steps, and measures the whole of the others.

    The last callback: what it counts between two ends of a step is all of one.
    """

    def __init__(self, clock: Clock, warm_up: int) -> None:
        self.clock = clock
        self.warm_up = warm_up
        self.begin = self.whole = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.clock.watch(kwargs["optimizer"], "step", "optimizer")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        wait_for_device()
        if state.global_step == self.warm_up:
            self.clock.seconds.clear()
            self.begin = time.perf_counter()
        if state.global_step == state.max_steps:
            self.whole = time.perf_counter() - self.begin
            raise SystemExit  # before a merge that nobody needs


def split(trainer: Any, steps: int, warm_up: int) -> dict[str, float]:
    """Milliseconds of a full step by part; `augmentation` is a worker's time for a batch, beside the step."""
    clock, model = Clock(), trainer.model
    if isinstance(model, DinoV2Objective):
        clock.watch(model.teacher, "forward", "teacher")
        clock.watch(model.student, "forward", "student")
    else:
        clock.watch(mae, "encode_visible", "student")
    clock.watch(model, "forward", "forward")
    clock.watch(model, "on_step_end", "moving average")
    clock.watch(trainer, "get_batch_samples", "wait for the loader")
    clock.watch(trainer.accelerator, "backward", "backward")
    clock.watch(trainer, "_clip_grad_norm", "clip")
    views = trainer.train_dataset = TimedViews(trainer.train_dataset, trainer.args.dataloader_num_workers)
    watched = SplitSteps(clock, warm_up)
    trainer.add_callback(watched)
    with suppress(SystemExit):
        full(trainer, warm_up + steps)
    parts = {part: 1000 * seconds / steps for part, seconds in clock.seconds.items()}
    parts["heads, losses"] = parts.pop("forward") - parts.get("teacher", 0.0) - parts["student"]
    whole = 1000 * watched.whole / steps
    parts["other"] = whole - sum(parts.values())
    seconds, core, batches = views.spent.sum(dim=0).tolist()
    return {"step": whole} | parts | {"augmentation": 1000 * seconds / batches, "of a core": 1000 * core / batches}


SIDES: dict[str, Callable[[Any, int], None]] = {"full": full, "bare": bare}


def peak_of_turn(side: Side) -> float:
    """MiB that the side holds at most while it takes a turn."""
    most = 0.0
    with ThreadPoolExecutor(1) as pool:
        turn = pool.submit(side.take_turn)
        while not turn.done():
            most = max(most, side.memory())
            time.sleep(0.1)
        turn.result()
    return most


def last_figures(side: Side) -> dict[str, Any]:
    """Ends a side; what it reports then."""
    assert side.process.stdin is not None
    side.process.stdin.close()
    figures = side.figures()
    side.process.wait()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="gtsrb")
    parser.add_argument("--objective", choices=("dinov2", "mae"), default="dinov2")
    parser.add_argument("--turns", type=int, default=5, help="timed turns of each side")
    parser.add_argument("--steps", type=int, help="of a turn; default: by model")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--side", choices=(*SIDES, "split"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    chosen = MODELS[given.model]
    steps, warm_up = given.steps or chosen.steps, chosen.warm_up
    # The recipe's own rate is for its masked autoencoder and makes the other objective diverge.
    settings = [*chosen.overrides, f"phase4.objective={given.objective}", "phase4.learning_rate=3e-4"]
    settings += [] if runs_on_cpu() else ["phase4.bf16=true", "phase4.dataloader_num_workers=8"]
    recipe = load_recipe(RECIPE, [*settings, *given.overrides])
    images = load_image_data(recipe.data).role("train")  # decoded before the sides begin, for all of them
    if given.side:
        with tempfile.TemporaryDirectory() as scratch:
            images = enlarge(images, chosen.enlarged, Path(scratch)) if chosen.enlarged else images
            trainer = make_trainer(recipe, images, Path(scratch))
            if given.side == "split":
                report(**split(trainer, 2 * steps, warm_up))
                return
            turns = DeviceTurns(trainer.model, given.turns + 1, steps, warm_up)
            with suppress(SystemExit):  # with which the last turn ends
                SIDES[given.side](trainer, turns.total)
            report(allocated=torch.cuda.max_memory_allocated() / MIB if torch.cuda.is_available() else 0.0)
        return
    arguments = ["--model", given.model, "--objective", given.objective, "--turns", str(given.turns)]
    arguments += ["--steps", str(steps), *given.overrides]
    sides = {name: Side(__file__, "--side", name, *arguments) for name in SIDES}
    for side in sides.values():
        side.figures()  # it waits for its first turn
    n_images = steps * recipe.phase4.per_device_train_batch_size
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(given.turns):
        for name, side in sides.items():
            seconds[name].append(side.take_turn())
        print({name: f"{n_images / took[-1]:.2f} images/s" for name, took in seconds.items()}, flush=True)
    memory = {name: f"{peak_of_turn(side):.0f} MiB" for name, side in sides.items()}
    for name, side in sides.items():
        allocated = last_figures(side)["allocated"]
        memory[name] += f" and {allocated:.0f} MiB on the GPU" if allocated else ""
    timed = Side(__file__, "--side", "split", *arguments)
    parts_ms = timed.figures()
    timed.finish()
    for part, took in parts_ms.items():
        print(f"  {part:22}{took:10.1f} ms{took / parts_ms['step']:8.1%}")
    speed = {name: n_images / median(took) for name, took in seconds.items()}
    each = ", ".join(f"{name} {speed[name]:.3g} images/s with at most {memory[name]}" for name in SIDES)
    shares = ", ".join(f"{part} {took:.0f}" for part, took in parts_ms.items())
    record(
        f"explora_step {given.model} {given.objective} {' '.join(given.overrides)}".rstrip(),
        f"{each}; full is {median_ratio(seconds['bare'], seconds['full']):.2f} of the bare loop (medians of "
        f"{given.turns} alternating turns of {n_images} images); ms a step: {shares}",
    )


if __name__ == "__main__":
    main()

"""What each lever of training gives: one start, the same rows and steps, one change at a time, paired intervals.

    python benchmarks/levers.py FOLDER [--questions speed_limits ...] [--levers base ...] [--seeds 0 1 2] [--steps 200]

Three questions with enough groups for small differences to be seen:

    speed_limits    is the sign a speed limit (classes 00 to 08)? 668 train and 168 test tracks of photographs
    noisy_limits    the same, with the labels of 5% of the train tracks flipped
    fashion_shirt   is it a shirt, or one of four garments that look like one? 12,000 train and 1000 test rows

Every training begins at one backbone, which phase 4 has adapted to the question's train images without their labels
(ExPLoRA, masked autoencoding), under one fresh head; the seeds change the order of the rows and the views. `base` is
phase 1 with full weights, cosine schedule and the last weights; every other lever changes what LEVERS says of it, and
`layer_decay+mixup` changes what both say.
`plain` is a plain Trainer from the documentation on the same start: same rows, steps, batch size, learning rate and
weight decay, its default linear schedule, unaugmented pictures, the cut at 0.5. A soup averages the seeds of a lever
into one model, greedily, by the MCC on val_select. A student has two of the six blocks of the same start; a taught one
also learns the mean answer of the three models of TEACHER.

A lever's figure is the MCC on test at the threshold that is best on val_select, mean of the seeds; beside it the
AUROC. Its gain over `--against` is paired: one resample of the test groups serves all seeds and both sides. FOLDER
keeps every training, so a run that was cut off goes on, and several processes with different `--levers` may share it.
`--record` appends the rows to benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exam_choice import speed_limits
from measure import plain_rows
from results import record
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from natix_hf.bundle.inference import Inference
from natix_hf.data.asked import ask
from natix_hf.data.rows import Rows, load_image_data
from natix_hf.data.views import AskedViews
from natix_hf.metrics import group_weights, select_threshold
from natix_hf.metrics.classification import matthews
from natix_hf.models.classifier import (
    build_backbone,
    build_classifier,
    load_classifier,
    logit_difference,
    save_model,
)
from natix_hf.models.device import default_device, runs_on_cpu
from natix_hf.models.preprocess import Preprocess, make_processor
from natix_hf.models.soup import average_models, greedy_soup
from natix_hf.provenance.files import atomic_folder, write_json
from natix_hf.recipe import Recipe, load_recipe
from natix_hf.trainers.distil import Distillation
from natix_hf.trainers.self_supervised import pretrain_backbone
from natix_hf.trainers.supervised import train_classifier
from natix_hf.trainers.teacher import classifier_in, pictures_a_second

SHARED = Path("../shared/data")
NOISE = 0.05  # share of the train tracks whose labels are flipped
HEAD_SEED = 0
START_SEED = 0
START = {"learning_rate": 4e-3, "max_steps": 1000, "logging_steps": 200, "save_steps": 1000, "seed": START_SEED}
BASE = ["phase1.ema_decay=null", "phase1.eval_strategy=no", "phase1.save_strategy=no", "phase1.adapter=full"]
BASE += ["phase1.load_best_model_at_end=false", "phase1.metric_for_best_model=null", "phase1.logging_steps=100"]
BASE += ["phase1.learning_rate=1e-3", "phase1.per_device_train_batch_size=64"]
LEVERS: dict[str, list[str]] = {
    "base": [],
    "ema": ["phase1.ema_decay=0.99"],
    "layer_decay": ["phase1.layer_decay=0.75"],
    "steeper_decay": ["phase1.layer_decay=0.6"],
    "head_rate": ["phase1.head_learning_rate=1e-2"],
    "mixup": ["phase1.mixup=0.2"],
    "label_smoothing": ["phase1.label_smoothing_factor=0.1"],
    "drop_path": ["model.config={drop_path_rate: 0.1}"],
    "dropout": ["model.config={hidden_dropout_prob: 0.1}"],
    "erase": ["data.augment.erase=0.25"],
    "no_augment": ["data.augment={crop_scale: [1, 1], crop_ratio: [1, 1], flip: false, rotate: 0, jitter: 0}"],
    "balanced": ["data.target_prior=0.5"],
    "half_rate": ["phase1.learning_rate=5e-4"],
    "double_rate": ["phase1.learning_rate=2e-3"],
}
# Adapters with as many weights as LoRA of rank 8 on q and v, within 7%, at the rate that was best for LoRA.
_ADAPTERS: dict[str, str] = {
    "lora": "{r: 8, lora_alpha: 8}",
    "dora": "{r: 7, lora_alpha: 7}",
    "doran": "{r: 7, lora_alpha: 7}",
    "rslora": "{r: 8, lora_alpha: 8}",
    "pissa": "{r: 8, lora_alpha: 8}",
    "adalora": "{init_r: 8, target_r: 5, lora_alpha: 8}",
    "loha": "{r: 4, alpha: 4}",
    "lokr": "{r: 16, alpha: 16, decompose_factor: 2}",
    "boft": "{boft_block_size: 16}",
}
for _name, _options in _ADAPTERS.items():
    LEVERS[_name] = [f"phase1.adapter={_name}", f"phase1.adapter_options={_options}", "phase1.learning_rate=4e-3"]
TEACHER = "layer_decay"
STUDENT, TAUGHT = "student", "taught"
LEVERS[STUDENT] = ["model.config={num_hidden_layers: 2}"]
LEVERS[TAUGHT] = [*LEVERS[STUDENT], "phase1.teacher=TEACHER", "phase1.distil={mix: 0.9, temperature: 2}"]
PLAIN = "plain"
SOUP = "soup of "
SOUPS = [f"{SOUP}{lever}" for lever in ("base", "layer_decay")]
QUESTIONS = ("speed_limits", "noisy_limits", "fashion_shirt")
ROLES = ("val_select", "test")
SEEDS = [0, 1, 2]
MODEL, ANSWERS = "model", "answers.npz"


@dataclass
class Question:
    """A recipe with the photographs of its roles."""

    name: str
    recipe: Recipe
    rows: dict[str, Rows]
    steps: int

    def asked(self, role: str, processor: Any) -> AskedViews:
        return AskedViews(ask(self.rows[role]), Preprocess(processor))


def recipe_of(name: str, work: Path, steps: int, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a question, without its levers, with KEY=VALUE overrides."""
    same = [*BASE, f"phase1.max_steps={steps}"]
    if name == "fashion_shirt":
        same += [f"data.source={SHARED / name}", "model.backbone=packaged:source_camera_a", "model.image_size=32"]
        return load_recipe(name, [*same, "model.config={}", *overrides])
    source = work / "photographs"
    if not source.is_dir():
        with atomic_folder(source) as temporary:
            speed_limits(SHARED / "gtsrb_roadwork", temporary)
    return load_recipe("gtsrb_roadwork", [*same, f"data.source={source}", "data.label_rule=none", *overrides])


def question_of(name: str, work: Path, steps: int) -> Question:
    recipe = recipe_of(name, work, steps)
    data = load_image_data(recipe.data)
    rows = {role: data.role(role) for role in ("train", *ROLES)}
    if name == "noisy_limits":
        rows["train"] = with_noise(rows["train"])
    return Question(name, recipe, rows, steps)


def with_noise(train: Rows) -> Rows:
    """The rows with all labels of some tracks flipped."""
    tracks = np.unique(train.groups)
    flipped = np.random.default_rng(0).choice(tracks, round(NOISE * len(tracks)), replace=False)
    return replace(train, labels=np.where(np.isin(train.groups, flipped), 1 - train.labels, train.labels))


def start_of(question: Question, work: Path) -> Path:
    """The backbone that phase 4 adapts to the train images: made once."""
    photographs = "fashion_shirt" if question.name == "fashion_shirt" else "gtsrb"
    folder = work / f"start-{photographs}"
    if not folder.is_dir():
        model, processor = question.recipe.model, make_processor(question.recipe.model)
        config = replace(load_recipe("gtsrb_roadwork").phase4, rank=64, probe_steps=0).with_training(START)

        def save(trained: Any) -> Path:
            with atomic_folder(folder) as temporary:
                trained.save_pretrained(temporary)
            return folder

        images, views = question.rows["train"], question.recipe.data.augment
        with tempfile.TemporaryDirectory() as scratch:
            backbone = build_backbone(model, START_SEED)
            pretrain_backbone(backbone, processor, images, None, config, views, save, Path(scratch))
    return folder


def with_lever(question: Question, lever: str, seed: int, work: Path) -> Recipe:
    """The question's recipe with a lever's keys, from its own start."""
    overrides = [override for part in lever.split("+") for override in LEVERS[part]]
    changed = recipe_of(question.name, work, question.steps, overrides)
    model = replace(changed.model, backbone=str(start_of(question, work)))
    return replace(changed, model=model, phase1=changed.phase1.with_training({"seed": seed}))


def train_ours(recipe: Recipe, train: Rows, asked: Any, teachers: Sequence[Path], scratch: Path) -> Any:
    """Train as phase 1 does; the classifier with its last weights."""
    model, processor = build_classifier(recipe.model, HEAD_SEED, recipe.data.labels), make_processor(recipe.model)
    kept = []

    def save(merged: Any) -> Path:
        kept.append(merged)
        save_model(scratch / "model", merged, processor)
        return scratch / "model"

    views, prior = recipe.data.augment, recipe.data.target_prior
    taught = (
        Distillation(tuple(classifier_in(folder, folder.parent.name) for folder in teachers)) if teachers else None
    )
    rest = (recipe.phase1, views, prior, scratch, save)
    train_classifier(model, processor, train, asked, *rest, quiet=True, distillation=taught)
    return kept[0]


def train_plain(recipe: Recipe, train: Rows, scratch: Path) -> Any:
    """Train as the documentation of transformers has it."""
    preprocess = Preprocess(make_processor(recipe.model))
    shared = recipe.phase1.training_fields()
    names = ("learning_rate", "weight_decay", "per_device_train_batch_size", "max_steps", "seed")
    settings: dict[str, Any] = {name: shared[name] for name in names}
    settings |= {"report_to": "none", "use_cpu": runs_on_cpu(), "disable_tqdm": True, "save_strategy": "no"}
    settings |= {"remove_unused_columns": False, "logging_strategy": "no", "dataloader_num_workers": 1}
    model: Any = build_classifier(recipe.model, HEAD_SEED, recipe.data.labels)
    arguments = TrainingArguments(output_dir=str(scratch), dataloader_persistent_workers=True, **settings)
    rows = plain_rows(train, lambda images: [preprocess(image) for image in images])
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    return model


@torch.inference_mode()
def answers(model: Any, views: AskedViews) -> np.ndarray:
    model.to(default_device()).eval()
    batches = DataLoader(views, batch_size=128)
    found = [model(pixel_values=b["pixel_values"].to(default_device())).logits.cpu().numpy() for b in batches]
    return logit_difference(np.concatenate(found))


def keep(folder: Path, model: Any, question: Question, facts: dict[str, Any]) -> None:
    """Keep a model and what it answers."""
    processor = make_processor(question.recipe.model)
    found = {role: answers(model, question.asked(role, processor)) for role in ROLES}
    with atomic_folder(folder) as temporary:
        save_model(temporary / MODEL, model, processor)
        np.savez(temporary / ANSWERS, **found)  # type: ignore[arg-type]
        write_json(temporary / "facts.json", facts)
    truth = question.rows["test"].labels
    print(f"{folder.name}: AUROC on test {roc_auc_score(truth, found['test']):.4f} {facts or ''}", flush=True)


def run(question: Question, lever: str, seed: int, work: Path) -> Path:
    """One training, unless FOLDER holds it. Returns its folder."""
    folder = work / f"{question.name}-{question.steps}" / f"{lever}-{seed}"
    if folder.is_dir():
        return folder
    recipe = with_lever(question, "base" if lever == PLAIN else lever, seed, work)
    train, asked = question.rows["train"], ask(question.rows["val_select"])
    teachers = [run(question, TEACHER, other, work) / MODEL for other in SEEDS] if lever == TAUGHT else []
    with tempfile.TemporaryDirectory() as scratch:
        if lever == PLAIN:
            model = train_plain(recipe, train, Path(scratch))
        else:
            model = train_ours(recipe, train, asked, teachers, Path(scratch))
        keep(folder, model, question, {})
    return folder


def logits_of(folder: Path, role: str) -> np.ndarray:
    with np.load(folder / ANSWERS) as stored:
        found: np.ndarray = stored[role]
    return found


def soup(question: Question, lever: str, seeds: Sequence[int], work: Path) -> Path:
    """The greedy soup of a lever's seeds, by the MCC on val_select."""
    members = [run(question, lever, seed, work) for seed in seeds]
    folder = members[0].parent / f"soup of {lever}-{'-'.join(map(str, seeds))}"
    if folder.is_dir():
        return folder
    views = question.asked("val_select", make_processor(question.recipe.model))
    truth = question.rows["val_select"].labels
    with tempfile.TemporaryDirectory() as scratch:
        mean = Path(scratch) / MODEL

        def score(some: Sequence[Path]) -> float:
            average_models([member / MODEL for member in some], mean)
            return select_threshold(answers(load_classifier(mean), views), truth).value

        chosen = greedy_soup(members, score)
        score(chosen)
        keep(folder, load_classifier(mean), question, {"members": [member.name for member in chosen]})
    return folder


def speeds(folders: Sequence[Path]) -> list[float]:
    """Pictures a second of models here, in turns."""
    found = [Inference(folder / MODEL) for folder in folders]
    turns = [[pictures_a_second(inference) for inference in found] for _ in range(5)]
    return [float(speed) for speed in np.median(turns, axis=0)]


def scores(question: Question, folders: Sequence[Path], weights: np.ndarray, plain: bool) -> np.ndarray:
    """Mean over the seeds of the MCC on test for each weighting of its rows, [b, n] -> [b]. A plain Trainer cuts at
    0.5."""
    labels = {role: question.rows[role].labels for role in ROLES}
    found = []
    for folder in folders:
        cut = 0.0 if plain else select_threshold(logits_of(folder, "val_select"), labels["val_select"]).threshold
        called, yes = logits_of(folder, "test") > cut, labels["test"] == 1
        cells = (called & yes, called & ~yes, ~called & ~yes, ~called & yes)
        found.append(np.asarray(matthews(*(weights @ cell.astype(np.float64) for cell in cells))))
    return np.asarray(np.mean(found, axis=0))


def table(question: Question, results: dict[str, list[Path]], against: str) -> list[tuple[str, str]]:
    """One line a lever: MCC and AUROC on test, and the paired gain of each over another one with its 95% interval."""
    test = question.rows["test"]
    drawn = np.concatenate(list(group_weights(test.groups, test.labels, 2000, 0)))
    weights = np.concatenate([np.ones((1, len(test))), drawn]).astype(np.float64)

    @cache
    def measured(lever: str) -> tuple[np.ndarray, np.ndarray]:
        folders = results[lever]
        auroc = [[roc_auc_score(test.labels, z, sample_weight=w) for w in weights[:501]] for z in _tests(folders)]
        return scores(question, folders, weights, lever == PLAIN), np.mean(auroc, axis=0)

    lines = []
    for lever in results:
        cells = []
        for name, own, other in zip(("MCC", "AUROC"), measured(lever), measured(against), strict=True):
            low, high = np.quantile((own - other)[1:], [0.025, 0.975])
            paired = "" if lever == against else f" ({(own - other)[0]:+.3f} [{low:+.3f}, {high:+.3f}])"
            cells.append(f"{name} {own[0]:.3f}{paired}")
        lines.append((lever, ", ".join(cells)))
    return lines


def _tests(folders: Sequence[Path]) -> list[np.ndarray]:
    return [logits_of(folder, "test") for folder in folders]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--questions", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    every = [PLAIN, *LEVERS, *SOUPS]
    parser.add_argument("--levers", nargs="+", metavar="LEVER", default=every, help=f"of {', '.join(every)}; or A+B")
    parser.add_argument("--against", metavar="LEVER", default="base")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    given.folder.mkdir(parents=True, exist_ok=True)
    for name in given.questions:
        question = question_of(name, given.folder, given.steps)
        results = {}
        for lever in given.levers:
            if lever.startswith(SOUP):
                results[lever] = [soup(question, lever.removeprefix(SOUP), given.seeds, given.folder)]
            else:
                results[lever] = list(map(partial(run, question, lever, work=given.folder), given.seeds))
        if given.against not in results:
            continue
        print(f"{name}, {given.steps} steps, seeds {given.seeds}, gains over {given.against}")
        for lever, outcome in table(question, results, given.against):
            told = outcome
            if lever in (STUDENT, TAUGHT):
                small, large = speeds([results[lever][0], results[given.against][0]])
                told += f", {small / large:.1f} times as fast as {given.against}"
            print(f"  {lever}: {told}")
            if given.record:
                record(
                    f"levers {name}, {lever}",
                    f"{told}; gain over {given.against}, {given.steps} steps, {len(given.seeds)} seeds",
                )


if __name__ == "__main__":
    main()

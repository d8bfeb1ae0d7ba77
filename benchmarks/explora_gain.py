"""What ExPLoRA gains on real photographs, against what else one could do with the same steps: arms, seeds, intervals.

    python benchmarks/explora_gain.py FOLDER [--seeds 0 1 2] [--steps 1000 | --seconds 120] [--arms control ...]
        [--rates 1e-3 ...] [--probes-only]

One source backbone that has never seen the target (the recipe's), trained further on the unlabelled train images of
`gtsrb_roadwork`, with each of these:

    control      not at all
    last_block   the last block alone (masked autoencoding, as the next three)
    explora_r16  ExPLoRA, LoRA of rank 16
    explora_r64  ExPLoRA, LoRA of rank 64
    all          plain self-supervised training of every weight, from the source
    scratch      the same from random weights
    dinov2_r64   ExPLoRA, rank 64, with the DINOv2 objective
    diet_r64     ExPLoRA, rank 64, with the DIET objective

Two questions: which of the 43 signs is it (the first two digits of `id`; 168 test tracks), and is it road work (8
positive test tracks). Each is answered by a linear probe on frozen features and by a rank-8 LoRA fine-tune. The
learning rate of an arm is the one of its objective's grid with the best sign probe on val_select, first seed; the
other seeds use it. Test rows decide nothing. With `--seconds` each arm takes as many steps as fit into that time, by a
short training that is timed beforehand, so that objectives are compared at equal wall time; the probes do not count.

FOLDER keeps each finished training, so a run that was cut off goes on where it was, and each timing, so that it goes
on with the same number of steps; several processes with different `--arms` may share it before one prints the table of
them all. Time all arms under the same load.
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from results import record
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModelForImageClassification, get_cosine_schedule_with_warmup
from transformers.utils import logging

from natix_hf.data.asked import ask
from natix_hf.data.rows import ImageData, Rows, load_image_data
from natix_hf.data.views import AskedViews, TrainViews
from natix_hf.metrics import group_weights, select_threshold
from natix_hf.metrics.classification import matthews
from natix_hf.models.adapters import add_adapter
from natix_hf.models.classifier import build_backbone, load_backbone
from natix_hf.models.device import default_device
from natix_hf.models.preprocess import Preprocess, make_processor
from natix_hf.provenance.files import atomic_folder, read_json, write_json
from natix_hf.recipe import Recipe, load_recipe
from natix_hf.ssl.probe import backbone_features
from natix_hf.trainers.self_supervised import pretrain_backbone

RECIPE = "gtsrb_roadwork"
ARMS: dict[str, dict[str, Any]] = {
    "control": {},
    "last_block": {"trainable": "blocks"},
    "explora_r16": {"rank": 16},
    "explora_r64": {"rank": 64},
    "all": {"trainable": "all"},
    "scratch": {"trainable": "all"},
    "dinov2_r64": {"rank": 64, "objective": "dinov2"},
    "diet_r64": {"rank": 64, "objective": "diet"},
}
LEARNING_RATES = (1e-3, 2e-3, 4e-3)  # of masked autoencoding
RATES = {"dinov2_r64": (5e-4, 1e-3, 2e-3), "diet_r64": (3e-4, 1e-3, 3e-3)}
TIMED_STEPS = 40
PENALTIES = (0.01, 0.1, 1.0)  # C of the linear probe, chosen on val_select
SIGNS = 43
FINE_TUNE = {"epochs": 8, "batch_size": 64, "learning_rate": 4e-3}  # rank-8 LoRA: the control's best on val_select
FIGURES, ANSWERS, BACKBONE, TIMED = "figures.json", "answers.npz", "backbone", "timed.json"
QUESTIONS = {"signs": "which of 43 signs, accuracy", "roadwork": "road work, MCC"}


@dataclass
class Target:
    """The photographs by role, and what is asked about each."""

    recipe: Recipe
    rows: dict[str, Rows]
    answers: dict[str, dict[str, np.ndarray]]  # question -> role -> int64 [n]


def load_target() -> Target:
    recipe = load_recipe(RECIPE, ["data.slices=[id]"])
    data: ImageData = load_image_data(recipe.data)
    rows = {role: data.role(role) for role in ("train", "val_select", "test")}
    signs = {role: np.array([int(name[:2]) for name in found.columns["id"]]) for role, found in rows.items()}
    return Target(recipe, rows, {"signs": signs, "roadwork": {role: found.labels for role, found in rows.items()}})


def adapt(target: Target, arm: str, learning_rate: float, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """Leave the arm's backbone in FOLDER, trained on the train images without their labels; what the training says."""
    model = target.recipe.model
    if arm == "scratch":
        architecture = build_backbone(model, seed).config
        names = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size")
        model = replace(model, backbone=None, config={name: getattr(architecture, name) for name in names})
    backbone, processor = build_backbone(model, seed), make_processor(model)

    def save(trained: Any) -> Path:
        with atomic_folder(folder / BACKBONE) as temporary:
            trained.save_pretrained(temporary)
        return folder / BACKBONE

    if arm == "control":
        save(backbone)
        return {}
    config = target.recipe.phase4
    training = {"learning_rate": learning_rate, "seed": seed, "max_steps": steps, "logging_steps": 200}
    config = replace(config, **ARMS[arm], probe_steps=0)  # no probe: the last step is kept
    config = config.with_training(training | {"save_steps": steps})
    images, checkpoints = target.rows["train"], folder / "checkpoints"
    report = pretrain_backbone(
        backbone, processor, images, None, config, target.recipe.data.augment, save, checkpoints
    )
    shutil.rmtree(checkpoints, ignore_errors=True)
    return report


def steps_within(target: Target, arm: str, seconds: float, work: Path) -> int:
    """How many steps of an arm fit into so many seconds, by a short training whose time FOLDER keeps."""
    timed = work / f"{arm}-{TIMED}"
    if not timed.is_file():
        scratch = work / f"{arm}-timing"
        report = adapt(target, arm, rates_of(arm)[0], 0, TIMED_STEPS, scratch)
        shutil.rmtree(scratch)
        write_json(timed, {"step_s": report["pace"]["step_s"]})
    return max(1, int(seconds / float(read_json(timed)["step_s"])))


def rates_of(arm: str) -> tuple[float, ...]:
    return RATES.get(arm, LEARNING_RATES)


def probe(target: Target, backbone: Path) -> dict[str, np.ndarray]:
    """Answers of a linear probe, fitted on train with the penalty that is best on val_select: class scores [n, k]."""
    model = nn.Module.to(load_backbone(backbone), default_device())
    preprocess = Preprocess(make_processor(target.recipe.model))
    features = {
        role: backbone_features(model, AskedViews(ask(rows), preprocess), range(len(rows)), batch_size=128)
        for role, rows in target.rows.items()
    }
    found = {}
    for question, truth in target.answers.items():
        fitted = []
        for penalty in PENALTIES:
            linear = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000))
            linear.fit(features["train"], truth["train"])
            fitted.append((score(linear.predict_proba(features["val_select"]), truth["val_select"]), linear))
        best = max(fitted, key=lambda pair: pair[0])[1]
        for role in ("val_select", "test"):
            # A sign of which no track fell to train is never answered.
            scores = np.full((len(target.rows[role]), SIGNS if question == "signs" else 2), -np.inf)
            scores[:, best.classes_] = best.predict_log_proba(features[role])
            found[f"probe/{question}/{role}"] = scores
    return found


def score(scores: np.ndarray, truth: np.ndarray) -> float:
    """What is chosen by, on val_select: AUROC of a yes/no question, else accuracy."""
    if scores.shape[1] == 2:
        return float(roc_auc_score(truth, scores[:, 1] - scores[:, 0]))
    return float((scores.argmax(axis=1) == truth).mean())


def fine_tune(target: Target, backbone: Path, seed: int, learning_rate: float) -> dict[str, np.ndarray]:
    """Answers of a rank-8 LoRA fine-tune of q and v with a fresh head, after its last step: logits [n, k]."""
    processor, device = make_processor(target.recipe.model), default_device()
    preprocess, train = Preprocess(processor), target.rows["train"]
    size, mean, std = int(processor.size["height"]), processor.image_mean, processor.image_std
    views = TrainViews(train, target.recipe.data.augment, size, mean, std, seed)
    found = {}
    for question, truth in target.answers.items():
        torch.manual_seed(seed)
        logging.set_verbosity_error()  # a fresh head is what is wanted
        plain: Any = AutoModelForImageClassification.from_pretrained(
            backbone, num_labels=SIGNS if question == "signs" else 2, dtype=torch.float32
        )
        nn.init.trunc_normal_(plain.classifier.weight, std=0.02)
        nn.init.zeros_(plain.classifier.bias)
        batch, epochs = int(FINE_TUNE["batch_size"]), int(FINE_TUNE["epochs"])
        total = epochs * math.ceil(len(train) / batch)
        model: Any = add_adapter(plain, "lora", {}, total, seed).to(device)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
        schedule = get_cosine_schedule_with_warmup(optimizer, total // 10, total)
        labels = torch.from_numpy(truth["train"])
        model.train()
        for epoch in range(epochs):
            order = np.random.default_rng([seed, epoch]).permutation(len(train))
            for chosen in np.array_split(order, math.ceil(len(train) / batch)):
                items = views.__getitems__([(epoch, int(row)) for row in chosen])
                pixels = torch.stack([item["pixel_values"] for item in items]).to(device)
                logits = model(**views.finish({"pixel_values": pixels})).logits
                loss: Any = nn.functional.cross_entropy(logits, labels[torch.from_numpy(chosen)].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        model.eval()
        with torch.inference_mode():
            for role in ("val_select", "test"):
                batches = DataLoader(AskedViews(ask(target.rows[role]), preprocess), batch_size=128)
                answers = [model(pixel_values=b["pixel_values"].to(device)).logits.cpu().numpy() for b in batches]
                found[f"fine_tune/{question}/{role}"] = np.concatenate(answers)
    return found


def run(target: Target, arm: str, learning_rate: float, seed: int, steps: int, work: Path, whole: bool) -> Path:
    """One training with its probes, and with `whole` its fine-tunes, unless FOLDER holds them. Returns its folder."""
    folder = work / f"{arm}-{learning_rate:g}-{seed}-{steps}"
    answers: dict[str, np.ndarray] = {}
    if (folder / ANSWERS).is_file():
        with np.load(folder / ANSWERS) as stored:
            answers = dict(stored)
    if not answers:
        adapt(target, arm, learning_rate, seed, steps, folder)
        answers = probe(target, folder / BACKBONE)
    elif not whole or any(name.startswith("fine_tune") for name in answers):
        return folder
    if whole:
        answers |= fine_tune(target, folder / BACKBONE, seed, float(FINE_TUNE["learning_rate"]))
    np.savez(folder / "unfinished.npz", **answers)  # type: ignore[arg-type]
    (folder / "unfinished.npz").replace(folder / ANSWERS)
    seen = {name: scores for name, scores in answers.items() if name.endswith("val_select")}
    figures = {name: score(scores, target.answers[name.split("/")[1]]["val_select"]) for name, scores in seen.items()}
    write_json(folder / FIGURES, figures)
    print(f"{folder.name}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()), flush=True)
    return folder


def study(
    target: Target, arm: str, rates: tuple[float, ...], seeds: list[int], steps: int, work: Path, whole: bool
) -> tuple[float, list[Path]]:
    """The learning rate of an arm, chosen with the first seed, and the folders of all seeds with it."""
    tried = {rate: run(target, arm, rate, seeds[0], steps, work, whole=False) for rate in rates}
    best = max(rates, key=lambda rate: read_json(tried[rate] / FIGURES)["probe/signs/val_select"])
    return best, [run(target, arm, best, seed, steps, work, whole) for seed in seeds]


def resampled_scores(target: Target, folders: list[Path], how: str, question: str, weights: np.ndarray) -> np.ndarray:
    """Mean over the seeds of the score on test, for each weighting of its rows: [b, n] -> [b]."""
    truth, found = target.answers[question], []
    for folder in folders:
        with np.load(folder / ANSWERS) as stored:
            val, test = (stored[f"{how}/{question}/{role}"] for role in ("val_select", "test"))
        if question == "signs":
            right = (test.argmax(axis=1) == truth["test"]).astype(np.float64)
            found.append(weights @ right / weights.sum(axis=1))
        else:
            cut = select_threshold(val[:, 1] - val[:, 0], truth["val_select"]).threshold
            called, positive = test[:, 1] - test[:, 0] > cut, truth["test"] == 1
            cells = (called & positive, called & ~positive, ~called & ~positive, ~called & positive)
            found.append(np.asarray(matthews(*(weights @ cell.astype(np.float64) for cell in cells))))
    return np.asarray(np.mean(found, axis=0))


def table(
    target: Target, results: dict[str, tuple[float, list[Path]]], hows: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """The markdown table: score, and paired gain over the control with its 95 % interval over test tracks."""
    test = target.rows["test"]
    # Signs: all tracks in one stratum; road work: tracks within class.
    strata = {"signs": np.zeros(len(test), dtype=np.int64), "roadwork": test.labels}
    heads = [f"{how.replace('_', ' ')}, {words}" for how in hows for words in QUESTIONS.values()]
    lines = [f"| arm | lr | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    points: dict[str, Any] = {}
    for arm, (rate, folders) in results.items():
        cells = []
        for how in hows:
            for question in QUESTIONS:
                drawn = np.concatenate(list(group_weights(test.groups, strata[question], 2000, 0)))
                weights = np.concatenate([np.ones((1, len(test))), drawn]).astype(np.float64)
                own = resampled_scores(target, folders, how, question, weights)
                gain = own - resampled_scores(target, results["control"][1], how, question, weights)
                low, high = np.quantile(gain[1:], [0.025, 0.975])
                points[f"{arm}/{how}/{question}"] = (own[0], gain[0], low, high)
                paired = "" if arm == "control" else f" ({gain[0]:+.3f} [{low:+.3f}, {high:+.3f}])"
                cells.append(f"{own[0]:.3f}{paired}")
        lines.append(f"| {arm} | {f'{rate:g}' if rate else ''} | {' | '.join(cells)} |")
    return "\n".join(lines), points


def draw(points: dict[str, Any], arms: list[str], hows: Sequence[str], path: Path) -> None:
    """Paired gains over the control, with their intervals."""
    figure = Figure(figsize=(9, 4.2), dpi=130, layout="constrained")
    for axes, (question, words) in zip(figure.subplots(1, 2, sharey=True), QUESTIONS.items(), strict=True):
        shifts = (0.0,) if len(hows) == 1 else (-0.12, 0.12)
        for shift, how, style in zip(shifts, hows, ("C0o", "C1s"), strict=False):
            for place, arm in enumerate(arms):
                _, gain, low, high = points[f"{arm}/{how}/{question}"]
                label = how.replace("_", " ") if place == 0 else None
                bars = [[gain - low], [high - gain]]
                axes.errorbar([gain], [place + shift], xerr=bars, fmt=style, ms=5, capsize=2, label=label)
        axes.axvline(0, color="0.4", lw=1)
        axes.set_title(f"{words}: gain over the control", loc="left", fontsize=10)
        axes.set_yticks(range(len(arms)), arms)
        axes.grid(alpha=0.25)
    axes.invert_yaxis()
    axes.legend(frameon=False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=1000)
    length.add_argument("--seconds", type=float, help="train each arm for so long in place of --steps")
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates to choose from, in place of the grids")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--probes-only", action="store_true", help="no fine-tunes")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--plot", type=Path, help="where the picture of the gains goes")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    given.folder.mkdir(parents=True, exist_ok=True)
    target = load_target()
    lengths = dict.fromkeys(given.arms, given.steps)
    if given.seconds:
        trained = [arm for arm in given.arms if arm != "control"]
        lengths |= {arm: steps_within(target, arm, given.seconds, given.folder) for arm in trained}
    for whole in (
        (False,) if given.probes_only else (False, True)
    ):  # every arm's probes first: they answer the main question
        results = {}
        for arm, steps in lengths.items():
            rates = (0.0,) if arm == "control" else tuple(given.rates or rates_of(arm))
            results[arm] = study(target, arm, rates, given.seeds, steps, given.folder, whole)
    if "control" not in results:
        return
    hows = ("probe",) if given.probes_only else ("probe", "fine_tune")
    words, points = table(target, results, hows)
    print(words)
    compared = [arm for arm in results if arm != "control"]
    if given.plot is not None and compared:
        draw(points, compared, hows, given.plot)
    for arm in compared:
        own, gain, low, high = points[f"{arm}/probe/signs"]
        outcome = f"43-way probe accuracy {own:.3f}, gain over the control {gain:+.3f} [{low:+.3f}, {high:+.3f}]"
        took = f"{lengths[arm]} steps" + (f" in {given.seconds:g} s" if given.seconds else "")
        record(f"explora_gain {arm}", f"{outcome}, {took} at {results[arm][0]:g}, {len(given.seeds)} seeds")


if __name__ == "__main__":
    main()

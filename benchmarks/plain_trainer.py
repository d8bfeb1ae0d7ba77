"""Our phases 1 and 2 against a plain `Trainer` of the same model: same rows, same time, mean of the seeds' test MCC.

    python benchmarks/plain_trainer.py gtsrb_roadwork [--seeds 0 1 2]

The plain side is what a user would write from the documentation: `set_transform` with the image processor, the same
learning rate, batch size and weight decay, the default linear schedule, the last checkpoint, the cut at .5. It gets
as many steps as fill the time that our side took. Both sides train on the same 65 % of groups and are scored on the
same test rows. Rows of benchmarks/RESULTS.md are appended.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import plain_rows
from results import record
from transformers import Trainer, TrainingArguments

from natix_hf.data.asked import ask
from natix_hf.data.rows import Rows, load_image_data
from natix_hf.data.views import AskedViews
from natix_hf.metrics import group_weights
from natix_hf.metrics.classification import matthews
from natix_hf.models.classifier import build_classifier, logit_difference
from natix_hf.models.device import runs_on_cpu
from natix_hf.models.preprocess import Preprocess, make_processor
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.manifest import read_manifest
from natix_hf.recipe import load_recipe
from natix_hf.results.logits import TEST_ANSWERS, read_logits
from natix_hf.runs.collected import read_results
from natix_hf.runs.graph import PHASES

TIMING_STEPS = 50


def ours(recipe_name: str, seed: int, overrides: list[str], folder: Path) -> tuple[np.ndarray, float, float]:
    """Decisions on test (bool [n]), seconds of training, MCC of the run's own evaluation."""
    run = run_recipe(recipe_name, [1, 2, 6], folder, overrides=[*overrides, f"phase1.seed={seed}"])
    results, manifest = read_results(run), read_manifest(run / PHASES[1].folder)
    assert results.decision is not None and results.evaluation is not None
    answers = run / PHASES[6].folder / TEST_ANSWERS
    table = read_logits(answers, results.decision.candidate_sha256)
    mcc = results.evaluation.as_found.metrics["mcc"]
    assert mcc is not None
    return table.logits > results.decision.threshold_logit, manifest["metrics"]["train_s"], mcc


def plain(recipe: Any, train: Rows, test: Rows, seed: int, seconds: float, folder: Path) -> tuple[np.ndarray, float]:
    """Decisions on test of a plain Trainer that trains for about `seconds`; and the epochs it had."""
    preprocess = Preprocess(make_processor(recipe.model))
    rows = plain_rows(train, lambda images: [preprocess(image) for image in images])
    shared = recipe.phase1.training_fields()
    settings: dict[str, Any] = {
        name: shared[name] for name in ("learning_rate", "weight_decay", "per_device_train_batch_size")
    }
    settings |= {"seed": seed, "report_to": "none", "use_cpu": runs_on_cpu(), "disable_tqdm": True}
    settings |= {"remove_unused_columns": False, "save_strategy": "no", "logging_strategy": "no"}
    settings |= {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}

    def train_for(model: Any, **length: Any) -> float:
        begin = time.perf_counter()
        arguments = TrainingArguments(output_dir=str(folder), **settings, **length)
        Trainer(model=model, args=arguments, train_dataset=rows).train()
        return time.perf_counter() - begin

    steps_a_second = TIMING_STEPS / train_for(build_classifier(recipe.model, seed), max_steps=TIMING_STEPS)
    model: Any = build_classifier(recipe.model, seed)
    steps = max(1, round(seconds * steps_a_second))
    train_for(model, max_steps=steps)
    model.to("cpu").eval()
    views = AskedViews(ask(test), preprocess)
    with torch.inference_mode():
        batches = torch.utils.data.DataLoader(views, batch_size=64)
        z = np.concatenate([logit_difference(model(pixel_values=b["pixel_values"]).logits.numpy()) for b in batches])
    return z > 0, steps * settings["per_device_train_batch_size"] / len(train)


def mean_mcc(decisions: list[np.ndarray], labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the seeds of the MCC on each resample; weights [b, n] -> [b]."""
    scores = []
    for called in decisions:
        cells = [called & (labels == 1), called & (labels == 0), ~called & (labels == 0), ~called & (labels == 1)]
        tp, fp, tn, fn = (weights @ cell.astype(np.float64) for cell in cells)
        scores.append(np.asarray(matthews(tp, fp, tn, fn)))
    return np.asarray(np.mean(scores, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=["gtsrb_roadwork", "fashion_shirt"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args()
    recipe = load_recipe(given.recipe, given.overrides)
    data = load_image_data(recipe.data)
    train, test = data.role("train"), data.role("test")
    own, other, seconds, epochs = [], [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in given.seeds:
            decisions, took, mcc = ours(given.recipe, seed, given.overrides, Path(scratch) / f"ours-{seed}")
            own.append(decisions)
            seconds.append(took)
            decisions, had = plain(recipe, train, test, seed, took, Path(scratch) / f"plain-{seed}")
            other.append(decisions)
            epochs.append(had)
            print(f"seed {seed}: ours {mcc:.3f} in {took:.0f} s, plain had {had:.1f} epochs", flush=True)
    everything = np.ones((1, len(test)))
    resampled = np.concatenate(list(group_weights(test.groups, test.labels, 2000, 0))).astype(np.float64)
    figures = {}
    for name, decisions_of in {"ours": own, "plain Trainer": other}.items():
        low, high = np.quantile(mean_mcc(decisions_of, test.labels, resampled), [0.025, 0.975])
        figures[name] = f"{mean_mcc(decisions_of, test.labels, everything)[0]:.3f} [{low:.3f}, {high:.3f}]"
        each = ", ".join(f"{mean_mcc([d], test.labels, everything)[0]:.3f}" for d in decisions_of)
        print(f"{name}: {figures[name]} (seeds: {each})")
    gain = mean_mcc(own, test.labels, resampled) - mean_mcc(other, test.labels, resampled)
    at_once = float((mean_mcc(own, test.labels, everything) - mean_mcc(other, test.labels, everything))[0])
    low, high = np.quantile(gain, [0.025, 0.975])
    record(
        f"plain_trainer {given.recipe}",
        f"test MCC, mean of {len(given.seeds)} seeds: ours {figures['ours']}, plain {figures['plain Trainer']}, "
        f"gain {at_once:+.3f} [{low:+.3f}, {high:+.3f}]; {np.mean(seconds):.0f} s of training each, "
        f"plain had {np.mean(epochs):.0f} epochs",
    )


if __name__ == "__main__":
    main()

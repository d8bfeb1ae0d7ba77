"""Which epoch is kept: the best one on whole pictures of val_select, or on the exam's views of them.

One training per question and seed, with the recipe `gtsrb_roadwork` and its weight average. Every epoch answers whole
pictures and exam views of val_select. Both rules choose among the same epochs; the threshold is fitted to the exam's
views of val_select either way, and the expected reward is measured on the exam's views of test. So the difference is
that of the choice alone. Its interval resamples the tracks of test, the same for every seed.

    python benchmarks/exam_choice.py [--source FOLDER] [--epochs N] [--seeds N] [--only roadwork | speed_limits]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from results import record

from natix_hf.data.asked import ask
from natix_hf.data.exam_cache import drawn_once
from natix_hf.data.rows import load_image_data
from natix_hf.data.views import AskedViews
from natix_hf.metrics import group_weights, select_threshold
from natix_hf.models.classifier import build_classifier, logit_difference
from natix_hf.models.preprocess import Preprocess, make_processor
from natix_hf.recipe import load_recipe
from natix_hf.subnet.expectation import mean_reward
from natix_hf.trainers.arguments import training_arguments
from natix_hf.trainers.roadwork import RoadworkTrainer
from natix_hf.trainers.scores import EvaluationMetrics
from natix_hf.trainers.stage import make_stage

SPEED_LIMITS = {f"{number:02d}" for number in range(9)}


def speed_limits(source: Path, folder: Path) -> Path:
    """The photographs with another label: is the sign a speed limit? Their class is the start of `id`."""
    for path in sorted(source.rglob("*.parquet")):
        table = pq.read_table(path)
        labels = [int(str(row_id)[:2] in SPEED_LIMITS) for row_id in table["id"].to_pylist()]
        at = table.column_names.index("label")
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        changed = table.set_column(at, "label", pa.array(labels, pa.int64())).replace_schema_metadata(None)
        pq.write_table(changed, target)
    return folder


class Epochs(EvaluationMetrics):
    """Scores an epoch, and keeps its answers and weights."""

    def __init__(self, target_prior: float | None) -> None:
        super().__init__(target_prior)
        self.answers: list[np.ndarray] = []
        self.weights: list[dict[str, torch.Tensor]] = []
        self.model: Any = None

    def __call__(self, prediction: Any) -> dict[str, float]:
        self.answers.append(logit_difference(np.asarray(prediction.predictions)))
        if len(self.answers) % 2:  # whole pictures and exam views come in turn, for the same weights
            self.weights.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
        return super().__call__(prediction)


def one(source: Path, rule: str, seed: int, epochs: int, scratch: Path) -> dict[str, Any]:
    overrides = [f"data.source={source}", f"data.label_rule={rule}", "data.exam=true", "data.target_prior=0.5"]
    overrides += [f"phase1.seed={seed}", f"phase1.num_train_epochs={epochs}", "phase1.save_strategy=no"]
    overrides.append("phase1.metric_for_best_model=null")
    recipe = load_recipe("gtsrb_roadwork", overrides)
    data, exam, prior = load_image_data(recipe.data), recipe.data.choice_exam, recipe.data.target_prior
    train, val, test = (data.role(role) for role in ("train", "val_select", "test"))
    sets = {"whole": ask(val), "exam": drawn_once(val, exam)}
    model, processor = build_classifier(recipe.model, seed), make_processor(recipe.model)
    arguments = training_arguments(recipe.phase1.training_fields(), scratch, "phase1")
    stage = make_stage(model, processor, train, sets["exam"], recipe.phase1, recipe.data.augment, prior, arguments)
    scores = Epochs(prior)
    scores.model = model
    preprocess = Preprocess(processor)
    views = {name: AskedViews(asked, preprocess) for name, asked in sets.items()}
    given = stage.given | {"eval_dataset": views}
    trainer = RoadworkTrainer(
        args=arguments, compute_metrics=scores, ema_decay=recipe.phase1.ema_decay, quiet=True, **given
    )
    trainer.train()
    answers = {"whole": scores.answers[::2], "exam": scores.answers[1::2]}
    mcc = {
        name: [select_threshold(z, sets[name].labels, target_prior=prior).value for z in by_epoch]
        for name, by_epoch in answers.items()
    }
    asked, found = drawn_once(test, exam), {}
    for name, values in mcc.items():
        epoch = int(np.argmax(values))
        model.load_state_dict(scores.weights[epoch])
        logits = logit_difference(np.asarray(trainer.predict(AskedViews(asked, preprocess)).predictions))
        cut = select_threshold(answers["exam"][epoch], sets["exam"].labels, target_prior=prior).threshold
        found[name] = (epoch + 1, logits > cut)
    took = [row for row in trainer.state.log_history if "eval_exam_runtime" in row]
    seconds = float(np.mean([row["eval_exam_runtime"] for row in took]))
    return {"found": found, "labels": asked.labels, "groups": asked.groups, "mcc": mcc, "seconds": seconds}


def rewards(answers: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The expected reward of answers under each row of weights."""
    shares = [
        (weights @ (answers & of).astype(float)) / (weights @ of.astype(float)) for of in (labels == 1, labels == 0)
    ]
    return mean_reward(shares[0], 1 - shares[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=Path("../shared/data/gtsrb_roadwork"))
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=["roadwork", "speed_limits"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        questions = {"roadwork": (given.source, "scene_description"), "speed_limits": (scratch / "speed", "none")}
        for question, (source, rule) in questions.items():
            if given.only not in (None, question):
                continue
            if question == "speed_limits":
                speed_limits(given.source, source)
            runs = [
                one(source, rule, seed, given.epochs, scratch / f"{question}-{seed}") for seed in range(given.seeds)
            ]
            labels, groups = runs[0]["labels"], runs[0]["groups"]
            drawn = np.concatenate(list(group_weights(groups, labels, 2000, 0))).astype(float)
            weights = np.concatenate([np.ones((1, len(labels))), drawn])
            by_rule = {
                name: np.mean([rewards(run["found"][name][1], labels, weights) for run in runs], axis=0)
                for name in ("whole", "exam")
            }
            gain = by_rule["exam"] - by_rule["whole"]
            low, high = np.quantile(gain[1:], [0.025, 0.975])
            chosen = {name: [run["found"][name][0] for run in runs] for name in by_rule}
            kept = {
                name: float(np.mean([run["mcc"]["exam"][run["found"][name][0] - 1] for run in runs]))
                for name in by_rule
            }
            record(
                f"exam_choice.py --only {question} --epochs {given.epochs} --seeds {given.seeds}",
                f"expected reward on test views: {by_rule['whole'][0]:.3f} with the epoch best on whole "
                f"pictures (epochs {chosen['whole']}), {by_rule['exam'][0]:.3f} with the one best on exam views "
                f"(epochs {chosen['exam']}); gain {gain[0]:+.3f} [{low:+.3f}, {high:+.3f}]; MCC on exam views of "
                f"val_select {kept['whole']:.3f} and {kept['exam']:.3f}; a score of the exam's views takes "
                f"{np.mean([run['seconds'] for run in runs]):.1f} s",
            )


if __name__ == "__main__":
    main()

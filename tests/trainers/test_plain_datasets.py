"""Both trainers on a plain `datasets.Dataset`: the trainings of the phases, with the manners of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from conftest import Killed, kill_at, striped_image, tiny_backbone
from facts import tells
from refusals import refused
from safetensors.torch import load_file
from stages import QUICK, save_in
from transformers import AutoModelForImageClassification

import natix_hf
from natix_hf import ExploraTrainer, RoadworkTrainer
from natix_hf.data.asked import ask
from natix_hf.data.config import AugmentConfig
from natix_hf.data.plain import rows_of
from natix_hf.errors import DataError, NatixError, RunError, UsageError
from natix_hf.labels import LabelNames
from natix_hf.models.classifier import build_classifier, load_backbone, load_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.recipe import parse_recipe
from natix_hf.trainers.explora_config import ExploraConfig
from natix_hf.trainers.self_supervised import pretrain_backbone
from natix_hf.trainers.supervised import train_classifier
from natix_hf.trainers.supervised_config import SupervisedConfig

SSL: dict[str, Any] = {"max_steps": 4, "learning_rate": 2e-3, "per_device_train_batch_size": 16,
                       "dataloader_num_workers": 0, "logging_steps": 1}  # fmt: skip


def _rows(count: int, seed: int) -> Any:
    rng, labels = np.random.default_rng(seed), [i % 2 for i in range(count)]
    rows = datasets.Dataset.from_dict({"image": [striped_image(i, rng) for i in labels], "label": labels})
    return rows.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))


TRAIN, TEST = _rows(48, 1), _rows(24, 2)


def _trainer(model: Any, folder: Path, train: Any = TRAIN, test: Any = TEST, **given: Any) -> RoadworkTrainer:
    args = QUICK | {"output_dir": str(folder)} | given.pop("args", {})
    return RoadworkTrainer(str(model), args=args, train_dataset=train, eval_dataset=test, **given)


def _equal(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name].cpu(), other[name].cpu()) for name in one)


@pytest.mark.parametrize("adapter", ["full", "none", "lora"])
def test_it_is_the_training_of_the_phases(adapter: str, pretrained: Path, tmp_path: Path) -> None:
    trainer = _trainer(pretrained, tmp_path / "api", adapter=adapter, target_prior=0.3)
    trainer.train()
    model = ModelConfig(backbone=str(pretrained), image_size=28)
    config = parse_recipe({"phase1": QUICK | {"adapter": adapter}}).phase1
    report = train_classifier(
        build_classifier(model, seed=42), make_processor(model), rows_of(TRAIN, "train"), ask(rows_of(TEST, "eval")),
        config, AugmentConfig(), 0.3, tmp_path / "phase", save_in(tmp_path / "saved"),
    )  # fmt: skip
    assert _equal(trainer.model.state_dict(), load_classifier(tmp_path / "saved").state_dict())
    scores = [[row["eval_mcc"] for row in log if "eval_mcc" in row] for log in
              (trainer.state.log_history, report["history"])]  # fmt: skip
    assert scores[0] == scores[1] and len(scores[0]) == 2
    # ... and it leaves a plain model, which answers, and which transformers loads.
    assert type(trainer.model).__name__ == "Dinov2ForImageClassification"
    assert trainer.model.config.id2label == {0: "no", 1: "yes"}
    assert trainer.model.device == trainer.args.device and not list(tmp_path.rglob("adapter_*"))
    assert trainer.evaluate()["eval_mcc"] == max(scores[0])
    labelled, asked = trainer.predict(TEST), trainer.predict(TEST.remove_columns("label"))
    np.testing.assert_array_equal(labelled.predictions, asked.predictions)
    assert "test_mcc" in labelled.metrics and "test_mcc" not in asked.metrics and asked.label_ids is None
    trainer.save_model(str(tmp_path / "kept"))
    kept = AutoModelForImageClassification.from_pretrained(tmp_path / "kept")
    assert _equal(kept.state_dict(), trainer.model.state_dict())
    assert (tmp_path / "kept" / "preprocessor_config.json").is_file()
    assert (trainer.proof is not None) == (adapter == "lora")
    if adapter == "lora":
        assert trainer.proof is not None and trainer.proof["max_difference"] <= 1e-4 < trainer.proof["adapter_effect"]
        with pytest.raises(UsageError):
            trainer.train()


def test_without_augmentation_it_is_a_loop_by_hand(pretrained: Path, tmp_path: Path) -> None:
    """SGD on whole pictures, against plain PyTorch on the same batches."""
    still = AugmentConfig(crop_scale=[1, 1], crop_ratio=[1, 1], flip=False, rotate=0, jitter=0)
    args = {"optim": "sgd", "max_grad_norm": 0, "weight_decay": 0.0, "lr_scheduler_type": "constant",
            "warmup_steps": 0, "num_train_epochs": 1, "load_best_model_at_end": False}  # fmt: skip
    trainer = _trainer(pretrained, tmp_path, augment=still, args=args)
    model = build_classifier(ModelConfig(backbone=str(pretrained), image_size=28), seed=42)
    assert _equal(model.state_dict(), trainer.model.state_dict())
    views: Any = trainer.train_dataset
    rows = [row for _, row in trainer._sampler or ()]
    assert sorted(rows) == list(range(48)), "every row once"
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=QUICK["learning_rate"])
    for batch in (rows[:16], rows[16:32], rows[32:]):
        shown = torch.stack([views[0, row]["pixel_values"] for row in batch])
        pixels = views.finish({"pixel_values": shown})["pixel_values"]
        loss = torch.nn.functional.cross_entropy(model(pixels).logits, torch.tensor([row % 2 for row in batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trainer.train()
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value.cpu(), model.state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("views_on", ["workers", "device"])
def test_resumed_equals_uninterrupted(views_on: Any, pretrained: Path, tmp_path: Path) -> None:
    args = {"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": False}
    whole = _trainer(pretrained, tmp_path / "whole", adapter="lora", args=args, views_on=views_on)
    whole.train()
    with pytest.raises(Killed):
        _trainer(
            pretrained, tmp_path / "cut", adapter="lora", args=args, views_on=views_on, callbacks=[kill_at(5)]
        ).train()
    resumed = _trainer(pretrained, tmp_path / "cut", adapter="lora", args=args, views_on=views_on)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6 and _equal(whole.model.state_dict(), resumed.model.state_dict())
    with pytest.raises(RunError) as caught:
        _trainer(pretrained, tmp_path / "empty").train(resume_from_checkpoint=True)
    assert tells(caught.value, tmp_path / "empty")


def test_defaults_are_those_of_the_project(pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = RoadworkTrainer(pretrained, train_dataset=TRAIN, eval_dataset=TEST)
    ssl = ExploraTrainer(pretrained, train_dataset=TRAIN)
    decided = {"eval_strategy": "steps", "save_strategy": "steps"}
    of_stage, of_pretraining = SupervisedConfig().training_fields(), ExploraConfig().training_fields() | decided
    for made, defaults in ((trainer, of_stage), (ssl, of_pretraining)):
        values = {key: getattr(made.args, key) for key in defaults}
        values = {key: getattr(value, "value", value) for key, value in values.items()} | {"report_to": "none"}
        assert values == defaults
    alone = RoadworkTrainer(pretrained, train_dataset=TRAIN)
    assert alone.args.eval_strategy == "no" and not alone.args.load_best_model_at_end
    assert {"RoadworkTrainer", "ExploraTrainer"} <= {*natix_hf.__all__}


def test_other_forms_of_data_and_model(pretrained: Path, tmp_path: Path) -> None:
    """A model that is there, a list of rows, several evaluation sets, and views that somebody else has made."""
    model = build_classifier(ModelConfig(backbone=str(pretrained), image_size=28), seed=42)
    rows = [{"picture": row["image"], "roadwork": row["label"]} for row in TRAIN]
    args = QUICK | {"output_dir": str(tmp_path), "max_steps": 1, "load_best_model_at_end": False,
                   "save_strategy": "no"}  # fmt: skip
    trainer = RoadworkTrainer(model, args, rows, {"a": rows, "b": rows[:8]}, image_column="picture",
                              label_column="roadwork", adapter="lora")  # fmt: skip
    trainer.train()
    assert trainer.model is model and trainer.proof is not None
    assert {"eval_a_mcc", "eval_b_mcc"} <= trainer.evaluate().keys()
    ready = [{"pixel_values": torch.rand(3, 28, 28), "labels": i % 2} for i in range(20)]
    made = datasets.Dataset.from_list([row | {"id": i} for i, row in enumerate(ready)]).with_format("torch")
    for views in (ready, made):
        again = RoadworkTrainer(model, args, views, views)
        again.train()
        assert len(again.predict(views).predictions) == 20


@pytest.mark.parametrize(
    ("given", "error", "facts"),
    [
        ({"train": TRAIN.remove_columns("image")}, DataError, ("train_dataset", "'image'", "it has label")),
        ({"train": TRAIN.filter(lambda row: row["label"] == 1)}, DataError, ("train_dataset", "label 1")),
        ({"test": TEST.filter(lambda row: row["label"] == 0)}, DataError, ("eval_dataset", "label 0")),
        ({"adapter": "auto"}, UsageError, ("auto",)),
        ({"adapter": "lorra"}, NatixError, ("lorra", "'lora'")),
        ({"image_size": 30}, NatixError, ("30", "28")),
        ({"args": {"lr_scheduler_type": "x"}}, NatixError, ("RoadworkTrainer", "x")),
        ({"args": {"dataloader_drop_last": True, "per_device_train_batch_size": 64}}, UsageError, ("48", "64")),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    given: Any, error: type[Exception], facts: Any, pretrained: Any, tmp_path: Any
) -> None:
    with pytest.raises(error) as caught:
        _trainer(pretrained, tmp_path, **given)
    assert tells(caught.value, *facts)


def test_models_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for model, fact in ((tiny_backbone("dinov2"), "Dinov2Model"), (torch.nn.Linear(2, 2), "Linear"), (None, "None")):
        with pytest.raises(UsageError) as caught:
            RoadworkTrainer(model, QUICK | {"output_dir": str(tmp_path)}, TRAIN)
        assert tells(caught.value, fact)
    with pytest.raises(UsageError) as caught:
        RoadworkTrainer("nowhere/nothing", train_dataset=TRAIN)
    assert tells(caught.value, "nowhere/nothing")


def test_names_the_other_way_round_are_refused(pretrained: Path, tmp_path: Path) -> None:
    """A model would learn, or be scored on, the opposite of what it then answers. Other names may be synonyms."""
    reverse = TEST.cast_column("label", datasets.ClassLabel(names=["yes", "no"]))
    for test in (reverse, {"here": TEST, "there": reverse}):
        refused(DataError, lambda test=test: _trainer(pretrained, tmp_path, test=test), "eval_dataset", "no", "yes")
    config, args = ModelConfig(backbone=str(pretrained), image_size=28), QUICK | {"output_dir": str(tmp_path)}
    for names in (LabelNames(no="yes", yes="no"), LabelNames(no="no", yes="yes"), LabelNames()):
        model = build_classifier(config, seed=0, labels=names)
        if names.yes == "no":
            refused(UsageError, lambda model=model: RoadworkTrainer(model, args, TRAIN), "RoadworkTrainer", "id2label")
        else:
            RoadworkTrainer(model, args, TRAIN, quiet=True)


# Without labels.


def _explora(folder: Path, objective: str, **given: Any) -> ExploraTrainer:
    args = SSL | {"output_dir": str(folder)} | given.pop("args", {})
    return ExploraTrainer(tiny_backbone("dinov2"), objective, TRAIN, args, rank=4, probe_steps=2, **given)


@pytest.mark.parametrize(
    ("objective", "views_on"), [("mae", "auto"), ("mae", "device"), ("dinov2", "auto"), ("dinov2", "device")]
)
def test_it_is_the_pretraining_of_phase_4(objective: str, views_on: Any, tmp_path: Path) -> None:
    config = parse_recipe({"phase4": SSL | {"objective": objective, "rank": 4, "probe_steps": 2}}).phase4
    rows = rows_of(TRAIN, "train")
    report = pretrain_backbone(
        tiny_backbone("dinov2"), make_processor(ModelConfig(config={"model_type": "dinov2"}, image_size=28)), rows,
        (ask(rows), ask(rows_of(TEST, "eval"))), config, AugmentConfig(), save_in(tmp_path / "saved"),
        tmp_path / "phase", views_on=views_on,
    )  # fmt: skip
    given = {"views_on": views_on}
    with pytest.raises(Killed):
        _explora(tmp_path / "api", objective, eval_dataset=TEST, callbacks=[kill_at(3)], **given).train()
    trainer = _explora(tmp_path / "api", objective, eval_dataset={"train": TRAIN, "test": TEST}, **given)
    with pytest.raises(UsageError):
        trainer.merged()
    trainer.train(resume_from_checkpoint=True)
    merged = trainer.merged()
    assert _equal(merged.state_dict(), load_backbone(tmp_path / "saved").state_dict())
    assert type(merged).__name__ == "Dinov2Model" and not merged.training
    assert trainer.proof == report["merge"] and trainer.state.best_metric == report["best_score"]
    trainer.save_model(str(tmp_path / "kept"))
    stored = load_file(tmp_path / "kept" / "model.safetensors")
    assert _equal(stored, load_file(tmp_path / "saved" / "model.safetensors"))


def test_probes_need_labels(tmp_path: Path) -> None:
    bare = TRAIN.remove_columns("label")
    for scored, fact in (({"train": bare, "test": TEST}, "'label'"), ({"fit": TRAIN}, "fit"), (bare, "'label'")):
        with pytest.raises(DataError) as caught:
            _explora(tmp_path, "mae", eval_dataset=scored)
        assert tells(caught.value, fact)


# What is printed.


def test_a_line_for_each_epoch(pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = _trainer(pretrained, tmp_path)
    capsys.readouterr()
    trainer.train()
    seen = capsys.readouterr()
    header, *rows = seen.out.splitlines()
    assert "optimistic" in header and all(len(row) == len(header) for row in rows) and len(rows) == 2
    logs = [row for row in trainer.state.log_history if "eval_mcc" in row]
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    for number, (row, log) in enumerate(zip(rows, logs, strict=True)):
        mean = sum(losses[3 * number : 3 * number + 3]) / 3
        cells = [f"{number + 1}", f"{mean:.4f}", *(f"{log[f'eval_{name}']:.3f}" for name in ("mcc", "auroc", "nll"))]
        assert row.split()[:5] == cells
    assert "\r" not in seen.out and "{" not in seen.out and "%|" not in seen.err
    trainer = _trainer(pretrained, tmp_path / "quiet", quiet=True)
    trainer.train()
    assert capsys.readouterr().out == ""

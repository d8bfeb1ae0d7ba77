"""The traps of transformers' Trainer, each on every shipped architecture, tiny. Each test fails without its mend."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from facts import tells
from refusals import refused
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from natix_hf.data.asked import ask
from natix_hf.data.config import AugmentConfig, DataConfig
from natix_hf.data.rows import ImageData, load_image_data
from natix_hf.data.sampler import EpochSampler
from natix_hf.data.views import AskedViews, TrainViews
from natix_hf.errors import RunError, VerificationError
from natix_hf.models.classifier import build_classifier, load_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import Preprocess, make_processor
from natix_hf.trainers.arguments import training_arguments
from natix_hf.trainers.average import AVERAGE, WeightAverage
from natix_hf.trainers.base import BaseTrainer
from natix_hf.trainers.checkpoints import COMPLETE, mark_complete, newest_complete_checkpoint
from natix_hf.trainers.roadwork import RoadworkTrainer
from natix_hf.trainers.scores import EvaluationMetrics
from natix_hf.trainers.supervised_config import SupervisedConfig

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(scope="module")
def image_data(parquet_source: Path) -> ImageData:
    return load_image_data(DataConfig(source=str(parquet_source), group_by="video_info.vid_id"))


def make_trainer(
    image_data: ImageData,
    folder: Path,
    architecture: str = "dinov2",
    trainer_class: type = RoadworkTrainer,
    **settings: Any,
) -> Any:
    """A trainer of a tiny model on augmented views of the striped images."""
    config = ModelConfig(config=TINY[architecture] | settings.pop("model_config", {}), image_size=28)
    model = build_classifier(config, seed=0)
    train, val = image_data.role("train"), image_data.role("val_select")
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
        "num_train_epochs": 2,
        "learning_rate": 2e-3,
        "save_strategy": "epoch",
        "eval_strategy": "epoch",
        "metric_for_best_model": "mcc",
        "load_best_model_at_end": True,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    extra = {key: settings.pop(key) for key in ("class_weights", "ema_decay", "callbacks") if key in settings}
    extra |= {"train_sampler": EpochSampler(train.labels, seed=3)} if issubclass(trainer_class, BaseTrainer) else {}
    return trainer_class(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **(defaults | settings)),
        train_dataset=TrainViews(train, AugmentConfig(), 28, MEAN, STD, seed=3),
        eval_dataset=AskedViews(ask(val), Preprocess(make_processor(config))),
        compute_metrics=EvaluationMetrics(None),
        **extra,
    )


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_equal_states(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert set(one) == set(other)
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"{len(different)} of {len(one)} tensors differ, as {different[:3]}"


class StopAt(TrainerCallback):
    """Ends training after a step, as a kill between two steps would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


@pytest.mark.parametrize("architecture", TINY)
def test_best_weights_and_resumed_ones_are_whole(architecture: str, image_data: ImageData, tmp_path: Path) -> None:
    """Trap 1: transformers' own loading leaves most tensors of ViT and DINOv2 at their old values and only warns. The
    last epoch is made the worst one by a high learning rate."""
    trainer = make_trainer(
        image_data, tmp_path, architecture, metric_for_best_model="nll", greater_is_better=False,
        lr_scheduler_type="constant", learning_rate=0.05, num_train_epochs=3,
    )  # fmt: skip
    trainer.train()
    scores = [row["eval_nll"] for row in trainer.state.log_history if "eval_nll" in row]
    best = tmp_path / f"checkpoint-{trainer.state.best_global_step}"
    assert_equal_states(state_of(trainer.model), state_of(load_classifier(best)))
    assert trainer.evaluate()["eval_nll"] == pytest.approx(min(scores), abs=1e-6)
    fresh, newest = make_trainer(image_data, tmp_path / "other", architecture), newest_complete_checkpoint(tmp_path)
    before = state_of(fresh.model)
    assert newest is not None
    fresh._load_from_checkpoint(str(newest))
    assert_equal_states(state_of(fresh.model), state_of(load_classifier(newest)))
    assert any(not torch.equal(before[name], tensor) for name, tensor in fresh.model.state_dict().items())


@pytest.mark.parametrize("architecture", TINY)
def test_accumulation_equals_one_large_batch(architecture: str, image_data: ImageData, tmp_path: Path) -> None:
    """Trap 2: an overridden compute_loss multiplies gradients by the accumulation steps unless told not to."""
    settings = {
        "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "max_steps": 6,
        "learning_rate": 0.05, "optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant",
        "class_weights": [0.5, 1.5],
    }  # fmt: skip
    if architecture == "dinov3_vit":
        settings["model_config"] = {"pos_embed_rescale": None}  # drawn anew in every training forward pass
    large = make_trainer(image_data, tmp_path / "large", architecture, **dict(settings))
    large.train()
    small = make_trainer(
        image_data, tmp_path / "small", architecture, per_device_train_batch_size=2, gradient_accumulation_steps=4,
        **dict(settings),
    )  # fmt: skip
    start = state_of(small.model)
    small.train()
    moved = max(float((a - start[name]).abs().max()) for name, a in small.model.state_dict().items())
    worst = max(
        float((a - b).abs().max())
        for a, b in zip(large.model.state_dict().values(), small.model.state_dict().values(), strict=True)
    )
    assert moved > 1e-3 and worst < 1e-5


def test_only_complete_checkpoints_are_resumed(tmp_path: Path) -> None:
    """Trap 5: a checkpoint that was cut off while it was written is passed over, however its folder is called."""
    for step in (2, 10, 30, 40):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x" * step)
        if step != 30:
            mark_complete(folder)
    (tmp_path / "checkpoint-40" / "model.safetensors").write_bytes(b"x")  # cut short after the marker
    (tmp_path / "checkpoint-last").mkdir()
    assert newest_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10" / COMPLETE).write_text("{")
    assert newest_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert newest_complete_checkpoint(tmp_path / "nowhere") is None


def test_image_columns_of_a_datasets_transform_stay(parquet_source: Path, tmp_path: Path) -> None:
    """Trap 7: Trainer drops the column `image`, which forward() does not know, before the transform can read it."""
    import datasets

    rows = datasets.load_dataset(str(parquet_source), split="train").shuffle(seed=0).select(range(16))
    preprocess = Preprocess(make_processor(ModelConfig(config=TINY["vit"], image_size=28)))
    rows = rows.with_transform(
        lambda batch: {"pixel_values": [preprocess(image) for image in batch["image"]], "labels": batch["label"]}
    )
    settings = {
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
    }
    model = build_classifier(ModelConfig(config=TINY["vit"], image_size=28), seed=0)
    arguments = TrainingArguments(output_dir=str(tmp_path), disable_tqdm=True, **settings)
    with pytest.raises(Exception, match="image"):
        Trainer(model=model, args=arguments, train_dataset=rows).train()
    trainer = RoadworkTrainer(model=model, args=arguments, train_dataset=rows)
    assert np.isfinite(trainer.train().training_loss)


class PoisonAt(TrainerCallback):
    """Makes the weights NaN, as a diverged step would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                model.classifier.weight.fill_(float("nan"))


@pytest.mark.parametrize(
    ("step", "given"),
    [(12, {"logging_steps": 1, "eval_strategy": "no"}), (12, {"logging_steps": 1000, "eval_strategy": "no"}),
     (3, {"logging_steps": 1000})],
)  # fmt: skip
def test_a_nan_loss_stops_the_run_before_it_is_saved(
    step: int, given: dict[str, Any], image_data: ImageData, tmp_path: Path
) -> None:
    """Trap 9: Trainer filters NaN losses out of its log and goes on; no checkpoint of one may become the newest. An
    epoch shorter than logging_steps is evaluated first, where NaN would look like bad data."""
    trainer = make_trainer(image_data, tmp_path, callbacks=[PoisonAt(step)], load_best_model_at_end=False, **given)
    with pytest.raises(RunError) as caught:
        trainer.train()
    assert tells(caught.value, "loss is nan", "step", "learning_rate")
    checkpoint = newest_complete_checkpoint(tmp_path)
    assert (checkpoint is None) == (step == 3), "nothing was worth keeping before the first epoch ended"
    if checkpoint is not None:
        assert all(torch.isfinite(tensor).all() for tensor in load_classifier(checkpoint).state_dict().values())


def test_workers_draw_a_new_view_every_epoch(image_data: ImageData, tmp_path: Path) -> None:
    """Persistent workers hold a copy of the dataset that never hears of the epoch: the key must carry it."""
    trainer = make_trainer(image_data, tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True,
                           eval_strategy="no", save_strategy="no", load_best_model_at_end=False)  # fmt: skip
    seen: list[torch.Tensor] = []
    original = trainer.training_step
    trainer.training_step = lambda model, inputs, n=None: (
        seen.append(inputs["pixel_values"].sum()),
        original(model, inputs, n),
    )[1]
    trainer.train()
    half = len(seen) // 2
    views = trainer.train_dataset
    keys = list(trainer._sampler)  # of the last epoch
    expected = sum(views[key]["pixel_values"].double().sum() for key in keys)
    assert float(sum(s.double() for s in seen[half:])) == pytest.approx(float(expected), rel=1e-4)
    assert float(sum(s.double() for s in seen[:half])) != pytest.approx(float(expected), rel=1e-4)


def test_a_checkpoint_is_complete_before_older_ones_go(
    image_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while the newest is written with save_total_limit 1: the one before must still be there."""
    from natix_hf.trainers import base

    def killed(checkpoint: Path) -> None:
        if checkpoint.name == "checkpoint-18":
            raise KeyboardInterrupt
        mark_complete(checkpoint)

    monkeypatch.setattr(base, "mark_complete", killed)
    settings = {"save_total_limit": 1, "load_best_model_at_end": False, "eval_strategy": "no"}
    with pytest.raises(KeyboardInterrupt):
        make_trainer(image_data, tmp_path, **settings).train()
    assert newest_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-9"


@pytest.mark.parametrize(("metric", "greater"), [("mcc", True), ("auroc", True), ("loss", False), ("eval_nll", False)])
def test_the_best_checkpoint_is_the_best_by_its_metric(metric: str, greater: bool, tmp_path: Path) -> None:
    training = SupervisedConfig(metric_for_best_model=metric).training_fields()
    assert training_arguments(training, tmp_path).greater_is_better == greater
    assert training_arguments(training | {"greater_is_better": not greater}, tmp_path).greater_is_better != greater


def test_early_stopping_goes_on_counting_after_a_resume(image_data: ImageData, tmp_path: Path) -> None:
    def trainer(*more: TrainerCallback) -> Any:
        return make_trainer(
            image_data, tmp_path, num_train_epochs=8, learning_rate=0.0, metric_for_best_model="mcc",
            restore_callback_states_from_checkpoint=True, callbacks=[EarlyStoppingCallback(3), *more],
        )  # fmt: skip

    cut = trainer(StopAt(27))  # three epochs of nine steps: the first is the best, two without a better one
    cut.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(newest_complete_checkpoint(tmp_path)))
    assert resumed.state.global_step == 36, "one more without a better score is the third"


def test_drop_last_drops_no_evaluation_rows(image_data: ImageData, tmp_path: Path) -> None:
    """The 18 evaluation rows fill no batch of 64; Trainer would drop them all and fail for want of a metric."""
    trainer = make_trainer(image_data, tmp_path, dataloader_drop_last=True, per_device_eval_batch_size=64)
    assert len(trainer.get_train_dataloader()) == len(trainer.train_dataset) // 8
    assert trainer.predict(trainer.eval_dataset).predictions.shape == (len(trainer.eval_dataset), 2)


def test_data_wait_is_logged(image_data: ImageData, tmp_path: Path) -> None:
    trainer = make_trainer(image_data, tmp_path, save_strategy="no", load_best_model_at_end=False)
    trainer.train()
    shares = [row["data_wait"] for row in trainer.state.log_history if "loss" in row]
    assert shares and all(0 < share < 1 for share in shares)


@pytest.mark.parametrize(("weights", "smoothing"), [(None, 0.0), ([0.4, 1.6], 0.0), (None, 0.2), ([0.4, 1.6], 0.2)])
def test_the_loss_against_a_slow_reference(
    weights: list[float] | None, smoothing: float, image_data: ImageData, tmp_path: Path
) -> None:
    trainer = make_trainer(image_data, tmp_path, class_weights=weights, label_smoothing_factor=smoothing)
    items = [trainer.train_dataset[(0, row)] for row in (0, 1, 2, len(trainer.train_dataset) - 1)]
    batch = {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": torch.tensor([item["labels"] for item in items]),
    }
    loss = trainer.compute_loss(trainer.model, dict(batch))
    expected = 0.0
    for logits, label in zip(trainer.model(pixel_values=batch["pixel_values"]).logits, batch["labels"], strict=True):
        one = cross_entropy(logits[None], label[None], label_smoothing=smoothing)
        expected += one.item() * (weights[int(label)] if weights else 1.0) / len(items)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("moved", [shutil.move, shutil.copytree], ids=["moved", "copied"])
def test_a_run_folder_that_moved_still_resumes(
    moved: Callable[[Path, Path], Any], image_data: ImageData, tmp_path: Path
) -> None:
    """`best_model_checkpoint` is stored with the folder it had. The best epoch is the first, before the move, because
    the highest loss counts as the best."""
    settings: dict[str, Any] = {
        "metric_for_best_model": "nll", "greater_is_better": True, "num_train_epochs": 3,
    }  # fmt: skip
    whole = make_trainer(image_data, tmp_path / "whole", **settings)
    whole.train()
    cut = make_trainer(image_data, tmp_path / "old", callbacks=[StopAt(12)], **settings)
    cut.train()
    moved(tmp_path / "old", tmp_path / "new")
    checkpoint = newest_complete_checkpoint(tmp_path / "new")
    assert checkpoint is not None and whole.state.best_global_step < 12
    resumed = make_trainer(image_data, tmp_path / "new", **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert Path(resumed.state.best_model_checkpoint).parent == tmp_path / "new"
    assert_equal_states(state_of(resumed.model), state_of(whole.model))


def test_a_best_checkpoint_that_is_gone_is_named(image_data: ImageData, tmp_path: Path) -> None:
    cut = make_trainer(image_data, tmp_path, callbacks=[StopAt(12)])
    cut.train()
    best, checkpoint = Path(cut.state.best_model_checkpoint), newest_complete_checkpoint(tmp_path)
    assert checkpoint is not None and best != checkpoint
    shutil.rmtree(best)
    resumed = make_trainer(image_data, tmp_path)
    refused(VerificationError, lambda: resumed.train(resume_from_checkpoint=str(checkpoint)), best, "train again")


def test_the_average_against_a_slow_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average = WeightAverage(model, decay=0.7)
    expected, frozen = model.weight.detach().double().tolist(), model.bias.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3, generator=generator))
        average.update(step)
        d = 0.7 if (1 + step) / (10 + step) > 0.7 else (1 + step) / (10 + step)
        expected = [
            [d * a + (1 - d) * w for a, w in zip(row, weights, strict=True)]
            for row, weights in zip(expected, model.weight.tolist(), strict=True)
        ]
    own = model.weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(model.weight.double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)
    assert torch.equal(model.weight, own) and torch.equal(model.bias, frozen)


@pytest.mark.parametrize("best", [True, False])
def test_the_average_is_scored_and_kept(best: bool, image_data: ImageData, tmp_path: Path) -> None:
    """The path of the weights stays what it was; what every epoch scores, and what is left, is their average."""
    settings = {
        "metric_for_best_model": "nll", "greater_is_better": False, "num_train_epochs": 3, "learning_rate": 5e-3,
        "load_best_model_at_end": best,
    }  # fmt: skip
    logs = {}
    for decay in (None, 0.9):
        trainer = make_trainer(image_data, tmp_path / str(decay), ema_decay=decay, **settings)
        trainer.train()
        logs[decay] = [
            [row[key] for row in trainer.state.log_history if key in row] for key in ("loss", "eval_nll")
        ]
    losses, scores = zip(*logs.values(), strict=True)
    assert losses[0] == losses[1] and scores[0] != scores[1]
    assert trainer.evaluate()["eval_nll"] == pytest.approx(min(scores[1]) if best else scores[1][-1], abs=1e-6)
    newest = newest_complete_checkpoint(tmp_path / "0.9")
    assert newest is not None
    stored = state_of(load_classifier(newest))  # the weights themselves, to go on from
    assert not torch.equal(stored["classifier.weight"], trainer.model.classifier.weight)


@pytest.mark.parametrize("damage", ["gone", "short", "another model"])
@pytest.mark.parametrize("name", [AVERAGE, "model.safetensors"])
def test_a_damaged_checkpoint_is_refused(name: str, damage: str, image_data: ImageData, tmp_path: Path) -> None:
    make_trainer(image_data, tmp_path, ema_decay=0.9).train()
    checkpoint = newest_complete_checkpoint(tmp_path)
    assert checkpoint is not None
    file = checkpoint / name
    if damage == "gone":
        file.unlink()
    elif damage == "short":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        save_file({"weight": torch.zeros(2, 2)}, file, metadata={"format": "pt"})
    with pytest.raises(VerificationError) as caught:
        make_trainer(image_data, tmp_path, ema_decay=0.9)._load_from_checkpoint(str(checkpoint))
    assert tells(caught.value, checkpoint)

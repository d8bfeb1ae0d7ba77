"""Distillation: its loss against a slow reference, one view for teacher and student, and answers that are kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import striped_image
from refusals import refused
from safetensors.torch import load_file
from stages import killed_after, save_in, striped_data
from test_levers import MODEL, largest_difference
from torch.utils.data import DataLoader

from natix_hf.data.asked import ask
from natix_hf.data.augment import views_of
from natix_hf.data.config import Augment, AugmentConfig
from natix_hf.data.drawn import draw_view
from natix_hf.data.rows import ImageData
from natix_hf.data.sampler import EpochSampler, JoinedSampler
from natix_hf.data.taught import TaughtViews
from natix_hf.data.views import finished
from natix_hf.errors import RecipeError, RunError, UsageError, VerificationError
from natix_hf.labels import SUBNET, LabelNames
from natix_hf.models.classifier import build_classifier, head_of, load_classifier, save_model
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import Preprocess, load_processor, make_processor
from natix_hf.recipe import parse_recipe
from natix_hf.trainers.arguments import training_arguments
from natix_hf.trainers.distil import Distillation
from natix_hf.trainers.distil_config import DistilConfig
from natix_hf.trainers.loss import Mixture, RowLoss
from natix_hf.trainers.stage import make_stage
from natix_hf.trainers.supervised import train_classifier
from natix_hf.trainers.supervised_config import SupervisedConfig
from natix_hf.trainers.teacher import Answers, Teacher, classifier_in, require_same_answers, softened, teacher_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return striped_data(tmp_path_factory)


def save_teacher(folder: Path, size: int, seed: int, labels: LabelNames = SUBNET) -> Teacher:
    """A classifier of other pixels than the student's, whose answers to such pictures are spread about 0."""
    config = ModelConfig(config=MODEL.config | {"num_hidden_layers": 2, "hidden_size": 16}, image_size=size)
    model, processor = build_classifier(config, seed, labels), make_processor(config)
    processor.image_mean, processor.image_std = [0.4, 0.45, 0.5], [0.3, 0.25, 0.2]
    rng, preprocess, head = np.random.default_rng(0), Preprocess(processor), head_of(model)
    pixels = torch.stack([preprocess(striped_image(label, rng)) for label in (0, 1) * 8])
    with torch.no_grad():
        z = (logits := model.eval()(pixel_values=pixels).logits)[:, 1] - logits[:, 0]
        head.weight.mul_(2 / z.std())
        head.bias[1] = -2 * z.mean() / z.std()
    folder.mkdir(parents=True)
    save_model(folder, model, processor)
    return classifier_in(folder, folder.name)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Teacher, Teacher]:
    folder = tmp_path_factory.mktemp("teachers")
    return save_teacher(folder / "large", 56, 1), save_teacher(folder / "small", 28, 2)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    ("mix", "temperature", "weights", "smoothing"), [(0.3, 2.0, [0.4, 1.6], 0.2), (1.0, 0.5, None, 0.0)]
)
def test_the_loss_against_a_slow_reference(
    mix: float, temperature: float, weights: list[float] | None, smoothing: float, mixed: bool
) -> None:
    """The last two rows have no label."""
    rng = np.random.default_rng(0)
    logits, taught = rng.normal(0, 2, (6, 2)), rng.random(6)
    labels, order, share = np.array([0, 1, 1, 0, -1, -1]), np.array([4, 0, 1, 5, 2, 3]), 0.7
    mixture = Mixture(share, torch.tensor(order)) if mixed else None
    found = RowLoss(smoothing, weights, temperature, mix)(
        torch.tensor(logits), torch.tensor(labels), torch.tensor(taught), mixture
    )
    for i in range(6):
        parts = [(share, i), (1 - share, order[i])] if mixed else [(1.0, i)]
        hard = 0.0
        for part, row in parts:
            if labels[row] >= 0:
                target = np.full(2, smoothing / 2)
                target[labels[row]] += 1 - smoothing
                own = target @ np.log(np.exp(logits[i]) / np.exp(logits[i]).sum())
                hard -= part * (weights[labels[row]] if weights else 1) * own
        p = sum(part * taught[row] for part, row in parts)
        q = np.exp(logits[i] / temperature) / np.exp(logits[i] / temperature).sum()
        divergence = p * np.log(p / q[1]) + (1 - p) * np.log((1 - p) / q[0])
        expected = mix * temperature**2 * divergence + (1 - mix) * hard
        assert float(found[i]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_student_that_answers_as_its_teacher_has_nothing_to_learn() -> None:
    z = torch.linspace(-8, 8, 9, dtype=torch.float64)
    logits = torch.stack([torch.zeros_like(z), z], dim=1).requires_grad_()
    answers = torch.from_numpy(softened([z.numpy().astype(np.float32)], 3.0)).double()
    loss = RowLoss(0.0, None, 3.0, 1.0)(logits, torch.full((9,), -1), answers, None)
    loss.sum().backward()
    assert logits.grad is not None
    assert float(loss.detach().abs().max()) < 1e-6 and float(logits.grad.abs().max()) < 1e-6


def test_the_mean_of_an_ensemble_and_sure_answers() -> None:
    one, other = np.array([0.0, 2.0, -900.0], dtype=np.float32), np.array([1.0, -2.0, 900.0], dtype=np.float32)
    expected = [(1 / (1 + np.exp(-a / 4)) + 1 / (1 + np.exp(-b / 4))) / 2 for a, b in ((0, 1), (2, -2), (-1e3, 1e3))]
    np.testing.assert_allclose(softened([one, other], 4.0), expected, atol=1e-7)
    sure = torch.from_numpy(softened([one[2:], one[2:]], 1.0))[[0, 0]]
    loss = RowLoss(0.0, None, 1.0, 0.5)(torch.zeros(2, 2), torch.tensor([1, 0]), sure, None)
    assert torch.isfinite(loss).all()


@pytest.mark.parametrize("seed", range(12))
def test_a_view_at_another_size_is_the_same_view(seed: int) -> None:
    """A smooth picture, so that a view shrunk to half is the view of half the size, but for the edge of what is
    erased. The draws of an erased box depend on the size, so two draws of one seed would not do."""
    y, x = np.mgrid[0:90, 0:120]
    picture = np.stack([x * 2, y * 2, 255 - x - y], axis=2).astype(np.uint8)
    config = AugmentConfig(rotate=15, erase=1.0, blur=0.5, jitter=0.3)
    drawn = draw_view(120, 90, config, 32, np.random.default_rng(seed))
    small, large = views_of(picture, [drawn], 32)[0].float(), views_of(picture, [drawn.at(2)], 64)[0].float()
    shrunk = torch.nn.functional.avg_pool2d(large, 2)
    assert drawn.erase is not None and drawn.at(2).erase == tuple(2 * px for px in drawn.erase)
    assert float((small - shrunk).abs().median()) < 1.5 and float((small - shrunk).abs().mean()) < 4
    assert drawn.at(1) is drawn


def stage_of(
    data: ImageData, distillation: Distillation, folder: Path, augment: Augment, place: Any, **section: Any
) -> Any:
    config = phase1(distillation, **section)
    arguments = training_arguments(config.training_fields(), folder, "phase1")
    rows = data.role("train"), ask(data.role("val_select"))
    model = build_classifier(MODEL, 0)
    rest = (config, augment, None, arguments, place, distillation)
    return make_stage(model, make_processor(MODEL), *rows, *rest)


def phase1(distillation: Distillation, **section: Any) -> SupervisedConfig:
    fields = {"num_train_epochs": 3, "dataloader_num_workers": 0, "per_device_train_batch_size": 8,
              "logging_steps": 1, "learning_rate": 5e-3}  # fmt: skip
    teacher = [str(teacher.folder) for teacher in distillation.teachers]
    return parse_recipe({"phase1": fields | {"teacher": teacher} | section}).phase1


@pytest.mark.parametrize(
    ("augment", "place"),
    [(AugmentConfig(erase=0.5), "workers"), (AugmentConfig(), "device"), ("challenge", "workers"),
     ("challenge", "device")], ids=["workers", "device", "challenge", "challenge-device"],
)  # fmt: skip
def test_the_answers_are_those_to_the_views_of_the_student(
    augment: Augment, place: Any, data: ImageData, teachers: tuple[Teacher, Teacher], tmp_path: Path
) -> None:
    """The small teacher has the student's size: its answers follow from the student's own pixels, normalised for it.
    Epoch 5 of 2 views reads view 1."""
    [_, small] = teachers
    stage = stage_of(data, Distillation((small,)), tmp_path, augment, place, distil={"views": 2, "temperature": 3})
    views, model = stage.given["train_dataset"], load_classifier(small.folder).eval()
    assert isinstance(views, TaughtViews) and views.answers.shape == (2, len(data.role("train")))
    own, its = make_processor(MODEL), load_processor(small.folder)
    told = []
    for epoch in (0, 5):
        [batch] = DataLoader(views, sampler=[(epoch, row) for row in range(6)], batch_size=6)
        batch = finished(views, batch)
        pixels = batch["pixel_values"] * torch.tensor(own.image_std)[:, None, None]
        pixels = pixels + torch.tensor(own.image_mean)[:, None, None]
        pixels = (pixels - torch.tensor(its.image_mean)[:, None, None]) / torch.tensor(its.image_std)[:, None, None]
        with torch.inference_mode():
            logits = model(pixel_values=pixels).logits.double()
        expected = torch.sigmoid((logits[:, 1] - logits[:, 0]) / 3)
        np.testing.assert_allclose(batch["teacher"], expected, atol=1e-5)
        assert batch["labels"].tolist() == data.role("train").labels[:6].tolist()
        told.append(batch["teacher"])
    assert float((told[0] - told[1]).abs().max()) > 1e-3, "the views differ, so the answers do"


def test_frozen_features_have_the_answers_of_their_own_views(
    data: ImageData, teachers: tuple[Teacher, Teacher], tmp_path: Path
) -> None:
    """View 0 is the picture as each model's predict sees it."""
    stage = stage_of(data, Distillation(teachers), tmp_path, AugmentConfig(), "workers", adapter="none",
                     feature_views=2)  # fmt: skip
    views, rows = stage.given["train_dataset"], data.role("train")
    assert views.answers.shape == (2, len(rows)) and np.abs(views.answers[0] - views.answers[1]).max() > 1e-3
    whole = []
    for teacher in teachers:
        inference = teacher.inference()
        pixels = torch.stack([inference.preprocess(image) for image in list(rows.images())[:5]])
        whole.append(inference.answer(pixels)[0])
    np.testing.assert_allclose(views.answers[0][:5], softened(whole, 2.0), atol=1e-5)
    facts = stage.taught
    assert [fact["parameters"] for fact in facts["teachers"]] == [
        sum(p.numel() for p in load_classifier(teacher.folder).parameters()) for teacher in teachers
    ]
    assert (facts["views"], facts["unlabelled"], facts["teachers"][0]["splits_known"]) == (2, 0, False)


def test_views_that_no_epoch_reads_are_not_answered() -> None:
    assert [DistilConfig().drawn_views(epochs) for epochs in (0.5, 2, 2.5, 10)] == [1, 2, 3, 4]
    assert DistilConfig(views=8).drawn_views(10) == 8 and DistilConfig(views=8).drawn_views(3) == 3


def test_every_row_without_a_label_comes_once_an_epoch() -> None:
    labels = np.array([0] * 10 + [1] * 2)
    sampler = JoinedSampler(EpochSampler(labels, 3, target_prior=0.5), 5)
    epochs = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        pairs = list(sampler)
        rows = [row for _, row in pairs]
        assert {e for e, _ in pairs} == {epoch} and len(pairs) == len(sampler) == 17
        assert sorted(row for row in rows if row >= 12) == [12, 13, 14, 15, 16]
        assert sum(labels[row] for row in rows if row < 12) == 6, "the labelled rows keep their prior"
        epochs.append(rows)
    assert epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0])


def weights_after(data: ImageData, folder: Path, distillation: Distillation | None, **section: Any) -> Any:
    config = phase1(distillation, **section) if distillation is not None else parse_recipe({"phase1": section}).phase1
    report = train_classifier(
        build_classifier(MODEL, seed=0), make_processor(MODEL), data.role("train"), ask(data.role("val_select")),
        config, AugmentConfig(), None, folder / "checkpoints", save_in(folder / "model"), quiet=True,
        distillation=distillation,
    )  # fmt: skip
    return SimpleNamespace(weights=load_file(folder / "model" / "model.safetensors"), report=report)


CASES: dict[str, dict[str, Any]] = {
    "full": {"ema_decay": 0.5, "mixup": 0.4, "label_smoothing_factor": 0.1}, "lora": {}, "none": {"feature_views": 2},
}  # fmt: skip


@pytest.mark.parametrize("adapter", CASES)
def test_a_resumed_training_is_bit_equal_and_asks_nobody_again(
    adapter: str, data: ImageData, teachers: tuple[Teacher, Teacher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rows without labels, accumulation, an average and mixup."""
    further = data.role("val_calib")  # here only pictures
    distillation = Distillation(teachers, (further,))
    section = {"adapter": adapter, "max_steps": 8, "per_device_train_batch_size": 4, "save_strategy": "steps",
               "save_steps": 3, "gradient_accumulation_steps": 2, "load_best_model_at_end": False,
               "eval_strategy": "no", "metric_for_best_model": None} | CASES[adapter]  # fmt: skip
    whole = weights_after(data, tmp_path / "whole", distillation, **section)
    assert whole.report["taught"]["unlabelled"] == len(further)

    def nobody(*_: Any) -> None:
        raise AssertionError("the answers were not kept")

    monkeypatch.setattr(Answers, "_compute", nobody)
    with killed_after(5, monkeypatch):
        weights_after(data, tmp_path / "cut", distillation, **section)
    again = weights_after(data, tmp_path / "cut", distillation, **section)
    assert again.report["resumed_from"] == "checkpoint-3"
    assert largest_difference(whole.weights, again.weights) == 0
    alone = {key: value for key, value in section.items() if key != "distil"}
    plain = weights_after(data, tmp_path / "plain", None, **alone | {"dataloader_num_workers": 0})
    assert largest_difference(whole.weights, plain.weights) > 1e-5


def test_a_student_learns_from_a_teacher_alone(data: ImageData, teachers: tuple[Teacher, ...], tmp_path: Path) -> None:
    """With mix 1 the labels do not count: the student comes to answer as a teacher that knows nothing of them."""
    [_, small] = teachers
    distil = {"mix": 1, "temperature": 1, "views": 2}
    trained = weights_after(data, tmp_path, Distillation((small,)), distil=distil, num_train_epochs=15,
                            load_best_model_at_end=False, learning_rate=2e-3)  # fmt: skip
    views = stage_of(data, Distillation((small,)), tmp_path / "again", AugmentConfig(), "workers", distil=distil)
    views, student = views.given["train_dataset"], load_classifier(tmp_path / "model").eval()
    rows = [(0, row) for row in range(len(views))]
    [batch] = DataLoader(views, sampler=rows, batch_size=len(rows))
    with torch.inference_mode():
        logits = student(pixel_values=finished(views, batch)["pixel_values"]).logits
    own, its = (logits[:, 1] - logits[:, 0]).numpy(), np.log(views.answers[0] / (1 - views.answers[0]))
    assert np.corrcoef(own, its)[0, 1] > 0.6
    assert trained.report["card"]["settings"]["share of the teacher"] == "1"


def test_every_key_of_distil(data: ImageData, teachers: tuple[Teacher, Teacher], tmp_path: Path) -> None:
    """`unlabelled` is a key of the run: phases/test_teacher.py."""
    [_, small] = teachers
    given, keys = {}, {"temperature": 5, "mix": 0.9, "views": 1}
    for name in ("", *keys):
        distil = {name: keys[name]} if name else {}
        given[name] = stage_of(data, Distillation((small,)), tmp_path, AugmentConfig(), "workers", distil=distil).given
    answers = {name: parts["train_dataset"].answers for name, parts in given.items()}
    assert np.abs(answers["temperature"] - answers[""]).max() > 1e-3 and answers["views"].shape[0] == 1
    assert answers[""].shape[0] == 3, "as many as there are epochs"
    assert (given["mix"]["distil"].mix, given[""]["distil"].mix) == (0.9, 0.5)


@pytest.mark.parametrize(
    ("section", "facts"),
    [
        ({"teacher": "x", "distil": {"temperature": 0}}, ("phase1.distil.temperature", "0")),
        ({"teacher": "x", "distil": {"mix": 0}}, ("phase1.distil.mix", "0")),
        ({"teacher": "x", "distil": {"mix": 1.5}}, ("phase1.distil.mix", "1.5")),
        ({"teacher": "x", "distil": {"views": 0}}, ("phase1.distil.views", "0")),
        ({"teacher": "x", "distil": {"unlabelled": [" "]}}, ("phase1.distil.unlabelled",)),
        ({"teacher": "x", "distil": {"heat": 1}}, ("phase1.distil.heat", "temperature")),
        ({"teacher": "x", "folds": 3}, ("phase1.folds", "3", "phase1.teacher")),
        ({"teacher": "x", "adapter": "none", "distil": {"views": 2}}, ("phase1.distil.views", "feature_views")),
        ({"teacher": []}, ("phase1.teacher", "[]")),
        ({"teacher": ["x", "x"]}, ("phase1.teacher", "'x'")),
        ({"teacher": ""}, ("phase1.teacher", "''")),
        ({"teacher": 5}, ("phase1.teacher", "5")),
        ({"distil": {"mix": 0.3}}, ("phase1.distil", "phase1.teacher")),
        ({"teacher": "x", "distil": {"mix": 1}, "prior_by": "loss"}, ("phase1.prior_by", "loss", "distil.mix is 1")),
        ({"teacher": "x", "distil": {"mix": 1}, "label_smoothing_factor": 0.1},
         ("phase1.label_smoothing_factor", "0.1", "distil.mix is 1")),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be_right(section: dict[str, Any], facts: tuple[str, ...]) -> None:
    refused(RecipeError, lambda: parse_recipe({"phase1": section}), *facts)


def test_a_stage_of_phase_4_names_no_teacher_of_its_own() -> None:
    refused(RecipeError, lambda: parse_recipe({"phase4": {"supervised": {"teacher": "x"}}}),
            "phase4.supervised.teacher", "phase 1")  # fmt: skip


def test_models_that_cannot_teach(tmp_path: Path, teachers: tuple[Teacher, Teacher], data: ImageData) -> None:
    other = save_teacher(tmp_path / "swapped", 28, 0, LabelNames(no=SUBNET.yes, yes=SUBNET.no))
    refused(UsageError, lambda: require_same_answers([*teachers, other], SUBNET, "phase1.teacher"),
            "phase1.teacher", "swapped", "Roadwork (no)", "None (yes)")  # fmt: skip
    with pytest.raises(UsageError):
        teacher_of(str(tmp_path / "nowhere"))
    (other.folder / "preprocessor_config.json").unlink()
    refused(VerificationError, lambda: teacher_of(str(other.folder)), other.folder, "preprocessor_config.json")
    weights = other.folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    (other.folder / "preprocessor_config.json").write_bytes(
        (teachers[0].folder / "preprocessor_config.json").read_bytes()
    )
    refused(VerificationError, lambda: teacher_of(str(other.folder)), weights)
    broken = save_teacher(tmp_path / "broken", 28, 0)
    model = load_classifier(broken.folder)
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")  # type: ignore[union-attr, index, operator]
    model.save_pretrained(broken.folder)
    distillation = Distillation((teacher_of(str(broken.folder)),))
    call = (data, distillation, tmp_path / "x", AugmentConfig(), "workers")
    refused(RunError, lambda: stage_of(*call), "broken", "NaN")

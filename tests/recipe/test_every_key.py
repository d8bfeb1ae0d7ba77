"""Every key of every section changes something: one perturbation a key, and where its effect is seen."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import TINY, TINY_RECIPE, striped_image, write_recipe
from effects import Look, changed, remembered, require_effect
from facts import tells
from test_every_key_phase4 import EFFECTS as PHASE4_EFFECTS
from test_every_key_selective import EFFECTS as SELECTIVE_EFFECTS

from natix_hf.bundle.config import ExportConfig
from natix_hf.data.asked import ask
from natix_hf.data.config import DataConfig, SourceConfig
from natix_hf.errors import DataError
from natix_hf.keys import sections
from natix_hf.models.config import ModelConfig
from natix_hf.recipe import parse_recipe
from natix_hf.section import key_meanings, key_types, section_of
from natix_hf.trainers.config import Argument


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`a`: one picture of a label in many groups, one row against the label rule, two image and label columns.

    `b`: another of the kind.
    """
    import datasets

    paths = {}
    for name, seed in {"a": 0, "b": 1}.items():
        rng = np.random.default_rng(seed)
        rows = [
            {
                "image": striped_image(int(group >= 20), rng), "other_image": striped_image(int(group >= 20), rng),
                "label": int(group >= 20), "other_label": group % 2, "video_info.vid_id": f"v{group}",
                "scene_description": "stripes" if group >= 20 else "",
            }
            for group in range(40)
            for _ in range(2)
        ]  # fmt: skip
        for row in rows[4::2]:  # one picture of a label everywhere: wherever the groups fall, some overlap
            row["image"] = rows[40 if row["label"] else 0]["image"]
        rows[-1]["scene_description"] = ""
        features = datasets.Features(dict.fromkeys(("image", "other_image"), datasets.Image()) | {
            name: datasets.Value("string" if isinstance(value, str) else "int64")
            for name, value in rows[0].items() if "image" not in name
        })  # fmt: skip
        folder = tmp_path_factory.mktemp("every_key") / name
        (folder / "data").mkdir(parents=True)
        dataset = datasets.Dataset.from_list(rows, features=features)
        dataset.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
        paths[name] = str(folder)
    return paths


class _StubTrainer:
    """Stands in for RoadworkTrainer: holds what the supervised stage hands over, trains nothing."""

    seen: dict[str, Any]

    def __init__(self, **given: Any) -> None:
        _StubTrainer.seen = given
        self.state = SimpleNamespace(log_history=[], best_metric=0.0, best_global_step=0, global_step=0)
        self.pace = SimpleNamespace(facts=dict)

    def add_callback(self, callback: Any) -> None:
        _StubTrainer.seen["proof"] = callback

    def train(self, resume_from_checkpoint: str | None = None) -> None:
        pass


@pytest.fixture(scope="module")
def look(tmp_path_factory: pytest.TempPathFactory) -> Look:
    """`look(content)`: what a recipe makes of its data, its model and its trainer."""
    from natix_hf.data.rows import load_image_data
    from natix_hf.models.classifier import build_classifier
    from natix_hf.models.preprocess import make_processor
    from natix_hf.trainers import supervised

    folder = tmp_path_factory.mktemp("look")

    def run(content: dict[str, Any]) -> SimpleNamespace:
        recipe = parse_recipe(content)
        data = load_image_data(recipe.data)
        model = build_classifier(recipe.model, seed=recipe.phase1.seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(supervised, "RoadworkTrainer", _StubTrainer)
            supervised.train_classifier(
                model, make_processor(recipe.model), data.role("train"), ask(data.role("val_select")), recipe.phase1,
                recipe.data.augment, recipe.data.target_prior, folder / "checkpoints", save=lambda merged: folder,
                views_on=recipe.data.views_on,
            )  # fmt: skip
        seen = {"class_weights": None, **_StubTrainer.seen}
        items = [seen["train_dataset"][epoch, row] for epoch in (0, 1) for row in (0, 1, 2)]
        views = np.stack([item["pixel_values" if "pixel_values" in item else "features"] for item in items])
        order = list(seen["train_sampler"])
        trained = seen.pop("model")
        return SimpleNamespace(data=data, model=model, trained=trained, views=views, order=order, **seen)

    return remembered(run)


def _base(sources: dict[str, str]) -> dict[str, Any]:
    return {
        "data": {
            "source": sources["a"],
            "group_by": "video_info.vid_id",
            "synthetic": {"videos": 24, "frames": 2, "image_size": 24},
        },
        "model": {"config": TINY["dinov2"], "image_size": 28},
        "phase1": {"dataloader_num_workers": 0, "per_device_train_batch_size": 8},
    }


def _positives(seen: Any) -> float:
    labels = seen.data.role("train").labels
    return float(np.mean([labels[row] for _, row in seen.order]))


def _trainable(seen: Any) -> int:
    return sum(p.numel() for p in seen.trained.parameters() if p.requires_grad)


SYNTHETIC = ("data.source", "synthetic")  # these keys matter with that source only
# section, key, new value, what must differ; a tuple in front of the observer: settings of both sides.
EFFECTS: list[tuple[str, str, Any, Any]] = [
    ("data", "source", "b", lambda s: s.data.splits.sha256),
    ("data", "image_column", "other_image", lambda s: s.data.splits.sha256),
    ("data", "label_column", "other_label", lambda s: s.data.splits.labels),
    ("data", "group_by", None, lambda s: s.data.splits.groups),
    ("data", "label_rule", "scene_description", lambda s: len(s.data.splits.dropped)),
    ("data", "label_noise", 0.2, lambda s: s.data.splits.labels),
    ("data", "cache_px", 8, lambda s: list(s.data.decoded["height"])),
    ("data", "cache", "jpeg", lambda s: s.views),
    ("data", "seed", 5, lambda s: s.data.splits.roles),
    ("data", "target_prior", 0.8, lambda s: round(_positives(s), 1)),
    ("data", "target_prior", 0.8, lambda s: s.compute_metrics.target_prior),
    ("data", "augment", "challenge", lambda s: s.views),
    ("data", "views_on", "device", lambda s: s.train_dataset.on_device),
    ("data.augment", "crop_scale", [0.1, 0.2], lambda s: s.views),
    ("data.augment", "crop_ratio", [2.0, 3.0], lambda s: s.views),
    ("data.augment", "flip", False, lambda s: s.views),
    ("data.augment", "rotate", 90, lambda s: s.views),
    ("data.augment", "jitter", 0.9, lambda s: s.views),
    ("data.augment", "grey", 1.0, lambda s: s.views),
    ("data.augment", "blur", 1.0, lambda s: s.views),
    ("data.augment", "erase", 1.0, lambda s: s.views),
    ("data.synthetic", "camera", "a", (SYNTHETIC, lambda s: s.data.splits.sha256)),
    ("data.synthetic", "videos", 30, (SYNTHETIC, lambda s: len(s.data.rows.ids))),
    ("data.synthetic", "frames", 3, (SYNTHETIC, lambda s: len(s.data.rows.ids))),
    ("data.synthetic", "image_size", 32, (SYNTHETIC, lambda s: s.data.decoded["height"][0])),
    ("data.synthetic", "positive_share", 0.4, (SYNTHETIC, lambda s: s.data.rows.labels.sum())),
    ("data.synthetic", "seed", 4, (SYNTHETIC, lambda s: s.data.splits.sha256)),
    ("model", "config", TINY["vit"], lambda s: type(s.model).__name__),
    ("model", "image_size", 42, lambda s: s.views.shape),
    ("phase1", "adapter", "none", lambda s: type(s.trained).__name__),
    ("phase1", "adapter", "lora", lambda s: type(s.trained).__name__),
    ("phase1", "adapter_options", {"r": 4}, (("phase1.adapter", "lora"), _trainable)),
    ("phase1", "feature_views", 3, (("phase1.adapter", "none"), lambda s: s.train_dataset.features.shape)),
    ("phase1", "early_stopping_patience", 2, lambda s: [c.early_stopping_patience for c in s.callbacks]),
    ("phase1", "ema_decay", 0.9, lambda s: s.ema_decay),
    ("phase1", "layer_decay", 0.7, lambda s: s.layer_decay),
    ("phase1", "head_learning_rate", 0.01, lambda s: s.head_learning_rate),
    ("phase1", "mixup", 0.2, lambda s: s.mixup),
    ("phase1.profit", "reference_steps", 2, lambda s: s.args.gradient_accumulation_steps),
    ("phase1.profit", "reference_learning_rate", 1e-5,
     (("phase1.profit", {"reference_steps": 1}), lambda s: s.profit.rate(5e-4))),
    ("phase1", "prior_by", "loss", (("data.target_prior", 0.8), lambda s: (s.class_weights, round(_positives(s), 1)))),
]  # fmt: skip
# These are seen elsewhere: in this file by the test named, or in another. Fields of TrainingArguments are seen in
# test_training_arguments.py, and a section is seen in its keys.
ELSEWHERE = {
    ("", "phases"): "test_phases",
    ("data", "revision"): "test_revisions_reach_the_hub",
    ("data", "slices"): "test_slices",
    ("data", "config"): "test_config",
    ("data", "positive_class"): "test_positive_class_and_exclude_classes",
    ("data", "exclude_classes"): "test_positive_class_and_exclude_classes",
    ("data.group_by", "pattern"): "data/test_data_groups.py::test_groups_by_a_pattern",
    ("data.source.group_by", "pattern"): "data/test_data_groups.py::test_groups_by_a_pattern",
    **{("data.source", k): "data/test_data_several.py::test_every_key_of_a_source" for k in key_types(SourceConfig)},
    ("data", "exclude"): "data/test_reviewed.py::test_a_loaded_source_follows_its_lists_and_says_so",
    ("data", "relabel"): "data/test_reviewed.py::test_a_loaded_source_follows_its_lists_and_says_so",
    ("data", "max_megapixels"): "data/test_pixel_budget.py::test_a_run_reads_what_its_budget_allows",
    ("data", "on_overlap"): "test_on_overlap",
    ("data", "on_bad_image"): "test_on_bad_image",
    ("data", "question"): "phases/test_labels.py::test_page_and_card_name_question_and_answers",
    **{("data.labels", key): "phases/test_labels.py::test_every_file_has_the_names_and_none_the_subnets"
       for key in ("no", "yes")},
    ("data", "exam"): "phases/test_exam.py::test_the_threshold_is_that_of_the_exam",
    ("data", "synthetic_half"): "phases/test_exam.py::test_the_synthetic_half_is_measured_and_nothing_else",
    ("data", "exam_views"): "phases/test_exam.py::test_the_threshold_is_that_of_the_exam",
    ("model", "backbone"): "test_backbone",
    ("model", "revision"): "test_revisions_reach_the_hub",
    ("phase2", "objective"): "test_phase2",
    ("phase2", "n_resamples"): "test_phase2",
    ("phase1", "folds"): "phases/test_out_of_fold.py::test_no_model_answers_a_group_that_it_has_seen",
    ("phase1", "seeds"): "phases/test_soup.py::test_further_seeds_share_the_start",
    ("phase1", "keep_folds"): "phases/test_soup.py::test_a_soup_that_wins_goes_all_the_way",
    ("phase2", "soup"): "phases/test_soup.py::test_a_soup_that_wins_goes_all_the_way",
    ("phase2", "soup_of"): "phases/test_soup.py::test_models_of_another_run_join",
    ("phase1", "teacher"): "phases/test_teacher.py::test_a_run_teaches_and_everything_speaks_of_it",
    **{("phase1.distil", key): "trainers/test_distil.py::test_every_key_of_distil"
       for key in ("temperature", "mix", "views")},
    ("phase1.distil", "unlabelled"): "phases/test_teacher.py::test_pictures_without_labels_are_taught_too",
    ("phase2", "from"): "phases/test_out_of_fold.py::test_threshold_and_temperature_come_from_all_rows",
    ("phase3", "from"): "phases/test_out_of_fold.py::test_the_gate_learns_from_train_too",
    **{("phase6", key): "test_phase6" for key in key_types(ExportConfig)},
    **{("phase6", k): "hub/test_push.py::test_a_run_publishes_itself" for k in ("push", "repo_id", "private", "tag")},
    ("phase4", "supervised"): "phases/test_phase4.py::test_a_stage_of_its_own_has_a_control_of_its_own",
    ("phase4", "use_labeled_data"): "phases/test_phase4.py::test_without_labels_it_stops_after_the_backbone",
    ("phase4", "stream"): "phases/test_phase4_stream.py::test_frames_alone",
    ("phase4", "shuffle_buffer"): "test_shuffle_buffer",
    ("phase4", "unlabelled"): "phases/test_phase4_unlabelled.py::test_no_labels_and_no_splits_at_all",
}  # fmt: skip


def test_no_key_is_forgotten() -> None:
    keys = {
        (place, key)
        for place, section in sections().items()
        for key, hint in key_types(section).items()
        if not place.startswith("phase4.supervised") and not isinstance(key_meanings(section)[key], Argument)
        if section_of(hint) is None or (place, key) in ELSEWHERE or key in ("augment", "group_by")
    }
    tables = [*EFFECTS, *PHASE4_EFFECTS, *SELECTIVE_EFFECTS]
    assert keys == {(section, key) for section, key, *_ in tables} | set(ELSEWHERE)
    assert all(name in globals() for name in ELSEWHERE.values() if name.startswith("test_"))
    tests = Path(__file__).parent.parent
    for file, _, name in (value.partition("::") for value in ELSEWHERE.values() if "::" in value):
        assert f"def {name}(" in (tests / file).read_text(encoding="utf-8")


@pytest.mark.parametrize(("section", "key", "value", "observe"), EFFECTS, ids=[f"{s}.{k}" for s, k, _, _ in EFFECTS])
def test_every_key_changes_something(
    section: str, key: str, value: Any, observe: Any, look: Look, sources: dict[str, str]
) -> None:
    before = _base(sources)
    if isinstance(observe, tuple):
        common, observe = observe
        before = changed(before, *common)
    require_effect(look, observe, before, f"{section}.{key}", sources[value] if key == "source" else value)


def test_on_overlap(look: Look, sources: dict[str, str]) -> None:
    assert look(_base(sources)).data.splits.dropped
    with pytest.raises(DataError, match="on_overlap=drop"):
        look(changed(_base(sources), "data.on_overlap", "error"))


def test_on_bad_image(parquet_source: Path, tmp_path: Path) -> None:
    import datasets

    from natix_hf.data.rows import load_image_data

    content = _base({"a": str(tmp_path)})
    rows = datasets.load_dataset(str(parquet_source), split="train").cast_column("image", datasets.Image(decode=False))
    cells = [*rows["image"][:-1], {"bytes": b"no image", "path": None}]
    rows = rows.remove_columns("image").add_column("image", cells, feature=datasets.Image())
    rows.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="on_bad_image=skip"):
        load_image_data(parse_recipe(content).data)
    skipping = load_image_data(parse_recipe(changed(content, "data.on_bad_image", "skip")).data)
    assert [row["id"] for row in skipping.splits.dropped] == ["train/119"]


def test_shuffle_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reaches the stream that phase 4 opens. What it does there, data/test_data_stream.py shows."""
    from natix_hf.data.rows import load_image_data
    from natix_hf.phases import phase4_adapt
    from natix_hf.runs.context import PhaseContext
    from natix_hf.runs.graph import PHASES

    for number in range(3):
        striped_image(0, np.random.default_rng(number)).save(tmp_path / f"{number}.png")
    asked: list[int] = []

    class Seen(Exception):
        pass

    def stop(shards: Any, data: Any, splits: Any, buffer: int, seed: int) -> None:
        asked.append(buffer)
        raise Seen

    monkeypatch.setattr(phase4_adapt, "Stream", stop)
    for given in ({}, {"shuffle_buffer": 7}):
        section = {"stream": True, "unlabelled": [str(tmp_path)], "trainable": "all", "use_labeled_data": False}
        recipe = parse_recipe({"data": {"source": None}, "phase4": section | given})
        data = load_image_data(recipe.data)
        context = PhaseContext(PHASES[4], recipe, tmp_path / "run", lambda data=data: data, False)
        with pytest.raises(Seen):
            phase4_adapt.adapt_backbone(context)
    assert asked == [1000, 7]


def test_slices(look: Look, sources: dict[str, str], _finished_run: Path) -> None:
    """A column that is not there is an error; one that is there is a slice of the figures."""
    with pytest.raises(DataError, match="nope"):
        look(changed(_base(sources), "data.slices", ["nope"]))
    evaluation = json.loads((_finished_run / "phase6_export" / "evaluation.json").read_text(encoding="utf-8"))
    assert list(evaluation["slices"]) == TINY_RECIPE["data"]["slices"]


def test_positive_class_and_exclude_classes(tmp_path: Path) -> None:
    from natix_hf.data.sources import load_source

    rng = np.random.default_rng(0)
    for place in ("a/1.png", "b/1.png", "b/2.png", "c/1.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        striped_image(0, rng).save(tmp_path / place)
    with pytest.raises(DataError) as caught:
        load_source(DataConfig(source=str(tmp_path)))
    assert tells(caught.value, "positive_class", "a (1), b (2), c (1)", "exclude_classes")
    rows = load_source(DataConfig(source=str(tmp_path), positive_class="b", exclude_classes=["c"]))
    assert rows.labels.tolist() == [0, 1, 1, -1] and list(rows.left_out) == ["c/1.png"]


def test_config(tmp_path: Path, parquet_source: Path) -> None:
    from natix_hf.data.sources import load_source

    shutil.copytree(parquet_source, tmp_path / "set")
    (tmp_path / "set" / "README.md").write_text(
        "---\nconfigs: [{config_name: small, data_files: data/train*}, {config_name: all, data_files: data/*}]\n---\n"
    )
    source = str(tmp_path / "set")
    with pytest.raises(DataError) as caught:
        load_source(DataConfig(source=source))
    assert tells(caught.value, "small, all", "data.config")
    assert len(load_source(DataConfig(source=source, config="small")).ids) == 120


@pytest.mark.parametrize("what", ["data", "model"])
def test_revisions_reach_the_hub(what: str, monkeypatch: pytest.MonkeyPatch, sources: dict[str, str]) -> None:
    asked: list[Any] = []

    def ask(name: Any, *args: Any, revision: str | None = None, **kwargs: Any) -> Any:
        asked.append((name, revision))
        raise OSError("not in this test")

    if what == "data":
        import datasets

        from natix_hf.data.sources import load_source

        monkeypatch.setattr(datasets, "load_dataset", ask)
        with pytest.raises(DataError):
            load_source(DataConfig(source="org/name", revision="v7"))
    else:
        from natix_hf.errors import UsageError
        from natix_hf.models import classifier

        monkeypatch.setattr(classifier.AutoConfig, "from_pretrained", ask)
        with pytest.raises(UsageError):
            classifier.build_classifier(ModelConfig(backbone="org/name", revision="v7"), seed=0)
    assert asked == [("org/name", "v7")]


def test_backbone(_finished_run: Path) -> None:
    """Weights come from the folder, the head does not; another `config` beside a backbone counts too."""
    import torch

    from natix_hf.models.classifier import build_classifier, load_classifier

    folder = _finished_run / "phase1_baseline" / "model"
    config = ModelConfig(backbone=str(folder), image_size=28)
    state, stored = build_classifier(config, seed=0).state_dict(), load_classifier(folder).state_dict()
    other = [name for name in stored if not torch.equal(state[name], stored[name])]
    assert sorted(other) == ["classifier.bias", "classifier.weight"]
    dropout = build_classifier(replace(config, config={"hidden_dropout_prob": 0.5}), seed=0)
    assert dropout.config.hidden_dropout_prob == 0.5


def test_phases(tiny_recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from natix_hf import pipeline

    ran: list[int] = []
    monkeypatch.setattr(pipeline, "run_phase", lambda phase, *rest: ran.append(phase.number))
    pipeline.run_recipe(str(tiny_recipe_file), run_dir=tmp_path / "a")
    pipeline.run_recipe(str(tiny_recipe_file), run_dir=tmp_path / "b", overrides=["phases=[2, 1]"])
    assert ran == [0, 1, 2, 6, 0, 1, 2]


def test_phase2(finished_run: Path, tiny_recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from natix_hf.pipeline import run_recipe
    from natix_hf.results import decision as results

    asked: list[Any] = []
    real = results.choose_champion
    monkeypatch.setattr(results, "choose_champion", lambda *args: asked.append(args) or real(*args))
    run_recipe(str(tiny_recipe_file), [2], finished_run, overrides=["phase2.objective=f1", "phase2.n_resamples=123"])
    assert asked[0][-1] == 123
    decision = json.loads((finished_run / "phase2_threshold" / "threshold.json").read_text(encoding="utf-8"))
    assert decision["objective"] == "f1"
    assert "f1" in decision["val_select_optimistic"]


def test_phase6(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All keys of the section in one run: each leaves its own trace."""
    import yaml
    from huggingface_hub import ModelCard

    from natix_hf.pipeline import run_recipe
    from natix_hf.results import evaluation

    changed = {
        "fold": "none", "n_resamples": 150, "model_name": "Own name", "description": "What a question.",
        "version": "3.2.1", "submitted_by": "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY", "onnx": True,
        "license": "other", "license_name": "own-terms-1", "license_link": "https://example.org/terms.txt",
        "widget": ["https://example.org/pictures/road_works.jpg"],
    }  # fmt: skip
    resamples: list[int] = []
    real = evaluation.metric_intervals

    def count(*args: Any, n_resamples: int, **kwargs: Any) -> Any:
        resamples.append(n_resamples)
        return real(*args, n_resamples=n_resamples, **kwargs)

    monkeypatch.setattr(evaluation, "metric_intervals", count)
    assert set(changed) == set(key_types(ExportConfig)) - {"push", "repo_id", "private", "tag"}
    source = json.loads((finished_run / "phase0_data" / "manifest.json").read_text(encoding="utf-8"))["section"]
    content = {**TINY_RECIPE, "data": source["data"], "phase6": changed}
    before_card = (finished_run / "phase6_export" / "bundle" / "README.md").read_text(encoding="utf-8")
    before = {p.name: p.read_text(encoding="utf-8") for p in (finished_run / "phase6_export/bundle").glob("*.json")}
    recipe = write_recipe(tmp_path / "tiny.yaml", yaml.safe_load(yaml.safe_dump(content)))
    selective: list[int] = []
    real_selective = evaluation.evaluate_selective
    monkeypatch.setattr(
        evaluation, "evaluate_selective", lambda *args: selective.append(args[-1]) or real_selective(*args)
    )
    run_recipe(str(recipe), [6], finished_run)
    assert selective == [150]
    bundle = finished_run / "phase6_export" / "bundle"
    assert json.loads((bundle / "policy.json").read_text(encoding="utf-8"))["fold"] == "none"
    assert "model_card.json" not in before
    named = json.loads((bundle / "bundle_manifest.json").read_text(encoding="utf-8"))["files"]
    assert "model.onnx" in named and "model.onnx" not in before["bundle_manifest.json"]
    five = json.loads((bundle / "model_card.json").read_text(encoding="utf-8"))
    assert (five["model_name"], five["description"]) == ("Own name", "What a question.")
    assert (five["version"], five["submitted_by"]) == ("3.2.1", changed["submitted_by"])
    assert set(resamples) == {150}
    card = (bundle / "README.md").read_text(encoding="utf-8")
    assert "# Own name\n" in card and "What a question. Version 3.2.1." in card and "*not* folded in" in card
    assert "model.onnx" in card and "model.onnx" not in before_card
    stated, unstated = ModelCard(card).data.to_dict(), ModelCard(before_card).data.to_dict()
    assert (stated["license"], stated["license_name"]) == ("other", "own-terms-1")
    assert stated["license_link"] == "https://example.org/terms.txt" and "(https://example.org/terms.txt)" in card
    assert stated["widget"] == [{"src": changed["widget"][0], "example_title": "road works"}]
    assert not {"license", "license_name", "license_link", "widget"} & set(unstated)

"""The small recipe of `natix-hf smoke`: a few steps of every training, on a few hundred pictures of the source."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from natix_hf.data.sources import load_unlabelled
from natix_hf.estimate.source import Source
from natix_hf.recipe import Recipe
from natix_hf.runs.seen import run_of_start
from natix_hf.trainers.config import TrainingSection
from natix_hf.trainers.distil_config import DistilConfig
from natix_hf.trainers.supervised_config import SupervisedConfig

RECIPE = "smoke.yaml"
SAMPLE_OF_SOURCE = 64  # pictures of each further source
_TRAIN_ROWS = 384  # of the sample; the other roles get their usual shares beside them
_STEPS = (4, 24)
_LIGHT = 10**7  # weights of a model whose steps are so quick that more of them can be tried, over the sample again
_STEPS_OF_A_LIGHT_MODEL = 20


def small_recipe(recipe: Recipe, source: Source, parameters: int, folder: Path) -> Recipe:
    """The recipe on a sample of its pictures, with a few steps a training. Its file lies in `folder`.

    Args:
        parameters: Number of weights of the model.
    """
    least = _STEPS_OF_A_LIGHT_MODEL if parameters < _LIGHT else _STEPS[0]
    rows, data = source.rows, recipe.data
    at = source.spread(round(_TRAIN_ROWS / 0.6), data.seed)
    labels = dict(zip(source.splits.ids, source.splits.labels, strict=True))
    grouped = any(rows.groups[i] is not None for i in at)
    columns: dict[str, list[Any]] = {"label": [labels[rows.ids[i]] for i in at]}
    if grouped:
        columns["group"] = [rows.groups[i] or rows.ids[i] for i in at]
    columns |= {name: [values[i] for i in at] for name, values in rows.columns.items()}
    _save(rows.images.select(at), columns, folder / "sample")
    small = replace(
        data,
        source=str(folder / "sample"),
        revision=None,
        config=None,
        label_column="label",
        positive_class=None,
        exclude_classes=[],
        group_by="group" if grouped else None,
        label_rule="none",
        exclude=None,
        relabel=None,
        synthetic_half=None,
    )
    probes = max(1, _steps(recipe.phase4, least) // 2) if recipe.phase4.probe_steps > 0 else 0
    phase4 = _few_steps(recipe.phase4, least, probe_steps=probes)
    if recipe.phase4.supervised is not None:
        phase4 = replace(phase4, supervised=_few_scored_steps(recipe.phase4.supervised, least))
    if not recipe.phase4.stream:
        samples = []
        for number, name in enumerate(recipe.phase4.unlabelled):
            images = load_unlabelled(name, data).images
            samples.append(str(folder / f"unlabelled-{number}"))
            _save(images.select(range(min(len(images), SAMPLE_OF_SOURCE))), {}, Path(samples[-1]))
        phase4 = replace(phase4, unlabelled=samples)
    model = recipe.model
    if run_of_start(model.backbone) is not None:  # a sample has other splits than a run: nothing is measured on it
        shutil.copytree(Path(str(model.backbone)).expanduser(), folder / "backbone")
        model = replace(model, backbone=str(folder / "backbone"))
    made = replace(
        recipe,
        data=small,
        model=model,
        phase1=replace(_few_scored_steps(recipe.phase1, least).alone, teacher=None, distil=DistilConfig()),
        phase2=replace(recipe.phase2, from_="val_select", soup="none", soup_of=[]),
        phase3=replace(recipe.phase3, from_="val_select"),
        phase4=phase4,
        phase6=replace(recipe.phase6, push=False, repo_id=None, private=False, tag=None),
    )
    (folder / RECIPE).write_text(yaml.safe_dump(made.mapping(), allow_unicode=True), encoding="utf-8")
    return made


def _save(images: Any, columns: Mapping[str, list[Any]], folder: Path) -> None:
    from datasets import disable_progress_bars, enable_progress_bars

    disable_progress_bars()
    for name, values in columns.items():
        images = images.add_column(name, values)
    images.save_to_disk(str(folder))
    enable_progress_bars()


def _steps(stage: TrainingSection, least: int) -> int:
    accumulated = stage.training_fields().get("gradient_accumulation_steps", 1)
    return int(min(_STEPS[1], max(least, _TRAIN_ROWS // (stage.per_device_train_batch_size * accumulated))))


def _few_steps(stage: Any, least: int, **changes: Any) -> Any:
    """A stage of a few steps, with the batches, types and workers of the recipe."""
    fields: dict[str, Any] = {"max_steps": _steps(stage, least), "report_to": "none"}
    if stage.per_device_train_batch_size <= _TRAIN_ROWS:
        fields["dataloader_drop_last"] = True  # a last batch of few rows would say nothing about the others
    stage = replace(stage, extra={key: value for key, value in stage.extra.items() if key != "num_train_epochs"})
    return replace(stage.with_training(fields), **changes)


def _few_scored_steps(stage: SupervisedConfig, least: int) -> Any:
    half = max(1, _steps(stage, least) // 2)
    times: dict[str, Any] = {}
    for what in ("eval", "save"):
        if getattr(stage, f"{what}_strategy") not in ("no", "best"):
            times |= {f"{what}_strategy": "steps", f"{what}_steps": half}
    stage = replace(stage, early_stopping_patience=None)
    return _few_steps(stage.with_training(times), least)

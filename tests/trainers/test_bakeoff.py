"""`adapter: auto`: equal budgets, who goes on, and that what it leaves is what naming the winner leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Killed, kill_at
from safetensors.torch import load_file
from stages import striped_data, train_stage
from transformers import AutoConfig, AutoModelForImageClassification

from natix_hf.data.rows import ImageData
from natix_hf.errors import RecipeError
from natix_hf.models.adapters import ADAPTERS, add_adapter
from natix_hf.models.classifier import build_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.tuner import count_trainable
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.files import read_json
from natix_hf.recipe import parse_recipe
from natix_hf.runs.verify import run_problems
from natix_hf.trainers.bakeoff import MCC, bake_off, entrants_for, trial_settings
from natix_hf.trainers.roadwork import RoadworkTrainer
from natix_hf.trainers.scores import EvaluationMetrics

ENTRANTS = ["lora", "dora", "adalora", "lokr"]
MODEL = ModelConfig(config=TINY["dinov2"] | {"initializer_range": 0.2, "hidden_size": 64}, image_size=28)


def _meta(model_type: str, width: int, layers: int, **fields: Any) -> Any:
    config = AutoConfig.for_model(model_type, hidden_size=width, num_hidden_layers=layers, **fields)
    with torch.device("meta"):
        return AutoModelForImageClassification.from_config(config)


# Who takes part.


@pytest.mark.parametrize(
    ("model_type", "width", "layers", "heads", "options"),
    [("vit", 768, 12, 12, {}), ("vit", 1024, 24, 16, {}), ("dinov2", 384, 12, 6, {"r": 5}),
     ("dinov2", 768, 12, 12, {"r": 64}), ("dinov3_vit", 192, 3, 3, {"r": 7}), ("dinov2", 99, 2, 9, {"r": 5}),
     ("vit", 768, 2, 12, {"r": 16, "target_modules": ["q_proj", "fc1", "fc2"]})],
)  # fmt: skip
def test_all_are_as_large_as_lora(
    model_type: str, width: int, layers: int, heads: int, options: dict[str, Any]
) -> None:
    model = _meta(model_type, width, layers, num_attention_heads=heads)
    entrants = entrants_for(model, options, "phase1")
    assert [row["adapter"] for row in entrants] == ENTRANTS
    rank = options.get("r", 8)
    # [out + in] of every adapted layer, times the rank
    shapes = {"q_proj": 2 * width, "v_proj": 2 * width, "fc1": width + 3072, "fc2": width + 3072}
    budget = rank * layers * sum(shapes[name] for name in options.get("target_modules", ["q_proj", "v_proj"]))
    for row in entrants:
        assert "left_out" not in row
        with torch.device("meta"):
            plain = _meta(model_type, width, layers, num_attention_heads=heads)
            wrapped = add_adapter(plain, row["adapter"], row["options"], total_steps=100, seed=0)
        counted = sum(p.numel() for n, p in wrapped.named_parameters() if p.requires_grad and "classifier" not in n)
        assert row["trainable_parameters"] == counted, row
        assert 0.9 * budget <= counted <= 1.1 * budget, row
    assert entrants[0]["trainable_parameters"] == budget
    assert entrants[0]["options"] == {"r": rank, "lora_alpha": rank} | {k: v for k, v in options.items() if k != "r"}


@pytest.mark.parametrize(
    ("model_type", "fields", "budget"),
    [("convnextv2", {"hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 6, 2]},
      2 * 8 * 5 * (40 * 2 + 80 * 2 + 160 * 6 + 320 * 2)),
     ("swinv2", {"embed_dim": 96, "depths": [2, 2, 6, 2]}, 2 * 8 * 2 * (96 * 2 + 192 * 2 + 384 * 6 + 768 * 2))],
)  # fmt: skip
def test_all_are_as_large_as_lora_in_every_stage(model_type: str, fields: dict[str, Any], budget: int) -> None:
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(AutoConfig.for_model(model_type, **fields))
    entrants = entrants_for(model, {}, "phase1")
    assert [row["adapter"] for row in entrants] == ENTRANTS and entrants[0]["trainable_parameters"] == budget
    assert all(0.9 * budget <= row["trainable_parameters"] <= 1.1 * budget for row in entrants)


def test_the_options_of_a_large_model() -> None:
    """By hand: dora has 1 / (2 r) more than lora of its rank; lokr with a factor of 2 has lora's count at twice the
    rank, and 4 a module; AdaLoRA starts with half as many ranks again as it ends with."""
    entrants = entrants_for(_meta("vit", 1024, 24, num_attention_heads=16), {}, "phase1")
    assert [(row["options"], row["trainable_parameters"]) for row in entrants] == [
        ({"r": 8, "lora_alpha": 8}, 786_432),
        ({"r": 7, "lora_alpha": 7}, 48 * (7 * 2048 + 1024)),
        ({"init_r": 8, "target_r": 5, "lora_alpha": 8}, 786_432 + 48 * 8),
        ({"r": 16, "alpha": 16, "decompose_factor": 2}, 786_432 + 48 * 4),
    ]


@pytest.mark.parametrize(
    ("width", "rank", "out", "count"), [(64, 3, "dora", 2 * 4 * 64 * 5 // 2), (64, 9, "lokr", 4 * (32 * 32 + 4))]
)
def test_who_has_no_fitting_rank_stays_out_with_the_reason(width: int, rank: int, out: str, count: int) -> None:
    entrants = {row["adapter"]: row for row in entrants_for(_meta("dinov2", width, 2, num_attention_heads=2),
                                                            {"r": rank}, "phase1")}  # fmt: skip
    assert list(entrants) == ENTRANTS
    told = f"its nearest size, {count}, is more than 10 % off the budget of {4 * 2 * width * rank}"
    assert {name: row["left_out"] for name, row in entrants.items() if "left_out" in row} == {out: told}


@pytest.mark.parametrize(
    ("modules", "says"),
    [(["norm1"], "here.adapter_options"),
     ("q_proj", "here.adapter_options.target_modules is 'q_proj': expected a list"),
     (["query"], "here.adapter_options.target_modules: no module ends in query")],
)  # fmt: skip
def test_modules_that_cannot_be_adapted_are_refused(modules: Any, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        entrants_for(_meta("dinov2", 64, 2, num_attention_heads=2), {"target_modules": modules}, "here")
    assert str(caught.value).startswith(says) and "\n" not in str(caught.value)


def test_the_live_model_is_left_as_it_is() -> None:
    model = build_classifier(MODEL, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    entrants_for(model, {}, "phase1")
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad for n, p in model.named_parameters() if not n.endswith("mask_token"))


# Who goes on.


def _halve(
    folder: Path, scores: dict[str, Any], total: int = 80, **section: Any
) -> tuple[Any, dict[str, Any], list[Any]]:
    """A bake-off with planted scores, or lists of one a round."""
    ran: list[Any] = []

    def trial(name: str, options: dict[str, Any], training: dict[str, Any]) -> float:
        ran.append((name, training["max_steps"]))
        score = scores[name]
        return float(score.pop(0) if isinstance(score, list) else score)

    config = parse_recipe({"phase1": {"adapter": "auto"} | section}).phase1
    return *bake_off(build_classifier(MODEL, seed=0), config, total, trial, folder), ran


def test_the_better_half_goes_on_with_twice_the_steps(tmp_path: Path) -> None:
    """The winner of the first round may lose the second: its own figures count."""
    config, facts, ran = _halve(tmp_path, {"lora": 0.1, "dora": [0.9, 0.4], "adalora": 0.2, "lokr": [0.6, 0.5]})
    assert ran == [("lora", 10), ("dora", 10), ("adalora", 10), ("lokr", 10), ("dora", 20), ("lokr", 20)]
    keys = ("adapter", "round", "steps", MCC, "kept")
    assert [tuple(row[key] for key in keys) for row in facts["bakeoff"]] == [
        ("lora", 1, 10, 0.1, False), ("dora", 1, 10, 0.9, True), ("adalora", 1, 10, 0.2, False),
        ("lokr", 1, 10, 0.6, True), ("dora", 2, 20, 0.4, False), ("lokr", 2, 20, 0.5, True),
    ]  # fmt: skip
    assert (config.adapter, config.adapter_options) == ("lokr", {"r": 16, "alpha": 16, "decompose_factor": 2})
    assert (facts["adapter"], facts["adapter_options"]) == (config.adapter, config.adapter_options)
    sizes = {row["adapter"]: row["trainable_parameters"] for row in facts["bakeoff"]}
    assert sizes == {"lora": 4096, "dora": 3840, "adalora": 4128, "lokr": 4112}
    asked = parse_recipe({"phase1": {"adapter": "auto"}}).phase1
    assert replace(config, adapter="auto", adapter_options={}) == asked  # nothing else of the stage changed


def test_equal_scores_the_smaller_one(tmp_path: Path) -> None:
    _, facts, ran = _halve(tmp_path, dict.fromkeys(ENTRANTS, 0.5))
    assert ran[4:] == [("lora", 20), ("dora", 20)] and facts["adapter"] == "dora"


def test_equal_scores_and_sizes_the_first_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from natix_hf.trainers import bakeoff

    def equal(*given: Any) -> list[Any]:
        return [{"adapter": name, "options": {"r": 8}, "trainable_parameters": 9} for name in ENTRANTS]

    monkeypatch.setattr(bakeoff, "entrants_for", equal)
    _, facts, ran = _halve(tmp_path, dict.fromkeys(ENTRANTS, 0.5))
    assert ran[4:] == [("lora", 20), ("dora", 20)] and facts["adapter"] == "lora"


def test_three_who_are_left_are_two_and_then_one(tmp_path: Path) -> None:
    scores = {"lora": 0.3, "adalora": 0.1, "lokr": 0.2}
    config, facts, ran = _halve(tmp_path, scores, adapter_options={"r": 3})
    assert ran == [("lora", 10), ("adalora", 10), ("lokr", 10), ("lora", 20), ("lokr", 20)]
    assert config.adapter == "lora"
    [dora] = [row for row in facts["bakeoff"] if row["adapter"] == "dora"]
    assert (dora["round"], dora["steps"], dora[MCC], dora["kept"]) == (0, 0, None, False) and dora["left_out"]
    json.dumps(facts, allow_nan=False)  # it goes into the manifest


def test_short_trainings(tmp_path: Path) -> None:
    """AdaLoRA needs two steps; no trial is longer than the training itself."""
    _, _, ran = _halve(tmp_path / "3", dict.fromkeys(ENTRANTS, 0.5), total=3)
    assert {steps for _, steps in ran[:4]} == {2} and {steps for _, steps in ran[4:]} == {3}
    with pytest.raises(RecipeError, match=r"^phase1\.adapter is 'auto', which compares .* there is 1 step"):
        _halve(tmp_path / "1", {}, total=1)


def test_a_finished_trial_is_not_run_again(tmp_path: Path) -> None:
    first = {"lora": 0.1, "dora": [0.9, 0.4], "adalora": 0.2, "lokr": 0.6}
    _, facts, _ = _halve(tmp_path, first)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "1-adalora.json", "1-dora.json", "1-lokr.json", "1-lora.json", "2-dora.json", "2-lokr.json"
    ]  # fmt: skip
    (tmp_path / "2-lokr.json").unlink()
    (tmp_path / "1-lora.json").write_text("{", encoding="utf-8")
    _, again, ran = _halve(tmp_path, {"lora": 0.1, "lokr": 0.6})
    assert ran == [("lora", 10), ("lokr", 20)] and again == facts
    for other in ({"total": 160}, {"adapter_options": {"r": 7}}):  # as after a resume on other ranks: none is reused
        assert len(_halve(tmp_path, dict.fromkeys(ENTRANTS, 0.5), **other)[2]) == 6


@pytest.mark.parametrize(("warmup", "squeezed"), [(0.1, 0.1), (0, 0), (20, 0.25), (80, 80), (None, 0)])
def test_a_trial_runs_through_the_whole_schedule(warmup: Any, squeezed: float, tmp_path: Path) -> None:
    training = parse_recipe({"phase1": {"eval_steps": 7}}).phase1.training_fields() | {"warmup_steps": warmup}
    settings = trial_settings(training, 10, 80)
    assert settings["warmup_steps"] == squeezed and settings["max_steps"] == 10
    changed = {key for key in settings if settings[key] != training.get(key)} - {"warmup_steps"}
    assert changed == {"max_steps", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "save_strategy",
                       "load_best_model_at_end"}  # fmt: skip


# Real trainings.


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return striped_data(tmp_path_factory)


def _train(data: ImageData, folder: Path, adapter: str, **section: Any) -> dict[str, Any]:
    return train_stage(data, folder, MODEL, adapter, **{"num_train_epochs": 4} | section)


def _record(monkeypatch: pytest.MonkeyPatch, *callbacks: Any) -> list[dict[str, Any]]:
    """What every Trainer is made of, in order."""
    made: list[dict[str, Any]] = []
    original = RoadworkTrainer.__init__

    def init(self: Any, **given: Any) -> None:
        original(self, **given)
        made.append(given | {"trainer": self})
        for callback in callbacks:
            self.add_callback(callback)

    monkeypatch.setattr(RoadworkTrainer, "__init__", init)
    return made


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize("section", [{}, {"ema_decay": 0.9, "early_stopping_patience": 3}])
def test_auto_leaves_what_naming_the_winner_leaves(
    section: dict[str, Any], data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        made = _record(patch)
        auto = _train(data, tmp_path / "auto", "auto", **section)
    assert len(made) == 7 and auto["steps"] == 20
    assert [given["args"].max_steps for given in made] == [2, 2, 2, 2, 4, 4, -1]
    starts = {(given["args"].seed, tuple(iter_rows(given))) for given in made}
    assert len(starts) == 1, "the same rows in the same order"
    for given, row in zip(made, auto["bakeoff"], strict=False):
        # One evaluation, at the end, of the original images of val_select.
        [score] = [line["eval_mcc"] for line in given["trainer"].state.log_history if "eval_mcc" in line]
        assert row[MCC] == score and row["steps"] == given["args"].max_steps
        assert isinstance(given["compute_metrics"], EvaluationMetrics) and given["callbacks"] == []
        assert len(given["eval_dataset"]) == len(data.role("val_select"))
        assert given["ema_decay"] == section.get("ema_decay")
    assert auto["adapter"] in ENTRANTS and auto["merge"]["max_difference"] <= 1e-4
    [won] = [row for row in auto["bakeoff"] if row["round"] == 2 and row["kept"]]
    assert (won["adapter"], won["options"]) == (auto["adapter"], auto["adapter_options"])
    head = 2 * 64 * 2 + 2
    assert auto["trainable_parameters"] == won["trainable_parameters"] + head, "counted on the real model"
    for given, row in zip(made, auto["bakeoff"], strict=False):
        assert count_trainable(given["model"]) == row["trainable_parameters"] + head
    named = _train(data, tmp_path / "named", auto["adapter"], adapter_options=auto["adapter_options"], **section)
    one, other = _weights(tmp_path / "auto"), _weights(tmp_path / "named")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert {*auto} - {*named} == {"adapter", "adapter_options", "bakeoff"}
    unlike = {key for key in named if auto[key] != named[key]}
    assert unlike <= {"train_s", "pace", "history"}  # the latter holds seconds
    files = sorted(path.name for path in (tmp_path / "auto" / "checkpoints" / "bakeoff").iterdir())
    assert len(files) == 6 and all(name.endswith(".json") for name in files), "figures and no checkpoints"


def iter_rows(given: dict[str, Any]) -> list[Any]:
    given["train_sampler"].set_epoch(0)
    return list(given["train_sampler"])


def test_cut_off_and_continued_it_is_what_it_would_have_been(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the second trial, then in the training of the winner."""
    whole = _train(data, tmp_path / "whole", "auto", load_best_model_at_end=False)
    folder = tmp_path / "cut" / "checkpoints"
    original = RoadworkTrainer.training_step
    made: list[Any] = []

    def die_in_the_second(self: Any, *given: Any, **more: Any) -> Any:
        if len(made) == 2:
            raise Killed
        return original(self, *given, **more)

    with monkeypatch.context() as patch:
        made = _record(patch)
        patch.setattr(RoadworkTrainer, "training_step", die_in_the_second)
        with pytest.raises(Killed):
            _train(data, tmp_path / "cut", "auto", load_best_model_at_end=False)
    assert [path.name for path in (folder / "bakeoff").glob("*.json")] == ["1-lora.json"]
    with monkeypatch.context() as patch:
        made = _record(patch, kill_at(8))
        with pytest.raises(Killed):
            _train(data, tmp_path / "cut", "auto", load_best_model_at_end=False)
    assert len(made) == 6 and [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-5"]
    with monkeypatch.context() as patch:
        made = _record(patch)
        resumed = _train(data, tmp_path / "cut", "auto", load_best_model_at_end=False)
    assert len(made) == 1 and resumed["resumed_from"] == "checkpoint-5"
    assert resumed["bakeoff"] == whole["bakeoff"]
    one, other = _weights(tmp_path / "whole"), _weights(tmp_path / "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)


# The recipe and the run.


@pytest.mark.parametrize(
    ("options", "says"),
    [({"lora_alpha": 4}, "unknown key .*adapter_options.lora_alpha of auto: allowed is r and target_modules"),
     ({"modules_to_save": []}, "unknown key .* of auto"), ({"r": 0}, "adapter_options.r is 0: .* a whole"),
     ({"r": True}, "adapter_options.r is True"), ({"r": "8"}, "adapter_options.r is '8'")],
)  # fmt: skip
@pytest.mark.parametrize("where", ["phase1", "phase4.supervised"])
def test_other_options_are_refused(options: dict[str, Any], says: str, where: str) -> None:
    section: dict[str, Any] = {"adapter": "auto", "adapter_options": options}
    with pytest.raises(RecipeError, match=says) as caught:
        parse_recipe({"phase1": section} if where == "phase1" else {"phase4": {"supervised": section}})
    assert f"{where}.adapter_options." in str(caught.value) and "\n" not in str(caught.value)


def test_a_wrong_module_is_refused_before_any_work(tiny_recipe_file: Path, tmp_path: Path) -> None:
    overrides = ["phase1.adapter=auto", "phase1.adapter_options={target_modules: [query]}"]
    with pytest.raises(RecipeError, match=r"phase1\.adapter_options\.target_modules: no module ends in query"):
        run_recipe(str(tiny_recipe_file), [1], tmp_path / "run", overrides=overrides)
    assert not (tmp_path / "run").exists()


def test_the_four_are_those_of_the_table() -> None:
    assert [name for name, kind in ADAPTERS.items() if kind.in_bake_off] == ENTRANTS


def test_the_run_and_the_card_say_which(tiny_recipe_file: Path, tmp_path: Path) -> None:
    run = run_recipe(str(tiny_recipe_file), [1, 2, 6], tmp_path / "run", overrides=["phase1.adapter=auto"])
    metrics = read_json(run / "phase1_baseline" / "manifest.json")["metrics"]
    assert [row["adapter"] for row in metrics["bakeoff"] if "left_out" in row] == ["lokr"]  # 32 wide
    card = (run / "phase6_export" / "bundle" / "README.md").read_text(encoding="utf-8")
    assert f"trained by a {metrics['adapter']} adapter, merged, on random weights." in card
    took_part = [row for row in metrics["bakeoff"] if row["round"]]
    assert len(took_part) == 5
    told = ", ".join(f"{row['adapter']} {row[MCC]:.3f} at {row['steps']} steps" for row in took_part)
    assert f"(optimistic): {told}." in card
    assert run_problems(run) == []

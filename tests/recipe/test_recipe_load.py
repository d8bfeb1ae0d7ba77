"""Reading recipes: precedence, numbers, and one clear line for everything that cannot be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_RECIPE, write_recipe
from facts import tells

from natix_hf.errors import RecipeError
from natix_hf.recipe import Recipe, load_recipe, packaged_recipes, parse_recipe
from natix_hf.trainers.supervised_config import SupervisedConfig


def _file(folder: Path, text: str) -> str:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def _refused(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(_file(folder, text), overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_dataclass_below_yaml_below_override(tmp_path: Path) -> None:
    path = _file(tmp_path, "phase2: {n_resamples: 300}\nphase1: {learning_rate: 0.01, seed: 7}\n")
    plain = load_recipe(path)
    assert (plain.phase2.n_resamples, plain.phase2.objective) == (300, "mcc")
    assert plain.phase1 == SupervisedConfig(learning_rate=0.01, seed=7)
    assert plain.name == "my"
    given = load_recipe(path, ["phase2.n_resamples=400", "phase1.seed=8", "phase1.seed=9", "data.slices=[a, b]"])
    assert (given.phase2.n_resamples, given.phase1.seed, given.data.slices) == (400, 9, ["a", "b"])
    assert given.phase1.learning_rate == 0.01


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1E-4", 1e-4), ("2e+0", 2.0), ("1.e-2", 0.01), (".5", 0.5), ("3", 3.0), ("+1e2", 100.0)],
)
def test_numbers_are_numbers(tmp_path: Path, text: str, value: float) -> None:
    """PyYAML follows YAML 1.1, where `1e-4` is a string."""
    in_file = load_recipe(_file(tmp_path, f"phase1:\n  learning_rate: {text}\n"))
    overridden = load_recipe(_file(tmp_path, ""), [f"phase1.learning_rate={text}"])
    for recipe in (in_file, overridden):
        assert recipe.phase1.learning_rate == value
        assert isinstance(recipe.phase1.learning_rate, float)


@pytest.mark.parametrize(
    "text", ["", "# nothing but a remark\n", "phase1:\nphase2:\ndata:\nmodel:\n", "phase1: null\n"]
)
def test_nothing_given_means_the_defaults(tmp_path: Path, text: str) -> None:
    assert load_recipe(_file(tmp_path, text)) == Recipe(name="my") == parse_recipe({}, name="my")
    assert parse_recipe({}) == Recipe()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("data: {seed: 1}\ndata: {seed: 2}\n", ("'data'", "twice", "line 2")),
        ("phase1:\n  seed: 1\n  seed: 1\n", ("'seed'", "twice")), ("data: [\n", ("not valid YAML",)),
        ("data: {seed: 1\n", ("not valid YAML",)), ("data: !!python/object/apply:os.getcwd []\n", ("not valid YAML",)),
        ("when: !!timestamp 2026-13-45\n", ("not valid YAML",)), ("data: {seed: !!int x}\n", ("not valid YAML",)),
        ("? [a, b]\n: 1\n", ("not valid YAML",)),
        ("[1, 2]\n", ("my.yaml", "list", "mapping")), ("just words\n", ("my.yaml", "str", "mapping")),
        ("7\n", ("int", "mapping")), ("phases: 1\n", ("phases is 1", "int", "a list of whole numbers")),
        ("phases: [1, two]\n", ("phases[1] is 'two'", "a whole number")),
        ("phases: [true]\n", ("phases[0] is True", "bool")), ("data: 5\n", ("data is 5", "section")),
        ("phase1: 0\n", ("phase1 is 0", "section")), ("phase1: []\n", ("phase1 is []", "section")),
        ("phase1: false\n", ("phase1 is False", "section")),
        ("data: {augment: []}\n", ("data.augment is []", "section")),
        ("data: {seed: 1.5}\n", ("data.seed is 1.5", "float", "a whole number")),
        ("data: {seed: true}\n", ("data.seed is True", "bool", "a whole number")),
        ("data: {seed: '1'}\n", ("data.seed is '1'", "str", "a whole number")),
        ("data: {augment: {flip: 1}}\n", ("data.augment.flip is 1", "int", "true or false")),
        ("data: {augment: {jitter: lots}}\n", ("data.augment.jitter is 'lots'", "str", "a number")),
        ("data: {augment: {crop_scale: [0.5, x]}}\n", ("data.augment.crop_scale[1] is 'x'", "a number")),
        ("data: {source: [[3]]}\n", ("data.source[0]", "text or a section")),
        ("data: {target_prior: half}\n", ("data.target_prior is 'half'", "a number or null")),
        ("data: {on_overlap: dorp}\n", ("data.on_overlap is 'dorp'", "'drop'", "drop | error")),
        ("phase6: {version: 1.0}\n", ("phase6.version is '1.0'", "X.Y.Z")),
        ("phase1: {learning_rate: fast}\n", ("phase1.learning_rate is 'fast'", "str", "a number")),
        ("phase1: {num_train_epochs: many}\n", ("phase1.num_train_epochs is 'many'", "a number")),
        ("phase1: {load_best_model_at_end: 1}\n", ("phase1.load_best_model_at_end is 1", "true or false")),
        ("phase1: {gradient_accumulation_steps: 1.5}\n", ("phase1.gradient_accumulation_steps", "a whole number")),
        ("phase1: {lr_scheduler_type: nonsense}\n", ("phase1.lr_scheduler_type is 'nonsense'", "cosine", "linear")),
        ("phase1: {eval_strategy: sometimes}\n", ("phase1.eval_strategy is 'sometimes'", "epoch")),
        ("phase1: {save_strategy: sometimes}\n", ("phase1.save_strategy is 'sometimes'", "best")),
        ("phase1: {optim: nonsense, bf16: false}\n", ("phase1.optim is 'nonsense'", "adamw_torch")),
        ("model: {backbone: {a: 3}}\n", ("model.backbone is {'a': 3}", "text or null")),
        ("model: {config: vit}\n", ("model.config is 'vit'", "keys")),
        ("model: {}\n", ("model", "backbone", "model_type")),
        *[(f"phase4: {{supervised: {{{text}}}}}\n", (f"phase4.supervised.{parts[0]}", *parts[1:])) for text, parts in [
            ("learning_rate: -1", ("learning_rate", "-1")), ("seed: x", ("seed", "'x'", "str", "a whole number")),
            ("adapter: lorra", ("adapter", "'lorra'", "'lora'")), ("ema_decay: 2", ("ema_decay", "2")),
            ("adapter_options: {r: 4}", ("adapter_options", "adapter is full")),
        ]],
            ("phase4: {supervised: 5}\n", ("phase4.supervised", "5", "section")),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_one_clear_line(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    assert tells(_refused(tmp_path, text), *parts)


_ALL, _OWN = "phases, data, model, phase1", "adapter, adapter_options, feature_views"
UNKNOWN = {
    "modle": "'model'", "phase_1": "'phase1'", "training": "'phase1'", "calibration": "'phase5'", "name": _ALL,
    "1": _ALL, "data.sede": "'seed'", "data.path": "'source'", "data.zzzz": "source, revision, config, image_column",
    "data.augment.rotat": "'rotate'", "data.augment.zzzz": "crop_scale, crop_ratio",
    "data.synthetic.vidoes": "'videos'", "model.backbon": "'backbone'", "model.checkpoint": "'backbone'",
    "phase1.adaptor": "'adapter'", "phase1.lr": "'learning_rate'", "phase1.LR": "'learning_rate'",
    "phase1.epochs": "'num_train_epochs'",
    "phase1.batch_size": "'per_device_train_batch_size'", "phase1.grad_accum": "'gradient_accumulation_steps'",
    "phase1.learning_rat": "'learning_rate'", "phase1.gradient_acumulation_steps": "'gradient_accumulation_steps'",
    "phase1.training": "", "phase1.extra": "", "phase1.overwrite_output_dir": "", "phase1.qqqqqqqq": _OWN,
    "phase4.supervised.learning_rat": "'learning_rate'", "phase4.supervised.training": "",
    "phase4.supervised.where": "", "phase2.objectiv": "'objective'", "phase6.fould": "'fold'",
}  # fmt: skip


@pytest.mark.parametrize("key", UNKNOWN)
def test_unknown_keys_at_every_level(tmp_path: Path, key: str) -> None:
    """The line names the nearest key, also for the words that people use, or the keys of the section."""
    for value in ("x", "{seed: 1}"):
        assert tells(_refused(tmp_path, "", f"{key}={value}"), f"unknown key {key}", UNKNOWN[key])


@pytest.mark.parametrize(
    "override",
    [
        "data.target_prior=0", "data.target_prior=1", "data.target_prior=-0.1", "data.label_noise=0.5",
        "data.label_noise=-1", "data.cache_px=0", "data.seed=-1", "data.source=''", "data.source='  '",
        "data.augment.crop_scale=[0, 1]", "data.augment.crop_scale=[1, 0.5]", "data.augment.crop_scale=[0.5]",
        "data.augment.crop_scale=[0.5, 1.1]", "data.augment.crop_ratio=[0, 1]", "data.augment.rotate=181",
        "data.augment.jitter=1", "data.augment.grey=1.1", "data.augment.blur=-0.1", "data.augment.erase=2",
        "data.synthetic.camera=c", "data.synthetic.videos=1", "data.synthetic.frames=0",
        "data.synthetic.image_size=15", "data.synthetic.positive_share=1", "data.synthetic.seed=-1",
        "model.image_size=0", "phase1.feature_views=0", "phase1.early_stopping_patience=0",
        "phase1.learning_rate=0", "phase1.learning_rate=-1e-4", "phase1.num_train_epochs=0",
        "phase1.per_device_train_batch_size=0", "phase1.per_device_eval_batch_size=-1", "phase2.n_resamples=99",
        "phase6.n_resamples=0", *(f"phase5.risk.{key}={value}" for key in ("alpha", "delta", "min_coverage")
        for value in (0, 1.5, -0.1, "x")), "phase5.risk.loss=fdr", "phase5.risk.loss=1", "phase5.risk.classwise=yes_",
        "phase5.risk.other=1", "phase6.version=1.0.x", "phase6.version=\u0661.0.0", "phase6.version=v1.0.0",
        "phase1.learning_rate=.nan", "phase1.learning_rate=.inf", "phase1.weight_decay=.nan", "data.label_noise=.nan",
        "model.config={model_type: vit, layer_norm_eps: .inf}",
        "model.config={model_type: vit, hidden_act: !!timestamp 2026-01-02}",
    ],
)  # fmt: skip
def test_absurd_values_are_refused_before_work(tmp_path: Path, override: str) -> None:
    assert tells(_refused(tmp_path, "", override), override.partition("=")[0])


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("phase1.learning_rate", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
        ("data.seed.deep=3", "data.seed"),
        ("data.slices=[a", "not valid YAML"),
        ("data.seed=!!int x", "not valid YAML"),
        (r'data.group_by={pattern: "v\d+"}', "single quotes"),
        ("data.label_column=", "data.label_column is None"),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, part: str) -> None:
    assert tells(_refused(tmp_path, "data: {seed: 3}\n", override), part)


def test_an_override_may_fill_an_empty_section(tmp_path: Path) -> None:
    assert load_recipe(_file(tmp_path, "data:\n"), ["data.augment.rotate=3"]).data.augment.rotate == 3.0


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("gtsrb_roadwrk", ("gtsrb_roadwrk", "did you mean 'gtsrb_roadwork'?", "natix-hf recipes")),
        ("zzzzzz", ("zzzzzz", "natix-hf recipes")),
        ("nowhere/my.yaml", ("nowhere/my.yaml",)),
        ("my.yml", ("my.yml",)),
    ],
)
def test_a_recipe_that_does_not_exist(reference: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(reference)
    assert tells(caught.value, *parts)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(RecipeError, match=r"my\.yaml cannot be read"):
        load_recipe(str(path))


@pytest.mark.parametrize("path", packaged_recipes(), ids=lambda p: p.stem)
def test_every_packaged_recipe_loads(path: Path) -> None:
    recipe = load_recipe(path.stem)
    assert recipe.name == path.stem
    assert recipe.phases
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ") and len(first) > 20  # `natix-hf recipes` shows this line


def test_the_hash_follows_the_settings_not_the_place(tmp_path: Path, parquet_source: Path) -> None:
    import shutil

    def sha256(source: Path, **changed: Any) -> str:
        content = {**TINY_RECIPE, "data": {**TINY_RECIPE["data"], "source": str(source), **changed}}
        return load_recipe(str(write_recipe(tmp_path / "r.yaml", content))).section_sha256("data")

    moved = Path(shutil.copytree(parquet_source, tmp_path / "elsewhere"))
    assert sha256(parquet_source) == sha256(moved)
    assert sha256(parquet_source, seed=1) != sha256(parquet_source)
    file = next(moved.rglob("*.parquet"))
    file.write_bytes(file.read_bytes() + b"x")
    assert sha256(parquet_source) != sha256(moved)


def test_a_further_source_counts_with_what_it_holds(tmp_path: Path) -> None:
    digests = []
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text, encoding="utf-8")
        digests.append(parse_recipe({"phase4": {"unlabelled": [str(tmp_path / name)]}}).section_sha256("phase4"))
    assert digests[0] == digests[1] != digests[2]

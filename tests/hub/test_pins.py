"""A dataset and a backbone from the Hub: pinned by commit at first sight, the same for every phase, in manifest and
card, and later commits of theirs change nothing in the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_RECIPE, explora_recipe, refused, tiny_backbone, write_parquet_source, write_recipe
from local_hub import LocalHub

from natix_hf.errors import UsageError
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.hub import hub_origin, is_repo_id, is_tag
from natix_hf.results import decision

DATA, BACKBONE, FRAMES = "lab/streets", "lab/backbone", "lab/frames"


def manifest(run: Path, folder: str) -> dict[str, Any]:
    return dict(json.loads((run / folder / "manifest.json").read_text(encoding="utf-8")))


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def commits(hub: LocalHub, parquet_source: Path, tmp_path: Path) -> dict[str, str]:
    tiny_backbone("dinov2", layers=2).save_pretrained(tmp_path / "backbone")
    card = b"---\nlicense: cc-by-4.0\n---\n# streets\n"
    return {
        "data": hub.create(DATA, {**content_of(parquet_source), "README.md": card}, kind="dataset"),
        "model": hub.create(BACKBONE, {**content_of(tmp_path / "backbone"), "README.md": b"---\nlicense: mit\n---\n"}),
    }


@pytest.fixture
def recipe(tmp_path: Path, commits: dict[str, str]) -> str:
    content = {
        **TINY_RECIPE,
        "data": {**TINY_RECIPE["data"], "source": DATA},
        "model": {"backbone": BACKBONE, "image_size": 28},
        "phase1": {**TINY_RECIPE["phase1"], "num_train_epochs": 1, "adapter": "none"},
    }
    return str(write_recipe(tmp_path / "hub.yaml", content))


def test_the_first_sight_counts(hub: LocalHub, commits: dict[str, str], recipe: str, tmp_path: Path) -> None:
    run = run_recipe(recipe, [1], tmp_path / "run")
    assert manifest(run, "phase0_data")["hub"] == {
        "data": {"repo": DATA, "commit": commits["data"], "license": "cc-by-4.0"}
    }
    assert manifest(run, "phase1_baseline")["hub"] == {
        "model": {"repo": BACKBONE, "commit": commits["model"], "license": "mit"}
    }
    # Both move: another dataset, weights that nobody can load. The run goes on with what it began with.
    other = write_parquet_source(tmp_path / "other", groups=12, seed=7)
    hub.commit(DATA, content_of(other), kind="dataset")
    bert = b'{"model_type": "bert"}'
    hub.commit(BACKBONE, {"model.safetensors": b"x", "config.json": bert, "preprocessor_config.json": b"{"})
    with refused(UsageError, "model.backbone", "bert"):
        run_recipe(recipe, [1], tmp_path / "new")
    weights = (run / "phase1_baseline" / "model" / "model.safetensors").read_bytes()
    run_recipe(recipe, [1, 2, 6], run)
    assert (run / "phase1_baseline" / "model" / "model.safetensors").read_bytes() == weights
    run_recipe(recipe, [1, 2], run, overrides=["phase1.num_train_epochs=2"])  # trains again, from the same backbone
    assert manifest(run, "phase1_baseline")["hub"]["model"]["commit"] == commits["model"]
    run_recipe(recipe, [6], run)
    bundle = run / "phase6_export" / "bundle"
    lineage = json.loads((bundle / "bundle_manifest.json").read_text(encoding="utf-8"))["lineage"]
    assert lineage["hub"]["dataset"]["commit"] == commits["data"]
    assert lineage["hub"]["backbone"]["commit"] == commits["model"]
    card = (bundle / "README.md").read_text(encoding="utf-8")
    for facts in ((BACKBONE, commits["model"]), (DATA, commits["data"]), ("cc-by-4.0",), ("backbone", "mit")):
        assert any(all(fact in line for fact in facts) for line in card.splitlines()), facts
    head = card.split("---\n")[1]
    assert f"base_model: {BACKBONE}" in head and DATA in head


def test_another_revision_is_another_pin(hub: LocalHub, commits: dict[str, str], recipe: str, tmp_path: Path) -> None:
    """In the same run, of the same repositories: what was pinned for the one says nothing of the other."""
    run = run_recipe(recipe, [1], tmp_path / "run")
    hub.repo(BACKBONE).tags["v2"] = hub.commit(BACKBONE, {"notes.txt": b"x"})
    hub.repo(DATA, "dataset").tags["v2"] = hub.commit(DATA, {"notes.txt": b"x"}, kind="dataset")
    run_recipe(recipe, [1], run, overrides=["model.revision=v2", "data.revision=v2"])
    for folder, section in (("phase0_data", "data"), ("phase1_baseline", "model")):
        of = {"data": hub.repo(DATA, "dataset"), "model": hub.repo(BACKBONE)}[section]
        assert manifest(run, folder)["hub"][section]["commit"] == of.tags["v2"] != commits[section]
    run_recipe(recipe, [1], run)  # and back
    assert manifest(run, "phase1_baseline")["hub"]["model"]["commit"] == commits["model"]
    # A new run sees what is there now, and a commit is as good as a tag.
    hub.commit(DATA, content_of(write_parquet_source(tmp_path / "other", groups=12, seed=7)), kind="dataset")
    later = run_recipe(recipe, [1], tmp_path / "later", overrides=[f"model.revision={commits['model']}"])
    assert manifest(later, "phase1_baseline")["hub"]["model"]["commit"] == commits["model"]
    assert manifest(later, "phase0_data")["hub"]["data"]["commit"] == hub.repo(DATA).at("main").sha
    with refused(UsageError, DATA):
        run_recipe(recipe, [1], tmp_path / "none", overrides=["data.revision=no-such-branch"])


def test_further_images_are_pinned_and_named_with_the_control(
    hub: LocalHub, commits: dict[str, str], parquet_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sources of phase 4, too; and the card of a model that comes from there says what it gained."""
    frames = {"README.md": b"---\nlicense: [mit, cc-by-4.0]\n---\n"}
    frames |= content_of(write_parquet_source(tmp_path / "frames", groups=6, seed=9))
    first = hub.create(FRAMES, frames, kind="dataset")
    recipe = explora_recipe(tmp_path, parquet_source, None)
    options = [f"model={{backbone: {BACKBONE}, image_size: 28}}", f"phase4.unlabelled=[{FRAMES}]"]
    real, low = decision.paired_difference, {"low": 1}
    monkeypatch.setattr(decision, "paired_difference", lambda *args, **named: real(*args, **named) | low)
    monkeypatch.setattr(decision, "paired_bounds", lambda low, high, *rows: (low, high, None))  # three groups a class
    run = run_recipe(recipe, [1, 4, 2, 6], tmp_path / "run", overrides=options)
    pinned = {"repo": FRAMES, "commit": first, "license": "mit, cc-by-4.0"}
    before = manifest(run, "phase4_explora")
    assert before["hub"]["unlabelled"] == {FRAMES: pinned} and before["hub"]["model"]["commit"] == commits["model"]
    card = (run / "phase6_export" / "bundle" / "README.md").read_text(encoding="utf-8")
    lineage = json.loads((run / "phase6_export" / "bundle" / "bundle_manifest.json").read_text(encoding="utf-8"))
    assert lineage["lineage"]["hub"]["unlabelled"] == [pinned]
    for facts in ((FRAMES, first), (FRAMES, "mit, cc-by-4.0")):
        assert any(all(fact in line for fact in facts) for line in card.splitlines()), facts
    assert f"datasets:\n- {FRAMES}" in card.split("---\n")[1]
    control = before["metrics"]["against_control"]
    mcc = [control[name] for name in ("val_select_mcc_optimistic", "control_mcc_optimistic")]
    assert all(f"{figure:.3f}" in card for figure in mcc)
    # More of them later: the run goes on with those that it began with.
    hub.commit(FRAMES, content_of(write_parquet_source(tmp_path / "more", groups=9, seed=8)), kind="dataset")
    run_recipe(recipe, [4], run, overrides=[*options, "phase4.max_steps=3"])
    after = manifest(run, "phase4_explora")
    assert after["hub"]["unlabelled"] == {FRAMES: pinned}
    assert after["files"]["unlabelled.json"] == before["files"]["unlabelled.json"]
    # Where the baseline stays, the card says so.
    low["low"] = -1
    run_recipe(recipe, [2, 6], run, overrides=[*options, "phase4.max_steps=3"])
    card = (run / "phase6_export" / "bundle" / "README.md").read_text(encoding="utf-8")
    assert "phase4_explora" in card and FRAMES not in card


def test_generated_pictures_are_pinned(hub: LocalHub, recipe: str, tmp_path: Path) -> None:
    """The synthetic half of the exam, too: later pictures of its repository change nothing in the run."""
    generated = content_of(write_parquet_source(tmp_path / "frames", groups=6, seed=9))
    first = hub.create(FRAMES, generated, kind="dataset")
    options = ["data.exam=true", f"data.synthetic_half={FRAMES}"]
    run = run_recipe(recipe, [1, 2, 6], tmp_path / "run", overrides=options)
    hub.commit(FRAMES, content_of(write_parquet_source(tmp_path / "more", groups=9, seed=8)), kind="dataset")
    facts = [json.loads((run / "phase6_export" / "synthetic_half.json").read_text(encoding="utf-8"))]
    run_recipe(recipe, [6], run, overrides=[*options, "phase6.n_resamples=150"])
    facts.append(json.loads((run / "phase6_export" / "synthetic_half.json").read_text(encoding="utf-8")))
    assert facts[0] == facts[1] and (facts[0]["source"], facts[0]["rows"]) == (FRAMES, 18)
    assert manifest(run, "phase6_export")["hub"]["synthetic_half"][FRAMES]["commit"] == first


def test_a_run_goes_on_without_the_hub(hub: LocalHub, commits: dict[str, str], recipe: str, tmp_path: Path) -> None:
    run = run_recipe(recipe, [1], tmp_path / "run")
    hub.stop()
    run_recipe(recipe, [2, 6], run)
    for revision in (None, commits["model"]):  # what the cache knows
        origin = {"repo": BACKBONE, "commit": commits["model"], "license": None}
        assert hub_origin(BACKBONE, "model", revision) == origin
    unknown = {"repo": BACKBONE, "commit": None, "license": None}
    assert hub_origin(BACKBONE, "model", "no-such-branch") == unknown
    assert hub_origin("lab/never-seen", "model") == {"repo": "lab/never-seen", "commit": None, "license": None}


def test_a_repository_without_a_card_states_no_licence(hub: LocalHub) -> None:
    commit = hub.create(BACKBONE, {"config.json": b"{}"})
    assert hub_origin(BACKBONE, "model") == {"repo": BACKBONE, "commit": commit, "license": None}


def test_code_that_a_backbone_names_stays_behind(
    hub: LocalHub, commits: dict[str, str], recipe: str, tmp_path: Path
) -> None:
    """transformers knows the architecture and needs none; left in the config, it would end the run in phase 6."""
    config = json.loads(hub.files(BACKBONE)["config.json"])
    code = {"auto_map": {"AutoModel": "modeling.Model"}, "custom_pipelines": {"x": {"impl": "pipe.Pipe"}}}
    hub.commit(BACKBONE, {"config.json": json.dumps(config | code).encode(), "modeling.py": b"raise SystemExit"})
    run = run_recipe(recipe, [1, 2, 6], tmp_path / "run")
    for folder in (run / "phase1_baseline" / "model", run / "phase6_export" / "bundle"):
        assert not set(code) & set(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def test_names() -> None:
    good = ("natix-network-org/roadwork", "a/b", "facebook/dinov2-base", "a.b/c_d", "A1/b-2.x")
    bad = ("", "a", "a/", "/b", "a/b/c", "a/..", "../b", "a b/c", "a--b/c", "./a", "a/b.git", "-a/b", "a/b-", "a" * 97)
    bad += ("a/b..c", f"a/{'b' * 95}")
    assert all(map(is_repo_id, good)) and not any(map(is_repo_id, bad))
    assert all(map(is_tag, ("v1.0.0", "a", "2026-11-24")))
    assert not any(map(is_tag, ("", "a b", "a..b", "-a", "a/b", "a.")))


@pytest.mark.parametrize(
    ("files", "facts"),
    [
        ({"config.json": b'{"architecture": "vit_base_patch14_dinov2"}'}, ["timm", "facebook/dinov2-base"]),
        ({"adapter_config.json": b'{"base_model_name_or_path": "org/base"}'}, ["adapter of org/base"]),
        ({"config.json": b'{"model_type": "dinov2"}', "pytorch_model.bin": b""}, ["pytorch_model.bin", "safetensors"]),
        ({"README.md": b"# nothing"}, ["config.json", "model.safetensors"]),
    ],
)
def test_a_repository_without_a_backbone_is_refused_before_any_work(
    files: dict[str, bytes], facts: list[str], hub: LocalHub, parquet_source: Path, tmp_path: Path
) -> None:
    hub.create("lab/other", files)
    recipe = explora_recipe(tmp_path, parquet_source, None)
    options = ["model={backbone: lab/other, image_size: 28}"]
    with refused(UsageError, "model.backbone", "lab/other", *facts):
        run_recipe(recipe, [1], tmp_path / "run", overrides=options)
    assert not (tmp_path / "run").exists()

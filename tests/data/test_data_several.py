"""Several sources in one run: what each key of a source does, and what is checked across all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command, striped_image, write_parquet_source, write_recipe
from facts import tells
from refusals import refused

from natix_hf.data.config import DataConfig
from natix_hf.data.reading import reading_facts, reading_of
from natix_hf.data.rows import load_image_data
from natix_hf.data.sampler import EpochSampler, rows_of_an_epoch
from natix_hf.data.sources import load_source
from natix_hf.errors import DataError, RecipeError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hf_datasets")


def folder(path: Path, counts: dict[str, int], seed: int) -> str:
    """Class folders; the picture itself shows stripes for every class but `none`."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (path / name).mkdir(parents=True)
        for i in range(count):
            striped_image(int(name != "none"), rng).save(path / name / f"{i}.png")
    return str(path)


@pytest.fixture
def main(tmp_path: Path) -> str:
    return folder(tmp_path / "city", {"none": 30, "roadwork": 30}, 0)


def load(*sources: Any, **keys: Any) -> Any:
    return load_image_data(DataConfig(source=list(sources), **keys))


def test_every_key_of_a_source(main: str, tmp_path: Path) -> None:
    """source, name, role, label, share, image_column, label_column, positive_class, exclude_classes, group_by,
    label_rule, revision and config."""
    hard = folder(tmp_path / "hard", {"": 10}, 1)
    mixed = folder(tmp_path / "mixed", {"cones": 5, "street": 6, "unsure": 7}, 2)
    parquet = str(write_parquet_source(tmp_path / "hub", groups=10, frames=2, seed=3))
    data = load(
        main,
        {"source": hard, "name": "negatives", "role": "train", "label": "no", "share": 0.1},
        {"source": mixed, "positive_class": "cones", "exclude_classes": ["unsure"]},
        {"source": parquet, "group_by": "video_info.vid_id", "label_rule": "scene_description"},
    )
    by_source = {name: [i for i, other in enumerate(data.rows.origins) if other == name] for name in data.rows.origins}
    assert {name: len(at) for name, at in by_source.items()} == {"city": 60, "negatives": 10, "mixed": 18, "hub": 20}
    assert data.rows.ids[by_source["negatives"][0]] == "negatives:0.png"
    assert set(data.rows.labels[by_source["negatives"]]) == {0}
    assert data.rows.labels[by_source["mixed"]].tolist() == [1] * 5 + [0] * 6 + [-1] * 7
    roles = dict(zip(data.splits.ids, data.splits.roles, strict=True))
    assert {roles[data.rows.ids[i]] for i in by_source["negatives"]} == {"train"}
    assert {row["id"].split(":")[0] for row in data.splits.dropped} == {"mixed"}
    groups = {data.rows.groups[i] for i in by_source["hub"]}
    assert len(groups) == 10 and all(group.startswith("hub:train-") for group in groups)
    assert data.role("train").shares == {"negatives": 0.1}
    reading = reading_of(data)
    assert reading["sources"] == {"city": 60, "negatives": 10, "mixed": 11, "hub": 20}
    assert reading["groups"] == {"count": 60 + 10 + 11 + 10, "from": "none"}, "most rows have no group"
    assert tells(dict(reading_facts(reading))["groups"], "some sources only", 91)
    assert reading["splits"]["test"]["from"] == "divided by group"
    other = DataConfig(source=[main, {"source": parquet, "image_column": "photo"}])
    refused(DataError, lambda: load_source(other), "hub", "'photo'")
    refused(DataError, lambda: load_source(DataConfig(source=[{"source": parquet, "label_column": "y"}])), "'y'")
    refused(DataError, lambda: load_source(DataConfig(source=[{"source": main, "revision": "v1"}])), "revision")
    refused(DataError, lambda: load_source(DataConfig(source=[{"source": main, "config": "all"}])), "data.config")


def test_a_source_takes_the_keys_of_data_unless_it_has_its_own() -> None:
    config = DataConfig(
        source=["a/photos", {"source": "b/photos", "label_column": "own"}, {"source": "c/photos", "name": "c"}],
        label_column="y", positive_class="yes", revision="main",
    )  # fmt: skip
    assert [s.name for s in config.sources] == ["photos", "photos-2", "c"]
    assert [s.label_column for s in config.sources] == ["y", "own", "y"]
    assert {s.positive_class for s in config.sources} == {"yes"} and {s.revision for s in config.sources} == {None}
    assert DataConfig.build(config.mapping()) == config
    assert DataConfig(source="org/set", revision="v").sources[0].revision == "v"


def test_overlap_and_contradiction_are_looked_for_across_sources(main: str, tmp_path: Path) -> None:
    """A training source repeats three pictures of the first one: one with the same label, two with the other."""
    again = tmp_path / "again"
    (again / "none").mkdir(parents=True)
    (again / "roadwork").mkdir()
    first = load(main, main.replace("city", "city"))  # the same pictures twice: no contradiction, only overlaps
    assert first.splits.dropped and not any("both" in row["reason"] for row in first.splits.dropped)
    test = next(i.split(":")[1] for i in first.splits.ids_of("test") if i.startswith("city:roadwork"))
    pictures = sorted((tmp_path / "city" / "none").iterdir())[:2]
    for i, path in enumerate(pictures):
        (again / "roadwork" / f"{i}.png").write_bytes(path.read_bytes())
    (again / "roadwork" / "t.png").write_bytes((tmp_path / "city" / test).read_bytes())
    (again / "none" / "new.png").write_bytes((tmp_path / "city" / "none" / "9.png").read_bytes())
    data = load(main, {"source": str(again), "role": "train"})
    both = {row["id"] for row in data.splits.dropped if "both labels" in row["reason"]}
    assert both == {f"again:roadwork/{i}.png" for i in range(2)} | {f"city:none/{path.name}" for path in pictures}
    assert reading_of(data)["contradictions"] == 2


def test_a_source_without_splits_of_its_own_is_divided_beside_one_that_has_some(main: str, tmp_path: Path) -> None:
    """Each role has rows of both, and the split of the one keeps its rows."""
    own = write_parquet_source(tmp_path / "own", groups=24, frames=1, official_test=6, seed=9)
    data = load(main, str(own))
    roles = dict(zip(data.splits.ids, data.splits.roles, strict=True))
    assert {row_id for row_id, role in roles.items() if role == "test" and row_id.startswith("own:")} == {
        f"own:test/{i}" for i in range(6)
    }
    counts = {role: sum(r == role and i.startswith("city:") for i, r in roles.items()) for role in roles.values()}
    assert (counts["train"], counts["val_select"] + counts["val_calib"], counts["test"]) == (36, 18, 6)


def test_a_list_that_cannot_be_right_is_refused(main: str, tmp_path: Path) -> None:
    only = folder(tmp_path / "only", {"roadwork": 4}, 5)
    refused(DataError, lambda: load_source(DataConfig(source=[only, only])), "one class only", "roadwork (8)")
    for source, facts in (
        ([], ["data.source"]),
        ([{"source": main, "role": "train"}], ["data.source", "role: train"]),
        ([{"source": main, "share": 0.2}, {"source": "b", "share": 0.3}], ["data.source", "share"]),
        ([{"source": main, "share": 1.5}], ["data.source.share", "1.5"]),
        ([{"source": main, "rol": "train"}], ["rol", "role"]),
        ([{"source": main, "name": "x"}, {"source": "b", "name": "x"}], ["data.source", "'x'"]),
        ([{"source": main, "group_by": "near_duplicates"}], ["group_by", "near_duplicates", "data.group_by"]),
        ([3], ["data.source", "3"]),
    ):
        refused(RecipeError, lambda s=source: DataConfig.build({"source": s}, "data"), *facts)


@pytest.mark.parametrize("prior", [None, 0.5])
def test_a_share_bounds_an_epoch_and_every_row_has_its_turn(prior: float | None) -> None:
    rng = np.random.default_rng(0)
    origins = np.array(["own"] * 60 + ["far"] * 200 + ["rare"] * 3)
    labels = rng.integers(0, 2, len(origins))
    sampler = EpochSampler(labels, 3, prior, origins.tolist(), {"far": 0.25, "rare": 0.5})
    far: list[int] = []
    for epoch in range(10):
        sampler.set_epoch(epoch)
        drawn = [row for _, row in sampler]
        assert len(drawn) == len(sampler) == 84, "60 + 3 rows, and 21 that are a quarter of 84"
        assert sampler.epoch == epoch and drawn == [row for _, row in sampler]
        counts = {name: int((origins[drawn] == name).sum()) for name in ("own", "far", "rare")}
        assert counts["far"] <= 21 and counts["rare"] <= 42, "the share holds where a prior repeats rows"
        if prior is None:
            assert counts == {"own": 60, "far": 21, "rare": 3}
            far += [row for row in drawn if origins[row] == "far"]
    if prior is None:
        assert len(set(far)) == 200 and max(far.count(row) for row in set(far)) == 2, "210 draws of 200 rows"


def test_a_prior_is_met_within_the_share_of_a_one_sided_source() -> None:
    """100 yes and 20 no of one's own beside 100 hard negatives, of which a fifth of an epoch may come."""
    origins, labels = np.array(["own"] * 120 + ["far"] * 100), np.array([1] * 100 + [0] * 120)
    drawn = [row for _, row in EpochSampler(labels, 0, 0.5, origins.tolist(), {"far": 0.2})]
    assert len(drawn) == 150 and sum(labels[drawn]) == 75, "the prior is met exactly"
    assert sum(origins[drawn] == "far") == 30, "a fifth of 150"
    counts = np.bincount(drawn, minlength=220)[100:120]
    assert counts.min() >= 2 and counts.max() - counts.min() <= 1, "one's own negatives fill the rest, all as often"
    only = np.array([1] * 120 + [0] * 100)
    refused(
        DataError, lambda: EpochSampler(only, 0, 0.5, origins.tolist(), {"far": 0.2}),
        "data.target_prior", "label 0", 75, 30, "share", "far",
    )  # fmt: skip


def test_shares_hold_for_the_epoch_that_they_make() -> None:
    """Against a search over all sizes of an epoch."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        sizes = {name: int(rng.integers(1, 40)) for name in "abc"}
        shares = {name: float(rng.choice([0.1, 0.3, 0.5, 0.9])) for name in "ab"}
        origins = np.repeat(list(sizes), list(sizes.values()))
        found = rows_of_an_epoch(origins, shares)
        fits = [
            {"a": a, "b": b}
            for a in range(sizes["a"] + 1)
            for b in range(sizes["b"] + 1)
            if all(n <= shares[k] * (a + b + sizes["c"]) + 1e-9 for k, n in (("a", a), ("b", b)))
        ]
        assert found in fits
        assert sum(found.values()) == max(sum(fit.values()) for fit in fits), "no more rows than needed are left out"


def test_a_source_that_is_never_measured_on_needs_no_groups(main: str, tmp_path: Path) -> None:
    hard = folder(tmp_path / "hard", {"": 10}, 1)
    measured = {"source": main, "group_by": {"pattern": "[^/]+$"}}
    data = load(measured, {"source": hard, "role": "train", "label": "no"})
    assert reading_of(data)["groups"]["from"] == "pattern" and data.config.groups_known
    data = load(measured, {"source": hard, "label": "no"})
    assert reading_of(data)["groups"]["from"] == "none" and not data.config.groups_known


def test_inspect_reads_all_sources_of_a_recipe(main: str, tmp_path: Path, command: Command) -> None:
    hard = folder(tmp_path / "hard", {"": 10}, 1)
    sources = [main, {"source": hard, "role": "train", "label": "no"}]
    recipe = write_recipe(tmp_path / "mine.yaml", {"data": {"source": sources}, "phase1": {"adapter": "lora"}})
    code, output, _ = command("inspect", recipe, "data.seed=3", "--json")
    read = json.loads(output)
    assert code == 0 and read["sources"] == {"city": 60, "hard": 10} and read["files"]["found"] == 70
    assert read["splits"]["train"]["0"] == 18 + 10
    code, output, errors = command("inspect", main, "data.source=[a, b]")
    assert (code, output) == (2, "") and tells(errors.strip(), "data.source", main, "inspect RECIPE.yaml")
    code, output, errors = command("inspect", write_recipe(tmp_path / "none.yaml", {"data": {"source": None}}))
    assert (code, output) == (2, "") and tells(errors.strip(), "none.yaml", "data.source", "no labelled images")

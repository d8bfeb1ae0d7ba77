"""Soups: models that share a start, one plain model of them among the candidates, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bundles import redescribe
from conftest import TINY_RECIPE, write_parquet_source, write_recipe
from facts import tells
from refusals import refused
from safetensors.numpy import load_file

from natix_hf.bundle.load import load_bundle
from natix_hf.data.asked import ask
from natix_hf.data.splits import Splits
from natix_hf.errors import RecipeError, RunError, UsageError
from natix_hf.models.classifier import build_classifier, load_classifier
from natix_hf.phases import phase1_seeds, phase2_soup
from natix_hf.phases.phase2_soup import _members
from natix_hf.pipeline import run_recipe
from natix_hf.recipe import load_recipe, parse_recipe
from natix_hf.results import answers
from natix_hf.results.candidate import Candidate
from natix_hf.results.decision import Decision
from natix_hf.results.soup import Soup
from natix_hf.runs.graph import PHASES
from natix_hf.runs.seen import seen_of
from natix_hf.runs.trained import Trained, trained_models
from natix_hf.runs.verify import run_problems

SEEDS = ["phase1.seeds=3"]
PHASE1, PHASE2 = "phase1_baseline", "phase2_threshold"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    source = write_parquet_source(tmp_path_factory.mktemp("soup"), groups=120, frames=1, seed=4, unclear=6)
    content = TINY_RECIPE | {"data": TINY_RECIPE["data"] | {"source": str(source)}}
    return str(write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml", content))


@pytest.fixture(scope="module")
def baked(recipe: str, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phase 1 with three seeds, on a pretrained backbone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATIX_HF_CACHE", str(tmp_path_factory.mktemp("cache")))
        return run_recipe(recipe, [1], tmp_path_factory.mktemp("runs") / "baked", overrides=_on(pretrained, SEEDS))


def _on(pretrained: Path, overrides: list[str]) -> list[str]:
    return [f"model.backbone={pretrained}", "model.config={}", *overrides]


@pytest.fixture
def again(baked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(baked, tmp_path / "again"))


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def soup_of(run: Path) -> Soup:
    soup = Decision.read(run / PHASE2).soup
    assert soup is not None
    return soup


def weights(run: Path, name: str) -> dict[str, np.ndarray]:
    return load_file(run / name / "model" / "model.safetensors")


def assert_mean(found: dict[str, np.ndarray], parts: list[tuple[dict[str, np.ndarray], float]]) -> None:
    for name, tensor in found.items():
        mean = sum(part[name].astype(np.float64) * share for part, share in parts) / sum(share for _, share in parts)
        np.testing.assert_array_equal(tensor, mean.astype(np.float32), err_msg=name)


def test_further_seeds_share_the_start(
    again: Path, recipe: str, pretrained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The baseline is what phase 1 leaves alone; seed 44 is what its seed makes of the baseline's start; and seeds
    that are asked for later train nothing but themselves."""
    trained: list[int] = []
    real = answers.train_classifier

    def train(model: Any, processor: Any, rows: Any, asked: Any, config: Any, *rest: Any, **kwargs: Any) -> Any:
        trained.append(config.seed)
        return real(model, processor, rows, asked, config, *rest, **kwargs)

    monkeypatch.setattr(answers, "train_classifier", train)
    alone = run_recipe(recipe, [1], tmp_path / "alone", overrides=_on(pretrained, []))
    names = [PHASE1, *(f"{PHASE1}/members/seed-{seed}" for seed in (43, 44))]
    assert [one.name for one in trained_models(again)] == names
    hashes = [Candidate(again / name).sha256 for name in names]
    assert Candidate(alone / PHASE1).sha256 == hashes[0] and len(set(hashes)) == 3
    assert len({one.start_sha256 for one in trained_models(again)}) == 1
    run_recipe(recipe, [1], alone, overrides=_on(pretrained, SEEDS))
    assert [Candidate(alone / name).sha256 for name in names] == hashes and trained == [42, 43, 44]
    run_recipe(recipe, [1], alone, overrides=_on(pretrained, ["phase1.seeds=2"]))
    assert trained == [42, 43, 44] and [one.name for one in trained_models(alone)] == names[:2]
    # The same, by hand: the start of seed 42, and all else of seed 44.
    first = lambda model, seed, labels, keep_head: build_classifier(model, 42, labels, keep_head)  # noqa: E731
    monkeypatch.setattr(answers, "start_of_training", first)
    run = run_recipe(recipe, [1], tmp_path / "by hand", overrides=_on(pretrained, ["phase1.seed=44"]))
    assert Candidate(run / PHASE1).sha256 == hashes[2]
    members = read(again / PHASE1 / "manifest.json")["metrics"]["members"]
    assert [(one["name"], one["seed"]) for one in members] == [("seed-43", 43), ("seed-44", 44)]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupted_run_goes_on_with_the_next_seed(
    after: int, again: Path, recipe: str, pretrained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real, trained = answers.train_classifier, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if len(trained) == after:
            raise RunError("the power is gone")
        trained.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(answers, "train_classifier", interrupted)
    settings = _on(pretrained, SEEDS)
    refused(RunError, lambda: run_recipe(recipe, [1], tmp_path / "run", overrides=settings), "power")
    monkeypatch.setattr(answers, "train_classifier", lambda *a, **k: trained.append(1) or real(*a, **k))
    run = run_recipe(recipe, [1], tmp_path / "run", overrides=settings)
    assert len(trained) == 3 and run_problems(run) == []
    for name in ("model/model.safetensors", "logits/val_select.parquet", "history.json"):
        for member in ("", "members/seed-43/", "members/seed-44/"):
            assert (run / PHASE1 / member / name).read_bytes() == (again / PHASE1 / member / name).read_bytes()


def test_a_baseline_without_a_start_is_trained_again(
    again: Path, recipe: str, pretrained: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """An older version recorded none: nothing would show that the seeds began where it did."""
    report = again / PHASE1 / "baseline.json"
    content = read(report)
    start = content.pop("start_sha256")
    report.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    manifest = read(again / PHASE1 / "manifest.json")
    del manifest["metrics"]["start_sha256"]
    (again / PHASE1 / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    redescribe(again)
    wise = _on(pretrained, [*SEEDS, "phase2.soup=wise"])
    refused(UsageError, lambda: run_recipe(recipe, [2], again, overrides=wise), "phase2.soup", PHASE1, "start")
    capsys.readouterr()
    run_recipe(recipe, [1], again, overrides=_on(pretrained, ["phase1.seeds=2"]))
    assert "trained again" in capsys.readouterr().out
    assert {one.start_sha256 for one in trained_models(again)} == {start}


@pytest.mark.parametrize("kind", ["uniform", "greedy"])
def test_a_soup_is_the_mean_of_its_members(
    kind: str, again: Path, recipe: str, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_recipe(recipe, [2], again, overrides=_on(pretrained, [*SEEDS, f"phase2.soup={kind}"]))
    soup, decision = soup_of(again), Decision.read(again / PHASE2)
    taken = [(weights(again, member.name), 1) for member in soup.taken]
    assert_mean(weights(again, f"{PHASE2}/soup"), taken)
    assert len(taken) == 3 if kind == "uniform" else soup.score >= max(member.score for member in soup.members)
    assert sum(member.weight for member in soup.members) == pytest.approx(1) and len(soup.members) == 3
    table = Candidate(again / PHASE2 / "soup").stored_logits("val_select", None)
    assert table.ids == Candidate(again / PHASE1).stored_logits("val_select", None).ids
    assert [row.challenger for row in decision.comparisons] == ["soup"] and run_problems(again) == []
    run_recipe(recipe, [2], again, overrides=_on(pretrained, SEEDS))  # no soup any more
    assert not (again / PHASE2 / "soup").exists() and Decision.read(again / PHASE2).soup is None


def test_wise_lies_between_the_start_and_the_champion(again: Path, recipe: str, pretrained: Path) -> None:
    overrides = _on(pretrained, [*SEEDS, "phase2.soup=wise", "phase2.objective=balanced_accuracy"])
    run_recipe(recipe, [2], again, overrides=overrides)
    soup = soup_of(again)
    [member] = soup.members
    assert member.name == PHASE1 and soup.score >= member.score
    start = build_classifier(load_recipe(recipe, overrides).model, 42)
    trained, found = load_classifier(again / PHASE1 / "model"), load_classifier(again / PHASE2 / "soup" / "model")
    for (name, tensor), a, b in zip(
        found.state_dict().items(), start.state_dict().values(), trained.state_dict().values(), strict=True
    ):
        share = 1.0 if name.startswith("classifier.") else member.weight
        mean = (a.double() * round(10 - 10 * share) + b.double() * round(10 * share)) / 10
        assert torch.equal(tensor, mean.float()), name
    noted: list[str] = []
    assert run_problems(again, noted.append) == [] and any("start" in line for line in noted)


def test_another_start_is_refused(again: Path, recipe: str, pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If what is built now is not what the training began with, nothing lies between them."""
    other = lambda model, *rest, keep_head: build_classifier(model, 5)  # noqa: E731
    monkeypatch.setattr(phase2_soup, "start_of_training", other)
    wise = _on(pretrained, [*SEEDS, "phase2.soup=wise"])
    refused(UsageError, lambda: run_recipe(recipe, [2], again, overrides=wise), "phase2.soup", PHASE1, "start")


@pytest.fixture(scope="module")
def winner(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose soup wins: the baseline and the other seed have opposite noise, which their mean has not. Each seed
    trains alike, so that but for the noise they are one model."""
    real_save, real_train = answers.save_candidate, answers.train_classifier

    def noisy(folder: Path, model: Any, processor: Any) -> Candidate:
        sign, generator = (1 if folder.name == PHASE1 else -1), torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += sign * torch.randn(parameter.shape, generator=generator) * 0.5
        return real_save(folder, model, processor)

    def alike(model: Any, processor: Any, rows: Any, asked: Any, config: Any, *rest: Any, **kwargs: Any) -> Any:
        from dataclasses import replace

        return real_train(model, processor, rows, asked, replace(config, seed=42), *rest, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATIX_HF_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(answers, "save_candidate", noisy)
        patch.setattr(answers, "train_classifier", alike)
        settings = ["phase1.seeds=2", "phase1.folds=2", "phase1.keep_folds=true", "phase2.soup=greedy"]
        settings += ["phase2.from=out_of_fold", "phase5.risk.alpha=0.6", "phase5.risk.delta=0.3"]
        return run_recipe(recipe, [1, 2, 3, 5, 6], tmp_path_factory.mktemp("runs") / "winner", overrides=settings)


def test_a_soup_that_wins_goes_all_the_way(winner: Path) -> None:
    decision, soup = Decision.read(winner / PHASE2), soup_of(winner)
    candidate = Candidate(winner / PHASE2 / "soup")
    assert decision.champion == "soup" and decision.candidate_sha256 == candidate.sha256
    assert decision.fitted_to == "val_select", "the out-of-fold answers are those of phase 1"
    names = {member.name.rpartition("/")[2] for member in soup.members}
    assert names == {PHASE1, "seed-43", "fold-1", "fold-2"} and soup.like == PHASE1
    bundle = load_bundle(winner)
    assert bundle.policy.candidate_sha256 == candidate.sha256
    assert run_problems(winner) == []
    for text in (
        (winner / "phase6_export" / "bundle" / "README.md").read_text(encoding="utf-8"),
        (winner / "report.html").read_text(encoding="utf-8"),
    ):
        assert soup.told in text and "optimistic" in text and f"{soup.score:.3f}" in text
        assert all(f"{member.score:.3f}" in text and member.candidate_sha256[:12] in text for member in soup.members)
    lineage = read(winner / "phase6_export" / "bundle" / "bundle_manifest.json")["lineage"]
    assert lineage["champion"] == "soup" and PHASE1 in lineage["phases"]
    inputs = read(winner / "phase6_export" / "manifest.json")["inputs"]
    assert f"{PHASE2}/soup/model/model.safetensors" in inputs


def test_its_answers_are_those_of_the_mean(winner: Path, recipe: str) -> None:
    """Against a model that holds the mean of the members, which never was on disk."""
    from natix_hf.bundle.inference import torch_forward
    from natix_hf.data.rows import load_image_data
    from natix_hf.data.splits import read_splits
    from natix_hf.models.preprocess import Preprocess, load_processor

    soup, folder = soup_of(winner), winner / PHASE2 / "soup" / "model"
    states = [load_classifier(winner / member.name / "model").state_dict() for member in soup.taken]
    model = load_classifier(winner / PHASE1 / "model").eval()
    model.load_state_dict({name: sum(state[name] for state in states) / len(states) for name in states[0]})
    data = load_image_data(load_recipe(recipe).data, read_splits(winner / "phase0_data" / "splits.json"))
    rows = data.role("val_select")
    preprocess, forward = Preprocess(load_processor(folder)), torch_forward(model, torch.device("cpu"))
    logits = forward(torch.stack([preprocess(ask(rows).picture(i)) for i in range(len(rows))]))[0]
    table = Candidate(folder.parent).stored_logits("val_select", None)
    np.testing.assert_allclose(table.logits, logits[:, 1] - logits[:, 0], atol=1e-4)


@pytest.mark.parametrize(
    "name", [f"{PHASE2}/soup/model/model.safetensors", f"{PHASE1}/members/seed-43/model/model.safetensors",
             f"{PHASE1}/members/fold-1/logits/val_select.parquet", f"{PHASE2}/soup/logits/val_select.parquet"],
)  # fmt: skip
def test_damage_to_a_member_or_the_soup_is_found(name: str, winner: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(winner, tmp_path / "run"))
    content = bytearray((run / name).read_bytes())
    content[len(content) // 2] ^= 1
    (run / name).write_bytes(content)
    assert any(str(run / name) in problem for problem in run_problems(run))


def test_what_does_not_follow_from_the_members_is_found(winner: Path, tmp_path: Path) -> None:
    """Every checksum is made anew; what the soup says of itself is not what its members and answers say."""
    run = Path(shutil.copytree(winner, tmp_path / "run"))
    path = run / PHASE2 / "threshold.json"
    content = read(path)
    left = next(i for i, member in enumerate(content["soup"]["members"]) if member["weight"] == 0)
    content["soup"]["members"][left]["weight"] = 0.1
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    redescribe(run)
    assert any("mean" in problem for problem in run_problems(run))
    content["soup"]["members"][left] |= {"weight": 0.0, "score": 0.01}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    redescribe(run)
    assert any(str(path) in problem and "score" in problem for problem in run_problems(run))


def test_models_of_another_run_join(again: Path, recipe: str, pretrained: Path, tmp_path: Path) -> None:
    other = run_recipe(recipe, [1], tmp_path / "other", overrides=_on(pretrained, ["phase1.learning_rate=1e-3"]))
    settings = _on(pretrained, [*SEEDS, "phase2.soup=uniform", f"phase2.soup_of=[{other}]"])
    run_recipe(recipe, [2], again, overrides=settings)
    soup = soup_of(again)
    assert [member.run for member in soup.members] == [None, None, None, "other"]
    parts = [weights(again if member.run is None else other, member.name) for member in soup.taken]
    assert_mean(weights(again, f"{PHASE2}/soup"), [(part, 1) for part in parts])
    noted: list[str] = []
    assert run_problems(again, noted.append) == [] and any("other runs" in line for line in noted)
    outside = read(again / PHASE2 / "manifest.json")["outside"]
    assert {Path(name).name for name in outside} >= {"model.safetensors", "config.json"}
    # Another file there makes phase 2 stale, and a damaged one is refused.
    path = other / PHASE1 / "model" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert any(str(path) in problem for problem in run_problems(again))
    refused(UsageError, lambda: run_recipe(recipe, [2], again, overrides=settings), "phase2.soup_of", path)
    path.write_bytes(whole)
    moved = other.rename(tmp_path / "elsewhere")  # a run may lie without the others
    assert run_problems(again) == []
    for overrides, facts in (
        (["phase2.soup=greedy", f"phase2.soup_of=[{tmp_path / 'gone'}]"], ("phase2.soup_of", "gone", "not a run")),
        (["phase2.soup=greedy", f"phase2.soup_of=[{again}]"], ("phase2.soup_of", "this run")),
        (["phase2.soup=greedy", f"phase2.soup_of=[{moved}, {moved}/.]"], ("phase2.soup_of", "twice")),
    ):
        given = _on(pretrained, [*SEEDS, *overrides])
        refused(UsageError, lambda given=given: run_recipe(recipe, [2], again, overrides=given), *facts)


@pytest.mark.parametrize(
    ("change", "facts"),
    [("data.seed=9", ("has seen", "val_select")), ("phase1.seed=41", ("start",))],
    ids=["rows", "start"],
)
def test_runs_that_cannot_join(
    change: str, facts: tuple[str, ...], again: Path, recipe: str, pretrained: Path, tmp_path: Path
) -> None:
    short = ["phase1.num_train_epochs=1", change]
    other = run_recipe(recipe, [1], tmp_path / "other", overrides=_on(pretrained, short))
    settings = _on(pretrained, [*SEEDS, "phase2.soup=greedy", f"phase2.soup_of=[{other}]"])
    call = lambda: run_recipe(recipe, [2], again, overrides=settings)  # noqa: E731
    refused(UsageError, call, "phase2.soup_of", other, *(facts if change.startswith("phase1") else ("learned",)))


def _splits(roles: dict[str, str], pictures: dict[str, str], groups: dict[str, str]) -> Splits:
    ids = list(roles)
    return Splits(ids, list(roles.values()), [groups[i] for i in ids], [0] * len(ids), [pictures[i] for i in ids])


@pytest.mark.parametrize(
    ("theirs", "pictures", "leaks"),
    [
        ({"a": "train", "b": "val_select", "c": "test"}, "abc", False),
        ({"a": "train", "b": "train", "c": "test"}, "abc", True),  # trained on what this run chooses by
        ({"a": "train", "b": "val_select", "c": "val_select"}, "abc", True),  # chose by what this run measures on
        ({"a": "train", "b": "val_select", "c": "val_calib"}, "abc", False),
        ({"a": "train", "b": "val_select", "c": "train"}, "xyz", False),  # other data with the same names
        ({"a": "test", "b": "val_select", "z": "train"}, "abc", True),  # under another name
        ({"a": "test", "b": "val_select", "d": "train"}, "abd", True),  # another picture of a group that is in test
    ],
)
def test_what_another_run_has_seen(theirs: dict[str, str], pictures: str, leaks: bool) -> None:
    of_group = {"a": "1", "b": "2", "c": "3", "d": "3", "z": "9"}
    mine = _splits({"a": "train", "b": "val_select", "c": "test"}, dict(zip("abc", "abc", strict=True)), of_group)
    others = _splits(theirs, dict(zip(theirs, pictures, strict=True)), of_group)
    found = seen_of(others, mine, by_group=bool(set(pictures) & set("abc")))
    assert bool(found) == leaks, found


def test_who_is_averaged(tmp_path: Path) -> None:
    """Those that share the champion's start; if it has none of its kind, those that share the next candidate's."""
    phases = {PHASE1: PHASES[1], "phase4_explora": PHASES[4]}
    model = lambda name, start: Trained(tmp_path, phases[name.split("/")[0]], name, start)  # noqa: E731
    own = [model(PHASE1, "s"), model("phase4_explora", "t"), model(f"{PHASE1}/members/seed-43", "s")]

    def taken(kind: str, models: list[Trained], names: list[str]) -> list[str]:
        config = SimpleNamespace(soup=kind, soup_of=[])
        context = SimpleNamespace(recipe=SimpleNamespace(phase2=config), run_dir=tmp_path, trained=lambda: models)
        return [one.name for one in _members(context, names)]  # type: ignore[arg-type]

    both = [PHASE1, "phase4_explora"]
    assert taken("greedy", own, ["phase4_explora", *both]) == taken("uniform", own, both) == [own[0].name, own[2].name]
    assert taken("wise", own, ["phase4_explora", *both]) == ["phase4_explora"]
    own.append(model("phase4_explora/control", "t"))
    assert taken("greedy", own, ["phase4_explora", *both]) == ["phase4_explora", "phase4_explora/control"]
    refused(UsageError, lambda: taken("greedy", own[:2], both), "phase2.soup", *both, "phase1.seeds=3")


def test_the_exams_further_views(recipe: str, pretrained: Path, tmp_path: Path) -> None:
    """Members and soup are asked about all of them, and what decides is those answers."""
    settings = _on(pretrained, ["data.exam=true", "data.exam_views=8", "phase1.seeds=2", "phase1.num_train_epochs=1"])
    run = run_recipe(recipe, [1, 2], tmp_path / "run", overrides=[*settings, "phase2.soup=greedy"])
    for name in ("soup", PHASE1, f"{PHASE1}-members-seed-43"):
        assert (run / PHASE2 / "logits" / f"{name}.parquet").is_file()
    assert run_problems(run) == []


def test_what_is_refused() -> None:
    for kind in ("greedy", "uniform"):
        alone = {"phase2": {"soup": kind}}
        refused(RecipeError, lambda alone=alone: parse_recipe(alone), "phase2.soup", kind, "seeds=3")
    wise, backbone = {"phase2": {"soup": "wise"}}, {"model": {"backbone": "org/name"}}
    refused(RecipeError, lambda: parse_recipe(wise), "phase2.soup", "model.backbone")
    refused(RecipeError, lambda: parse_recipe(wise | backbone | {"phase1": {"adapter": "none"}}), "phase1.adapter")
    assert parse_recipe(wise | backbone).phase2.soup == "wise"
    for given, facts in (
        ({"phase1": {"seeds": 1}}, ("phase1.seeds", 1, "at least 2")),
        ({"phase1": {"seeds": 101}}, ("phase1.seeds", 101, "at most 100")),
        ({"phase1": {"seeds": 2, "seed": 2**32 - 1}}, ("phase1.seeds", 2)),
        ({"phase1": {"keep_folds": True}}, ("phase1.keep_folds", "phase1.folds")),
        ({"phase4": {"supervised": {"seeds": 3}}}, ("phase4.supervised.seeds", "phase 1 alone")),
        ({"phase2": {"soup": "best"}}, ("phase2.soup", "best", "greedy")),
        ({"phase2": {"soup_of": ["outputs/x"]}}, ("phase2.soup_of", "greedy")),
    ):
        refused(RecipeError, lambda given=given: parse_recipe(given), *facts)


def test_names_of_seeds() -> None:
    stage = parse_recipe({"phase1": {"seeds": 3, "seed": 7}}).phase1
    assert phase1_seeds.further_seeds(stage) == {"seed-8": 8, "seed-9": 9}
    assert phase1_seeds.further_seeds(stage.alone) == {} and tells("seed-8", 8)

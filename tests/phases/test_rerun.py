"""A run again: what is current is skipped, what is stale or damaged runs, and nothing is built on what is stale."""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import FINISHED, explora_recipe
from ranks import launch
from refusals import refused

from natix_hf.errors import RunError, UsageError
from natix_hf.launch import phase_script
from natix_hf.phases import phase2_threshold
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.files import ids_sha256, json_sha256
from natix_hf.provenance.owner import OWNER
from natix_hf.resources import resource_folder
from natix_hf.results.decision import decide
from natix_hf.results.logits import read_logits, write_logits
from natix_hf.runs.folders import LOG
from natix_hf.runs.graph import PHASES
from natix_hf.runs.verify import find_problems


def _state(run: Path) -> dict[str, int]:
    """When each file was written, but for the log and the marks of owners."""
    results = (path for path in run.rglob("*") if path.is_file() and not {path.name, path.parent.name} & {LOG, OWNER})
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in results}


def _manifest(run: Path, number: int) -> dict[str, Any]:
    return json.loads((run / PHASES[number].folder / "manifest.json").read_text(encoding="utf-8"))


def _rerun(run: Path) -> list[int]:
    """Age every manifest, so that those written since are told apart; returns a way to ask."""
    for phase in (PHASES[n] for n in FINISHED):
        os.utime(run / phase.folder / "manifest.json", (1, 1))
    return []


def _ran(run: Path) -> list[int]:
    return [n for n in FINISHED if (run / PHASES[n].folder / "manifest.json").stat().st_mtime > 1]


def test_nothing_to_do_touches_nothing(finished_run: Path, tiny_recipe_file: Path, capsys: Any) -> None:
    before = _state(finished_run)
    assert run_recipe(str(tiny_recipe_file), run_dir=finished_run) == finished_run
    assert _state(finished_run) == before
    assert capsys.readouterr().out.count("current, skipped") == 4


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["phase6.version=0.2.0"], [6]),
        (["phase2.objective=f1"], [2, 6]),
        (["phase1.num_train_epochs=1"], [1, 2, 6]),
        (["data.seed=3", "phase1.num_train_epochs=1"], [0, 1, 2, 6]),
        (["data.augment.rotate=6", "phase1.num_train_epochs=1"], [0, 1, 2, 6]),
    ],
    ids=lambda value: str(value),
)
def test_a_changed_key_reruns_what_depends_on_it(
    overrides: list[str], expected: list[int], finished_run: Path, tiny_recipe_file: Path
) -> None:
    _rerun(finished_run)
    run_recipe(str(tiny_recipe_file), run_dir=finished_run, overrides=overrides)
    assert _ran(finished_run) == expected
    assert find_problems(str(finished_run)) == []


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_equal_result_leaves_what_is_below_current(number: int, finished_run: Path, tiny_recipe_file: Path) -> None:
    _rerun(finished_run)
    digest = _manifest(finished_run, number)["digest"]
    (finished_run / PHASES[number].folder / "manifest.json").unlink()
    run_recipe(str(tiny_recipe_file), run_dir=finished_run)
    assert _manifest(finished_run, number)["digest"] == digest and _ran(finished_run) == [number]


@pytest.mark.parametrize(
    ("name", "number", "damage"),
    [
        ("phase0_data/splits.json", 0, "append"), ("phase1_baseline/model/model.safetensors", 1, "delete"),
        ("phase2_threshold/threshold.json", 2, "append"), ("phase6_export/bundle/README.md", 6, "delete"),
        ("phase6_export/manifest.json", 6, "append"), ("phase6_export/manifest.json", 6, "delete"),
    ],
)  # fmt: skip
def test_a_damaged_phase_runs_again(
    name: str, number: int, damage: str, finished_run: Path, tiny_recipe_file: Path
) -> None:
    _rerun(finished_run)
    path = finished_run / name
    path.write_bytes(path.read_bytes() + b"x") if damage == "append" else path.unlink()
    assert find_problems(str(finished_run))
    run_recipe(str(tiny_recipe_file), run_dir=finished_run)
    assert _ran(finished_run) == [number] and find_problems(str(finished_run)) == []


@pytest.mark.parametrize(("wanted", "missing"), [([2], 1), ([6], 2)])
def test_a_missing_upstream_names_the_command(
    wanted: list[int], missing: int, finished_run: Path, tiny_recipe_file: Path
) -> None:
    (finished_run / PHASES[missing].folder / "manifest.json").unlink()
    call = lambda: run_recipe(str(tiny_recipe_file), wanted, finished_run, overrides=["phase2.n_resamples=150"])  # noqa: E731
    refused(UsageError, call, f"natix-hf run RECIPE --phases {missing} --run-dir {finished_run}")


def test_a_current_phase_is_not_skipped_over_a_damaged_input(finished_run: Path, tiny_recipe_file: Path) -> None:
    before = _state(finished_run / PHASES[2].folder)
    logits = finished_run / PHASES[1].folder / "logits" / "val_select.parquet"
    content = bytearray(logits.read_bytes())
    content[len(content) // 2] ^= 1
    logits.write_bytes(content)
    refused(
        UsageError, lambda: run_recipe(str(tiny_recipe_file), [2], finished_run), logits, "--phases 1 --run-dir"
    )
    assert _state(finished_run / PHASES[2].folder) == before


@pytest.mark.parametrize("left", ["logits.parquet", "manifest.json"])
def test_a_damaged_result_that_a_phase_may_use_is_not_passed_over(
    left: str, finished_run: Path, tiny_recipe_file: Path
) -> None:
    """Phase 2 compares the candidate of phase 4 with the baseline, if there is one."""
    adapted = finished_run / PHASES[4].folder
    adapted.mkdir()
    (adapted / left).write_bytes(b"{")
    call = lambda: run_recipe(str(tiny_recipe_file), [2], finished_run, overrides=["phase2.n_resamples=150"])  # noqa: E731
    refused(UsageError, call, f"--phases 4 --run-dir {finished_run}", f"remove {adapted}")
    shutil.rmtree(adapted)
    call()


@pytest.mark.parametrize(
    ("wanted", "command"), [([2], "--phases 1 "), ([6], "--phases 1,2 "), ([2, 6], "--phases 1 ")]
)
def test_nothing_is_built_on_a_stale_phase(
    wanted: list[int], command: str, finished_run: Path, tiny_recipe_file: Path
) -> None:
    """New splits and an old model: rows it was trained on would be test now."""
    refused(
        UsageError, lambda: run_recipe(str(tiny_recipe_file), wanted, finished_run, overrides=["data.seed=3"]), command
    )
    assert (finished_run / "phase6_export" / "bundle").is_dir()  # not made anew, and not destroyed either
    problems = find_problems(str(finished_run))
    assert any("phase0_data" in problem and "run phase" in problem for problem in problems)


def test_the_manifest_says_which_rows_were_read(finished_run: Path) -> None:
    splits = json.loads((finished_run / "phase0_data" / "splits.json").read_text(encoding="utf-8"))
    for number, roles in {0: (), 1: ("train", "val_select"), 2: ("val_select",), 6: ("test",)}.items():
        rows = _manifest(finished_run, number)["rows"]
        assert set(rows) == set(roles)
        for role in roles:
            ids = [i for i, r in zip(splits["ids"], splits["roles"], strict=True) if r == role]
            assert rows[role] == {"count": len(ids), "sha256": ids_sha256(ids)}


def test_the_card_tells_of_the_champion_not_of_the_recipe(finished_run: Path, tiny_recipe_file: Path) -> None:
    """Phases may be run one by one: phase 6 without the override that phase 1 had."""
    overrides = ["phase1.adapter=none", "phase6.version=0.2.0"]
    run_recipe(str(tiny_recipe_file), [6], finished_run, overrides=overrides)
    card = (finished_run / "phase6_export" / "bundle" / "README.md").read_text(encoding="utf-8")
    assert "all weights trained" in card
    lineage = json.loads((finished_run / "phase6_export/bundle/bundle_manifest.json").read_text("utf-8"))["lineage"]
    for number in (0, 1, 2, 6):
        assert lineage["settings_sha256"][PHASES[number].folder] == _manifest(finished_run, number)["section_sha256"]


def test_a_phase_script_continues_the_run(finished_run: Path, tiny_recipe_file: Path) -> None:
    _rerun(finished_run)
    arguments = ["--recipe", str(tiny_recipe_file), "--run-dir", str(finished_run)]
    phase_script(2, arguments)
    assert _ran(finished_run) == []
    phase_script(2, [*arguments, "phase2.n_resamples=150"])
    assert _ran(finished_run) == [2]


def test_a_phase_script_fails_in_one_line(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        phase_script(2, ["--recipe", str(tmp_path / "none.yaml")])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


# Kills itself before the second checkpoint is marked complete, as a machine that goes down does.
_KILLED = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    import natix_hf.trainers.base as base
    real, seen = base.mark_complete, []
    def hook(checkpoint):
        seen.append(checkpoint)
        if len(seen) == 2:
            os._exit(9)
        real(checkpoint)
    base.mark_complete = hook
    from natix_hf.pipeline import run_recipe
    run_recipe(sys.argv[1], [1], Path(sys.argv[2]))
""")


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory, tiny_recipe_file: Path) -> Path:
    run = tmp_path_factory.mktemp("killed") / "run"
    (script := run.parent / "killed.py").write_text(_KILLED, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATIX_HF_CACHE", str(run.parent / "cache"))
        done = launch("cpu.yaml", script, run.parent, str(tiny_recipe_file), str(run))
    assert done.returncode == 9, done.stderr[-2000:]
    return run


def test_a_killed_phase_continues(
    killed_run: Path, _finished_run: Path, tiny_recipe_file: Path, tmp_path: Path
) -> None:
    """From its newest complete checkpoint, to the very weights that an undisturbed training gives."""
    run = Path(shutil.copytree(killed_run, tmp_path / "run"))
    checkpoints = sorted(p.name for p in (run / "phase1_baseline" / "checkpoints").iterdir())
    assert checkpoints == ["checkpoint-10", "checkpoint-5"]
    assert not (run / "phase1_baseline" / "manifest.json").exists()
    run_recipe(str(tiny_recipe_file), [1], run)
    metrics = _manifest(run, 1)["metrics"]
    assert metrics["resumed_from"] == "checkpoint-5"
    assert metrics["candidate_sha256"] == _manifest(_finished_run, 1)["metrics"]["candidate_sha256"]
    assert not (run / "phase1_baseline" / "checkpoints").exists()
    assert find_problems(str(run)) == []


def test_a_finished_part_of_a_killed_phase_is_kept_only_while_it_is_whole(
    finished_run: Path, tiny_recipe_file: Path, capsys: Any
) -> None:
    """The candidate is there, its manifest is not yet. Its report says what the files must be."""
    folder, before = finished_run / "phase1_baseline", _manifest(finished_run, 1)["digest"]
    marker = {"attempt": json_sha256([_manifest(finished_run, 1)[key] for key in ("section_sha256", "upstream")])}
    for damaged in ("model/config.json", "logits/val_select.parquet"):
        (folder / "manifest.json").unlink()
        (folder / "in_progress.json").write_text(json.dumps(marker), encoding="utf-8")
        content = bytearray((folder / damaged).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / damaged).write_bytes(content)
        run_recipe(str(tiny_recipe_file), [1], finished_run)
        assert damaged in capsys.readouterr().out
        assert _manifest(finished_run, 1)["digest"] == before


def test_a_changed_answer_is_never_laundered(
    finished_run: Path, tiny_recipe_file: Path, tmp_path: Path, capsys: Any
) -> None:
    """Phase 2 alone would have fitted its threshold to changed answers of phase 1, and the whole run kept it."""
    clean = _manifest(finished_run, 2)["digest"]
    path = finished_run / "phase1_baseline" / "logits" / "val_select.parquet"
    table = read_logits(path, _manifest(finished_run, 1)["metrics"]["candidate_sha256"])
    write_logits(path, replace(table, logits=-table.logits))
    (finished_run / "phase2_threshold" / "manifest.json").unlink()
    refused(UsageError, lambda: run_recipe(str(tiny_recipe_file), [2], finished_run), path, "--phases 1")
    run_recipe(str(tiny_recipe_file), run_dir=finished_run)
    assert _manifest(finished_run, 2)["digest"] == clean
    assert find_problems(str(finished_run)) == []


def test_an_input_that_changes_while_a_phase_reads_it(
    finished_run: Path, tiny_recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = finished_run / "phase1_baseline" / "model" / "config.json"

    def decide_and_damage(*arguments: Any) -> Any:
        path.write_bytes(path.read_bytes() + b" ")
        return decide(*arguments)

    monkeypatch.setattr(phase2_threshold, "decide", decide_and_damage)
    again = ["phase2.n_resamples=300"]
    refused(RunError, lambda: run_recipe(str(tiny_recipe_file), [2], finished_run, overrides=again), path, "changed")
    assert not (finished_run / "phase2_threshold" / "manifest.json").exists()


def test_a_moved_run_goes_on_under_its_own_name(finished_run: Path, tiny_recipe_file: Path, tmp_path: Path) -> None:
    run_id = _manifest(finished_run, 1)["run_id"]
    moved = Path(shutil.move(finished_run, tmp_path / "brought home"))
    run_recipe(str(tiny_recipe_file), run_dir=moved, overrides=["phase2.objective=f1", "phase6.version=0.2.0"])
    assert [_manifest(moved, number)["run_id"] for number in FINISHED] == [run_id] * len(FINISHED)
    assert find_problems(str(moved)) == []
    lineage = json.loads((moved / "phase6_export" / "bundle" / "bundle_manifest.json").read_text(encoding="utf-8"))
    assert lineage["lineage"]["run_id"] == run_id


def test_equal_runs_have_equal_digests(
    killed_run: Path, _finished_run: Path, tiny_recipe_file: Path, tmp_path: Path
) -> None:
    """Another folder, another time, and one of them interrupted: every phase has the same digest, and the bundle the
    same files but for those that name the run."""
    run = Path(shutil.copytree(killed_run, tmp_path / "another"))
    run_recipe(str(tiny_recipe_file), run_dir=run)
    for number in FINISHED:
        one, other = _manifest(_finished_run, number), _manifest(run, number)
        unlike = {name for name, facts in one["files"].items() if other["files"].get(name) != facts}
        assert unlike <= {"bundle/README.md", "bundle/bundle_manifest.json"}
        assert one["digest"] == other["digest"]


@pytest.mark.parametrize("override", ["phase1.learning_rate=1e-3", "data.seed=3"])
def test_changed_settings_do_not_continue_an_old_attempt(
    override: str, killed_run: Path, tiny_recipe_file: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(killed_run, tmp_path / "run"))
    run_recipe(str(tiny_recipe_file), [1], run, overrides=[override])
    assert _manifest(run, 1)["metrics"]["resumed_from"] is None
    assert find_problems(str(run)) == []


def test_two_runs_at_once_do_not_meet(tiny_recipe_file: Path, tmp_path: Path) -> None:
    script = resource_folder("recipes") / "phase1.py"
    arguments = ["--recipe", str(tiny_recipe_file), "--new", "phase1.num_train_epochs=1"]
    with ThreadPoolExecutor(2) as threads:
        for done in threads.map(lambda _: launch("cpu.yaml", script, tmp_path, *arguments), range(2)):
            assert done.returncode == 0, done.stderr[-2000:]
    runs = sorted((tmp_path / "outputs" / "tiny").iterdir())
    assert len(runs) == 2
    assert [find_problems(str(run)) for run in runs] == [[], []]
    hashes = {_manifest(run, 1)["metrics"]["candidate_sha256"] for run in runs}
    assert len(hashes) == 1  # the same settings and seed, so the same weights


def test_running_out_of_memory_is_one_line_that_says_what_to_do(
    tiny_recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand a page of advice")

    monkeypatch.setattr("natix_hf.results.answers.train_classifier", exhausted)
    call = lambda: run_recipe(str(tiny_recipe_file), run_dir=tmp_path / "run")  # noqa: E731
    refused(RunError, call, "phase 1", "memory", "2 GiB", "per_device_train_batch_size")
    assert not (tmp_path / "run" / "phase1_baseline" / "manifest.json").exists()


def test_a_local_backbone_counts_with_every_byte(
    pretrained: Path, parquet_source: Path, tmp_path: Path, capsys: Any
) -> None:
    """The settings' hash looks at the beginning of each file only."""
    backbone = Path(shutil.copytree(pretrained, tmp_path / "backbone"))
    recipe = explora_recipe(tmp_path, parquet_source, backbone)
    run_recipe(recipe, [1], tmp_path / "run")
    before = _manifest(tmp_path / "run", 1)
    weights = backbone / "model.safetensors"
    content = bytearray(weights.read_bytes())
    assert len(content) > 80_000
    for last_bit in range(len(content) - 4, 70_000, -4):  # of every float after the beginning
        content[last_bit] ^= 1
    weights.write_bytes(content)
    assert run_recipe(recipe, [1], tmp_path / "run") and "backbone changed" in capsys.readouterr().out
    after = _manifest(tmp_path / "run", 1)
    assert after["section_sha256"] == before["section_sha256"]
    assert after["metrics"]["candidate_sha256"] != before["metrics"]["candidate_sha256"]


def test_a_source_that_was_written_again_counts_by_its_rows(
    parquet_source: Path, tmp_path: Path, capsys: Any
) -> None:
    """Two labels change places in a file that keeps its size and its beginning; then the file is only touched."""
    source = tmp_path / "source"
    source.mkdir()
    [file] = parquet_source.rglob("train*.parquet")
    table = pq.read_table(file)
    plain: dict[str, Any] = {"use_dictionary": False, "compression": "none", "write_statistics": False}
    pq.write_table(table, source / "train.parquet", **plain)
    recipe = explora_recipe(tmp_path, source, None)
    run_recipe(recipe, [1], tmp_path / "run")
    before, size = _manifest(tmp_path / "run", 0), (source / "train.parquet").stat().st_size
    at, labels = table.schema.get_field_index("label"), table["label"].to_pylist()
    last = next(row for row in range(len(labels) - 1, 0, -1) if labels[row] != labels[row - 1])
    labels[last - 1 : last + 1] = [labels[last], labels[last - 1]]
    pq.write_table(table.set_column(at, "label", pa.array(labels)), source / "train.parquet", **plain)
    assert (source / "train.parquet").stat().st_size == size
    capsys.readouterr()
    run_recipe(recipe, [1], tmp_path / "run")
    told = capsys.readouterr().out
    assert "written again" in told and "inputs changed" in told
    after = _manifest(tmp_path / "run", 0)
    assert after["section_sha256"] == before["section_sha256"] and after["digest"] != before["digest"]
    trained = _state(tmp_path / "run")
    os.utime(source / "train.parquet", (1, 1))
    run_recipe(recipe, [1], tmp_path / "run")
    told = capsys.readouterr().out
    assert "written again" in told and "phase 1  train the baseline: current" in told
    assert _manifest(tmp_path / "run", 0)["digest"] == after["digest"]
    assert {k: v for k, v in _state(tmp_path / "run").items() if "phase1" in k} == {
        k: v for k, v in trained.items() if "phase1" in k
    }

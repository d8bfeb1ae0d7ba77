"""The audit of a run: planted noise is found, groups and look-alikes are one finding, and the list comes back."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import find_browser, open_browser
from conftest import TINY_RECIPE, Command, striped_image, write_recipe
from document import Document
from facts import tells
from PIL import Image
from refusals import refused

from natix_hf.data.asked import Asked
from natix_hf.data.config import Exam
from natix_hf.data.splits import Splits, read_splits, write_splits
from natix_hf.errors import UsageError, VerificationError
from natix_hf.pipeline import run_recipe
from natix_hf.report.audit import GROUP, LOOK_ALIKES, audit_run, told_audit, write_audit
from natix_hf.report.audited import read_audited
from natix_hf.report.hard import FALSE_ALARM, MISSED, NEARLY, find_hard
from natix_hf.results.audit import AuditReport
from natix_hf.results.out_of_fold import OutOfFold, write_out_of_fold
from natix_hf.runs.verify import find_problems

GROUPS, FRAMES, NOISE = 60, 4, 0.1
TWINS = range(0, 30, 2)  # groups of which one picture is also there, re-encoded, with the other label


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, rng = tmp_path_factory.mktemp("audited"), np.random.default_rng(0)
    for group in range(GROUPS):
        label = group % 2
        for frame in range(FRAMES):
            # Large soft shapes: of plain noise a re-encoded copy would be no look-alike.
            small = np.asarray(striped_image(label, rng, (9, 8)))
            picture = Image.fromarray(small).resize((72, 64), Image.Resampling.BICUBIC)
            place = folder / "source" / ("roadwork" if label else "none")
            place.mkdir(parents=True, exist_ok=True)
            picture.save(place / f"v{group:02d}_{frame}.png")
            if group in TWINS and frame == 0:
                other = folder / "source" / ("none" if label else "roadwork")
                other.mkdir(parents=True, exist_ok=True)
                picture.save(other / f"v{group:02d}_9.jpg", quality=60)
    content: dict[str, Any] = {**TINY_RECIPE}
    content["data"] = {
        "source": str(folder / "source"), "group_by": {"pattern": r"(v\d+)_\d"}, "label_noise": NOISE,
        "labels": {"no": "<b>whole</b>", "yes": "cracked"},
    }  # fmt: skip
    content["phase1"] = {**content["phase1"], "max_steps": 2}
    return str(write_recipe(folder / "tiny.yaml", content))


@pytest.fixture(scope="module")
def _run(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATIX_HF_CACHE", str(tmp_path_factory.mktemp("cache")))
        return run_recipe(recipe, [1], tmp_path_factory.mktemp("runs") / "audited")


@pytest.fixture
def run(_run: Path, tmp_path: Path) -> Iterator[Path]:
    """A run of phases 0 and 1 whose answers know the class folders, with a little doubt."""
    copy = Path(shutil.copytree(_run, tmp_path / _run.name))
    answer(copy)
    yield copy


def splits_of(run: Path) -> Splits:
    return read_splits(run / "phase0_data" / "splits.json")


def audited_rows(splits: Splits) -> list[int]:
    return [i for role in ("train", "val_select") for i in splits.positions(role)]


def truth(row_id: str) -> int:
    """What a picture shows: a twin shows what its group does."""
    return int(row_id.split("/")[1][1:3]) % 2


def answer(run: Path, wrong: dict[str, float] | None = None, exam: Exam | None = None) -> list[str]:
    """Leave out-of-fold answers beside phase 1. `wrong` gives logits by row. Returns the ids."""
    splits, rng = splits_of(run), np.random.default_rng(1)
    at = audited_rows(splits)
    ids = [splits.ids[i] for i in at]
    logits = np.array([(wrong or {}).get(i, 3.0 * (2 * truth(i) - 1) + rng.normal(0, 0.7)) for i in ids])
    labels = np.array([splits.labels[i] for i in at], dtype=np.int64)
    asked = Asked(ids, np.array([splits.groups[i] for i in at]), labels, exam)
    roles = np.array([splits.roles[i] for i in at])
    logits = asked.of_rows(logits) + (0.1 * (asked.levels - 1.5) if exam else 0)
    answers = OutOfFold(asked, roles, np.zeros(len(at), dtype=np.int64), logits, ["a" * 64])
    write_out_of_fold(run / "phase1_baseline", answers)
    return ids


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_finds_planted_noise_and_says_where_everything_is(run: Path, command: Command) -> None:
    code, out, _ = command("audit", run)
    assert code == 0
    report = AuditReport.read(run / "audit")
    splits, audited = splits_of(run), read_audited(run)
    flipped = audited.labels != audited.source_labels
    assert report.rows == len(audited_rows(splits)) and report.planted is not None
    assert report.planted.flipped == flipped.sum() == round(NOISE * len(splits.positions("train")))
    assert report.planted.recall > 0.8
    for fact in ("precision", "recall", "audit.csv", "audit.html", "data.exclude=", "data.relabel=", "val_calib"):
        assert fact in out
    lines = lines_of(run / "audit" / "audit.csv")
    assert len({line["row_id"] for line in lines}) == len(lines), "no row twice"
    role_of = dict(zip(splits.ids, splits.roles, strict=True))
    assert all(role_of[line["row_id"]] == line["split"] in ("train", "val_select") for line in lines)
    assert all(Path(line["picture"]).is_file() and line["action"] == "" and line["reason"] for line in lines)
    assert [int(line["rank"]) for line in lines] == list(range(1, len(lines) + 1))
    # From the files alone: what is flagged has a reason, and the flips among it are those of the report.
    listed = {line["row_id"] for line in lines if line["label_now"] != line["suggested_label"]}
    wrong = {row for row, bad in zip(audited.ids, flipped, strict=True) if bad}
    assert len(listed & wrong) >= report.planted.found
    assert {"missed", "false", "all", "surest_yes", "surest_no"} == set(report.noise)


def test_look_alikes_with_different_labels_stand_together(run: Path) -> None:
    audit = audit_run(run)
    splits = splits_of(run)
    role_of = dict(zip(splits.ids, splits.roles, strict=True))
    label_of = dict(zip(splits.ids, splits.labels, strict=True))
    listed = {audit.rows.ids[row]: finding for finding in audit.findings for row in finding.rows}
    seen = 0
    for group in TWINS:
        pair = f"none/v{group:02d}_0.png", f"roadwork/v{group:02d}_9.jpg"
        if role_of.get(pair[0]) in ("train", "val_select") and label_of[pair[0]] != label_of[pair[1]]:
            together = {audit.rows.ids[row] for row in listed[pair[0]].rows}
            assert listed[pair[0]].kind in (LOOK_ALIKES, GROUP) and pair[1] in together, pair
            seen += 1
    assert seen > 5 and audit.report.contradictions >= seen


def test_a_group_that_is_wrong_as_a_whole_is_one_finding_and_one_heading(run: Path) -> None:
    splits = splits_of(run)
    train = [splits.groups[i] for i in splits.positions("train")]
    wrong = sorted({name for name in train if int(name[-2:]) not in TWINS})[:3]
    ids = [i for i, name in zip(splits.ids, splits.groups, strict=True) if name in wrong]
    for row_id in ids:  # the run is told that these are labelled so: the answers have not changed
        splits.labels[splits.ids.index(row_id)] = 1 - truth(row_id)
    write_splits(run / "phase0_data" / "splits.json", splits, {})
    answer(run)
    audit, folder = write_audit(run, run / "elsewhere")
    found = {str(audit.rows.groups[one.rows[0]]): one for one in audit.of_kind(GROUP)}
    assert set(wrong) <= set(found)
    assert all(len(found[name].rows) == FRAMES for name in wrong)
    lines = lines_of(folder / "audit.csv")
    assert [line["finding"] for line in lines] == sorted((line["finding"] for line in lines), key=int)
    page = Document((folder / "audit.html").read_text(encoding="utf-8"))
    assert all(f"{name.removeprefix('group:')}: {FRAMES} rows" in page.text for name in wrong)


def test_the_page_holds_all_that_it_shows_and_nothing_that_runs(run: Path) -> None:
    audit, folder = write_audit(run)
    text = (folder / "audit.html").read_text(encoding="utf-8")
    page = Document(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "b" if "<b>whole</b>" in text else "script"}
    sources = [facts["src"] for tag, facts in page.elements if tag == "img"]
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "<b>whole</b>" in page.text, "a label's name is shown as it is"
    assert str(run) not in text and len(sources) <= 400
    assert len(told := list(told_audit(audit, folder))) > 8 and all("\n" not in line for line in told)


@pytest.mark.skipif(find_browser() is None, reason="no Chromium here: apt-get install chromium")
def test_the_pages_in_a_browser(run: Path, tmp_path: Path, command: Command) -> None:
    """A quiet console, no request, and nothing wider than a phone."""
    assert command("audit", run)[0] == command("audit", run, "--hard")[0] == 0
    with open_browser(str(find_browser()), tmp_path / "profile") as page:
        for name, width in (("audit.html", 360), ("audit.html", 1200), ("hard.html", 360)):
            path = run / "audit" / name
            page.open(path.as_uri(), width)
            assert page.complaints() == []
            assert [a for a in page.requests() if not a.startswith("data:")] == [path.as_uri()]
            assert page.evaluate("document.documentElement.scrollWidth") == width


def test_where_nothing_is_wrong_the_page_says_so(run: Path) -> None:
    splits = splits_of(run)
    for i, row_id in enumerate(splits.ids):
        splits.labels[i] = truth(row_id)
    write_splits(run / "phase0_data" / "splits.json", splits, {})
    answer(run, {row_id: 5.0 * (2 * truth(row_id) - 1) for row_id in splits.ids})
    audit, folder = write_audit(run)
    assert audit.findings == [] and lines_of(folder / "audit.csv") == []
    page = Document((folder / "audit.html").read_text(encoding="utf-8"))
    assert "No label looks wrong" in page.text and "data.relabel" not in page.text
    assert not any(line.startswith("next") for line in told_audit(audit, folder))


def test_the_page_is_bounded(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from natix_hf.report import audit_page

    monkeypatch.setattr(audit_page, "MOST_PICTURES", 5)
    audit, folder = write_audit(run)
    page = Document((folder / "audit.html").read_text(encoding="utf-8"))
    assert sum(tag == "img" for tag, _ in page.elements) <= 5
    assert "audit.csv" in page.text and "all are in" in page.text
    assert len(lines_of(folder / "audit.csv")) == sum(len(finding.rows) for finding in audit.findings) > 5


def test_a_picture_that_is_gone_does_not_stop_the_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from natix_hf.errors import DataError
    from natix_hf.report.audited import AuditedRows

    def gone(self: AuditedRows, row: int) -> Any:
        raise DataError("gone")

    monkeypatch.setattr(AuditedRows, "thumbnail", gone)
    _, folder = write_audit(run)
    assert "cannot be shown" in (folder / "audit.html").read_text(encoding="utf-8")


def test_a_reviewed_list_comes_back_and_is_never_replaced(
    run: Path, recipe: str, tmp_path: Path, command: Command
) -> None:
    _, folder = write_audit(run)
    path = folder / "audit.csv"
    lines = lines_of(path)
    wrong = {row for row, a, b in zip(*(lambda r: (r.ids, r.labels, r.source_labels))(read_audited(run)), strict=True)
             if a != b}  # fmt: skip
    for line in lines:
        flagged = line["label_now"] != line["suggested_label"]
        line["action"] = "relabel" if line["row_id"] in wrong and flagged else "keep"
    lines[-1]["action"] = "exclude"
    with path.open("w", encoding="cp1252", newline="") as file:  # as Excel saves it
        writer = csv.DictWriter(file, list(lines[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(lines)
    code, _, err = command("audit", run)
    assert code == 2 and tells(err.strip(), "audit.csv", "reviewed", "--to")
    second = run_recipe(
        recipe, [1], tmp_path / "second", overrides=[f"data.exclude={path}", f"data.relabel={path}"]
    )
    before, after = splits_of(run), splits_of(second)
    out = lines[-1]["row_id"]
    assert set(before.ids) - set(after.ids) == {out}
    role_of = dict(zip(before.ids, before.roles, strict=True))
    assert all(role_of[row] == role for row, role in zip(after.ids, after.roles, strict=True))
    done = {row["id"] for row in after.relabelled}
    assert done == {line["row_id"] for line in lines if line["action"] == "relabel"} - {out} and done
    label_of = dict(zip(after.ids, after.labels, strict=True))
    assert all(label_of[row] == int(row.startswith("roadwork")) for row in done)
    assert find_problems(str(second)) == []
    # Moved, it says the same; edited, phase 0 is stale.
    from natix_hf.recipe import load_recipe
    from natix_hf.runs.freshness import why_not_current
    from natix_hf.runs.graph import PHASES

    moved = path.rename(tmp_path / "reviewed.csv")
    lists = [f"data.exclude={moved}", f"data.relabel={moved}"]
    assert why_not_current(second, PHASES[0], load_recipe(recipe, lists)) is None
    moved.write_text(moved.read_text(encoding="cp1252").replace(";exclude", ";keep"), encoding="utf-8")
    assert why_not_current(second, PHASES[0], load_recipe(recipe, lists)) == "its settings changed"


def test_an_audit_leaves_the_run_intact(run: Path, command: Command) -> None:
    (run / "phase1_baseline" / "out_of_fold.parquet").rename(run / "answers")
    assert find_problems(str(run)) == []
    (run / "answers").rename(run / "phase1_baseline" / "out_of_fold.parquet")
    assert command("audit", run)[0] == command("audit", run, "--hard")[0] == 0
    (run / "phase1_baseline" / "out_of_fold.parquet").rename(run / "answers")
    assert find_problems(str(run)) == []


def test_hard_rows_are_no_wrong_labels(run: Path, command: Command) -> None:
    """By their definition, row by row."""
    splits = splits_of(run)
    own = [i for i in splits.ids if int(i.split("/")[1][1:3]) not in TWINS]
    given = np.random.default_rng(0).normal(0, 2, len(own))
    answer(run, {row: float(z) for row, z in zip(own[::2], given, strict=False)})
    audit = audit_run(run)
    hard, z, labels = find_hard(audit), audit.rows.answers.row_logits, audit.rows.labels
    doubted = {row for finding in audit.of_kind(LOOK_ALIKES) for row in finding.rows}
    doubted |= set(np.flatnonzero(audit.suspects.flagged).tolist())
    trusted = [row for row in range(len(z)) if row not in doubted]
    alarms = [row for row in trusted if labels[row] == 0 and z[row] > hard.threshold]
    missed = [row for row in trusted if labels[row] == 1 and z[row] <= hard.threshold]
    assert hard.kinds[FALSE_ALARM] == sorted(alarms, key=lambda row: -z[row]) and alarms
    assert hard.kinds[MISSED] == sorted(missed, key=lambda row: z[row]) and missed
    assert set(hard.kinds[NEARLY]) <= set(trusted) - {*alarms, *missed}
    reach = [abs(z[row] - hard.threshold) for row in hard.kinds[NEARLY]]
    assert reach == sorted(reach)
    code, out, _ = command("audit", run, "--hard")
    lines = lines_of(run / "audit" / "hard.csv")
    assert code == 0 and "hard.html" in out and {"rank", "kind", "row_id", "p_yes", "picture"} <= set(lines[0])
    kinds = [line["kind"] for line in lines]
    assert kinds == sorted(kinds, key=[FALSE_ALARM, MISSED, NEARLY].index)
    assert Document((run / "audit" / "hard.html").read_text(encoding="utf-8")).text


def test_the_views_of_a_row_are_one_row(run: Path) -> None:
    ids = answer(run, exam=Exam(4, 0))
    audit = audit_run(run)
    assert audit.report.rows == len(ids) and len(audit.suspects.margin) == len(ids)
    assert find_hard(audit).wrong_views.max() <= 4


def test_a_run_that_cannot_be_audited_is_refused(run: Path, tmp_path: Path, command: Command) -> None:
    code, _, err = command("audit", tmp_path)
    assert code == 2 and tells(err.strip(), "not a run folder")
    answers = run / "phase1_baseline" / "out_of_fold.parquet"
    answers.rename(tmp_path / "answers")
    code, _, err = command("audit", run)
    assert code == 2 and tells(err.strip(), "phase1.folds=5", "--phases 1", "--run-dir")
    assert not (run / "audit").exists()
    (tmp_path / "answers").rename(answers)
    splits = splits_of(run)
    at = audited_rows(splits)[0]
    splits.labels[at] = 1 - splits.labels[at]
    write_splits(run / "phase0_data" / "splits.json", splits, {})
    with pytest.raises(VerificationError, match="other rows or labels"):
        audit_run(run)
    manifest = run / "phase1_baseline" / "manifest.json"
    manifest.rename(tmp_path / "manifest.json")
    with pytest.raises(UsageError, match="phase 1"):
        audit_run(run)
    assert json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["phase"] == "phase1_baseline"


def test_nothing_is_hard_where_every_label_of_a_class_is_doubted(run: Path) -> None:
    audit = audit_run(run)
    doubted = replace(audit, suspects=replace(audit.suspects, flagged=audit.rows.labels == 1))
    facts = "cracked", int((audit.rows.labels == 1).sum()), "train longer"
    refused(UsageError, lambda: find_hard(doubted), *facts)


def test_weak_answers_are_called_weak(run: Path) -> None:
    audit, folder = write_audit(run)
    lines = "\n".join(told_audit(audit, folder))
    assert f"AUROC {audit.report.auroc:.3f}" in lines and "too weak" not in lines
    rng, ids = np.random.default_rng(5), audit.rows.ids
    answer(run, dict(zip(ids, rng.normal(size=len(ids)), strict=True)))
    audit, folder = write_audit(run)
    for told in ("\n".join(told_audit(audit, folder)), (folder / "audit.html").read_text(encoding="utf-8")):
        assert f"AUROC {audit.report.auroc:.3f}" in told and "too weak" in told

"""The page says what the files say, for every kind of run, and nothing from outside comes into it."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, explora_recipe, refused, striped_image
from document import Document, read_page
from facts import tells
from PIL import Image

from natix_hf.errors import RunError, UsageError, VerificationError
from natix_hf.labels import LabelNames
from natix_hf.metrics.table import METRICS
from natix_hf.phases import phase2_threshold
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.files import write_json
from natix_hf.report import page
from natix_hf.report.facts import FINISHED, NOT_FINISHED, NOT_RUN, read_run
from natix_hf.report.findings import find_promise, find_warnings
from natix_hf.report.page import render_report, stale_page, write_report
from natix_hf.runs.verify import find_problems


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _change(path: Path, change: Callable[[Any], None]) -> None:
    content = _read(path)
    change(content)
    write_json(path, content)


def _page(run: Path) -> Document:
    return Document(render_report(run))


def _has_row(document: Document, *cells: str) -> bool:
    """Whether these cells stand side by side in a table, whatever the row is called."""
    rows = [[" ".join(cell.split()) for cell in row] for row in document.rows]
    return any(list(cells) == row[i : i + len(cells)] for row in rows for i in range(len(row)))


def _shown(value: float, bounds: list[float] | None = None) -> str:
    """As a person would write it down from the JSON."""
    return f"{value:.3f}" + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "")


# --- what lies where ---


def test_a_run_leaves_one_page_and_verify_knows_it(whole_run: Path, command: Command) -> None:
    assert [path.relative_to(whole_run).as_posix() for path in whole_run.rglob("report.html")] == ["report.html"]
    path = whole_run / "report.html"
    assert path.read_text(encoding="utf-8") == render_report(whole_run) and stale_page(whole_run) is None
    assert find_problems(str(whole_run)) == []
    code, out, _ = command("verify", whole_run)
    assert code == 0 and "report.html" not in out
    path.write_bytes(path.read_bytes().replace(b"MCC", b"MCD"))
    code, out, _ = command("verify", whole_run)
    assert code == 0 and tells(out.splitlines()[0], str(path), "natix-hf report")


def test_the_page_of_a_run_that_stops_is_of_what_there_is(
    finished_run: Path, tiny_recipe_file: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    """A phase that fails, is interrupted, is refused, or ends with others stale: the page is always the present one,
    and a run that is killed has none."""
    path, seen = finished_run / "report.html", list[bool]()

    def stop(error: BaseException) -> None:
        def run(_: Any) -> None:
            seen.append(path.exists())
            raise error

        monkeypatch.setattr(phase2_threshold, "run", run)

    changed = [str(tiny_recipe_file), [2], finished_run, None, ["phase2.n_resamples=123"]]
    for error, state in ((RunError("it failed"), NOT_FINISHED), (KeyboardInterrupt(), NOT_FINISHED)):
        stop(error)
        with pytest.raises(type(error)):
            run_recipe(*changed)
        assert path.read_text(encoding="utf-8") == render_report(finished_run)
        assert next(row for row in _page(finished_run).rows if row[0].startswith("2: "))[-1] == state
    assert seen == [False, False], "while a phase works there is no page of what it replaces"
    monkeypatch.undo()
    again = ("--phases", "2", "--run-dir", finished_run, "phase2.n_resamples=123")
    code, out, _ = command("run", tiny_recipe_file, *again)
    assert code == 0 and f"report   {path}" in out
    assert path.read_text(encoding="utf-8") == render_report(finished_run)


def test_a_page_that_cannot_be_written_fails_no_run(
    finished_run: Path, tiny_recipe_file: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    (finished_run / "report.html").unlink()
    monkeypatch.setattr(page, "write_text", full)
    code, out, err = command("run", tiny_recipe_file, "--run-dir", finished_run)
    assert code == 0 and tells(next(line for line in (out + err).splitlines() if "warning" in line), "report.html")
    assert not (finished_run / "report.html").exists() and "report   " not in out


def test_the_bundle_holds_no_picture_of_the_data(whole_run: Path) -> None:
    assert list((whole_run / "phase6_export" / "examples").glob("*.jpg"))
    assert not list((whole_run / "phase6_export" / "bundle").rglob("*.jp*g"))
    assert not list((whole_run / "phase6_export" / "bundle").rglob("report.html"))


def test_the_command(whole_run: Path, tmp_path: Path, command: Command) -> None:
    code, out, err = command("report", whole_run)
    assert (code, err) == (0, "") and str(whole_run / "report.html") in out
    assert find_problems(str(whole_run)) == []
    other = tmp_path / "new" / "page.html"
    assert command("report", whole_run, "--to", other)[0] == 0
    assert other.read_bytes() == (whole_run / "report.html").read_bytes()


def test_what_is_no_run_is_refused(tmp_path: Path, whole_run: Path, command: Command) -> None:
    for folder in (tmp_path / "nowhere", whole_run / "phase6_export"):
        code, _, err = command("report", folder)
        assert code == 2 and str(folder) in err and len(err.splitlines()) == 1
    assert command("report", whole_run, "--to", tmp_path)[0] == 2
    shutil.copy(whole_run / "run.json", tmp_path / "run.json")
    with refused(UsageError, tmp_path):
        write_report(tmp_path)


def test_the_command_needs_no_torch(whole_run: Path) -> None:
    code = (
        "import sys; from natix_hf.cli import main\n"
        f"try: main(['report', {str(whole_run)!r}])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print({'torch', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", env=dict(os.environ))
    assert done.stdout.splitlines()[-1:] == ["set()"], done.stderr


# --- the document ---


def test_it_is_a_whole_document_that_asks_for_nothing(whole_run: Path) -> None:
    document = _page(whole_run)
    tags = {tag for tag, _ in document.elements}
    assert document.of("html") == [{"lang": "en"}] and "title" in tags
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in document.of("meta")
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "video", "audio"}
    for _, attributes in document.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in {"src", "href", "srcset", "action", "poster", "data"} & set(attributes):
            assert attributes[name].startswith(("data:image/", "#")), attributes[name][:80]
    text = render_report(whole_run)
    assert not re.search(r"https?:|url\(|@import", re.sub(r"data:image/\w+;base64,[\w+/=]+", "", text))
    ids = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"].removeprefix("#") for attributes in document.of("a")}
    assert len(targets) > 5 and targets <= set(ids)


def test_every_picture_is_there_and_has_words(whole_run: Path) -> None:
    images = _page(whole_run).of("img")
    assert len(images) > 12 and all(len(image["alt"]) > 20 for image in images)
    stored = {p.read_bytes() for p in whole_run.rglob("*") if p.suffix in (".png", ".jpg") and "bundle" not in p.parts}
    shown = set()
    for image in images:
        content = base64.b64decode(image["src"].partition(",")[2], validate=True)
        Image.open(BytesIO(content)).verify()
        shown.add(content)
    assert shown == stored


def test_the_order_is_what_a_reader_wants_first(whole_run: Path) -> None:
    _with_exam(whole_run)
    document = _page(whole_run)
    assert document.headings == [
        "warnings", "numbers", "plots", "examples", "next", "exam", "read", "phases", "training", "adaptation",
        "merge", "lineage",
    ]  # fmt: skip
    before = " ".join(html.unescape(re.sub("<[^>]*>", " ", render_report(whole_run).partition("<h2")[0])).split())
    evaluation = _read(whole_run / "phase6_export" / "evaluation.json")
    for column in ("as_found", "at_target_prior"):
        assert f"{evaluation[column]['metrics']['mcc']:.3f}" in before
    assert "0.287" in before and " ".join(find_promise(read_run(whole_run)).words.split()) in before
    assert "natix-hf predict phase6_export/bundle image.jpg" in before


def test_the_same_run_gives_the_same_bytes(whole_run: Path, tmp_path: Path) -> None:
    first = render_report(whole_run)
    moved = Path(shutil.copytree(whole_run, tmp_path / "elsewhere"))
    write_report(whole_run)
    assert render_report(whole_run) == first == render_report(moved)
    source = _read(whole_run / "phase0_data" / "manifest.json")["section"]["data"]["source"]
    assert all(path not in first for path in (str(tmp_path.resolve()), str(Path.home()), source))


# --- the figures ---


def test_the_figures_are_those_of_the_files(whole_run: Path) -> None:
    document, evaluation = _page(whole_run), _read(whole_run / "phase6_export" / "evaluation.json")
    for name in ("mcc", "recall", "auprc", "nll", "ece"):
        expected = [
            _shown(evaluation[column]["metrics"][name], evaluation[column]["intervals"].get(name))
            for column in ("as_found", "at_target_prior")
        ]
        assert document.row(METRICS[name].named(LabelNames())) == expected
    selective, found = evaluation["selective"], evaluation["as_found"]["metrics"]
    assert _has_row(document, _shown(selective["coverage"]["value"], selective["coverage"]["interval"]))
    assert re.search(rf"{found['n_positive']:.0f} \D*{found['tp']:.0f} ", document.text)
    for value, figures in evaluation["slices"]["scene_level_tags.weather"].items():
        shown = [
            _shown(figures[name], (figures["intervals"][name]["low"], figures["intervals"][name]["high"]))
            for name in ("mcc", "recall", "specificity")
        ]
        assert _has_row(document, value, f"{figures['n']:.0f}", f"{figures['n_positive']:.0f}", *shown)
    calibration = _read(whole_run / "phase5_scrc" / "calibration.json")
    assert _has_row(document, *(_shown(*calibration[w]["smooth_ece"].values()) for w in ("before", "after")))
    against = _read(whole_run / "phase4_explora" / "manifest.json")["metrics"]["against_control"]
    assert _has_row(document, _shown(against["val_select_mcc_optimistic"]))
    assert f"{against['mcc_gain']['difference']:+.3f}" in document.text


def test_times_rows_and_proofs_are_those_of_the_manifests(whole_run: Path) -> None:
    document, took = _page(whole_run), 0.0
    for folder in sorted(whole_run.glob("phase*")):
        manifest = _read(folder / "manifest.json")
        took += manifest["duration_s"]
        line = next(row for row in document.rows if row[0].startswith(f"{folder.name[5]}: "))
        assert line[1] == f"{manifest['duration_s']:.1f} s" and line[3] == FINISHED
        assert _has_row(document, folder.name, manifest["digest"][:16] + "…")
    assert f"{took:.1f} s" in document.text
    counts = _read(whole_run / "phase0_data" / "manifest.json")["metrics"]["counts"]["test"]
    assert _has_row(document, "test", str(counts["rows"]))
    proof = _read(whole_run / "phase1_baseline" / "manifest.json")["metrics"]["merge"]
    assert _has_row(document, str(proof["images"]), str(proof["merged_layers"]))


def test_where_it_was_published(whole_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = read_run(whole_run)
    assert facts.metrics(6)["published"] is None
    published = {"repo_id": "lab/roads", "commit": "c0ffee", "manifest_sha256": "f00d", "tag": "v1.0.0"}
    facts.phases[6].manifest["metrics"]["published"] = published
    monkeypatch.setattr(page, "read_run", lambda _: facts)
    assert tells(" ".join(_page(whole_run).text.split()), "lab/roads", "c0ffee", "v1.0.0")


def test_an_undefined_figure_says_so(whole_run: Path) -> None:
    def lose(evaluation: Any) -> None:
        for column in ("as_found", "at_target_prior"):
            evaluation[column]["metrics"] |= {"mcc": None, "precision": None, "auroc": None}
            evaluation[column]["intervals"] |= {"mcc": [None, None], "precision": [0.1, None]}
            evaluation[column]["intervals"]["f1"] = [None, None]
        evaluation["selective"]["risks"]["error"] = {"value": None, "interval": [None, None]}
        for figures in evaluation["slices"]["scene_level_tags.weather"].values():
            figures["mcc"] = None

    path = whole_run / "phase6_export" / "evaluation.json"
    content = _read(path)
    lose(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    document = _page(whole_run)
    for name in ("mcc", "precision", "auroc"):
        assert document.row(METRICS[name].named(LabelNames())) == [page._UNDEFINED] * 2
    columns = ("as_found", "at_target_prior")
    assert document.row(METRICS["f1"].title) == [_shown(content[name]["metrics"]["f1"]) for name in columns]
    assert document.row("clear")[2] == page._UNDEFINED
    assert any("error" in row[0] and row[1] == page._UNDEFINED for row in document.rows if len(row) > 1)
    assert not re.search(r"\bnan\b|\[None", document.text)


EXAM = {
    "rows": 21, "positives": 9, "views": 84,
    "levels": {
        **{str(level): {"tpr": 0.9 - level / 10, "tnr": 0.8, "mcc": 0.7 - level / 10} for level in range(4)},
        "all": {"tpr": 0.75, "tnr": 0.8, "mcc": 0.55},
    },
    "rewards": {
        "fitted": {"tpr": 0.75, "tnr": 0.8, "expected": 0.2871, "range": [0.1234, 0.4567]},
        "half": {"tpr": 0.95, "tnr": 0.5, "expected": 0.1999, "range": [0.1, 0.3]},
        "best": {"tpr": 0.8, "tnr": 0.8, "expected": 0.3456, "range": [0.2, 0.5]},
    },
}  # fmt: skip


def _with_exam(run: Path) -> None:
    _change(run / "phase6_export" / "evaluation.json", lambda evaluation: evaluation.update(exam=EXAM, views=4))


def test_the_exam(whole_run: Path) -> None:
    assert "exam" not in _page(whole_run).headings and "0.287" not in _page(whole_run).text
    _with_exam(whole_run)
    document = _page(whole_run)
    assert re.search(r"\b4 views\b.* 90 ", document.text) and re.search(r"\b21\b.*\b9\b.*\b84 views", document.text)
    assert _has_row(document, "2", "0.700", "0.800", "0.500") and _has_row(document, "0.750", "0.800", "0.550")
    for way, cells in {"fitted": ("0.287", "0.123 to 0.457", "0.750", "0.800"), "best": ("0.346",),
                       "half": ("0.200",)}.items():  # fmt: skip
        assert _has_row(document, page._WAYS[way], *cells)


# --- runs that have not come so far, or other ways ---


def test_a_run_without_phases_3_4_and_5(finished_run: Path) -> None:
    document = read_page(finished_run / "report.html")
    assert find_promise(read_run(finished_run)).words in document.text
    assert len(document.row(METRICS["mcc"].title)) == 1
    assert {"numbers", "plots", "phases", "training", "lineage"} <= set(document.headings)
    assert not {"adaptation", "merge", "exam"} & set(document.headings)
    assert next(row for row in _page(finished_run).rows if row[0].startswith("4: "))[1:] == ["", "", NOT_RUN]


@pytest.mark.parametrize("left", [1, 2, 3])
def test_a_run_under_way_gets_a_page_of_what_there_is(left: int, finished_run: Path) -> None:
    for folder in sorted(finished_run.glob("phase*"))[left:]:
        shutil.rmtree(folder)
    facts, document = read_run(finished_run), _page(finished_run)
    assert any("hase 6" in warning and warning in document.text for warning in find_warnings(facts))
    if left > 1:
        assert f"{facts.metrics(1)['val_select_mcc_optimistic']:.3f}" in document.text
    assert left < 3 or facts.results.decision is not None
    assert "natix-hf predict" not in document.text and "numbers" not in document.headings


def test_a_phase_that_was_cut_off_is_not_told_of(finished_run: Path) -> None:
    folder = finished_run / "phase6_export"
    (folder / "manifest.json").unlink()
    write_json(folder / "in_progress.json", {"attempt": "x"})
    document = _page(finished_run)
    assert any("phase 6" in warning and warning in document.text for warning in find_warnings(read_run(finished_run)))
    assert read_run(finished_run).phases[6].state == NOT_FINISHED
    assert "numbers" not in document.headings and "natix-hf predict" not in document.text


def test_phase_4_alone_without_labels(tmp_path: Path, pretrained: Path) -> None:
    import numpy as np

    rng, frames = np.random.default_rng(0), tmp_path / "frames"
    frames.mkdir()
    for number in range(40):
        striped_image(number % 2, rng).save(frames / f"frame{number:03}.png")
    recipe = explora_recipe(tmp_path, None, pretrained, objective="mae", use_labeled_data=False)
    run = run_recipe(recipe, [4], tmp_path / "run", overrides=[f"phase4.unlabelled=[{frames}]"])
    document = _page(run)
    assert re.search(r"\b40 .*\b6 .*\bmae\b", document.text) and str(frames) not in render_report(run)
    assert "adaptation" in document.headings and "numbers" not in document.headings


def test_a_damaged_file_is_named_on_the_page(whole_run: Path, command: Command) -> None:
    path = whole_run / "phase6_export" / "evaluation.json"
    _change(path, lambda evaluation: evaluation["selective"].pop("risks"))
    for content in (path.read_text(encoding="utf-8"), "{"):
        path.write_text(content, encoding="utf-8")
        document = _page(whole_run)
        assert "phase6_export/evaluation.json" in document.text and "natix-hf verify" in document.text
    assert command("report", whole_run)[0] == 0
    next((whole_run / "phase6_export" / "examples").glob("*.jpg")).unlink()
    with refused(VerificationError, ".jpg", "natix-hf verify"):
        render_report(whole_run)


# --- what comes from other people's data ---


def _first(examples: Any) -> dict[str, Any]:
    row: dict[str, Any] = next(kind["rows"][0] for kind in examples["kinds"] if kind["rows"])
    return row


def test_names_from_the_data_are_text(whole_run: Path) -> None:
    evil = '<script>alert("1")</script><img src=x onerror=alert(1)>'
    folder = whole_run / "phase6_export"
    figures = _read(folder / "evaluation.json")["slices"]["scene_level_tags.weather"]["rain"]
    _change(folder / "evaluation.json", lambda e: e["slices"].update({evil: {evil: figures}}))
    _change(folder / "examples" / "examples.json", lambda e: _first(e).update(row=evil, slices={evil: evil}))
    _change(folder / "bundle" / "config.json", lambda c: c.update(model_type=evil, id2label={"0": evil, "1": evil}))
    before = len(_page(whole_run).of("img"))
    document = _page(whole_run)
    assert document.of("script") == [] and len(document.of("img")) == before
    assert all("onerror" not in attributes for _, attributes in document.elements)
    assert evil in "".join(document.words)


def test_a_file_named_outside_the_folder_is_not_read(whole_run: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    path = whole_run / "phase6_export" / "examples" / "examples.json"
    _change(path, lambda e: _first(e).update(file="../../../secret.jpg"))
    with refused(VerificationError, "secret.jpg"):
        render_report(whole_run)

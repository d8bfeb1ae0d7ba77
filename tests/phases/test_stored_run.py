"""A run that version 0.1.0 wrote before results had types: it verifies, is read, answers and gives its page."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from facts import tells
from PIL import Image

from natix_hf.bundle.load import load_bundle
from natix_hf.errors import VerificationError
from natix_hf.labels import LabelNames
from natix_hf.report.page import render_report
from natix_hf.results.calibration import CalibrationReport
from natix_hf.results.decision import Decision
from natix_hf.results.evaluation import Evaluation
from natix_hf.results.examples import Examples
from natix_hf.results.gate import GateReport
from natix_hf.results.promise import PromiseReport
from natix_hf.runs.collected import read_results
from natix_hf.runs.verify import find_problems

STORED = Path(__file__).parents[1] / "stored" / "run_schema1.tar.gz"
FILES = {
    "phase2_threshold": Decision,
    "phase3_gate": GateReport,
    "phase5_scrc": CalibrationReport,
    "phase5_scrc/": PromiseReport,
    "phase6_export": Evaluation,
    "phase6_export/examples": Examples,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    with tarfile.open(STORED) as archive:
        archive.extractall(folder, filter="data")
    return folder / "run"


def test_it_verifies_and_is_told_of(run: Path) -> None:
    assert find_problems(str(run)) == []
    assert find_problems(str(run / "phase6_export" / "bundle")) == []
    results = read_results(run)
    assert results.decision is not None and results.evaluation is not None and results.promise is not None
    assert results.decision.exam is not None and results.evaluation.exam is not None
    assert results.policy is not None and results.policy.threshold_logit == results.decision.threshold_logit
    assert results.policy.promise == results.promise.promise
    assert results.decision.champion in render_report(run)
    assert results.policy.labels == LabelNames() and 'labelled "Roadwork"' in render_report(run)


def test_its_bundle_answers(run: Path) -> None:
    [answer] = load_bundle(run).predict(Image.new("RGB", (40, 40), (200, 90, 0)))
    assert 0 < answer.probability < 1


@pytest.mark.parametrize("place", FILES)
def test_what_is_read_is_written_as_it_was(place: str, run: Path, tmp_path: Path) -> None:
    """But for the number of the schema, which files of that version have not, and two renamed keys: byte for byte."""
    kind = FILES[place]
    text = (run / place / kind.FILE).read_text(encoding="utf-8")
    renamed = {"coverage_roadwork": "coverage_yes", "coverage_none": "coverage_no"}
    assert all((old in text) == (kind is Evaluation) for old in renamed)
    for old, new in renamed.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    stored = json.loads(text)
    assert "schema" not in stored
    kind.read(run / place).write(tmp_path)
    written = (tmp_path / kind.FILE).read_text(encoding="utf-8")
    assert written == json.dumps({"schema": kind.SCHEMA} | stored, indent=2, ensure_ascii=False) + "\n"
    assert kind.read(tmp_path) == kind.read(run / place)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"schema": 7}, ["schema", "7"]),
        ({"threshold_logit": "0"}, ["threshold_logit"]),
        ({"threshold_logit": True}, ["threshold_logit"]),
        ({"surprise": 1}, ["surprise"]),
        ({"comparisons": [{}]}, ["comparisons[0].control"]),
        ({"exam": {"views": 4}}, ["exam.seed"]),
        ({"val_select_optimistic": {"mcc": None}}, ["val_select_optimistic.mcc"]),
    ],
)
def test_a_damaged_result_names_its_key(
    change: dict[str, object], facts: list[str], run: Path, tmp_path: Path
) -> None:
    content = json.loads((run / "phase2_threshold" / "threshold.json").read_text(encoding="utf-8")) | change
    (tmp_path / "threshold.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(VerificationError) as caught:
        Decision.read(tmp_path)
    assert tells(caught.value, "threshold.json", *facts)

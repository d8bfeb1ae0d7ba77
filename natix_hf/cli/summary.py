"""The closing lines of a run: where the bundle is, how good it is and how to use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from natix_hf.bundle.names import bundle_of_run
from natix_hf.results.evaluation import Evaluation
from natix_hf.runs.collected import read_results
from natix_hf.runs.folders import REPORT
from natix_hf.runs.freshness import finished_digest, is_stale
from natix_hf.runs.graph import PHASES

_COLUMNS = {"as_found": "as found", "at_target_prior": "at a prior of {:g}"}


def summarise(run_dir: Path) -> Iterator[str]:
    """The closing lines, one at a time."""
    if finished_digest(run_dir, PHASES[6]) is None or is_stale(run_dir, PHASES[6]):
        yield f"done     {run_dir}"
        yield from _of_page(run_dir)
        return
    results, bundle = read_results(run_dir), bundle_of_run(run_dir)
    assert results.evaluation is not None and results.policy is not None
    yield f"bundle   {bundle}"
    yield from _of_test(results.evaluation)
    promise = results.policy.promise
    if promise.alpha is not None and promise.feasible:
        selective = results.evaluation.selective
        risks = [(name, risk.value) for name, risk in selective.risks.items()]
        found = ", ".join(f"{name} {'undefined' if value is None else f'{value:.3f}'}" for name, value in risks)
        covered = f"coverage {selective.coverage.value:.3f}"
        yield f"promise  risk at most {promise.alpha:g}; on test: {found}, {covered}"
    elif promise.alpha is not None:
        yield f"promise  none: no threshold could be certified for a risk of {promise.alpha:g}"
    yield from _of_page(run_dir)
    yield f"predict  natix-hf predict {bundle} image.jpg"


def _of_page(run_dir: Path) -> Iterator[str]:
    if (run_dir / REPORT).is_file():
        yield f"report   {run_dir / REPORT}"


def _of_test(evaluation: Evaluation) -> Iterator[str]:
    for name, column in evaluation.columns.items():
        yield f"test MCC {column.figure('mcc').told} {_COLUMNS[name].format(column.target_prior)}"
    few = f", few {evaluation.unit}: the 95% intervals are wide" if evaluation.groups.few else ""
    asked = f", {evaluation.views} views each" if evaluation.exam is not None else ""
    yield f"         {evaluation.sample}{asked}{few or '; 95% intervals in brackets'}"
    notes = evaluation.notes({"mcc": "the MCC"})
    yield from (f"         {note}" for note in notes)
    if evaluation.exam is not None:
        of = {"real": "real pictures", "synthetic": "generated pictures", "both": "real and generated pictures"}
        for half, marks in evaluation.exam.halves.items():
            paid = marks.rewards["fitted"]
            low, high = paid.range
            varies = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None and low < high else ""
            told = "undefined" if paid.expected is None else f"{paid.expected:.3f}{varies}"
            yield f"reward   {told} expected for the subnet's {of[half]}"

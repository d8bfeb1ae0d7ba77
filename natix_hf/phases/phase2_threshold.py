"""Phase 2, threshold: the champion among the candidates and its decision threshold, both on val_select."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from natix_hf.bundle.logits import LogitTable, read_logits, write_logits
from natix_hf.data.config import Exam
from natix_hf.errors import RunError, UsageError
from natix_hf.metrics import count_groups, paired_difference, prior_weights, select_threshold, sweep
from natix_hf.phases import plots
from natix_hf.phases.candidate import Candidate, compute_answers, kept_logits
from natix_hf.phases.context import PhaseContext
from natix_hf.phases.graph import CANDIDATE_PHASES, PHASES
from natix_hf.provenance.files import atomic_file, read_json, write_json
from natix_hf.provenance.manifest import MANIFEST, manifest_problems

THRESHOLD, EXAM_ANSWERS = "threshold.json", "logits"


def run(context: PhaseContext) -> dict[str, Any]:
    config, prior = context.recipe.phase2, context.recipe.data.target_prior
    candidates = finished_candidates(context)
    tables = {c.name: _answers(context, c) for c in candidates}
    best = {name: select_threshold(t.logits, t.labels, config.objective, prior) for name, t in tables.items()}
    champion, comparisons = choose_champion(
        tables, {n: b.threshold for n, b in best.items()}, prior, config.n_resamples
    )
    context.note_rows("val_select", list(dict.fromkeys(tables[champion].ids)))
    table, chosen = tables[champion], best[champion]
    curve = sweep(table.logits, table.labels, target_prior=prior)
    with atomic_file(context.folder / "sweep.parquet") as temporary:
        pq.write_table(pa.table(curve), temporary)
    plots.threshold(context.folder / "plots" / "threshold.png", curve, chosen, prior)
    result = {
        "champion": champion,
        "candidate_sha256": table.candidate_sha256,
        "threshold_logit": chosen.threshold,
        "objective": config.objective,
        "target_prior": prior,
        "exam": asdict(table.exam) if table.exam is not None else None,
        "val_select_optimistic": {config.objective: chosen.value, "tpr": chosen.tpr, "tnr": chosen.tnr},
        "val_select_groups": count_groups(table.groups, table.labels),
        "comparisons": comparisons,
    }
    write_json(context.folder / THRESHOLD, result)
    return result


def read_decision(context: PhaseContext) -> dict[str, Any]:
    """What phase 2 decided, for a phase after it.

    Raises:
        UsageError: it asked other views of the pictures than this phase is to ask.
    """
    decision: dict[str, Any] = read_json(context.upstream(2) / THRESHOLD)
    exam = context.recipe.data.drawn_exam
    asked = decision.get("exam")
    if asked != (asdict(exam) if exam is not None else None):
        fitted = "whole pictures" if asked is None else f"{asked['views']} views of each picture"
        raise UsageError(
            f"phase 2 fitted the threshold to {fitted}, data.exam and data.exam_views say otherwise: "
            f"run phase 2 again, natix-hf run RECIPE --phases 2 --run-dir {context.run_dir}"
        )
    return decision


def select_logits(threshold_folder: Path, champion: Candidate, exam: Exam | None) -> LogitTable:
    """The logits of val_select by which the threshold was fitted, for the phases after it."""
    if exam is None:
        return champion.stored_logits("val_select")
    return read_logits(_exam_file(threshold_folder, champion), champion.sha256, exam)


def finished_parts(context: PhaseContext) -> list[str]:
    """The answers to the exam: another objective is fitted to the same ones."""
    finished = (context.folder / MANIFEST).is_file()
    return [] if finished and manifest_problems(context.folder) else [EXAM_ANSWERS]


def _answers(context: PhaseContext, candidate: Candidate) -> LogitTable:
    """What a candidate says about val_select: its own phase stored that of the pictures, the exam is asked here."""
    exam = context.recipe.data.drawn_exam
    if exam is None:
        return candidate.stored_logits("val_select")
    rows = context.rows("val_select")
    path = _exam_file(context.folder, candidate)
    table = kept_logits(path, candidate, rows, exam)
    if table is None:
        table = compute_answers(candidate, rows, exam)[0]
        write_logits(path, table)
    return table


def _exam_file(threshold_folder: Path, candidate: Candidate) -> Path:
    return threshold_folder / EXAM_ANSWERS / f"{candidate.name}.parquet"


def finished_candidates(context: PhaseContext) -> list[Candidate]:
    """The candidates of this run, the control first."""
    folders = [context.upstream(number) for number in CANDIDATE_PHASES if number in PHASES]
    return [
        Candidate(folder.name, folder)
        for folder in folders
        if (folder / "model").is_dir() and (folder / MANIFEST).is_file()
    ]


def choose_champion(
    tables: dict[str, LogitTable], thresholds: dict[str, float], prior: float | None, n_resamples: int
) -> tuple[str, list[dict[str, Any]]]:
    """The control (the first) stays unless a challenger's gain in MCC is above 0 beyond doubt.

    Each candidate is taken at its own threshold, on the same val_select rows; the doubt is the interval of a paired
    group bootstrap.

    Returns:
        Name of the champion, and one comparison for every challenger.
    """
    champion, *challengers = tables
    comparisons: list[dict[str, Any]] = []
    for challenger in challengers:
        control, other = tables[champion], tables[challenger]
        if control.ids != other.ids:
            raise RunError(f"{champion} and {challenger} have logits of different rows: run both phases again")
        gain = paired_difference(
            control.logits,
            other.logits,
            control.labels,
            control.groups,
            thresholds[champion],
            thresholds[challenger],
            sample_weight=prior_weights(control.labels, prior),
            n_resamples=n_resamples,
        )
        comparisons.append({"control": champion, "challenger": challenger, "mcc_gain": gain})
        if gain["low"] > 0:
            champion = challenger
    return champion, comparisons

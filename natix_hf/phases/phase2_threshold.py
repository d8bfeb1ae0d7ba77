"""Phase 2, threshold: the champion among the candidates and its decision threshold, both on val_select."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from natix_hf.bundle.logits import LogitTable
from natix_hf.errors import RunError
from natix_hf.metrics import count_groups, paired_difference, prior_weights, select_threshold, sweep
from natix_hf.phases import plots
from natix_hf.phases.candidate import Candidate
from natix_hf.phases.context import PhaseContext
from natix_hf.phases.graph import CANDIDATE_PHASES, PHASES
from natix_hf.provenance.files import atomic_file, write_json
from natix_hf.provenance.manifest import MANIFEST

THRESHOLD = "threshold.json"


def run(context: PhaseContext) -> dict[str, Any]:
    config, prior = context.recipe.phase2, context.recipe.data.target_prior
    candidates = finished_candidates(context)
    tables = {c.name: c.stored_logits("val_select") for c in candidates}
    best = {name: select_threshold(t.logits, t.labels, config.objective, prior) for name, t in tables.items()}
    champion, comparisons = choose_champion(
        tables, {n: b.threshold for n, b in best.items()}, prior, config.n_resamples
    )
    context.note_rows("val_select", tables[champion].ids)
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
        "val_select_optimistic": {config.objective: chosen.value, "tpr": chosen.tpr, "tnr": chosen.tnr},
        "val_select_groups": count_groups(table.groups, table.labels),
        "comparisons": comparisons,
    }
    write_json(context.folder / THRESHOLD, result)
    return result


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

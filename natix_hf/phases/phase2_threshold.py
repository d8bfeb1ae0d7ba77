"""Phase 2, threshold: choose the champion among the candidates and fit its decision threshold, both on val_select."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from natix_hf.metrics import select_threshold, sweep
from natix_hf.provenance.files import atomic_file
from natix_hf.provenance.manifest import MANIFEST, manifest_problems
from natix_hf.provenance.stored import to_json
from natix_hf.results import plots
from natix_hf.results.answers import compute_answers
from natix_hf.results.candidate import Candidate
from natix_hf.results.decision import Decision, choose_champion, exam_answers
from natix_hf.results.figures import GroupCounts
from natix_hf.results.logits import LogitTable, kept_logits, write_logits
from natix_hf.runs.context import Outcome, PhaseContext
from natix_hf.subnet.expectation import reward_of_counts


def run(context: PhaseContext) -> Outcome:
    """Leave `threshold.json`, the sweep over thresholds and its plot."""
    config, prior = context.recipe.phase2, context.recipe.data.target_prior
    candidates = {candidate.name: candidate for candidate in context.candidates()}
    tables = {name: _answers(context, candidate) for name, candidate in candidates.items()}
    objective = reward_of_counts if config.objective == "reward" else config.objective
    best = {name: select_threshold(t.logits, t.labels, objective, prior) for name, t in tables.items()}
    thresholds = {name: chosen.threshold for name, chosen in best.items()}
    champion, comparisons = choose_champion(tables, thresholds, prior, config.n_resamples)
    table, chosen = tables[champion], best[champion]
    context.note_rows("val_select", table.asked.row_ids)
    curve = sweep(table.logits, table.labels, target_prior=prior)
    with atomic_file(context.folder / "sweep.parquet") as temporary:
        pq.write_table(pa.table(curve), temporary)
    plots.threshold(context.folder / "plots" / "threshold.png", curve, chosen, prior, candidates[champion].labels)
    decision = Decision(
        champion=champion,
        candidate_sha256=table.candidate_sha256,
        threshold_logit=chosen.threshold,
        objective=config.objective,
        target_prior=prior,
        exam=table.asked.exam,
        val_select_optimistic={config.objective: chosen.value, "tpr": chosen.tpr, "tnr": chosen.tnr},
        val_select_groups=GroupCounts.of(table.groups, table.labels),
        comparisons=comparisons,
    )
    decision.write(context.folder)
    figure = f"{decision.objective_in_words} {chosen.value:.3f}"
    told = f"champion {champion}, threshold at logit {chosen.threshold:+.3f}, {figure} on val_select (optimistic)"
    return Outcome(to_json(decision), told)


def finished_parts(context: PhaseContext) -> list[str]:
    """The answers to the exam, which stay valid if only the objective changes."""
    finished = (context.folder / MANIFEST).is_file()
    answers = exam_answers(context.folder, Candidate(context.folder)).parent.name
    return [] if finished and manifest_problems(context.folder) else [answers]


def _answers(context: PhaseContext, candidate: Candidate) -> LogitTable:
    """A candidate's answers on val_select. Its own phase stored those to whole pictures; those to exam views are
    computed here."""
    if context.recipe.data.drawn_exam is None:
        return candidate.stored_logits("val_select")
    asked, path = context.ask("val_select"), exam_answers(context.folder, candidate)
    table = kept_logits(path, candidate.sha256, asked)
    if table is None:
        table, _ = compute_answers(candidate, asked)
        write_logits(path, table)
    return table

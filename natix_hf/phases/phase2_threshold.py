"""Phase 2, threshold: choose the champion among the candidates and fit its decision threshold, both on val_select."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from natix_hf.metrics import select_threshold, sweep
from natix_hf.provenance.files import atomic_file
from natix_hf.provenance.manifest import MANIFEST, manifest_problems
from natix_hf.provenance.stored import to_json
from natix_hf.results import plots
from natix_hf.results.answers import compute_answers
from natix_hf.results.candidate import Candidate
from natix_hf.results.decision import Decision, FittedTo, choose_champion, exam_answers, held_out_mcc, rates_at
from natix_hf.results.figures import GroupCounts
from natix_hf.results.logits import LogitTable, kept_logits, write_logits
from natix_hf.results.out_of_fold import OutOfFold
from natix_hf.runs.context import Outcome, PhaseContext
from natix_hf.runs.graph import PHASES
from natix_hf.subnet.expectation import reward_of_counts
from natix_hf.terminal import LABEL, tell


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
    samples = _samples(context, champion, table)
    fitted_to = config.from_ if config.from_ in samples else "val_select"
    sample = samples[fitted_to]
    if fitted_to == "out_of_fold":
        chosen = select_threshold(sample.logits, sample.labels, objective, prior)
    curve = sweep(sample.logits, sample.labels, target_prior=prior)
    with atomic_file(context.folder / "sweep.parquet") as temporary:
        pq.write_table(pa.table(curve), temporary)
    held_out = {
        str(name): measured
        for name, answers in samples.items()
        if (measured := held_out_mcc(answers, table, objective, prior, config.n_resamples)) is not None
    }
    decision = Decision(
        champion=champion,
        candidate_sha256=table.candidate_sha256,
        threshold_logit=chosen.threshold,
        objective=config.objective,
        target_prior=prior,
        exam=table.asked.exam,
        val_select_optimistic={config.objective: chosen.value} | rates_at(table, chosen.threshold),
        val_select_groups=GroupCounts.of(table.groups, table.labels),
        comparisons=comparisons,
        fitted_to=fitted_to,
        held_out=held_out or None,
    )
    decision.write(context.folder)
    shown, names = replace(chosen, objective=config.objective), candidates[champion].labels
    path = context.folder / "plots" / "threshold.png"
    plots.threshold(path, curve, shown, prior, names, decision.sample_in_words)
    figure = f"{decision.objective_in_words} {chosen.value:.3f}"
    found = f"{figure} on {decision.sample_in_words} (optimistic)"
    told = f"champion {champion}, threshold at logit {chosen.threshold:+.3f}, {found}"
    return Outcome(to_json(decision), "; ".join(filter(None, [told, decision.told_held_out])))


def _samples(context: PhaseContext, champion: str, table: LogitTable) -> dict[FittedTo, LogitTable | OutOfFold]:
    """What a threshold for the champion can be fitted to, by name."""
    recipe = context.recipe
    if recipe.phase1.folds is None:
        return {"val_select": table}
    if champion == PHASES[1].folder:
        return {"val_select": table, "out_of_fold": context.out_of_fold()}
    if recipe.phase2.from_ == "out_of_fold":
        tell(
            f"{' ' * LABEL}the threshold is fitted to val_select: the out-of-fold answers are those of phase 1, but "
            f"the champion is {champion}",
            hang=LABEL,
        )
    return {"val_select": table}


def finished_parts(context: PhaseContext) -> list[str]:
    """The answers to the exam, which stay valid if only the objective changes."""
    finished = (context.folder / MANIFEST).is_file()
    answers = exam_answers(context.folder, Candidate(context.folder)).parent.name
    return [] if finished and manifest_problems(context.folder) else [answers]


def _answers(context: PhaseContext, candidate: Candidate) -> LogitTable:
    """A candidate's answers on val_select. Its own phase stored those that it was chosen by; those to further views of
    the exam are computed here."""
    exam = context.recipe.data.drawn_exam
    if exam is None or exam.chooses:
        return candidate.stored_logits("val_select", exam)
    asked, path = context.ask("val_select"), exam_answers(context.folder, candidate)
    table = kept_logits(path, candidate.sha256, asked)
    if table is None:
        table, _ = compute_answers(candidate, asked)
        write_logits(path, table)
    return table

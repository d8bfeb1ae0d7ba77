"""Phase 2, threshold: choose the champion among the candidates and fit its decision threshold, both on val_select."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from natix_hf.metrics import sweep
from natix_hf.phases.phase2_soup import make_soup
from natix_hf.provenance.files import atomic_file
from natix_hf.provenance.manifest import MANIFEST, manifest_problems
from natix_hf.provenance.stored import to_json
from natix_hf.results import plots
from natix_hf.results.answers import compute_answers
from natix_hf.results.candidate import Candidate
from natix_hf.results.decision import decide, exam_answers
from natix_hf.results.logits import LogitTable, kept_logits, write_logits
from natix_hf.results.out_of_fold import OutOfFold
from natix_hf.results.soup import SOUP
from natix_hf.runs.context import Outcome, PhaseContext
from natix_hf.runs.graph import PHASES
from natix_hf.terminal import LABEL, tell


def run(context: PhaseContext) -> Outcome:
    """Leave `threshold.json`, the sweep over thresholds and its plot."""
    config, prior = context.recipe.phase2, context.recipe.data.target_prior
    candidates = {candidate.name: candidate for candidate in context.candidates()}
    tables = {name: _answers(context, candidate) for name, candidate in candidates.items()}
    soup = None
    if config.soup != "none":
        candidates[SOUP], tables[SOUP], soup = make_soup(context, tables)
    decision, chosen, sample = decide(tables, lambda champion: _out_of_fold(context, champion), config, prior, soup)
    context.note_rows("val_select", tables[decision.champion].asked.row_ids)
    curve = sweep(sample.logits, sample.labels, target_prior=prior)
    with atomic_file(context.folder / "sweep.parquet") as temporary:
        pq.write_table(pa.table(curve), temporary)
    decision.write(context.folder)
    names, path = candidates[decision.champion].labels, context.folder / "plots" / "threshold.png"
    plots.threshold(path, curve, chosen, prior, names, decision.sample_in_words)
    figure = f"{decision.objective_in_words} {chosen.value:.3f}"
    found = f"{figure} on {decision.sample_in_words} (optimistic)"
    told = f"champion {decision.champion}, threshold at logit {chosen.threshold:+.3f}, {found}"
    return Outcome(to_json(decision), "; ".join(filter(None, [told, decision.told_held_out])))


def _out_of_fold(context: PhaseContext, champion: str) -> OutOfFold | None:
    """The out-of-fold answers that a threshold for the champion can be fitted to, or None."""
    recipe = context.recipe
    if recipe.phase1.folds is None:
        return None
    if champion == PHASES[1].folder:
        return context.out_of_fold()
    if recipe.phase2.from_ == "out_of_fold":
        tell(
            f"{' ' * LABEL}the threshold is fitted to val_select: the out-of-fold answers are those of phase 1, but "
            f"the champion is {champion}",
            hang=LABEL,
        )
    return None


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
    write_logits(path, table)  # kept answers too: the groups may have changed
    return table

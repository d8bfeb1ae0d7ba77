"""Phase 5: fit the calibration on val_select, then control the risk on val_calib, which no other phase reads."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from natix_hf.bundle.confidence import Confidence
from natix_hf.calibration import Calibration
from natix_hf.errors import VerificationError
from natix_hf.metrics import prior_weights
from natix_hf.models.gate import GATE
from natix_hf.provenance.stored import to_json
from natix_hf.results import plots
from natix_hf.results.answers import compute_answers
from natix_hf.results.calibration import CalibrationReport, fit_on, measure_calibration
from natix_hf.results.candidate import Candidate
from natix_hf.results.certified import certify_run
from natix_hf.results.gate import read_cross_fitted
from natix_hf.results.logits import CALIB_ANSWERS, CALIB_FEATURES, LogitTable, write_features, write_logits
from natix_hf.results.looks import Look, add_look
from natix_hf.results.promise import EVERY_ANSWER, CertifiedPart, PromiseReport
from natix_hf.results.promise_plot import plot_promise
from natix_hf.runs.context import Outcome, PhaseContext
from natix_hf.terminal import LABEL, tell


def run(context: PhaseContext) -> Outcome:
    """Leave `calibration.json`, `scrc.json` and their plots."""
    recipe, config, prior = context.recipe, context.recipe.phase5, context.recipe.data.target_prior
    decision = context.decision()
    champion, threshold = context.champion(decision), decision.threshold_logit
    select = decision.val_select(context.upstream(2), champion)
    calib, features = compute_answers(champion, context.ask("val_calib"))
    context.note_rows("val_select", select.asked.row_ids)
    write_logits(context.folder / CALIB_ANSWERS, calib)
    sample = context.out_of_fold() if decision.fitted_to == "out_of_fold" else select
    fitted, no_optimum = fit_on(sample, config.method, prior)
    if no_optimum:
        told = f"no temperature fits {decision.sample_in_words} best, so the probabilities stay as they are"
        tell(f"{' ' * LABEL}{told}", hang=LABEL)
    calibration = measure_calibration(fitted, no_optimum, calib, prior, config.n_resamples)
    calibration.write(context.folder)
    _plot_reliability(context.folder, calibration, calib, prior)
    confidence = Confidence(threshold, learned_gate(context))
    if confidence.reads_features:
        write_features(context.folder / CALIB_FEATURES, calib, features)
    promise, rows = certify_run(
        (calib, confidence(calib.logits, features)),
        (select, _select_confidence(context, champion, select, confidence)),
        threshold,
        confidence.kind,
        config.risk,
        recipe.data,
        champion.labels,
        functools.partial(add_look, context.run_dir, _looks_before(context.folder)),
    )
    promise.write(context.folder)
    plot_promise(context.folder / "plots" / "risk_coverage.png", promise, rows, "val_calib")
    before, after = (errors["ece"].value for errors in (calibration.before, calibration.after))
    told = f"{_told(promise)}; ECE {before:.3f} before calibration, {after:.3f} after"
    return Outcome({"calibration": to_json(calibration), "risk_control": to_json(promise)}, told)


def finished_parts(context: PhaseContext) -> list[str]:
    """The last result, whose looks at val_calib stay spent."""
    return [PromiseReport.FILE]


def _looks_before(folder: Path) -> list[Look]:
    try:
        return PromiseReport.read(folder).looks or []
    except VerificationError:  # there is none, or it is damaged and made again; the run's own list counts
        return []


def _told(promise: PromiseReport) -> str:
    if not promise.feasible:
        lacking = [_lacking(part) for part in promise.parts.values() if not part.feasible]
        return f"no certificate for a risk of {promise.alpha:g}" + (f" ({'; '.join(lacking)})" if lacking else "")
    covered = [
        f"coverage {'' if name == EVERY_ANSWER else f'of {name} '}{part.coverage:.3f}"
        for name, part in promise.parts.items()
    ]
    certified = f"certified: {promise.loss} at most {promise.alpha:g} with probability {1 - promise.delta:g}"
    looks = len(promise.looks or [])
    return ", ".join([certified, *covered, *([f"look {looks} at these rows"] if looks > 1 else [])])


def _lacking(part: CertifiedPart) -> str:
    found = f"{part.accepted} accepted groups with {part.errors} errors"
    return f"{found}, {part.needed} needed" if part.needed else f"{found}, too many errors"


def _select_confidence(
    context: PhaseContext, champion: Candidate, select: LogitTable, confidence: Confidence
) -> np.ndarray:
    """The confidence in the answers on val_select, float64 [n].

    A learned gate was fitted on these rows, and rates them too well. Phase 3 has rated each by a gate that has not
    seen its group.
    """
    if not confidence.reads_features:
        return confidence(select.logits)
    cross_fitted = read_cross_fitted(context.upstream(3), select.ids)
    if cross_fitted is not None:
        return cross_fitted
    tell(f"{' ' * LABEL}phase 3 is of an older version: run it again for a better start of risk control", hang=LABEL)
    return confidence(select.logits, compute_answers(champion, context.ask("val_select"))[1])


def learned_gate(context: PhaseContext) -> Path | None:
    """The file of the learned gate, or None if phase 3 has not run or has kept the margin."""
    folder = context.finished(3)
    return folder / GATE if folder is not None and (folder / GATE).is_file() else None


def _plot_reliability(folder: Path, report: CalibrationReport, calib: LogitTable, prior: float | None) -> None:
    weights = prior_weights(calib.labels, prior)
    before, after = (Calibration("none"), report.before), (report.calibration, report.after)
    for name, (calibration, errors) in {"before": before, "after": after}.items():
        title = f"Reliability on val_calib, {name} calibration: ECE {errors['ece'].value:.3f}"
        path = folder / "plots" / f"reliability_{name}.png"
        plots.reliability(path, calibration.probability(calib.logits), calib.labels, weights, title)

"""Phase 6, export: one evaluation of the champion on test, then the bundle, reloaded and compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from natix_hf.bundle.build import build_bundle
from natix_hf.bundle.card import CardFacts, render_card, subnet_model_card
from natix_hf.bundle.confidence import Confidence
from natix_hf.bundle.logits import LogitTable, write_logits
from natix_hf.bundle.policy import Policy
from natix_hf.bundle.verify import BUNDLE_MANIFEST
from natix_hf.calibration import Calibration, losses_for
from natix_hf.calibration.risk_rows import Loss
from natix_hf.data.rows import Rows
from natix_hf.errors import RunError
from natix_hf.metrics import bootstrap_intervals, compute_metrics, count_groups, group_weights, prior_weights
from natix_hf.metrics.bootstrap import MEANS, RATES
from natix_hf.models.classifier import ID2LABEL, PACKAGED_PREFIX
from natix_hf.phases import plots
from natix_hf.phases.candidate import Candidate, compute_answers
from natix_hf.phases.context import PhaseContext
from natix_hf.phases.phase2_threshold import THRESHOLD
from natix_hf.phases.phase3_gate import GATE_REPORT
from natix_hf.phases.phase5_scrc import CALIBRATION, RISK, learned_gate
from natix_hf.provenance.files import file_sha256, read_json, write_json
from natix_hf.provenance.manifest import MANIFEST, git_state, package_versions, read_manifest
from natix_hf.recipe import Recipe

EVALUATION = "evaluation.json"
BUNDLE = "bundle"
_COMPARED_IMAGES = 50
_OF_PROBABILITIES = ("auroc", "auprc", "ece", "brier", "nll")
# A slice value with fewer rows than this says nothing that an interval would not swallow.
_SLICE_ROWS = 20


def run(context: PhaseContext) -> dict[str, Any]:
    recipe, config = context.recipe, context.recipe.phase6
    decision = read_json(context.upstream(2) / THRESHOLD)
    champion = Candidate(decision["champion"], context.run_dir / decision["champion"])
    test = context.rows("test")
    table, features = compute_answers(champion, test)
    write_logits(context.folder / "logits" / "test.parquet", table)
    policy, gate = _policy(context, decision)
    evaluation = evaluate(table, policy, recipe.data.target_prior, config.n_resamples)
    accepted = policy.accepts(table.logits, Confidence(policy.threshold_logit, gate)(table.logits, features))
    evaluation["selective"] = evaluate_selective(table, policy, accepted, recipe.data.target_prior, config.n_resamples)
    evaluation["slices"] = {name: _slice(table, policy, accepted, test, name) for name in recipe.data.slices}
    write_json(context.folder / EVALUATION, evaluation)
    scores_plot = context.folder / "plots" / "test_scores.png"
    plots.test_scores(scores_plot, table.logits, table.labels, policy.threshold_logit)
    lineage = _lineage(context, champion, decision)
    chosen = np.random.default_rng(recipe.data.seed).permutation(len(test))[:_COMPARED_IMAGES]
    policy = build_bundle(
        context.folder / BUNDLE,
        champion.model,
        policy,
        evaluation=evaluation,
        card=render_card(_card_facts(context, champion, decision, policy, evaluation, lineage)),
        model_card=subnet_model_card(_model_name(recipe), config.description, config.version, config.submitted_by),
        plots=[context.upstream(2) / "plots" / "threshold.png", scores_plot, *_plots_of(context, 5)],
        lineage=lineage,
        images=list(test.source.select(chosen)[test.image_column]),
        expected_logits=table.logits[chosen],
        gate=gate,
    )
    as_found = evaluation["as_found"]
    return {
        "champion": champion.name,
        "candidate_sha256": policy.candidate_sha256,
        "model_sha256": policy.model_sha256,
        "bundle_manifest_sha256": file_sha256(context.folder / BUNDLE / BUNDLE_MANIFEST),
        "test_mcc": as_found["metrics"]["mcc"],
        "test_mcc_interval": as_found["intervals"]["mcc"],
    }


def _policy(context: PhaseContext, decision: dict[str, Any]) -> tuple[Policy, Path | None]:
    """How the bundle decides, from phases 2, 3 and 5, and the file of its gate if it has learned one."""
    policy = Policy(
        threshold_logit=decision["threshold_logit"],
        candidate_sha256=decision["candidate_sha256"],
        model_sha256="",
        fold=context.recipe.phase6.fold,
    )
    gate = learned_gate(context)
    if gate is not None:
        report = read_json(context.upstream(3) / GATE_REPORT)
        policy = replace(policy, gate={"kind": "learned", "method": report["method"], "sha256": file_sha256(gate)})
    folder = context.upstream(5)
    if (folder / MANIFEST).is_file():
        fitted, risk = read_json(folder / CALIBRATION), read_json(folder / RISK)
        if risk["candidate_sha256"] != policy.candidate_sha256 or risk["gate"] != policy.gate["kind"]:
            raise RunError(f"{folder} was made for another champion or gate: run phase 5 again")
        calibration = Calibration(fitted["method"], fitted["slope"], fitted["intercept"])
        told = ("feasible", "guarantee", "thresholds", "loss", "alpha", "delta", "classwise")
        policy = replace(policy, calibration=calibration, risk_control={key: risk[key] for key in told})
    return policy, gate


def _plots_of(context: PhaseContext, number: int) -> list[Path]:
    folder = context.upstream(number)
    return sorted((folder / "plots").glob("*.png")) if (folder / MANIFEST).is_file() else []


def evaluate_selective(
    table: LogitTable, policy: Policy, accepted: np.ndarray, target_prior: float | None, n_resamples: int
) -> dict[str, Any]:
    """What the acceptance of answers is worth on test, beside the promise: coverage, by answer too, and every promised
    risk among the accepted, with group-bootstrap intervals."""
    positive = policy.decide(table.logits)
    weights = prior_weights(table.labels, target_prior)
    everything = np.ones_like(accepted)
    shares = {
        "coverage": (accepted, everything),
        "coverage_roadwork": (accepted & positive, positive),
        "coverage_none": (accepted & ~positive, ~positive),
    }
    promised = _promised_risks(policy.risk_control, positive, table.labels)
    risks = {name: (accepted & lost, accepted & counted) for name, (lost, counted) in promised.items()}
    sums = np.column_stack([part for pair in (shares | risks).values() for part in pair]) * weights[:, None]
    drawn = np.concatenate(list(group_weights(table.groups, table.labels, n_resamples, 0))).astype(np.float64)
    resampled, whole = (drawn @ sums).T, sums.sum(axis=0)
    figures = {}
    for i, name in enumerate(shares | risks):
        with np.errstate(invalid="ignore", divide="ignore"):
            each, value = resampled[2 * i] / resampled[2 * i + 1], whole[2 * i] / whole[2 * i + 1]
        defined = each[np.isfinite(each)]
        interval = np.quantile(defined, [0.025, 0.975]).tolist() if defined.size else [None, None]
        figures[name] = {"value": _finite(value), "interval": interval}
    return {"promised": policy.risk_control.get("alpha")} | {
        **{name: figures[name] for name in shares},
        "risks": {name: figures[name] for name in risks},
    }


def _promised_risks(
    risk_control: dict[str, Any], positive: np.ndarray, labels: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By the name of each risk that phase 5 controls: which rows are losses, and which count; bool [n] both."""
    loss, decisions = risk_control.get("loss", "error"), positive.astype(np.int8)
    wanted: tuple[Loss, ...] = ("fnr", "fpr") if risk_control.get("classwise") else (loss,)
    if risk_control.get("classwise") and loss == "error":
        wrong = decisions != labels
        of_answer = {ID2LABEL[1]: positive, ID2LABEL[0]: ~positive}
        return {f"error of {label}": (wrong & answered, answered) for label, answered in of_answer.items()}
    found = {name: losses_for(name, decisions, labels) for name in wanted}
    return {name: (losses.astype(bool), counted) for name, (losses, counted) in found.items()}


def evaluate(table: LogitTable, policy: Policy, target_prior: float | None, n_resamples: int) -> dict[str, Any]:
    """Test metrics at the fitted threshold in two columns, as found and at the target prior, with group-bootstrap
    intervals; undefined figures are null."""
    columns = {"as_found": None, "at_target_prior": target_prior} if target_prior is not None else {"as_found": None}
    # Rates are those of the decisions: far from 0, logits on both sides of the threshold share one probability.
    probabilities, decided = policy.probability(table.logits), policy.decide(table.logits).astype(np.float64)
    result: dict[str, Any] = {"rows": len(table.ids), "groups": count_groups(table.groups, table.labels)}
    for name, prior in columns.items():
        weights = prior_weights(table.labels, prior)
        metrics = compute_metrics(decided, table.labels, sample_weight=weights)
        scored = compute_metrics(probabilities, table.labels, sample_weight=weights)
        metrics |= {key: scored[key] for key in _OF_PROBABILITIES}
        intervals = {
            key: interval
            for values, wanted in ((decided, RATES), (probabilities, (*MEANS, "auroc", "ece")))
            for key, interval in bootstrap_intervals(
                values,
                table.labels,
                table.groups,
                sample_weight=weights,
                n_resamples=n_resamples,
                metrics=wanted,
            ).items()
        }
        result[name] = {
            "target_prior": prior,
            "metrics": {key: _finite(value) for key, value in metrics.items()},
            "intervals": {key: [_finite(low), _finite(high)] for key, (low, high) in intervals.items()},
        }
    return result


def _slice(
    table: LogitTable, policy: Policy, accepted: np.ndarray, test: Rows, column: str
) -> dict[str, dict[str, float | None]]:
    values = np.asarray([str(value) for value in test.column(column)])
    result = {}
    for value in np.unique(values):
        at = values == value
        if at.sum() >= _SLICE_ROWS:
            answers = compute_metrics(policy.decide(table.logits[at]).astype(float), table.labels[at])
            wanted = ("n", "n_positive", "mcc", "recall", "specificity")
            result[str(value)] = {key: _finite(answers[key]) for key in wanted}
            result[str(value)]["coverage"] = float(accepted[at].mean())
    return result


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _model_name(recipe: Recipe) -> str:
    return recipe.phase6.model_name or recipe.name


def _card_facts(
    context: PhaseContext,
    champion: Candidate,
    decision: dict[str, Any],
    policy: Policy,
    evaluation: dict[str, Any],
    lineage: dict[str, Any],
) -> CardFacts:
    recipe, split = context.recipe, read_manifest(context.upstream(0))["metrics"]
    # What the champion was trained with, which need not be what this phase's recipe says now.
    made_by = read_manifest(champion.folder)
    sections = made_by["section"]
    explora = sections.get("phase4")
    stage, model = (explora and explora["supervised"]) or sections["phase1"], sections["model"]
    source, backbone = str(recipe.data.source), model["backbone"]
    measured = made_by["metrics"]
    training = measured["supervised"] if explora else measured
    trainings = ({"backbone": measured} if explora else {}) | {"classifier": training}
    return CardFacts(
        model_name=_model_name(recipe),
        description=recipe.phase6.description,
        version=recipe.phase6.version,
        architecture=read_json(champion.model / "config.json")["model_type"],
        backbone=_public_name(backbone) if backbone else "random weights",
        adapter=training.get("adapter", stage["adapter"]),  # of `auto` the one that it took
        image_size=model["image_size"],
        dataset=_public_name(source),
        counts=split["counts"],
        dropped=split["dropped"],
        evaluation=evaluation,
        decision=decision,
        policy=policy,
        training=training,
        explora=measured if explora else None,
        merges={what: facts["merge"] for what, facts in trainings.items() if facts.get("merge")},
        lineage=lineage,
    )


def _public_name(reference: str) -> str:
    """A Hub id as it is; of a local folder the last part alone: nothing published holds a path."""
    return Path(reference).resolve().name if Path(reference).is_dir() else reference.removeprefix(PACKAGED_PREFIX)


def _lineage(context: PhaseContext, champion: Candidate, decision: dict[str, Any]) -> dict[str, Any]:
    """Where the bundle comes from; no path, host or user name."""
    recipe = context.recipe
    optional = [context.upstream(number) for number in (3, 5) if (context.upstream(number) / MANIFEST).is_file()]
    made = (context.upstream(0), champion.folder, context.upstream(2), *optional)
    phases = {folder.name: read_manifest(folder) for folder in made}
    return {
        "run_id": context.run_dir.name,
        "recipe": recipe.name,
        "champion": champion.name,
        "candidate_sha256": decision["candidate_sha256"],
        "phases": {name: manifest["digest"] for name, manifest in phases.items()},
        "settings_sha256": {name: manifest["section_sha256"] for name, manifest in phases.items()}
        | {context.phase.folder: recipe.section_sha256(*context.phase.sections)},
        "git": git_state(),
        "packages": package_versions(),
    }

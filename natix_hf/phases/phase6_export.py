"""Phase 6, export: one evaluation of the champion on test, then the bundle, reloaded and compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from natix_hf.bundle.build import MODEL_CARD, build_bundle
from natix_hf.bundle.card import CardFacts, render_card, subnet_model_card
from natix_hf.bundle.confidence import Confidence
from natix_hf.bundle.logits import LogitTable, write_logits
from natix_hf.bundle.policy import Policy
from natix_hf.bundle.verify import BUNDLE_MANIFEST
from natix_hf.calibration import Calibration
from natix_hf.callbacks.push_bundle import PushBundle
from natix_hf.data.rows import Rows
from natix_hf.errors import RunError
from natix_hf.models.config import PACKAGED_PREFIX, UNKNOWN_TO_THE_MINER
from natix_hf.models.preprocess import Preprocess, load_processor
from natix_hf.phases import plots
from natix_hf.phases.candidate import Candidate, compute_answers, kept_logits, shown
from natix_hf.phases.context import PhaseContext
from natix_hf.phases.evaluation import evaluate, evaluate_selective, evaluate_slice
from natix_hf.phases.examples import Answered, write_examples
from natix_hf.phases.phase2_threshold import read_decision
from natix_hf.phases.phase3_gate import GATE_REPORT
from natix_hf.phases.phase5_scrc import CALIBRATION, RISK, learned_gate
from natix_hf.provenance.files import atomic_file, file_sha256, read_json, write_json, write_text
from natix_hf.provenance.hub import is_repo_id
from natix_hf.provenance.manifest import MANIFEST, git_state, manifest_problems, package_versions, read_manifest
from natix_hf.recipe import Recipe
from natix_hf.report.page import REPORT, render_report
from natix_hf.reporting import say
from natix_hf.subnet.exam import mark_exam

EVALUATION = "evaluation.json"
ANSWERS, FEATURES = "logits/test.parquet", "logits/test_features.safetensors"
BUNDLE = "bundle"
_COMPARED_IMAGES = 50


def run(context: PhaseContext) -> dict[str, Any]:
    recipe, config = context.recipe, context.recipe.phase6
    decision = read_decision(context)
    champion = Candidate(decision["champion"], context.run_dir / decision["champion"])
    test = context.rows("test")
    pusher = PushBundle(str(config.repo_id), config.private, config.tag) if config.push else None
    policy, gate = _policy(context, decision)
    table, features = _answers(context, champion, test, with_features=gate is not None)
    evaluation = evaluate(table, policy, recipe.data.target_prior, config.n_resamples)
    confidence = Confidence(policy.threshold_logit, gate)(table.logits, features)
    accepted = policy.accepts(table.logits, confidence)
    evaluation["selective"] = evaluate_selective(table, policy, accepted, recipe.data.target_prior, config.n_resamples)
    evaluation["slices"] = {name: evaluate_slice(table, policy, accepted, test, name) for name in recipe.data.slices}
    if recipe.data.exam:
        asked = {"rows": len(test), "positives": int(test.labels.sum()), "views": len(table.ids)}
        evaluation["exam"] = asked | mark_exam(table.logits, table.labels, table.levels, policy.threshold_logit)
    write_json(context.folder / EVALUATION, evaluation)
    pictures = shown(test, Preprocess(load_processor(champion.model)), recipe.data.drawn_exam)
    answered = Answered(table, policy, confidence, accepted, test, pictures.picture)
    write_examples(context.folder, answered, evaluation["slices"])
    scores_plot = context.folder / "plots" / "test_scores.png"
    plots.test_scores(scores_plot, table.logits, table.labels, policy.threshold_logit)
    architecture = read_json(champion.model / "config.json")["model_type"]
    if architecture in UNKNOWN_TO_THE_MINER:
        say(f"warning: the subnet's official miner (transformers 4.45.2) cannot load a {architecture}")
    lineage = _lineage(context, champion, decision)
    chosen = np.random.default_rng(recipe.data.seed).permutation(len(table.ids))[:_COMPARED_IMAGES]
    policy = build_bundle(
        context.folder / BUNDLE,
        champion.model,
        policy,
        evaluation=evaluation,
        card=render_card(_card_facts(context, champion, decision, policy, evaluation, lineage)),
        model_card=_five_fields(context),
        plots=[context.upstream(2) / "plots" / "threshold.png", scores_plot, *_plots_of(context, 5)],
        lineage=lineage,
        images=[pictures.picture(int(i)) for i in chosen],
        expected_logits=table.logits[chosen],
        gate=gate,
        onnx=config.onnx,
    )
    published = pusher.on_export_end(context.folder / BUNDLE) if pusher is not None else None
    as_found = evaluation["as_found"]
    metrics = {
        "champion": champion.name,
        "candidate_sha256": policy.candidate_sha256,
        "model_sha256": policy.model_sha256,
        "bundle_manifest_sha256": file_sha256(context.folder / BUNDLE / BUNDLE_MANIFEST),
        "published": published,
        "test_mcc": as_found["metrics"]["mcc"],
        "test_mcc_interval": as_found["intervals"]["mcc"],
    }
    exported = {"section": {"phase6": recipe.section("phase6")}, "metrics": metrics}
    exported |= {key: lineage[key] for key in ("git", "packages")}
    write_text(context.folder / REPORT, render_report(context.run_dir, exported))
    return metrics


def finished_parts(context: PhaseContext) -> list[str]:
    """The answers on test: the split is looked at once for each champion, and another policy is measured on them."""
    finished = (context.folder / MANIFEST).is_file()
    return [] if finished and manifest_problems(context.folder) else [ANSWERS, FEATURES]


def _answers(
    context: PhaseContext, champion: Candidate, test: Rows, with_features: bool
) -> tuple[LogitTable, np.ndarray | None]:
    """Logits of the test rows, and what a learned gate reads; of the last attempt, if they are this champion's."""
    path, features_path = context.folder / ANSWERS, context.folder / FEATURES
    exam = context.recipe.data.drawn_exam
    table = kept_logits(path, champion, test, exam)
    if table is not None and (features_path.is_file() or not with_features):
        say("phase 6: test was answered by this champion before: the same answers are used")
        return table, load_file(features_path)[table.candidate_sha256] if with_features else None
    features_path.unlink(missing_ok=True)  # of other answers
    table, features = compute_answers(champion, test, exam)
    write_logits(path, table)
    if with_features:
        with atomic_file(features_path) as temporary:
            save_file({table.candidate_sha256: features}, temporary)
    return table, features


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


def _five_fields(context: PhaseContext) -> dict[str, Any] | None:
    """For the subnet, with the time of an attempt that was cut off: it may have published, and this is no other
    bundle."""
    config, before = context.recipe.phase6, context.folder / BUNDLE / MODEL_CARD
    fields = subnet_model_card(_model_name(context.recipe), config.description, config.version, config.submitted_by)
    if fields is not None and before.is_file():
        fields["submission_time"] = read_json(before)["submission_time"]
    return fields


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
        backbone_packaged=bool(backbone) and backbone.startswith(PACKAGED_PREFIX),
        adapter=training.get("adapter", stage["adapter"]),  # of `auto` the one that it took
        image_size=model["image_size"],
        onnx=recipe.phase6.onnx,
        dataset=_public_name(source),
        origins={name: lineage["hub"][name] for name in ("dataset", "backbone")},
        unlabelled=lineage["hub"]["unlabelled"],
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
    """A Hub id as it is; of a local folder, be it gone by now, the last part alone: nothing published holds a path."""
    if reference.startswith(PACKAGED_PREFIX):
        return reference.removeprefix(PACKAGED_PREFIX)
    return reference if is_repo_id(reference) and not Path(reference).is_dir() else Path(reference).resolve().name


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
        "hub": {
            "dataset": phases[context.upstream(0).name].get("hub", {}).get("data"),
            "backbone": phases[champion.folder.name].get("hub", {}).get("model"),
            "unlabelled": list(phases[champion.folder.name].get("hub", {}).get("unlabelled", {}).values()),
        },
        "git": git_state(),
        "packages": package_versions(),
    }

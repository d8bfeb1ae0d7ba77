"""Step one of phase 6: ask the champion about test once, and measure its policy on the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from natix_hf.bundle.confidence import Confidence
from natix_hf.bundle.policy import GateUse, Policy
from natix_hf.data.asked import Asked
from natix_hf.data.splits import SPLITS, read_splits
from natix_hf.data.synthetic_half import GeneratedRows, load_generated
from natix_hf.errors import RunError, VerificationError
from natix_hf.phases.phase5_scrc import learned_gate
from natix_hf.provenance.files import file_sha256
from natix_hf.provenance.hub import is_repo_id
from natix_hf.provenance.manifest import MANIFEST, manifest_problems
from natix_hf.results import plots
from natix_hf.results.answers import compute_answers
from natix_hf.results.calibration import CalibrationReport
from natix_hf.results.candidate import Candidate
from natix_hf.results.decision import Decision
from natix_hf.results.evaluation import Evaluation, evaluate
from natix_hf.results.examples import Answered, write_examples
from natix_hf.results.gate import GateReport
from natix_hf.results.logits import (
    SYNTHETIC_ANSWERS,
    TEST_ANSWERS,
    TEST_COLUMNS,
    TEST_FEATURES,
    LogitTable,
    kept_logits,
    read_features,
    write_columns,
    write_features,
    write_logits,
)
from natix_hf.results.promise import PromiseReport
from natix_hf.results.synthetic_half import SyntheticHalf
from natix_hf.runs.context import PhaseContext
from natix_hf.runs.lineage import public_name
from natix_hf.runs.pins import pinned_synthetic_half
from natix_hf.terminal import LABEL, tell

SCORES_PLOT = "plots/test_scores.png"
_COMPARED_IMAGES = 50


@dataclass(frozen=True)
class Evaluated:
    """The results on test that the export needs: the policy and its gate, the evaluation, and some pictures with the
    candidate's logits (float64 [n]) to compare the bundle on."""

    policy: Policy
    gate: Path | None
    evaluation: Evaluation
    pictures: Sequence[Image.Image]
    logits: np.ndarray


def evaluate_champion(context: PhaseContext, decision: Decision, champion: Candidate) -> Evaluated:
    """Evaluate the champion on test. Leaves the answers, `evaluation.json`, the hard examples and a plot of scores."""
    recipe = context.recipe
    generated = _load_generated(context)  # refuses what it must before test is read
    asked = context.ask("test")
    policy, gate = make_policy(context, decision)
    table, features = _answers(context.folder, champion, asked, with_features=gate is not None)
    confidence = Confidence(policy.threshold_logit, gate)(table.logits, features)
    accepted = policy.accepts(table.logits, confidence)
    rows = context.rows("test")
    columns = {name: [str(value) for value in values] for name, values in rows.columns.items()}
    if len(set(rows.origins)) > 1:
        columns["source" if "source" not in columns else "data.source"] = rows.origins
    write_columns(context.folder / TEST_COLUMNS, table.asked.row_ids, columns)
    prior, known = recipe.data.target_prior, recipe.data.groups_known
    synthetic = _ask_generated(context, champion, generated) if generated is not None else None
    evaluation = evaluate(table, policy, accepted, columns, prior, recipe.phase6.n_resamples, known, synthetic)
    evaluation.write(context.folder)
    hard = Answered(table, policy, confidence, accepted, columns)
    write_examples(context.folder, hard, evaluation.slices, champion.model)
    plots.test_scores(context.folder / SCORES_PLOT, table.logits, table.labels, policy.threshold_logit, policy.labels)
    chosen = np.random.default_rng(recipe.data.seed).permutation(len(asked))[:_COMPARED_IMAGES]
    return Evaluated(policy, gate, evaluation, [asked.picture(int(i)) for i in chosen], table.logits[chosen])


def finished_parts(context: PhaseContext) -> list[str]:
    """The answers on test and on generated pictures. Each champion answers them once; another policy is measured on
    the same answers."""
    finished = (context.folder / MANIFEST).is_file()
    kept = [TEST_ANSWERS, TEST_FEATURES, SYNTHETIC_ANSWERS, SyntheticHalf.FILE]
    return [] if finished and manifest_problems(context.folder) else kept


def _load_generated(context: PhaseContext) -> GeneratedRows | None:
    """The generated pictures of the recipe, without those that stand in a split."""
    config = context.recipe.data
    if config.synthetic_half is None:
        return None
    splits = read_splits(context.upstream(0) / SPLITS)
    stands = zip(splits.sha256, splits.ids, splits.roles, strict=True)
    real = {digest: f"row {row_id} of {role}" for digest, row_id, role in stands}
    generated = load_generated(config, real, pinned_synthetic_half(context.run_dir, config.synthetic_half))
    for note in generated.notes:
        tell(f"{' ' * LABEL}{note}", hang=LABEL)
    return generated


def _ask_generated(
    context: PhaseContext, champion: Candidate, generated: GeneratedRows
) -> tuple[LogitTable, SyntheticHalf]:
    """The champion's answers about generated pictures, from the last attempt if the pictures are still the same."""
    folder, source, asked = context.folder, str(context.recipe.data.synthetic_half), generated.asked
    facts = SyntheticHalf(
        public_name(source, {"repo": source} if is_repo_id(source) and not Path(source).exists() else None),
        len(asked.row_ids),
        int(asked.row_labels.sum()),
        generated.pixels_sha256,
        generated.left_out,
    )
    path, table = folder / SYNTHETIC_ANSWERS, None
    if (folder / SyntheticHalf.FILE).is_file() and SyntheticHalf.read(folder).pixels_sha256 == facts.pixels_sha256:
        table = kept_logits(path, champion.sha256, asked)
    if table is None:
        path.unlink(missing_ok=True)  # no answers may lie beside facts about other pictures
        facts.write(folder)
        table, _ = compute_answers(champion, asked)
        write_logits(path, table)
    facts.write(folder)
    tell(f"{' ' * LABEL}{facts.told} ({SyntheticHalf.FILE} lists what was left out)", hang=LABEL)
    return table, facts


def make_policy(context: PhaseContext, decision: Decision) -> tuple[Policy, Path | None]:
    """Make the policy of the bundle from the champion and the results of phases 2, 3 and 5.

    Returns:
        The policy, and the file of the learned gate or None.

    Raises:
        RunError: if phase 5 certified another champion or gate.
    """
    policy = Policy(
        threshold_logit=decision.threshold_logit,
        candidate_sha256=decision.candidate_sha256,
        model_sha256="",
        fold=context.recipe.phase6.fold,
        labels=context.champion(decision).labels,
    )
    gate = learned_gate(context)
    if gate is not None:
        report = GateReport.read(context.upstream(3))
        policy = replace(policy, gate=GateUse("learned", report.method, file_sha256(gate)))
    folder = context.finished(5)
    if folder is not None:
        fitted, certified = CalibrationReport.read(folder), PromiseReport.read(folder)
        if certified.candidate_sha256 != policy.candidate_sha256 or certified.gate != policy.gate.kind:
            raise RunError(f"{folder} was made for another champion or gate: run phase 5 again")
        policy = replace(policy, calibration=fitted.calibration, promise=certified.promise)
    return policy, gate


def _answers(
    folder: Path, champion: Candidate, asked: Asked, with_features: bool
) -> tuple[LogitTable, np.ndarray | None]:
    """The logits of the test rows and the inputs of a learned gate, taken from the last attempt if it asked the same
    champion."""
    path, features_path = folder / TEST_ANSWERS, folder / TEST_FEATURES
    table, features = kept_logits(path, champion.sha256, asked), None
    if table is not None and with_features:
        try:
            features = read_features(features_path, table)
        except VerificationError:  # no attempt has left any, or they are damaged: the model is asked again
            table = None
    if table is not None:
        tell(f"{' ' * LABEL}this champion has answered test before, so the same answers are used", hang=LABEL)
    else:
        features_path.unlink(missing_ok=True)  # they belong to other answers
        table, features = compute_answers(champion, asked)
        if with_features:
            write_features(features_path, table, features)
    write_logits(path, table)  # kept answers too: the groups may have changed
    return table, features

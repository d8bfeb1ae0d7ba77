"""What a run has decided and measured, recomputed from its stored answers and compared with what its files say.

Checksums show that a file is the one that was written. This shows that it follows from the answers, whoever wrote it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from natix_hf.bundle.confidence import Confidence
from natix_hf.bundle.config import ExportConfig
from natix_hf.bundle.names import POLICY, bundle_of_run
from natix_hf.bundle.policy import read_policy
from natix_hf.calibration.config import ScrcConfig
from natix_hf.data.config import DataConfig
from natix_hf.errors import NatixError
from natix_hf.metrics import prior_weights
from natix_hf.metrics.config import ThresholdConfig
from natix_hf.models.gate import GATE
from natix_hf.provenance.manifest import METHODS, package_versions
from natix_hf.provenance.stored import Stored, to_json
from natix_hf.results.calibration import CalibrationReport, fit_on, measure_calibration
from natix_hf.results.candidate import Candidate
from natix_hf.results.certified import certify_run
from natix_hf.results.decision import Decision, best_threshold, decide
from natix_hf.results.evaluation import Evaluation, evaluate
from natix_hf.results.gate import GateReport, compare_gates, read_cross_fitted, verdict
from natix_hf.results.logits import (
    CALIB_ANSWERS,
    CALIB_FEATURES,
    SYNTHETIC_ANSWERS,
    TEST_ANSWERS,
    TEST_COLUMNS,
    TEST_FEATURES,
    LogitTable,
    read_columns,
    read_features,
    read_logits,
)
from natix_hf.results.looks import Look
from natix_hf.results.out_of_fold import OUT_OF_FOLD, OutOfFold, read_out_of_fold
from natix_hf.results.promise import PromiseReport
from natix_hf.results.soup import SOUP, Soup
from natix_hf.results.synthetic_half import SyntheticHalf
from natix_hf.runs.graph import CANDIDATE_PHASES, PHASES, candidate_folder
from natix_hf.section import Section
from natix_hf.trainers.gate_config import GateConfig

Manifests = Mapping[str, Mapping[str, Any]]

# Figures that rest on random draws. Another version of these packages may draw otherwise.
_DRAWN = ("held_out", "interval", "intervals", "low", "high", "exact", "no_interval")
_DRAWING = ("numpy", "scikit-learn")
# To redraw the intervals of the calibration errors would take longer than all else together.
_FEW = 2
_Settings = TypeVar("_Settings", bound=Section)


def recomputed_problems(run_dir: Path, manifests: Manifests, note: Callable[[str], None]) -> list[str]:
    """One line per result that does not follow from the stored answers.

    Args:
        manifests: The sound manifests of the finished phases, by folder.
        note: Called with one line for each phase whose results could not be recomputed, and why.
    """
    problems, versions = [], package_versions()
    for number, recompute in ((2, _threshold), (3, _gate), (5, _calibration), (5, _promise), (6, _evaluation)):
        folder = PHASES[number].folder
        manifest = manifests.get(folder)
        if manifest is None:
            continue
        if manifest.get("methods") != METHODS:
            note(f"{folder} was made by another version of natix_hf, so its results were not recomputed")
            continue
        try:
            recorded, again = recompute(run_dir, manifests)
        except (NatixError, KeyError, ValueError, TypeError, IndexError, AssertionError) as error:
            problems.append(f"{run_dir / folder}: its results do not follow from its answers ({error})")
            continue
        drawn_alike = all(manifest["packages"].get(name) == versions[name] for name in _DRAWING)
        redrawn = drawn_alike and recompute is not _calibration
        other = difference(recorded.content(), again.content(), _unlike(recorded) + (() if redrawn else _DRAWN))
        if other is not None:
            problems.append(
                f"{run_dir / folder / recorded.FILE} does not follow from the stored answers: {other}: "
                f"run phase {number} again"
            )
        elif not drawn_alike:
            note(
                f"{folder} was made with other versions of {' or '.join(_DRAWING)}, so its intervals were not redrawn"
            )
    return problems


def _unlike(recorded: Stored) -> tuple[str, ...]:
    """Keys that an older file lacks."""
    lacks = isinstance(recorded, Evaluation) and recorded.confusion is None
    return ("confusion", "level_confusion", "cells") if lacks else ()


def difference(recorded: Any, again: Any, without: tuple[str, ...] = (), where: str = "") -> str | None:
    """The first difference between two JSON values, in words; None if there is none.

    Numbers count as equal up to rounding, which differs between machines.

    Args:
        without: Keys that are not compared.
    """
    if isinstance(recorded, dict) and isinstance(again, dict):
        keys = [key for key in {**recorded, **again} if key not in without]
        found = (difference(recorded.get(key), again.get(key), without, f"{where}.{key}") for key in keys)
        return next((line for line in found if line is not None), None)
    if isinstance(recorded, list | tuple) and isinstance(again, list | tuple) and len(recorded) == len(again):
        pairs = zip(recorded, again, strict=True)
        found = (difference(one, other, without, f"{where}[{i}]") for i, (one, other) in enumerate(pairs))
        return next((line for line in found if line is not None), None)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (recorded, again))
    same = math.isclose(recorded, again, rel_tol=1e-6, abs_tol=1e-9) if numbers else recorded == again
    return None if same else f"{where.lstrip('.')} is {str(recorded)[:80]}, recomputed {str(again)[:80]}"


def _settings(manifests: Manifests, number: int, cls: type[_Settings]) -> tuple[_Settings, DataConfig]:
    """A phase's own section, and the data section, as the phase read them."""
    section = manifests[PHASES[number].folder]["section"]
    own = dict(section[f"phase{number}"])
    own |= own.pop("training", {})
    apart = {name.removeprefix("data."): value for name, value in section.items() if name.startswith("data.")}
    data = DataConfig.build(manifests[PHASES[0].folder]["section"]["data"] | apart, "data")
    return cls.build(own, f"phase{number}"), data


def _decided(run_dir: Path) -> tuple[Decision, Candidate, LogitTable]:
    """The decision of phase 2, its champion, and the champion's answers on val_select."""
    folder = run_dir / PHASES[2].folder
    decision = Decision.read(folder)
    champion = Candidate(run_dir / candidate_folder(decision.champion))
    return decision, champion, decision.val_select(folder, champion)


def _threshold(run_dir: Path, manifests: Manifests) -> tuple[Stored, Stored]:
    decision, folder = Decision.read(run_dir / PHASES[2].folder), run_dir / PHASES[2].folder
    made_from, first = manifests[PHASES[2].folder]["upstream"], PHASES[CANDIDATE_PHASES[0]].folder
    candidates = [Candidate(run_dir / PHASES[n].folder) for n in CANDIDATE_PHASES if PHASES[n].folder in made_from]
    tables = {one.name: decision.val_select(folder, one) for one in candidates if one.model.is_dir()}

    def of_folds(champion: str) -> OutOfFold | None:
        wanted = champion == first and (run_dir / first / OUT_OF_FOLD).is_file()
        return read_out_of_fold(run_dir / first) if wanted else None

    config, data = _settings(manifests, 2, ThresholdConfig)
    soup = decision.soup
    if soup is not None:
        tables[SOUP] = decision.val_select(folder, Candidate(run_dir / candidate_folder(SOUP)))
        soup = _scored(run_dir, decision, soup, tables[SOUP], config, data.target_prior)
    return decision, decide(tables, of_folds, config, data.target_prior, soup)[0]


def _scored(
    run_dir: Path, decision: Decision, soup: Soup, table: LogitTable, config: ThresholdConfig, prior: float | None
) -> Soup:
    """What a soup is made of, with the scores that follow from the stored answers."""
    folder, chosen_by = run_dir / PHASES[2].folder, decision.exam is None or decision.exam.chooses
    members = []
    for member in soup.members:
        here = member.run is None and chosen_by
        path = Candidate(run_dir / member.name).logits_file("val_select") if here else member.answers(folder)
        answers = read_logits(path, member.candidate_sha256, decision.exam)
        members.append(replace(member, score=best_threshold(answers, config, prior).value))
    score = best_threshold(table, config, prior).value
    if soup.kind == "greedy" and score < max(member.score for member in members):
        raise ValueError("the greedy soup is worse than a member")
    return replace(soup, members=members, score=score)


def _gate(run_dir: Path, manifests: Manifests) -> tuple[Stored, Stored]:
    folder, (config, data) = run_dir / PHASES[3].folder, _settings(manifests, 3, GateConfig)
    report, (decision, _, table) = GateReport.read(folder), _decided(run_dir)
    wrong = ((table.logits > decision.threshold_logit) != (table.labels == 1)).astype(np.int64)
    again = to_json(report) | {"candidate_sha256": table.candidate_sha256, "wrong_rows": int(wrong.sum())}
    if report.compared is None:
        again["kind"] = "margin"
    else:
        learned = read_cross_fitted(folder, table.ids)
        if learned is None:
            raise ValueError("it keeps no confidences on val_select")
        margin = np.abs(table.logits - decision.threshold_logit)
        weights = prior_weights(table.labels, data.target_prior)
        compared = compare_gates(margin, learned, wrong, table.labels, table.groups, weights, config)
        wins, reason = verdict(compared, config)
        again |= {"kind": "learned" if wins else "margin", "compared": to_json(compared), "reason": reason}
    return report, GateReport.parse(again, folder / GateReport.FILE)


def _calibration(run_dir: Path, manifests: Manifests) -> tuple[Stored, Stored]:
    folder, (config, data) = run_dir / PHASES[5].folder, _settings(manifests, 5, ScrcConfig)
    decision, champion, select = _decided(run_dir)
    prior = data.target_prior
    sample = read_out_of_fold(run_dir / PHASES[1].folder) if decision.fitted_to == "out_of_fold" else select
    fitted, no_optimum = fit_on(sample, config.method, prior)
    calib = read_logits(folder / CALIB_ANSWERS, champion.sha256, decision.exam)
    return CalibrationReport.read(folder), measure_calibration(fitted, no_optimum, calib, prior, _FEW)


def _promise(run_dir: Path, manifests: Manifests) -> tuple[Stored, Stored]:
    folder, (config, data) = run_dir / PHASES[5].folder, _settings(manifests, 5, ScrcConfig)
    decision, champion, select = _decided(run_dir)
    recorded, threshold = PromiseReport.read(folder), decision.threshold_logit
    gate = run_dir / PHASES[3].folder / GATE
    used = PHASES[3].folder in manifests[PHASES[5].folder]["upstream"] and gate.is_file()
    confidence = Confidence(threshold, gate if used else None)
    calib = read_logits(folder / CALIB_ANSWERS, champion.sha256, decision.exam)
    features = read_features(folder / CALIB_FEATURES, calib) if used else None
    of_select = read_cross_fitted(gate.parent, select.ids) if used else confidence(select.logits)
    if of_select is None:
        raise ValueError("phase 3 keeps no confidences on val_select")

    def record(look: Look) -> list[Look]:
        if look not in (recorded.looks or []):
            raise ValueError("the certification is not among the looks that it lists")
        return recorded.looks or []

    return recorded, certify_run(
        (calib, confidence(calib.logits, features)),
        (select, of_select),
        threshold,
        confidence.kind,
        config.risk,
        data,
        champion.labels,
        record,
    )[0]


def _evaluation(run_dir: Path, manifests: Manifests) -> tuple[Stored, Stored]:
    folder, (config, data) = run_dir / PHASES[6].folder, _settings(manifests, 6, ExportConfig)
    decision, champion, _ = _decided(run_dir)
    policy, recorded = read_policy(bundle_of_run(run_dir) / POLICY), Evaluation.read(folder)
    table = read_logits(folder / TEST_ANSWERS, champion.sha256, decision.exam)
    learned = policy.gate.kind == "learned"
    gate = run_dir / PHASES[3].folder / GATE if learned else None
    features = read_features(folder / TEST_FEATURES, table) if learned else None
    accepted = policy.accepts(table.logits, Confidence(policy.threshold_logit, gate)(table.logits, features))
    synthetic = None
    if recorded.synthetic_half is not None:
        answers = read_logits(folder / SYNTHETIC_ANSWERS, champion.sha256, decision.exam)
        synthetic = answers, SyntheticHalf.read(folder)
    columns = read_columns(folder / TEST_COLUMNS, table.asked.row_ids)
    prior, resamples, known = data.target_prior, config.n_resamples, data.groups_known
    return recorded, evaluate(table, policy, accepted, columns, prior, resamples, known, synthetic)

"""`natix-hf verify`: checks of a run or bundle against its manifests, and of the splits for leaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natix_hf.bundle.names import BUNDLE_MANIFEST, EVALUATION, POLICY, bundle_of_run
from natix_hf.data.splits import SPLITS, Splits, leaks_between_roles, read_splits
from natix_hf.errors import UsageError, VerificationError, cut, printable, shortened
from natix_hf.provenance.files import ids_sha256, list_files, list_temporaries, read_json
from natix_hf.provenance.manifest import MANIFEST, is_list_of_texts, manifest_problems, read_manifest
from natix_hf.results.calibration import CalibrationReport
from natix_hf.results.candidate import Candidate
from natix_hf.results.card_figures import card_problems
from natix_hf.results.decision import Decision
from natix_hf.results.gate import GateReport
from natix_hf.results.looks import Looks, read_looks
from natix_hf.results.out_of_fold import OUT_OF_FOLD
from natix_hf.results.promise import PromiseReport
from natix_hf.runs.attempt import ROWS_READ
from natix_hf.runs.folders import RUN_FILE
from natix_hf.runs.freshness import lost_its_manifest
from natix_hf.runs.graph import ORDER, PHASES, Phase, candidate_folder, number_of
from natix_hf.runs.inputs import were_other_files
from natix_hf.runs.recomputed import recomputed_problems
from natix_hf.runs.trained import soup_problems

if TYPE_CHECKING:
    from natix_hf.bundle.policy import Policy

_LONGEST = 1000  # characters of a line: an id may be of any length


def find_problems(reference: str, note: Callable[[str], None] = lambda line: None) -> list[str]:
    """One line per problem in a run folder, a bundle folder or a Hub repository.

    Args:
        note: Called with one line about each thing that could not be checked.

    Raises:
        UsageError: if there is nothing of that name.
    """
    path = Path(reference)
    if (path / RUN_FILE).is_file() or any((path / phase.folder / MANIFEST).is_file() for phase in PHASES.values()):
        return run_problems(path, note)
    from natix_hf.bundle.contents import bundle_problems
    from natix_hf.bundle.fetch import snapshot_problems
    from natix_hf.bundle.load import find_bundle, is_from_hub
    from natix_hf.bundle.onnx_export import onnx_answers_problems

    bundle = find_bundle(reference)
    problems = snapshot_problems(bundle) if is_from_hub(reference) else bundle_problems(bundle)
    return problems or [*card_problems(bundle), *onnx_answers_problems(bundle)]


def run_problems(run_dir: Path, note: Callable[[str], None] = lambda line: None) -> list[str]:
    """One line per problem of a run: checksums, lineage between phases, rights to rows, leaks between splits, and
    results that do not follow from the stored answers.

    Args:
        note: Called with one line about each thing that could not be checked.

    Raises:
        UsageError: if no phase has finished.
    """
    finished = [PHASES[n] for n in ORDER if n in PHASES and (run_dir / PHASES[n].folder / MANIFEST).is_file()]
    problems = [
        f"{run_dir / phase.folder / MANIFEST} is missing"
        for phase in PHASES.values()
        if phase not in finished and lost_its_manifest(run_dir / phase.folder)
    ]
    if not finished and not problems:
        raise UsageError(f"{run_dir} has no finished phase, so there is nothing to verify: run a phase first")
    manifests: dict[str, dict[str, Any]] = {}
    for phase in finished:
        folder = run_dir / phase.folder
        problems += manifest_problems(folder)
        try:
            manifest = manifests[phase.folder] = read_manifest(folder)
        except VerificationError:
            continue  # already among the problems
        if not _as_written(folder / MANIFEST, manifest):
            problems.append(f"{folder / MANIFEST} was changed after it was written")
        strangers = {*list_files(folder), *list_temporaries(folder)} - {*manifest["files"], MANIFEST}
        problems += [f"{folder / name} is not in the manifest" for name in sorted(strangers)]
    problems += _run_file_problems(run_dir, manifests)
    problems += [problem for problem in _looks_problems(run_dir) if problem not in problems]
    problems += _lineage_problems(run_dir, manifests)
    try:
        splits = read_splits(run_dir / PHASES[0].folder / SPLITS)
    except VerificationError as error:
        return _lines([*problems, *([] if str(error) in problems else [str(error)])])
    problems += leaks_between_roles(splits)
    for phase in finished:
        problems += _row_problems(run_dir, phase, manifests.get(phase.folder, {}), splits)
    problems += _bundle_problems(run_dir)
    of_threshold = manifests.get(PHASES[2].folder)
    if of_threshold is not None and not problems:
        problems += soup_problems(run_dir, of_threshold, note)
    # What is damaged needs no recomputing, and could not be read.
    return _lines(problems or recomputed_problems(run_dir, manifests, note))


def _lines(problems: list[str]) -> list[str]:
    return [shortened(printable(problem), _LONGEST) for problem in problems]


def _run_file_problems(run_dir: Path, manifests: dict[str, dict[str, Any]]) -> list[str]:
    """The problems of `run.json`, whose run and recipe every phase and the bundle repeat."""
    path = run_dir / RUN_FILE
    try:
        content = read_json(path)
    except VerificationError as error:
        return [str(error)]
    if not isinstance(content, dict) or set(content) != {"schema", "run_id", "recipe"} or content["schema"] != 1:
        return [f"{path} is not a run file of schema 1: it was damaged after it was written"]
    if not _as_written(path, content):
        return [f"{path} was changed after it was written"]
    problems = [
        f"{path} names the run {cut(content['run_id'])}, but {folder} was made in {cut(manifest.get('run_id'))}"
        for folder, manifest in manifests.items()
        if manifest.get("run_id") != content["run_id"]
    ]
    problems += [
        f"{path} names the recipe {cut(content['recipe'])}, but {folder} was made by {cut(manifest.get('recipe'))}"
        for folder, manifest in manifests.items()
        if manifest.get("recipe") != content["recipe"]
    ]
    return problems


def _as_written(path: Path, content: Any) -> bool:
    """True if a JSON file is byte for byte what `write_json` makes of its content."""
    written = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return path.read_bytes() == written.encode(errors="surrogatepass")


def _bundle_lineage(run_dir: Path) -> dict[str, Any]:
    """The lineage in a run's bundle, or an empty dict if there is none or it cannot be read."""
    try:
        lineage = read_json(bundle_of_run(run_dir) / BUNDLE_MANIFEST)["lineage"]
    except (VerificationError, KeyError, TypeError):
        return {}
    return lineage if isinstance(lineage, dict) else {}


def _lineage_problems(run_dir: Path, manifests: dict[str, dict[str, Any]]) -> list[str]:
    """The phases that were made from another result, or have read other files, than the run holds now."""
    problems = []
    for folder, manifest in manifests.items():
        found = []
        for above, digest in manifest["upstream"].items():
            if above not in manifests:
                found.append(f"{folder} was made from {above}, which is missing or damaged")
            elif manifests[above]["digest"] != digest:
                found.append(
                    f"{folder} was made from another {above} than the one here: run phase {number_of(folder)} again"
                )
        if not found and were_other_files(run_dir, manifest):
            found.append(
                f"{folder} has read other files of earlier phases than those here: run phase {number_of(folder)} again"
            )
        problems += found
    return problems


def _row_problems(run_dir: Path, phase: Phase, manifest: dict[str, Any], splits: Splits) -> list[str]:
    """The rows that a phase had no right to read, or that have another role now."""
    try:
        read = read_json(run_dir / phase.folder / ROWS_READ)
    except VerificationError as error:
        return [str(error)]
    listed = isinstance(read, dict) and all(map(is_list_of_texts, read.values()))
    if not listed or set(read) != set(manifest.get("rows", read)):
        return [f"{run_dir / phase.folder / ROWS_READ} does not list the roles of its manifest"]
    role_of = dict(zip(splits.ids, splits.roles, strict=True))
    problems = []
    for role, ids in read.items():
        out_of_fold = role in phase.answers_of and (run_dir / PHASES[1].folder / OUT_OF_FOLD).is_file()
        if role not in phase.roles and not out_of_fold:
            problems.append(f"{phase.folder} read rows of {role}, which it must not read")
        moved = [row_id for row_id in ids if role_of.get(row_id) != role]
        for row_id in moved:
            now = f"is in {role_of[row_id]}" if row_id in role_of else "is in no split"
            problems.append(f"row {row_id} was read as {role} by {phase.folder} but {now} in splits.json")
        recorded = manifest.get("rows", {}).get(role, {}).get("sha256")
        if not moved and ids_sha256(ids) != recorded:
            problems.append(f"{phase.folder}: {ROWS_READ} lists other rows of {role} than its manifest")
    return problems


def _looks_problems(run_dir: Path) -> list[str]:
    """The problems of the list of looks at val_calib. Without the file, those that phase 5 lists still count."""
    path = run_dir / Looks.FILE
    if not path.is_file():
        return []
    try:
        looks = read_looks(run_dir)
        if not _as_written(path, read_json(path)):
            return [f"{path} was changed after it was written"]
        promise = run_dir / PHASES[5].folder
        recorded = PromiseReport.read(promise).looks if (promise / PromiseReport.FILE).is_file() else None
    except VerificationError as error:
        return [str(error)]
    gone = [look for look in recorded or [] if look not in looks]
    return [f"{path} lacks {len(gone)} of the looks at val_calib that {PHASES[5].folder} lists"] if gone else []


def _bundle_problems(run_dir: Path) -> list[str]:
    """The problems of a run's bundle: its checksums, and differences from the champion and threshold of phase 2."""
    bundle = bundle_of_run(run_dir)
    if not bundle.is_dir():
        return []
    from natix_hf.bundle.contents import bundle_problems
    from natix_hf.bundle.folding import folding_problems
    from natix_hf.bundle.names import POLICY
    from natix_hf.bundle.onnx_export import onnx_answers_problems
    from natix_hf.bundle.policy import read_policy

    problems = bundle_problems(bundle)
    if problems:
        return problems
    try:
        decision, policy = Decision.read(run_dir / PHASES[2].folder), read_policy(bundle / POLICY)
        if policy.threshold_logit != decision.threshold_logit:
            problems.append(f"{bundle / POLICY} holds another threshold than {PHASES[2].folder} fitted")
        problems += _label_problems(bundle, Candidate(run_dir / candidate_folder(decision.champion)), policy)
        if _bundle_lineage(run_dir).get("champion") != decision.champion:
            problems.append(f"{bundle} was not made from {decision.champion}, the champion of this run")
        problems += _policy_problems(run_dir, policy)
        problems += folding_problems(bundle, Candidate(run_dir / candidate_folder(decision.champion)).model)
        if (bundle / EVALUATION).read_bytes() != (run_dir / PHASES[6].folder / EVALUATION).read_bytes():
            problems.append(f"{bundle / EVALUATION} holds other figures than {PHASES[6].folder}")
        problems += card_problems(bundle)
        return problems + onnx_answers_problems(bundle)
    except VerificationError as error:
        return [*problems, str(error)]


def _label_problems(bundle: Path, champion: Candidate, policy: Policy) -> list[str]:
    """The problem of a bundle that names the answers otherwise than its champion."""
    try:
        labels = champion.labels
    except VerificationError:  # a changed config is a problem of the champion's manifest
        return []
    if policy.labels == labels:
        return []
    return [f"{bundle / POLICY} names other answers than {champion.name}: {labels.no} (no) and {labels.yes} (yes)"]


def _policy_problems(run_dir: Path, policy: Policy) -> list[str]:
    """The differences between a bundle's calibration, promise and gate and those that phases 5 and 3 left."""
    path = bundle_of_run(run_dir) / POLICY
    if not (run_dir / PHASES[6].folder / MANIFEST).is_file():  # phase 6 is still running
        return []
    made_from = read_manifest(run_dir / PHASES[6].folder)["upstream"]
    problems = []
    if PHASES[5].folder in made_from:
        folder = run_dir / PHASES[5].folder
        if policy.calibration != CalibrationReport.read(folder).calibration:
            problems.append(f"{path} holds another calibration than {PHASES[5].folder} fitted")
        if policy.promise != PromiseReport.read(folder).promise:
            problems.append(f"{path} holds another promise than {PHASES[5].folder} certified")
    if PHASES[3].folder in made_from:
        if GateReport.read(run_dir / PHASES[3].folder).gate_sha256 != policy.gate.sha256:
            problems.append(f"{path} holds another gate than {PHASES[3].folder} left")
    return problems

"""The trained models of a run, and those of other runs that a soup may be made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natix_hf.data.splits import SPLITS, read_splits
from natix_hf.errors import UsageError, VerificationError
from natix_hf.provenance.files import check_files, file_sha256
from natix_hf.provenance.manifest import MANIFEST, read_manifest
from natix_hf.results.candidate import START, Candidate
from natix_hf.results.decision import Decision
from natix_hf.results.soup import SOUP
from natix_hf.runs.folders import RUN_FILE, run_id_of
from natix_hf.runs.graph import CANDIDATE_PHASES, PHASES, Phase, candidate_folder
from natix_hf.runs.seen import rows_seen

# Their folder in that of phase 1, and the key of their list in its figures.
MEMBERS = "members"


@dataclass(frozen=True)
class Trained:
    """A trained model in a run folder.

    Args:
        name: Its folder in the run folder.
        start_sha256: The hash of the weights that it was trained from; None where an older version recorded none.
        run: The run as the recipe names it. None: the run itself.
    """

    run_dir: Path
    phase: Phase
    name: str
    start_sha256: str | None
    run: str | None = None

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.run_dir / self.name)

    @property
    def files(self) -> tuple[str, str]:
        """What a candidate is made of, in the folder of its phase."""
        inside = self.name.removeprefix(self.phase.folder).lstrip("/")
        return f"{inside}/model".lstrip("/"), f"{inside}/logits".lstrip("/")

    @property
    def run_id(self) -> str | None:
        """The id of the other run."""
        return None if self.run is None else run_id_of(self.run_dir.resolve())

    @property
    def told(self) -> str:
        return self.name if self.run is None else f"{self.name} of {self.run}"


def trained_models(run_dir: Path, run: str | None = None) -> list[Trained]:
    """The models of the finished phases of a run: the candidates first, then the members of phase 1 and phase 4's own
    control.

    Raises:
        VerificationError: If a manifest is damaged.
    """
    found: list[list[Trained]] = [[], []]
    for phase in (PHASES[number] for number in CANDIDATE_PHASES):
        if (run_dir / phase.folder / MANIFEST).is_file():
            for inside, report in _reports(phase, read_manifest(run_dir / phase.folder)["metrics"]):
                name = f"{phase.folder}/{inside}".rstrip("/")
                found[inside != ""].append(Trained(run_dir, phase, name, report.get(START), run))
    return [one for kind in found for one in kind if one.candidate.model.is_dir()]


def _reports(phase: Phase, metrics: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if phase is PHASES[1]:
        yield "", metrics
        yield from ((f"{MEMBERS}/{member['name']}", member) for member in metrics.get(MEMBERS, []))
    else:
        yield "", metrics.get("supervised", {})
        own = metrics.get("control", {})
        yield from [("control", own)] if own.get("from") == "control" else []


def other_run(reference: str) -> Path:
    """The folder of another run, with a finished phase that leaves a model.

    Raises:
        UsageError: If there is none.
    """
    folder = Path(reference).expanduser()
    if not (folder / RUN_FILE).is_file():
        raise UsageError(f"phase2.soup_of: {reference} is not a run folder: name one that natix-hf run has made")
    try:
        if trained_models(folder):
            return folder
    except VerificationError as error:
        raise UsageError(f"phase2.soup_of: {reference} is damaged ({error})") from None
    raise UsageError(f"phase2.soup_of: {reference} has no finished phase that leaves a classifier: run its phase 1")


def models_of_other_run(reference: str, run_dir: Path) -> list[Trained]:
    """The models of another run.

    Raises:
        UsageError: If it is no such run, is this run, or trained or chose its models on rows that this run must not
            have seen.
    """
    folder = other_run(reference)
    if folder.resolve() == run_dir.resolve():
        raise UsageError(f"phase2.soup_of: {reference} is this run itself: leave it out")
    ours = run_dir / PHASES[0].folder
    try:
        seen = rows_seen(folder, read_splits(ours / SPLITS), read_manifest(ours)["section"]["data"])
    except VerificationError as error:
        raise UsageError(f"phase2.soup_of: {reference} does not say what its models have seen ({error})") from None
    if seen:
        raise UsageError(
            f"phase2.soup_of: the models of {reference} have learned the labels of {len(seen):,} rows that this run "
            f"measures on: {seen[0]}; leave it out, or train it with the same data section"
        )
    return trained_models(folder, reference)


def require_whole(model: Trained) -> dict[str, str]:
    """Check the files of a model of another run, and return the sha256 of each by its path.

    Raises:
        UsageError: If a file is not the one that its run has written.
    """
    folder, inside = model.run_dir / model.phase.folder, model.files[0]
    described = {
        name: facts for name, facts in read_manifest(folder)["files"].items() if name.startswith(f"{inside}/")
    }
    problems = check_files(folder, described)
    if problems:
        raise UsageError(f"phase2.soup_of: {problems[0]}: {model.run} has to make it again")
    return {(folder / name).as_posix(): str(facts["sha256"]) for name, facts in described.items()}


def soup_problems(run_dir: Path, manifest: Mapping[str, Any], note: Callable[[str], None]) -> list[str]:
    """One line if a run's soup is not the mean of the models that it names, or if one of another run has changed.

    Args:
        manifest: That of phase 2.
        note: Called with one line about what could not be checked.

    Raises:
        VerificationError: If the decision of phase 2 is damaged.
    """
    from natix_hf.models.soup import average_problem  # takes torch

    soup = Decision.read(run_dir / PHASES[2].folder).soup
    if soup is None:
        return []
    outside: dict[str, str] = manifest.get("outside", {})
    problems = [
        f"{name} is not the file that {PHASES[2].folder} has read: run phase 2 again"
        for name, sha256 in outside.items()
        if Path(name).is_file() and file_sha256(Path(name)) != sha256
    ]
    if soup.kind == "wise":
        note(f"{PHASES[2].folder}: the start of the soup is not kept, so its weights were not averaged again")
    elif any(member.run is not None for member in soup.taken):
        note(f"{PHASES[2].folder}: the soup has members of other runs, so its weights were not averaged again")
    else:
        candidate = Candidate(run_dir / candidate_folder(SOUP))
        found = average_problem(candidate.model, [run_dir / member.name / "model" for member in soup.taken])
        problems += [found] if found is not None else []
    return problems

"""The facts for the page about a run, read from the run's folder, without torch, dataset or clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from natix_hf.bundle.names import BUNDLE, BUNDLE_IN_RUN, BUNDLE_MANIFEST, CONFIG
from natix_hf.data.reading import Reading, read_reading
from natix_hf.data.splits import SPLITS, dropped_reasons, leaks_between_roles, read_splits
from natix_hf.errors import UsageError, VerificationError
from natix_hf.labels import SUBNET, LabelNames
from natix_hf.provenance.files import read_json
from natix_hf.provenance.manifest import MANIFEST, read_manifest
from natix_hf.results.candidate import Candidate
from natix_hf.runs.collected import RunResults, read_results
from natix_hf.runs.folders import IN_PROGRESS, RUN_FILE
from natix_hf.runs.freshness import is_stale
from natix_hf.runs.graph import CANDIDATE_PHASES, ORDER, PHASES, Phase
from natix_hf.runs.lineage import public_name, public_sources
from natix_hf.runs.pins import PINS

FINISHED, NOT_FINISHED, DAMAGED, NOT_RUN = "finished", "not finished", "damaged", "not run"


@dataclass
class PhaseFacts:
    """The state of one phase. `manifest` is empty unless the phase is finished."""

    phase: Phase
    state: str
    stale: bool = False
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, Any]:
        return dict(self.manifest.get("metrics", {}))

    @property
    def counts(self) -> bool:
        """True if the page may show the files of the phase."""
        return self.state == FINISHED


@dataclass
class RunFacts:
    """A run, finished or not. The results of phases that have not run are None or empty.

    Args:
        problems: One line per file that cannot be read.
        leaks: One line per row, group or picture that stands in two splits.
        labels: The names of the answers, from the candidates; before there is one, as the recipe gives them.
        read: What was read from the source; None for a run of a version that did not record it.
    """

    folder: Path
    run_id: str
    recipe: str
    phases: dict[int, PhaseFacts]
    problems: list[str]
    leaks: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    read: Reading | None = None
    results: RunResults = field(default_factory=RunResults)
    bundle_config: dict[str, Any] = field(default_factory=dict)
    bundle_lineage: dict[str, Any] = field(default_factory=dict)
    pins: dict[str, Any] = field(default_factory=dict)
    labels: LabelNames = SUBNET

    def metrics(self, number: int) -> dict[str, Any]:
        return self.phases[number].metrics

    @property
    def section(self) -> dict[str, Any]:
        """The recipe's sections as the finished phases recorded them. Earlier phases take precedence."""
        merged: dict[str, Any] = {}
        for number in reversed(ORDER):
            merged |= self.phases[number].manifest.get("section", {})
        return merged

    @property
    def question(self) -> str:
        """The question that the answers are about."""
        section = self.section
        given = section.get("data.question") or section.get("data", {}).get("question")
        return str(given or self.labels.question)

    @property
    def bundle(self) -> str:
        """The path of the bundle inside the run folder."""
        return BUNDLE_IN_RUN

    @property
    def dataset(self) -> str:
        source = self.section.get("data", {}).get("source")
        return public_sources(source, self._hub(0, "data")) if source is not None else "no labelled images"

    @property
    def backbone(self) -> str:
        model = self.section.get("model", {})
        number = 4 if not self.phases[1].manifest else 1
        backbone = model.get("backbone")
        return public_name(backbone, self._hub(number, "model")) if backbone is not None else "random weights"

    def _hub(self, number: int, what: str) -> dict[str, Any] | None:
        origin: dict[str, Any] | None = self.phases[number].manifest.get("hub", {}).get(what)
        return origin


def read_run(run_dir: Path) -> RunFacts:
    """Read a run folder.

    Raises:
        UsageError: if it is no run folder, or if no phase has finished.
    """
    known = {number: _phase_facts(run_dir, PHASES[number]) for number in ORDER}
    if not (run_dir / RUN_FILE).is_file() and not any(facts.manifest for facts in known.values()):
        raise UsageError(f"{run_dir} is not a run folder: name one that natix-hf run has made")
    if not any(facts.manifest for facts in known.values()):
        raise UsageError(f"{run_dir} has no finished phase, so there is nothing to report: run a phase first")
    problems = [f"{facts.phase.folder} is damaged" for facts in known.values() if facts.state == DAMAGED]

    def read(number: int, name: str) -> Any:
        path = run_dir / PHASES[number].folder / name
        if not known[number].counts or not path.is_file():
            return None
        try:
            return read_json(path)
        except VerificationError:
            problems.append(f"{PHASES[number].folder}/{name} is damaged")
            return None

    named = next(facts.manifest for facts in known.values() if facts.manifest.get("run_id"))
    bundle_manifest = read(6, f"{BUNDLE}/{BUNDLE_MANIFEST}") or {}
    facts = RunFacts(
        folder=run_dir,
        run_id=named["run_id"],
        recipe=named["recipe"],
        phases=known,
        problems=problems,
        results=read_results(
            run_dir, lambda number: known[number].counts, lambda name: problems.append(f"{name} is damaged")
        ),
        bundle_config=read(6, f"{BUNDLE}/{CONFIG}") or {},
        bundle_lineage=bundle_manifest.get("lineage", {}),
        pins=_read_pins(run_dir),
        labels=_read_labels(run_dir, known, problems),
    )
    if known[0].counts:
        _read_splits(facts)
    return facts


def _phase_facts(run_dir: Path, phase: Phase) -> PhaseFacts:
    folder = run_dir / phase.folder
    try:
        manifest = read_manifest(folder)
    except VerificationError:
        state = NOT_FINISHED if (folder / IN_PROGRESS).is_file() else NOT_RUN
        return PhaseFacts(phase, DAMAGED if (folder / MANIFEST).is_file() else state)
    return PhaseFacts(phase, FINISHED, is_stale(run_dir, phase), manifest)


def _read_labels(run_dir: Path, known: dict[int, PhaseFacts], problems: list[str]) -> LabelNames:
    for number in CANDIDATE_PHASES:
        candidate = Candidate(run_dir / PHASES[number].folder)
        if known[number].counts and candidate.model.is_dir():
            try:
                return candidate.labels
            except VerificationError:
                problems.append(f"{PHASES[number].folder}/{candidate.model.name}/{CONFIG} is damaged")
    given = known[0].manifest.get("section", {}).get("data", {}).get("labels")
    return LabelNames(**given) if given is not None else SUBNET


def _read_splits(facts: RunFacts) -> None:
    path = facts.folder / PHASES[0].folder / SPLITS
    try:
        splits, facts.read = read_splits(path), read_reading(path)
    except VerificationError:
        facts.problems.append(f"{PHASES[0].folder}/{SPLITS} is damaged")
        return
    facts.leaks = leaks_between_roles(splits)
    facts.dropped = dropped_reasons(splits.dropped)


def _read_pins(run_dir: Path) -> dict[str, Any]:
    try:
        return dict(read_json(run_dir / PINS))
    except VerificationError:  # nothing came from the Hub
        return {}

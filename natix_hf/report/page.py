"""One HTML file from the facts of a run: without scripts or external files, and byte-equal for equal runs."""

from __future__ import annotations

import base64
from contextlib import suppress
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError

from natix_hf.errors import UsageError, VerificationError, first_line
from natix_hf.labels import LabelNames
from natix_hf.metrics.table import METRICS, told_metrics
from natix_hf.provenance.files import write_text
from natix_hf.provenance.stored import from_json, to_json
from natix_hf.report.errors_told import errors_by_level, errors_by_value, told_errors
from natix_hf.report.facts import RunFacts, read_run
from natix_hf.report.findings import find_promise, find_warnings, percent
from natix_hf.report.label_next import find_steps
from natix_hf.report.reading import ReadInShort, read_in_short
from natix_hf.resources import resource_folder
from natix_hf.results.evaluation import Evaluation
from natix_hf.results.examples import EXAMPLES, Example
from natix_hf.results.figures import Gain
from natix_hf.runs.folders import REPORT
from natix_hf.runs.graph import CANDIDATE_PHASES, ORDER, PHASES

_TEMPLATE = "report.html.jinja"
_UNDEFINED = "undefined"
# The plots of the phases, each with a caption and a text for people who cannot see it.
_PLOTS = {
    "phase6_export/plots/test_scores.png": (
        "Test rows by logit",
        "Histogram of the logits of the test rows of either label, with the fitted threshold",
    ),
    "phase2_threshold/plots/threshold.png": (
        "Decision threshold",
        "MCC, TPR and TNR on the rows that the threshold was fitted to, over the threshold, with the fitted threshold",
    ),
    "phase5_scrc/plots/reliability_before.png": (
        "Reliability before calibration",
        "Share of right answers on val_calib over confidence, with the diagonal of a calibrated model",
    ),
    "phase5_scrc/plots/reliability_after.png": (
        "Reliability after calibration",
        "Share of right answers on val_calib over calibrated confidence, with the diagonal of a calibrated model",
    ),
    "phase5_scrc/plots/risk_coverage.png": (
        "Risk and coverage",
        "Risk among the accepted answers on val_calib over coverage, with the promised alpha",
    ),
    "phase3_gate/plots/gate.png": (
        "Gate and margin",
        "Share of wrong answers among the accepted ones on val_select over coverage, for margin and learned gate",
    ),
}
_CURVES = {
    "phase1_baseline/plots/training.png": "Training loss, and MCC and NLL on val_select, over the epochs of phase 1",
    "phase4_explora/plots/self_supervised.png": "Loss of the training without labels and AUROC of probes, over steps",
    "phase4_explora/plots/training.png": "Adapted backbone: training loss, and MCC and NLL on val_select, over epochs",
    "phase4_explora/control/plots/training.png": "Control: training loss, and MCC and NLL on val_select, over epochs",
}
_KINDS = {
    "missed": 'Missed: labelled "{yes}", answered "{no}", most confident first',
    "false_alarm": 'False alarms: labelled "{no}", answered "{yes}", most confident first',
    "abstained": "Abstentions, closest to acceptance first",
    "slice": "Mistakes in the weakest slice, most confident first",
}
_ADAPTED = {
    "explora": "ExPLoRA: LoRA on most blocks, one block unfrozen",
    "blocks": "self-supervised training of a few blocks",
    "all": "plain self-supervised pre-training of all weights",
}
_WAYS = {
    "fitted": "the bundle's threshold",
    "half": "a cut at a model probability of 0.5",
    "best": "the best threshold for these views, known only afterwards",
}

_HALVES = {"real": "The real half", "synthetic": "The synthetic half", "both": "Both halves, each weighs one half"}


def write_report(run_dir: Path, to: Path | None = None) -> Path:
    """Write the page about a run to `to`, or to `report.html` in the run folder, and return its path.

    Raises:
        UsageError: if there is no run, or if `to` is a folder.
        VerificationError: as in `render_report`.
    """
    path = to if to is not None else run_dir / REPORT
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name a file for the page")
    write_text(path, render_report(run_dir))
    return path


def leave_page(run_dir: Path) -> str | None:
    """Leave the page about a run as it now is, for the end of a run, however it ends.

    Returns:
        None, or one line that says why there is no page. That must not fail a run: its results are there.
    """
    path = run_dir / REPORT
    try:
        if not path.is_file() or path.read_bytes() != render_report(run_dir).encode():
            write_report(run_dir)
    except UsageError:  # no phase has finished yet
        path.unlink(missing_ok=True)
    except (VerificationError, OSError) as error:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return f"warning: {path} could not be written ({first_line(error)}): natix-hf report {run_dir} tries again"
    return None


def stale_page(run_dir: Path) -> str | None:
    """One line if the page in a run folder is not the one that the run's files make; None if it is, or there is
    none."""
    path = run_dir / REPORT
    if not path.is_file():
        return None
    try:
        same = path.read_bytes() == render_report(run_dir).encode()
    except (UsageError, VerificationError):
        same = False
    return None if same else f"{path} is not the page of these files: natix-hf report {run_dir} writes it anew"


def render_report(run_dir: Path) -> str:
    """Render the page about a run, finished or not. It depends on the files of the folder alone.

    Raises:
        UsageError: if it is no run folder, or if no phase has finished.
        VerificationError: if a file is damaged or was written by another version.
    """
    facts = read_run(run_dir)
    try:
        return page_environment().get_template(_TEMPLATE).render(_content(facts))
    except (AttributeError, IndexError, KeyError, TypeError, UndefinedError, ValueError) as error:
        raise VerificationError(
            f"a file in {run_dir} is damaged or comes from another version of natix_hf ({error}): run its phase again"
        ) from None


def page_environment() -> Environment:
    """The templates of pages, with the filters that they share."""
    environment = Environment(
        loader=FileSystemLoader(resource_folder("model_cards")),
        autoescape=True,  # file names, class names and slices come from other people's data
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": number,
        "signed": lambda value: number(value, "+.3f"),
        "interval": interval,
        "gain_interval": lambda gain: from_json(Gain, gain).told_interval,
        "percent": lambda value: _UNDEFINED if value is None else percent(value),
        "duration": duration,
        "sentence": lambda text: text[:1].upper() + text[1:],
        "grouped": lambda value: f"{value:,}",
    }
    return environment


def number(value: float | None, form: str = ".3f") -> str:
    """A figure as text; None and NaN are "undefined"."""
    return _UNDEFINED if value is None or value != value else format(value, form)


def interval(bounds: list[float | None] | None) -> str:
    """An interval as `[low, high]`, or an empty text if there is none or an old file holds one without width."""
    if not bounds or bounds[0] is None or bounds[0] == bounds[1]:
        return ""
    return f"[{number(bounds[0])}, {number(bounds[1])}]"


def duration(seconds: float | None) -> str:
    """A duration as text, or an empty text if it is unknown."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def _content(facts: RunFacts) -> dict[str, Any]:
    evaluation, decision, examples = facts.results.evaluation, facts.results.decision, facts.results.examples
    phase0, labels = facts.metrics(0), facts.labels
    begun = [facts.phases[n].manifest["started"] for n in ORDER if "started" in facts.phases[n].manifest]
    return {
        "facts": facts,
        "labels": labels,
        "description": facts.section.get("phase6", {}).get("description", facts.question),
        "begun": min(begun, default=None),
        "phases": [facts.phases[n] for n in ORDER],
        "slowest": max([facts.phases[n].manifest.get("duration_s", 0) for n in ORDER] + [0.01]),
        "total_s": sum(facts.phases[n].manifest.get("duration_s", 0) for n in ORDER),
        "title": facts.section.get("phase6", {}).get("model_name") or facts.recipe,
        "counts": phase0.get("counts", {}),
        "in_groups": any(count["groups"] != count["rows"] for count in phase0.get("counts", {}).values()),
        "read": _read(facts),
        "columns": list(evaluation.columns) if evaluation is not None else [],
        "metric_names": _shown_metrics(evaluation, labels),
        "notes": evaluation.notes({name: METRICS[name].named(labels).split(":")[0] for name in told_metrics()})
        if evaluation is not None
        else [],
        "metric_titles": {name: metric.named(labels) for name, metric in METRICS.items()},
        "errors_by_level": lambda half: errors_by_level(evaluation, half) if evaluation is not None else [],
        "errors_by_value": lambda column: errors_by_value(evaluation, column) if evaluation is not None else [],
        "told_errors": told_errors(evaluation, labels) if evaluation is not None else "",
        "promise": find_promise(facts),
        "warnings": find_warnings(facts),
        "steps": find_steps(facts),
        "exported": facts.metrics(6),
        "exam": evaluation.exam if evaluation is not None else None,
        "ways": _WAYS,
        "halves": _HALVES,
        "kinds": [
            to_json(kind) | {"rows": _with_pictures(facts, kind.rows)}
            for kind in (examples.kinds if examples is not None else [])
            if kind.rows
        ],
        "heats": any(row.heat for kind in (examples.kinds if examples is not None else []) for row in kind.rows),
        "no_heat": examples.no_heat if examples is not None else None,
        "kind_names": {kind: words.format(yes=labels.yes, no=labels.no) for kind, words in _KINDS.items()},
        "plots": [_plot(facts, name, *told) for name, told in _PLOTS.items() if _has(facts, name)]
        + [_plot(facts, name, Path(name).stem.replace("_", " "), "") for name in _other_plots(facts)],
        "trainings": _trainings(facts),
        "adapted": _ADAPTED,
        "curves": {name: _plot(facts, name, told, told) for name, told in _CURVES.items() if _has(facts, name)},
        "champion": decision.champion if decision is not None else None,
        "candidates": [PHASES[n].folder for n in CANDIDATE_PHASES],
        "soup": decision.soup if decision is not None else None,
    }


def _shown_metrics(evaluation: Evaluation | None, labels: LabelNames) -> dict[str, str]:
    """Titles by name. A metric that is younger than the evaluation is not in it."""
    measured = evaluation.as_found.metrics if evaluation is not None else {}
    return {name: METRICS[name].named(labels) for name in told_metrics() if name in measured}


def _read(facts: RunFacts) -> ReadInShort | None:
    source = facts.section.get("data", {}).get("source")
    return read_in_short(facts.read, source) if facts.read is not None and source is not None else None


def _has(facts: RunFacts, name: str) -> bool:
    phase = next(known for known in facts.phases.values() if name.startswith(known.phase.folder))
    return phase.counts and (facts.folder / name).is_file()


def _other_plots(facts: RunFacts) -> list[str]:
    """The plots that have no caption here."""
    found = [path for n in ORDER for path in sorted((facts.folder / PHASES[n].folder / "plots").glob("*.png"))]
    names = [path.relative_to(facts.folder).as_posix() for path in found]
    return [name for name in names if name not in _PLOTS and name not in _CURVES and _has(facts, name)]


def _plot(facts: RunFacts, name: str, title: str, alt: str) -> dict[str, str]:
    return {"uri": _data_uri(facts.folder / name, "png"), "title": title, "alt": alt or f"Plot: {title}"}


def _with_pictures(facts: RunFacts, rows: list[Example]) -> list[dict[str, Any]]:
    folder = facts.folder / PHASES[6].folder / EXAMPLES

    def uri(file: str | None) -> str | None:
        return _data_uri(folder / Path(file).name, "jpeg") if file is not None else None

    return [to_json(row) | {"uri": uri(row.file), "heat_uri": uri(row.heat)} for row in rows]


def _data_uri(path: Path, kind: str) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise VerificationError(f"{path} is missing: natix-hf verify lists what else is") from None
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _trainings(facts: RunFacts) -> list[dict[str, Any]]:
    """Every supervised training of the run, with its curve and the proof of its merge."""
    phase4 = facts.metrics(4)
    of_phase4 = {"Phase 4, on the adapted backbone": "", "Phase 4, the control": "control/"}
    found = [("Phase 1, the baseline", facts.metrics(1), "phase1_baseline/plots/training.png")]
    for (title, place), key in zip(of_phase4.items(), ("supervised", "control"), strict=True):
        found.append((title, phase4.get(key, {}), f"phase4_explora/{place}plots/training.png"))
    return [{"title": title, "plot": plot} | report for title, report, plot in found if "steps" in report]

"""The audit of a run's labels: which are most surely wrong, as a list to review, a page to look through, and figures.

Only rows of train and val_select are looked at. The labels of val_calib and test are what figures and promises rest
on, and must not change because of what a model thinks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from natix_hf.data.near_duplicates import contradictions, perceptual_hashes
from natix_hf.data.reviewed import ACTION, NOW, ROW_ID, SUGGESTED
from natix_hf.data.rows import thumbprints
from natix_hf.metrics.classification import auroc
from natix_hf.metrics.label_noise import Suspects, find_wrong_labels
from natix_hf.provenance.files import write_text
from natix_hf.report.audited import AuditedRows, read_audited
from natix_hf.report.listed import check_folder, write_list
from natix_hf.results.audit import AUDIT, AuditReport, NoiseRate, Planted, noise_of

LIST, PAGE = "audit.csv", "audit.html"
GROUP, ROW, LOOK_ALIKES = "group", "row", "look-alikes"
ALIKE = "looks like"  # the beginning of a reason
COLUMNS = (
    "finding",
    "kind",
    ROW_ID,
    "split",
    "group",
    NOW,
    SUGGESTED,
    "p_yes",
    "score",
    "rank",
    "reason",
    "picture",
    ACTION,
)


@dataclass(frozen=True)
class Finding:
    """Rows to look at together: a group that is suspect as a whole, a single row, or pictures that look alike and have
    different labels. The row that is most surely wrong comes first. No row is in two findings."""

    kind: str
    rows: list[int]


@dataclass(frozen=True)
class Audit:
    """What was found in the rows of a run.

    Args:
        findings: Those with flagged rows first, and of these the most surely wrong ones.
        reasons: Why each row is listed, by its position.
    """

    rows: AuditedRows
    suspects: Suspects
    report: AuditReport
    findings: list[Finding]
    reasons: dict[int, list[str]]

    def of_kind(self, kind: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.kind == kind]

    @property
    def in_groups(self) -> int:
        """Flagged rows of groups that are suspect as a whole."""
        return sum(len(finding.rows) for finding in self.of_kind(GROUP))

    @property
    def told_flagged(self) -> str:
        """The flagged rows in words: groups as a whole, and single rows."""
        groups, single = self.report.whole_groups, self.report.flagged - self.in_groups
        rows = f"{single:,} single row{'' if single == 1 else 's'}"
        if not groups:
            return rows
        return f"{groups:,} group{'' if groups == 1 else 's'} as a whole ({self.in_groups:,} rows) and {rows}"

    def suggested(self, row: int) -> int:
        """The label that the evidence speaks for."""
        label = int(self.rows.labels[row])
        return 1 - label if self.suspects.flagged[row] or self.suspects.margin[row] < 0 else label


def audit_run(run_dir: Path, seed: int = 0) -> Audit:
    """Find the labels of a run that are most surely wrong.

    Args:
        seed: Of the intervals.

    Raises:
        UsageError, DataError, VerificationError: As `read_audited`.
    """
    rows = read_audited(run_dir)
    suspects = find_wrong_labels(rows.answers.row_logits, rows.labels, rows.groups, seed=seed)
    pairs = _contradictions(rows)
    report = AuditReport(
        rows=len(rows.ids),
        groups=len(np.unique(rows.groups)),
        auroc=auroc(rows.answers.row_logits, rows.labels, None),
        flagged=int(suspects.flagged.sum()),
        whole_groups=len(suspects.whole_groups),
        contradictions=len(pairs),
        thresholds=suspects.noise.thresholds,
        confident_joint=suspects.noise.counts,
        estimated_joint=suspects.noise.joint,
        noise=noise_of(suspects.noise),
        fold_models=rows.answers.models,
        planted=_planted(rows, suspects),
    )
    return Audit(rows, suspects, report, _findings(suspects, pairs), _reasons(rows, suspects, pairs))


def write_audit(run_dir: Path, to: Path | None = None) -> tuple[Audit, Path]:
    """Write `audit.csv`, `audit.html` and `audit.json` to `to`, or to the folder `audit` of the run.

    Returns:
        The audit and the folder.

    Raises:
        UsageError: As `audit_run`, or if the list that would be replaced has been reviewed.
    """
    from natix_hf.report.audit_page import render_audit

    folder = check_folder(to if to is not None else run_dir / AUDIT, LIST)
    audit = audit_run(run_dir)
    write_list(folder / LIST, COLUMNS, _lines(audit))
    write_text(folder / PAGE, render_audit(audit))
    audit.report.write(folder)
    return audit, folder


def told_audit(audit: Audit, folder: Path) -> Iterator[str]:
    """The lines for a terminal."""
    report, names = audit.report, audit.rows.names
    yield (
        f"rows      {report.rows:,} of train and val_select in {report.groups:,} groups; val_calib and test are not "
        "looked at"
    )
    yield f"answers   {report.told_answers}"
    yield f"flagged   {report.flagged:,} rows look wrongly labelled: {audit.told_flagged}"
    yield f'noise     {told_rate(report.noise["missed"])} of what is truly "{names.yes}" is labelled "{names.no}"'
    yield f'          {told_rate(report.noise["false"])} of what is truly "{names.no}" is labelled "{names.yes}"'
    yield "          (by confident learning; what the model cannot tell counts as noise, so this may be too much)"
    yield (
        f"          of the surest fifth of the answers: {told_rate(report.noise['surest_yes'])} of "
        f'"{names.yes}" and {told_rate(report.noise["surest_no"])} of "{names.no}" are labelled otherwise'
    )
    yield f"pairs     {report.contradictions:,} pairs of pictures look alike and have different labels"
    planted = report.planted
    if planted is not None:
        precision = "undefined" if planted.precision is None else f"{planted.precision:.3f}"
        yield (
            f"planted   {planted.flipped:,} labels were flipped on purpose (data.label_noise): the flagged rows find "
            f"{planted.found:,} of them, precision {precision}, recall {planted.recall:.3f}"
        )
    listed = folder / LIST
    yield f"page      {folder / PAGE}"
    yield f"list      {listed}"
    if audit.findings:
        yield f"next      write keep, exclude or relabel into its column {ACTION}, then"
        yield f"          natix-hf run RECIPE data.exclude={listed} data.relabel={listed}"


def told_rate(rate: NoiseRate) -> str:
    """A rate with its interval, in percent."""
    if rate.value is None:
        return f"an unknown share ({rate.reason})" if rate.reason else "an unknown share"
    low, high = rate.interval
    bounds = f" [{100 * low:.1f}%, {100 * high:.1f}%]" if low is not None and high is not None else ""
    return f"{100 * rate.value:.1f}%{bounds}"


def _findings(suspects: Suspects, pairs: list[tuple[int, int]]) -> list[Finding]:
    """The findings of flagged rows, lowest mean margin first, then look-alikes of which no row is flagged."""
    margin, flagged = suspects.margin, suspects.flagged
    found = [Finding(GROUP, rows.tolist()) for rows in suspects.whole_groups]
    inside = {row for finding in found for row in finding.rows}
    alike: dict[int, set[int]] = {}
    for pair in pairs:
        joined = set(pair).union(*(alike.get(row, set()) for row in pair))
        alike |= dict.fromkeys(joined, joined)
    for joined in {id(joined): joined for joined in alike.values()}.values():
        if left := joined - inside:
            found.append(Finding(LOOK_ALIKES, list(left)))
            inside |= left
    found += [Finding(ROW, [row]) for row in np.flatnonzero(flagged).tolist() if row not in inside]
    found = [Finding(one.kind, sorted(one.rows, key=lambda row: (margin[row], row))) for one in found]

    def order(finding: Finding) -> tuple[bool, float, int]:
        doubted = [row for row in finding.rows if flagged[row]]
        return not doubted, float(margin[doubted or finding.rows[:1]].mean()), finding.rows[0]

    return sorted(found, key=order)


def _contradictions(rows: AuditedRows) -> list[tuple[int, int]]:
    decoded = rows.data.decoded.select(rows.at)
    known, levels = thumbprints(decoded)
    pairs = contradictions(perceptual_hashes(levels), levels, rows.labels[known])
    return [(known[a], known[b]) for a, b in pairs.tolist()]


def _planted(rows: AuditedRows, suspects: Suspects) -> Planted | None:
    if not rows.config.label_noise:
        return None
    flipped = rows.labels != rows.source_labels
    found, flagged = int((flipped & suspects.flagged).sum()), int(suspects.flagged.sum())
    count = int(flipped.sum())
    return Planted(count, found, found / flagged if flagged else None, found / count if count else 1.0)


def _reasons(rows: AuditedRows, suspects: Suspects, pairs: list[tuple[int, int]]) -> dict[int, list[str]]:
    """Why each row is listed, for people."""
    found: dict[int, list[str]] = defaultdict(list)
    labels, names = rows.labels, rows.names
    _, number = np.unique(rows.groups, return_inverse=True)
    size = np.bincount(number)
    positive = np.bincount(number, labels).astype(np.int64)
    inside = {row for of_group in suspects.whole_groups for row in of_group.tolist()}
    for row in np.flatnonzero(suspects.flagged).tolist():
        label, group = int(labels[row]), number[row]
        others = size[group] - positive[group] if label else positive[group]
        if row in inside:
            found[row].append(f'most of the {size[group]} rows of the group look like "{names.name(not label)}"')
        elif (suspects.answered[row] > 0) != bool(label):
            found[row].append(f'the answers say "{names.name(not label)}"')
        if 2 * others > size[group]:
            found[row].append(f"{others} of the {size[group]} rows of its group have the other label")
        if not found[row]:
            found[row].append("the answers are less sure of it than of others with this label")
    alike: dict[int, list[int]] = defaultdict(list)
    for a, b in pairs:
        alike[a].append(b)
        alike[b].append(a)
    for row, others in alike.items():
        count = f"{len(others)} rows, such as " if len(others) > 1 else ""
        found[row].append(f'{ALIKE} {count}{rows.ids[others[0]]}, labelled "{names.name(not labels[row])}"')
    return dict(found)


def _lines(audit: Audit) -> Iterator[list[Any]]:
    rows, suspects = audit.rows, audit.suspects
    probabilities, rank = suspects.probabilities, 0
    for number, finding in enumerate(audit.findings, 1):
        for row in finding.rows:
            rank += 1
            yield [
                number,
                finding.kind,
                rows.ids[row],
                rows.answers.roles[row],
                rows.groups[row],
                int(rows.labels[row]),
                audit.suggested(row),
                f"{probabilities[row]:.4f}",
                f"{suspects.margin[row]:.3f}",
                rank,
                "; ".join(audit.reasons.get(row, [])),
                rows.place(row),
                "",
            ]

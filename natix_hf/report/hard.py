"""Hard rows of a run: labels believed right, out-of-fold answers wrong or nearly. For the next round of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from natix_hf.data.reviewed import ROW_ID
from natix_hf.errors import UsageError
from natix_hf.metrics.label_noise import log_odds_of_labels
from natix_hf.metrics.threshold import select_threshold
from natix_hf.provenance.files import write_text
from natix_hf.report.audit import LOOK_ALIKES, Audit, audit_run
from natix_hf.report.audit_page import MOST_PICTURES, render, shown_picture, told_shown
from natix_hf.report.listed import check_folder, write_list
from natix_hf.results.audit import AUDIT

HARD_LIST, HARD_PAGE = "hard.csv", "hard.html"
FALSE_ALARM, MISSED, NEARLY = "false alarm", "missed", "nearly"
# A right answer is nearly wrong if its odds are at most so many to one: 60 to 40.
_NEARLY = float(np.log(0.6 / 0.4))
COLUMNS = ("rank", "kind", ROW_ID, "split", "group", "label", "p_yes", "logit", "wrong_views", "views", "picture")


@dataclass(frozen=True)
class Hard:
    """The hard rows of an audited run, hardest first within each kind.

    Args:
        kinds: Positions of the rows, by kind: false alarms, missed, nearly wrong.
        probabilities (`np.ndarray` [n]): P(label 1) of each row by its own answer, at the prior of the labels.
        threshold: The logit that answers yes from no, fitted to the out-of-fold answers.
        wrong_views (`np.ndarray` [n]): Views of each row that are answered wrongly.
    """

    audit: Audit
    kinds: dict[str, list[int]]
    probabilities: np.ndarray
    threshold: float
    wrong_views: np.ndarray


def find_hard(audit: Audit) -> Hard:
    """Find the rows whose label is believed right and whose answer is wrong, or right by odds of at most 60 to 40.

    The threshold has the largest MCC on the out-of-fold answers at `data.target_prior`. Rows that the audit flags, or
    lists as look-alikes with different labels, are left out: a wrong label is not a hard picture.

    Raises:
        UsageError: If no label of one class is trusted.
    """
    rows = audit.rows
    z, y = rows.answers.row_logits, rows.labels
    own = np.arange(len(y))
    log_odds = log_odds_of_labels(z, y, own)[0]
    trusted = ~audit.suspects.flagged
    trusted[[row for finding in audit.of_kind(LOOK_ALIKES) for row in finding.rows]] = False
    for label, name in enumerate((rows.names.no, rows.names.yes)):
        if not (trusted & (y == label)).any():
            raise UsageError(
                f'the audit doubts all {int((y == label).sum()):,} rows labelled "{name}", so no answer can be called '
                "hard: the answers are too weak, train longer or adapt the model first"
            )
    found = select_threshold(z[trusted], y[trusted], target_prior=rows.config.target_prior)
    # The threshold in log-odds: they rise with the logit.
    order = np.argsort(z)
    cut = float(np.interp(found.threshold, z[order], log_odds[order]))
    says_yes, away = z > found.threshold, np.abs(log_odds - cut)
    wrong = trusted & (says_yes != (y == 1))
    nearly = trusted & ~wrong & (away <= _NEARLY)
    kinds = {
        FALSE_ALARM: _by(np.flatnonzero(wrong & (y == 0)), -away),
        MISSED: _by(np.flatnonzero(wrong & (y == 1)), -away),
        NEARLY: _by(np.flatnonzero(nearly), away),
    }
    views = rows.answers.logits.reshape(len(y), -1)
    wrong_views = ((views > found.threshold) != (y[:, None] == 1)).sum(axis=1)
    return Hard(audit, kinds, 1 / (1 + np.exp(-log_odds)), found.threshold, wrong_views)


def write_hard(run_dir: Path, to: Path | None = None) -> tuple[Hard, Path]:
    """Write `hard.csv` and `hard.html` to `to`, or to the folder `audit` of the run.

    Returns:
        The hard rows and the folder.

    Raises:
        UsageError, DataError, VerificationError: As `audit_run`.
    """
    folder = check_folder(to if to is not None else run_dir / AUDIT, HARD_LIST)
    hard = find_hard(audit_run(run_dir))
    write_list(folder / HARD_LIST, COLUMNS, _lines(hard))
    write_text(folder / HARD_PAGE, _render(hard))
    return hard, folder


def told_hard(hard: Hard, folder: Path) -> Iterator[str]:
    """The lines for a terminal."""
    report, names = hard.audit.report, hard.audit.rows.names
    counts = {kind: len(rows) for kind, rows in hard.kinds.items()}
    yield f"rows      {report.rows:,} of train and val_select in {report.groups:,} groups"
    yield f'alarms    {counts[FALSE_ALARM]:,} rows labelled "{names.no}" are answered "{names.yes}"'
    yield f'missed    {counts[MISSED]:,} rows labelled "{names.yes}" are answered "{names.no}"'
    yield f"nearly    {counts[NEARLY]:,} rows are answered rightly at odds of at most 60 to 40"
    yield f"left out  {report.flagged:,} rows whose label looks wrong: natix-hf audit lists them"
    yield f"page      {folder / HARD_PAGE}"
    yield f"list      {folder / HARD_LIST}"


def _by(rows: np.ndarray, key: np.ndarray) -> list[int]:
    return [int(row) for row in rows[np.argsort(key[rows], kind="stable")]]


def _lines(hard: Hard) -> Iterator[list[Any]]:
    rows, rank = hard.audit.rows, 0
    for kind, of_kind in hard.kinds.items():
        for row in of_kind:
            rank += 1
            yield [
                rank,
                kind,
                rows.ids[row],
                rows.answers.roles[row],
                rows.groups[row],
                int(rows.labels[row]),
                f"{hard.probabilities[row]:.4f}",
                f"{rows.answers.row_logits[row]:.4f}",
                int(hard.wrong_views[row]),
                rows.answers.asked.views,
                rows.place(row),
            ]


def _render(hard: Hard) -> str:
    rows, names = hard.audit.rows, hard.audit.rows.names
    words = {
        FALSE_ALARM: ("False alarms", f'Labelled "{names.no}", answered "{names.yes}", surest first.'),
        MISSED: ("Missed", f'Labelled "{names.yes}", answered "{names.no}", surest first.'),
        NEARLY: ("Nearly wrong", "Answered rightly at odds of at most 60 to 40, closest first."),
    }
    sections = []
    for kind, (title, text) in words.items():
        of_kind = hard.kinds[kind]
        shown = of_kind[: MOST_PICTURES // len(words)]
        findings = [{"pictures": [shown_picture(rows, row, None, float(hard.probabilities[row]))]} for row in shown]
        if of_kind:
            told = told_shown(len(shown), len(of_kind), HARD_LIST)
            sections.append({"title": title, "text": text, "told": told, "findings": findings, "single": True})
    tiles = [
        {"title": words[kind][0], "value": f"{len(of_kind):,}", "text": words[kind][1]}
        for kind, of_kind in hard.kinds.items()
    ]
    steps = [
        "Labels believed right, answers wrong or nearly: collect more pictures like these. Rows whose label looks "
        f"wrong are not among them ({hard.audit.report.flagged:,} rows; natix-hf audit lists them)."
    ]
    return render(rows, "Hard rows", tiles, steps, "", sections)

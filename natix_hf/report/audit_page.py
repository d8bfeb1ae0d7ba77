"""The page of an audit: the findings with small pictures, to look through. One file, no script, no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

from natix_hf.errors import DataError
from natix_hf.report.audit import ALIKE, GROUP, LIST, LOOK_ALIKES, ROW, Audit, Finding, told_rate
from natix_hf.report.audited import AuditedRows
from natix_hf.report.page import page_environment

_TEMPLATE = "audit.html.jinja"
# So many pictures a page holds, and so many of one group: some 8 kB each.
MOST_PICTURES = 400
_OF_A_GROUP = 6
_QUALITY = 75


def render_audit(audit: Audit) -> str:
    """Render the page of an audit."""
    report, names, rows = audit.report, audit.rows.names, audit.rows
    left = MOST_PICTURES
    sections = []
    for kind, title, text in (
        (GROUP, "Groups", "Most rows of these groups look wrongly labelled: each group is one question."),
        (ROW, "Single rows", "Most surely wrong first, row by row."),
        (
            LOOK_ALIKES,
            "Look-alikes with different labels",
            "The least trusted picture of each comes first. Where they show one thing, one of the labels is wrong.",
        ),
    ):
        of_kind = audit.of_kind(kind)
        shown = []
        for finding in of_kind:
            pictures = _pictures(audit, finding)
            if len(pictures) > left:
                break
            left -= len(pictures)
            shown.append({"title": _title(audit, finding), "pictures": pictures, "more": _more(finding)})
        if of_kind:
            sections.append(
                {"title": title, "text": text, "told": told_shown(len(shown), len(of_kind), LIST), "findings": shown}
                | {"single": kind == ROW}
            )
    noise = report.noise
    tiles = [
        {
            "title": "Rows that look wrongly labelled",
            "value": f"{report.flagged:,}",
            "text": audit.told_flagged,
        },
        {
            "title": "Estimated noise of the labels",
            "value": told_rate(noise["all"]).split(" [")[0],
            "text": f'{told_rate(noise["missed"])} of "{names.yes}" and {told_rate(noise["false"])} of "{names.no}". '
            "What the model cannot tell counts as noise, so this may be too much.",
        },
        {
            "title": "Look-alikes with different labels",
            "value": f"{report.contradictions:,}",
            "text": "pairs of pictures",
        },
    ]
    if report.planted is not None:
        planted = report.planted
        precision = "undefined" if planted.precision is None else f"{planted.precision:.3f}"
        tiles.append(
            {
                "title": "Labels flipped on purpose",
                "value": f"{planted.found:,} of {planted.flipped:,}",
                "text": f"found: precision {precision}, recall {planted.recall:.3f} of the flagged rows",
            }
        )
    step, command = "No label looks wrong, and no look-alikes have different labels.", ""
    if sections:
        step = (
            f"Look, then write keep, exclude or relabel into the column action of {LIST} beside this page. A row "
            "without an action stays as it is. Then train again:"
        )
        command = f"natix-hf run RECIPE data.exclude=FOLDER/{LIST} data.relabel=FOLDER/{LIST}"
    return render(rows, "Labels to look at", tiles, [f"{report.told_answers}.", step], command, sections)


def render(
    rows: AuditedRows,
    title: str,
    tiles: list[dict[str, str]],
    steps: list[str],
    command: str,
    sections: list[dict[str, Any]],
) -> str:
    """Render a page of an audit from its parts."""
    content = {
        "title": title,
        "run_id": rows.run_id,
        "question": rows.config.asked_question,
        "sample": f"{len(rows.ids):,} rows of train and val_select in {len(set(rows.groups.tolist())):,} groups",
        "yes": rows.names.yes,
        "tiles": tiles,
        "steps": steps,
        "command": command,
        "sections": sections,
    }
    return page_environment().get_template(_TEMPLATE).render(content)


def told_shown(shown: int, total: int, listed: str) -> str:
    """How many of all findings the page shows."""
    return f"{total:,}" if shown == total else f"{shown:,} of {total:,}; all are in {listed}"


def shown_picture(
    rows: AuditedRows, row: int, other: str | None, probability: float, note: str = ""
) -> dict[str, Any]:
    """What the template shows of a row. A picture that cannot be read is told, and does not stop the page."""
    try:
        buffer = io.BytesIO()
        rows.thumbnail(row).save(buffer, "JPEG", quality=_QUALITY, optimize=True)
        uri = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    except (DataError, MemoryError, ValueError):
        uri = None
    return {
        "row": rows.ids[row],
        "split": str(rows.answers.roles[row]),
        "label": rows.names.name(bool(rows.labels[row])),
        "other": other,
        "probability": probability,
        "note": note,
        "uri": uri,
    }


def _pictures(audit: Audit, finding: Finding) -> list[dict[str, Any]]:
    return list(_shown(audit, finding))


def _shown(audit: Audit, finding: Finding) -> Iterator[dict[str, Any]]:
    p, names = audit.suspects.probabilities, audit.rows.names
    for row in finding.rows[:_OF_A_GROUP]:
        suggested = audit.suggested(row)
        other = names.name(bool(suggested)) if suggested != audit.rows.labels[row] else None
        reasons = audit.reasons.get(row, []) if finding.kind != GROUP else []
        beside = len(finding.rows) > 1  # what it looks like stands beside it
        note = "; ".join(reason for reason in reasons if not (beside and reason.startswith(ALIKE)))
        yield shown_picture(audit.rows, row, other, float(p[row]), note)


def _title(audit: Audit, finding: Finding) -> str:
    row = finding.rows[0]
    if finding.kind == GROUP:
        names, label = audit.rows.names, int(audit.rows.labels[row])
        group = str(audit.rows.groups[row]).removeprefix("group:")
        return f'{group}: {len(finding.rows)} rows labelled "{names.name(bool(label))}"'
    others = [audit.rows.ids[other] for other in finding.rows[1:]]
    rest = f"{len(others)} others" if len(others) > 1 else "".join(others)
    return f"{audit.rows.ids[row]} and {rest}" if rest else audit.rows.ids[row]


def _more(finding: Finding) -> str:
    rest = len(finding.rows) - _OF_A_GROUP
    return f"and {rest} more in {LIST}" if rest > 0 else ""

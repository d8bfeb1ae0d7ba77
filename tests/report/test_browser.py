"""The page in a real browser: a quiet console, no request, and nothing wider than the window.

It runs where there is a Chromium (`apt-get install chromium`, or one named in NATIX_HF_CHROMIUM). NATIX_HF_SCREENSHOTS
names a folder that keeps what it looked like.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import Page, find_browser, open_browser

from natix_hf.report.page import write_report
from natix_hf.results.evaluation import Evaluation
from natix_hf.subnet.marks import ExamAnswers, confusion_by_level, mark_exam

BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
WIDTHS = (360, 1200)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with open_browser(str(BROWSER), tmp_path / "profile") as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page(width: int, dark: bool, whole_run: Path, page: Page) -> None:
    report = write_report(whole_run)
    page.open(report.as_uri(), width, dark=dark)
    assert page.complaints() == []
    asked = [address for address in page.requests() if not address.startswith("data:")]
    assert asked == [report.as_uri()], "the page itself, and what it holds"
    assert page.evaluate("document.documentElement.scrollWidth") == page.evaluate("window.innerWidth") == width
    assert page.evaluate("[...document.images].length") > 12
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    # No element but what lies in a box that scrolls by itself reaches over the edge.
    wide = (
        "[...document.body.querySelectorAll('*')].filter(e => !e.closest('.scroll') || e.matches('.scroll'))"
        f".filter(e => e.getBoundingClientRect().right > {width} + 0.5).map(e => e.outerHTML.slice(0, 80))"
    )
    assert page.evaluate(wide) == []
    assert page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 16
    assert page.evaluate("document.compatMode") == "CSS1Compat"
    if "NATIX_HF_SCREENSHOTS" in os.environ:
        name = f"report-{width}{'-dark' if dark else ''}.png"
        page.screenshot(Path(os.environ["NATIX_HF_SCREENSHOTS"]) / name, whole=True)


def test_in_a_narrow_window_every_table_fits(whole_run: Path, page: Page) -> None:
    """At 500 px no table scrolls, slices, levels and lineage included. A name without blanks wraps."""
    folder = whole_run / "phase6_export"
    rng = np.random.default_rng(0)
    labels, levels = rng.integers(0, 2, 800), np.arange(800) % 4
    views = ExamAnswers(labels + rng.normal(size=800), labels, levels, np.arange(800) // 4, 4)
    evaluation = Evaluation.read(folder)
    [values] = evaluation.slices.values()
    long = "construction_site_with_heavy_machinery_and_barriers"
    slices = {"weather": {f"{long}_{value}": row for value, row in values.items()}}
    assert slices["weather"]
    by_level = {"real": confusion_by_level(views, 0.5, rng.random(800) < 0.5, 100)}
    exam = mark_exam(views, 0.5, n_resamples=100)
    replace(evaluation, exam=exam, level_confusion=by_level, slices=slices).write(folder)
    page.open(write_report(whole_run).as_uri(), 500)
    wide = (
        "[...document.querySelectorAll('table')].filter(t => t.scrollWidth > t.closest('.scroll').clientWidth)"
        ".map(t => [t.scrollWidth, t.textContent.trim().slice(0, 60)])"
    )
    assert page.evaluate(wide) == []
    assert page.evaluate("document.documentElement.scrollWidth") == 500


# As the Hub and GitHub lay out a card: a table scrolls in its own box where it does not fit.
CARD_CSS = (
    "body { margin: 0; padding: 16px; font: 16px/1.5 sans-serif } table { border-collapse: collapse; font-size: 14px }"
    "td, th { padding: 6px 13px; border: 1px solid #ccc } .scroll, pre { overflow: auto } img { max-width: 100% }"
)


def test_the_tables_of_the_card_fit_500_px(whole_run: Path, page: Page, tmp_path: Path) -> None:
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable("table")
    card = (whole_run / "phase6_export" / "bundle" / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2]
    body = markdown.render(card).replace("</table>", "</table></div>")
    body = body.replace("<table>", "<div class=scroll><table>")
    head = f'<!DOCTYPE html><meta charset="utf-8"><meta name="viewport" content="width=device-width"><style>{CARD_CSS}'
    (tmp_path / "card.html").write_text(f"{head}</style>{body}", encoding="utf-8")
    page.open((tmp_path / "card.html").as_uri(), 500)
    wide = "[...document.querySelectorAll('table')].filter(t => t.scrollWidth > t.parentElement.clientWidth)"
    assert page.evaluate("document.querySelectorAll('table').length") >= 5
    assert page.evaluate(f"{wide}.map(t => [t.scrollWidth, t.textContent.trim().slice(0, 60)])") == []


def test_on_paper_nothing_scrolls_and_nothing_is_cut_off(whole_run: Path, page: Page) -> None:
    """A4 with margins is some 700 px wide."""
    page.open(write_report(whole_run).as_uri(), 700)
    page.call("Emulation.setEmulatedMedia", media="print")
    assert page.evaluate("document.documentElement.scrollWidth") == 700


def test_text_can_be_read_in_the_light_and_in_the_dark(whole_run: Path, page: Page) -> None:
    """WCAG AA for body text: a contrast of 4.5."""
    report = write_report(whole_run)
    contrast = """(() => {
      const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b }
      const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor
        if (!c.endsWith(', 0)')) return c } return 'rgb(255, 255, 255)' }
      return Math.min(...[...document.querySelectorAll('p, td, th, li, b, a, .ci, .soft, figcaption, code')].map(e => {
        const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x)
        return (a + 0.05) / (b + 0.05) })) })()"""
    for dark in (False, True):
        page.open(report.as_uri(), 1200, dark=dark)
        assert page.evaluate(contrast) >= 4.5


def test_the_tests_see_what_is_wrong(tmp_path: Path, page: Page) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<!DOCTYPE html><html lang="en"><meta name="viewport" content="width=device-width"><body>'
        '<img src="other.png"><div style="width: 900px">x</div><script>console.error("x"); nothing()</script>',
        encoding="utf-8",
    )
    page.open(bad.as_uri(), 360)
    assert len(page.complaints()) >= 2 and any(address.endswith("other.png") for address in page.requests())
    assert page.evaluate("document.documentElement.scrollWidth") > 360

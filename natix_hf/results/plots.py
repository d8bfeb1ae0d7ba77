"""The plots of a run as PNG files: one style, narrow enough for a phone, readable in grey, drawn without a display.

Curves differ in line style as well as colour. The legend stands below the axes, where no curve can cross it.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from natix_hf.labels import LabelNames
from natix_hf.metrics import ThresholdResult
from natix_hf.metrics.table import METRICS
from natix_hf.provenance.files import atomic_file

_DPI = 200
_TITLE_WIDTH = 62  # characters
_NAMES_WIDTH = 40  # characters, of the widest letters too
_COLOURS = 64  # size of the palette: as crisp as full colour, in a third of the bytes

_ON_WHITE = {"boxstyle": "square,pad=.1", "fc": "w", "ec": "none", "alpha": 0.7}  # text over curves


@contextmanager
def _panels(path: Path, title: str, count: int) -> Iterator[list[Axes]]:
    """Stacked panels that share the horizontal axis."""
    # A Figure without pyplot has no global state and needs no backend.
    figure = Figure(figsize=(5.6, 4 + 1.2 * (count - 1)), dpi=_DPI, layout="constrained")
    panels = list(figure.subplots(count, 1, sharex=True, squeeze=False).flat)
    panels[0].set_title(textwrap.fill(title, _TITLE_WIDTH), loc="left", fontsize=10)
    for axes in panels:
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    yield panels
    keys = [axes.get_legend_handles_labels() for axes in panels]
    handles, labels = ([part for key in keys for part in key[i]] for i in (0, 1))
    if handles:
        style: dict[str, Any] = {"loc": "outside lower left", "frameon": False, "fontsize": 9, "handlelength": 3}
        legend = figure.legend(handles, labels, ncols=2, **style)
        if legend.get_window_extent().width > figure.bbox.width:  # a long label would be cut off
            legend.remove()
            figure.legend(handles, labels, ncols=1, **style)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    with atomic_file(path) as temporary, Image.open(drawn) as image:
        palette = image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
        palette.save(temporary, format="PNG", optimize=True)


@contextmanager
def _figure(path: Path, title: str) -> Iterator[Axes]:
    with _panels(path, title, 1) as [axes]:
        yield axes


def _text(words: str) -> str:
    """Words with names that people chose: long ones get a second line, and a dollar sign begins no formula."""
    return textwrap.fill(words, _NAMES_WIDTH).replace("$", r"\$")


def training(path: Path, history: list[dict[str, Any]]) -> None:
    """Plot the training loss and the validation scores over epochs."""
    losses = [(row["epoch"], row["loss"]) for row in history if "loss" in row]
    scores = [(row["epoch"], row["eval_mcc"], row["eval_nll"]) for row in history if "eval_mcc" in row]
    with _figure(path, "Training, scored on val_select at each epoch's best threshold (optimistic)") as axes:
        if losses:
            axes.plot(*zip(*losses, strict=True), color="0.6", lw=1.2, label="training loss")
        if scores:
            epochs, mcc, nll = zip(*scores, strict=True)
            axes.plot(epochs, nll, "k--", lw=1.2, label="val_select NLL")
            axes.plot(epochs, mcc, "C0o-", ms=3, lw=1.6, label="val_select MCC")
            best = int(np.argmax(mcc))
            axes.annotate(
                f"{mcc[best]:.3f}", (epochs[best], mcc[best]), textcoords="offset points", xytext=(0, 7), ha="center"
            )
        axes.set_ylim(0, max([1.05, *(min(nll, 2.0) for _, _, nll in scores)]))
        axes.set_xlabel("epoch")


def self_supervised(path: Path, history: list[dict[str, Any]], kept_step: int) -> None:
    """Plot the loss of the objective and the AUROC of probes on the frozen backbone over steps."""
    losses = [(row["step"], row["loss"]) for row in history if "loss" in row]
    with _panels(path, "Training without labels; probes fitted on train, scored on val_select", 2) as [
        above,
        axes,
    ]:
        if losses:
            above.plot(*zip(*losses, strict=True), color="0.4", lw=1.2, label="training loss")
        above.set_ylabel("loss")
        for name, style, label in (("linear", "C0o-", "linear probe"), ("knn", "C1s--", "nearest neighbours")):
            key = f"eval_{name}_auroc"
            found = [(row["step"], row[key]) for row in history if key in row]
            if found:
                axes.plot(*zip(*found, strict=True), style, ms=3, lw=1.6, label=label)
        axes.set_ylabel("AUROC of the probes")
        for panel in (above, axes):
            panel.axvline(kept_step, color="k", lw=1, ls=":", label="kept" if panel is axes else None)
        axes.set_xlabel("step")


def threshold(
    path: Path,
    curve: dict[str, np.ndarray],
    chosen: ThresholdResult,
    target_prior: float | None,
    names: LabelNames,
    sample: str = "val_select",
) -> None:
    """Plot MCC, TPR and TNR over the decision threshold on a sample, and mark the chosen threshold."""
    prior = "as found" if target_prior is None else f"at a prior of {target_prior:g}"
    with _figure(path, f"Decision threshold on {sample}, {prior} (optimistic)") as axes:
        axes.plot(curve["threshold"], curve["tpr"], "C2--", lw=1.2, label=_text(METRICS["recall"].named(names)))
        axes.plot(curve["threshold"], curve["tnr"], "C1-.", lw=1.2, label=_text(METRICS["specificity"].named(names)))
        axes.plot(curve["threshold"], curve["mcc"], "C0-", lw=2, label="MCC")
        axes.axvline(chosen.threshold, color="k", lw=1, label="fitted threshold")
        axes.axvline(0, color="0.4", lw=1, ls=":", label="probability 0.5")
        left = chosen.threshold < curve["threshold"].mean()
        axes.annotate(
            f"{chosen.objective} {chosen.value:.3f} at {chosen.threshold:+.2f}",
            (chosen.threshold, 0.0),
            textcoords="offset points",
            xytext=(5 if left else -5, 2),
            ha="left" if left else "right",
            bbox=_ON_WHITE,
        )
        axes.set_xlabel("threshold (logit)")
        axes.set_ylim(min(-0.02, float(curve["mcc"].min())) - 0.02, 1.05)


def reliability(path: Path, probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray, title: str) -> None:
    """Plot the share of right answers over top-1 confidence in the bins of ECE, with the share of rows in each bin."""
    confidence, right = np.maximum(probabilities, 1 - probabilities), (probabilities > 0.5) == (labels == 1)
    edges = np.concatenate([[0.5], np.arange(8, 16) / 15])  # the upper half of the 15 bins of [0, 1]
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, len(edges) - 2)
    mass = np.bincount(bins, weights, len(edges) - 1)
    with _figure(path, title) as axes:
        filled = mass > 0
        share = np.bincount(bins, weights * right, len(mass))[filled] / mass[filled]
        trust = np.bincount(bins, weights * confidence, len(mass))[filled] / mass[filled]
        axes.bar(edges[:-1][filled], share, np.diff(edges)[filled], align="edge", color="0.85", edgecolor="0.6")
        axes.plot(trust, share, "C0o-", ms=4, lw=1.6, label="measured")
        axes.plot([0.5, 1], [0.5, 1], "k--", lw=1, label="calibrated")
        for x, y, rows in zip(trust, share, mass[filled] / mass.sum(), strict=True):
            axes.annotate(
                f"{rows:.0%}",
                (x, y),
                textcoords="offset points",
                xytext=(0, 7),
                ha="center",
                fontsize=8,
                bbox=_ON_WHITE,
            )
        axes.set_xlim(0.5, 1)
        axes.set_ylim(0, 1.08)
        axes.set_xlabel("confidence in the likelier label (numbers: share of rows)")
        axes.set_ylabel("share of right answers")


def risk_coverage(
    path: Path,
    curves: dict[str, tuple[np.ndarray, np.ndarray]],
    title: str,
    promise: float | None = None,
    chosen: tuple[float, float, float] | None = None,
) -> None:
    """Plot the risk among accepted answers over coverage.

    Args:
        curves: Coverage and risk by the name of the curve, at most two.
        promise: alpha.
        chosen: Coverage and risk at the certified threshold, and the upper bound of that risk.
    """
    with _figure(path, title) as axes:
        for (name, (coverage, risk)), style in zip(curves.items(), ("C0-", "C1--"), strict=False):
            axes.plot(coverage, risk, style, lw=1.6, label=name, clip_on=False, zorder=3)  # shows a risk of 0 too
        if promise is not None:
            axes.axhline(promise, color="k", lw=1, ls=":", label=f"alpha {promise:g}")
        if chosen is not None:
            at, risk_there, bound = chosen
            above = np.array([[0.0], [max(0.0, bound - risk_there)]])
            label = "certified threshold and upper bound"
            axes.errorbar([at], [risk_there], yerr=above, fmt="ks", ms=5, capsize=3, label=label)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, None)
        axes.set_xlabel("coverage: share of accepted answers")
        axes.set_ylabel("risk")


def test_scores(path: Path, logits: np.ndarray, labels: np.ndarray, threshold_logit: float, names: LabelNames) -> None:
    """Plot a histogram of the logits of test rows by label, and mark the threshold."""
    with _figure(path, "Test rows by logit") as axes:
        bins = np.linspace(logits.min(), logits.max(), 41).tolist()
        axes.hist(logits[labels == 0], bins=bins, color="0.75", label=_text(f"labelled {names.no}"))
        label = _text(f"labelled {names.yes}")
        axes.hist(logits[labels == 1], bins=bins, histtype="step", color="C0", lw=1.8, label=label)
        axes.axvline(threshold_logit, color="k", lw=1, label="fitted threshold")
        axes.set_xlabel(_text(f"logit of {names.yes} over {names.no}"))
        axes.set_ylabel("rows")

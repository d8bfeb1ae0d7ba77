"""Nothing in a plot is cut off: the edge of every picture is white."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from natix_hf.results.plots import risk_coverage


def _edge(path: Path) -> np.ndarray:
    pixels = np.asarray(Image.open(path).convert("L"))
    return np.concatenate([pixels[:, 0], pixels[:, -1], pixels[0], pixels[-1]])


@pytest.mark.parametrize("label", ["error", "error on val_calib, one row per group", "x" * 60])
def test_a_long_label_takes_a_line_of_its_own(label: str, tmp_path: Path) -> None:
    coverage = np.linspace(0.05, 1, 20)
    risk_coverage(tmp_path / "plot.png", {label: (coverage, coverage / 10)}, "Risk", 0.05, (0.4, 0.0, 0.03))
    assert _edge(tmp_path / "plot.png").min() == 255


def test_the_plots_of_a_run(finished_run: Path) -> None:
    plots = list(finished_run.rglob("*.png"))
    assert plots and all(_edge(path).min() == 255 for path in plots)

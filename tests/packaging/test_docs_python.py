"""The blocks of docs/python.md run one after the other, on a tiny model and pictures made here."""

from __future__ import annotations

import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import striped_image
from transformers import AutoModel, AutoModelForImageClassification

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


def test_the_page_runs(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rng, labels = np.random.default_rng(0), [i % 2 for i in range(24)]
    rows = datasets.Dataset.from_dict({"image": [striped_image(i, rng) for i in labels], "label": labels})
    photos = datasets.DatasetDict(train=rows, test=rows.select(range(12)))
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 3
    names = {"model": str(pretrained), "photos": photos}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)  # the page is the checkout's own
    printed = capsys.readouterr().out
    assert "val MCC" in printed and "Dinov2ForImageClassification" in printed
    for folder in ("roadwork", "tuned-model"):
        AutoModelForImageClassification.from_pretrained(folder)
    AutoModel.from_pretrained("adapted")

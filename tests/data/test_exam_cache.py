"""Exam views that are drawn once are the views that are drawn each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from natix_hf.data import exam_cache
from natix_hf.data.asked import ask
from natix_hf.data.config import DataConfig, Exam
from natix_hf.data.exam_cache import DrawnOnce, drawn_once
from natix_hf.data.rows import load_image_data


def test_they_are_the_same_views(parquet_source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = load_image_data(DataConfig(source=str(parquet_source), group_by="video_info.vid_id")).role("val_select")
    exam = Exam(4, 7)
    live, drawn = ask(rows, exam), drawn_once(rows, exam)
    order = np.random.default_rng(0).permutation(len(live)).tolist()
    assert isinstance(drawn, DrawnOnce) and drawn.ids == live.ids and drawn.labels.tolist() == live.labels.tolist()
    for mine, theirs in zip(drawn.pictures_of(order), live.pictures_of(order), strict=True):
        assert mine.tobytes() == theirs.tobytes()
    some = np.array([3, 0, 2])
    for i in range(12):
        assert drawn.select(some).picture(i).tobytes() == live.select(some).picture(i).tobytes()
        assert drawn.select(some).ids[i] == live.ids[4 * some[i // 4] + i % 4]
    monkeypatch.setattr(exam_cache, "_draw_rows", None)  # the second time nothing is drawn, but for another exam
    assert drawn_once(rows, exam).picture(5).tobytes() == live.picture(5).tobytes()
    with pytest.raises(TypeError):
        drawn_once(rows, Exam(4, 8))
    assert not isinstance(drawn_once(rows, None), DrawnOnce)

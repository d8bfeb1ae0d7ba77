"""Some hundred damaged files; `python benchmarks/decoder_fuzz.py` reads 20,000, with a look at hangs and crashes."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from damaged_pictures import damaged, good_files
from decoder_fuzz import ours, pillow_shows


@pytest.fixture(autouse=True)
def _no_giants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000_000)  # a damaged header may claim gigabytes


def test_every_good_file_is_read() -> None:
    assert len({kind.split()[0] for kind in good_files()}) >= 17
    assert {ours(content) for content in good_files().values()} == {"read"}


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_read_or_refused_and_never_less_than_pillow_shows() -> None:
    outcomes: Counter[str] = Counter()
    for number in range(20 * len(good_files())):
        kind, content = damaged(number, seed=17)
        outcome = ours(content)
        outcomes[outcome] += 1
        assert outcome in ("read", "refused"), f"{number}: {kind}: {outcome}"
        assert outcome == "read" or not pillow_shows(content), f"{number}: {kind}: refused but shown by Pillow"
    assert min(outcomes.values()) > 100, "both happen often, else this sees nothing"

"""The tutorial's commands and its Python, run as they stand on the page but for a shorter training."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SHARED
from facts import tells

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
SIGNS = SHARED / "data" / "gtsrb_roadwork" / "data" / "test-00000-of-00001.parquet"
SPEED_LIMITS = ("00", "01", "02", "03", "04", "05", "07", "08")  # 06 is the end of one

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(shutil.which("bash") is None, reason="the commands of the page are for bash"),
]


def blocks(language: str) -> list[str]:
    """The code blocks of the page in this language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TUTORIAL.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def shorter(code: str) -> str:
    """Two epochs in place of the page's 32."""
    short, count = re.subn(r'(num_train_epochs"?): 32\b', r"\1: 2", code)
    assert count == 1, "the page names its epochs once in each language"
    return short


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with `photographs/` as the page has it: one of each sign, from the test split alone."""
    import pyarrow.parquet as pq

    seen = set()
    for row in pq.read_table(SIGNS).to_pylist():
        if row["video_info.vid_id"] in seen:
            continue
        seen.add(row["video_info.vid_id"])
        kind = "speed_limit" if row["id"][:2] in SPEED_LIMITS else "other"
        folder = tmp_path / "photographs" / kind
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"t{row['video_info.vid_id']}.png").write_bytes(row["image"]["bytes"])
    return tmp_path


def run(arguments: list[str], desk: Path) -> str:
    """Runs a program at the desk, where `natix-hf` is the package under test; its output."""
    (desk / "bin").mkdir()
    command = desk / "bin" / "natix-hf"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m natix_hf "$@"\n', encoding="utf-8")
    python = desk / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    command.chmod(0o755), python.chmod(0o755)
    root = TUTORIAL.parents[1]
    found = {"PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(root)}
    done = subprocess.run(
        arguments, cwd=desk, env=os.environ | found, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_shell_half(desk: Path) -> None:
    script = shorter("\n".join(blocks("bash")))
    assert script.count("natix-hf ") >= 4
    said = run(["bash", "-euo", "pipefail", "-c", script], desk)
    assert (desk / "first-run" / "phase6_export" / "bundle" / "policy.json").is_file()
    assert (desk / "page.html").is_file() and "intact" in said
    answers = [line for line in said.splitlines() if line.startswith("photographs/")]
    assert len(answers) >= 3 and all("P(limit) 0." in line for line in answers)
    rows = list(csv.DictReader((desk / "answers.csv").read_text(encoding="utf-8").splitlines()))
    pictures = list((desk / "photographs").rglob("*.png"))
    assert len(rows) == len(pictures) and not any(row["error"] for row in rows)
    sure = [row for row in rows if row["decision"] != "abstain"]
    assert len(list((desk / "why").glob("*.png"))) == len(rows) - len(sure) == len(answers) - 3
    served = json.JSONDecoder().raw_decode(said, said.index('{"answers"'))[0]["answers"]
    [same] = [row for row in rows if row["image"].endswith(served[0]["image"])]
    assert len(served) == 1 and same["decision"] == served[0]["decision"]
    [labels] = [line for line in said.splitlines() if line.startswith("wrong    labels")]
    assert tells(labels, "Roadwork", "limit")


def test_the_python_half(desk: Path) -> None:
    train, use = blocks("python")
    assert len(train.splitlines()) <= 45, "the page promises some 40 lines"
    said = run([sys.executable, "-c", shorter(train) + use], desk)
    assert "decisions differ" in said and (desk / "why.png").is_file() and (desk / "answers.csv").is_file()
    assert "MCC on test" in said and (desk / "python-run" / "phase6_export" / "bundle" / "policy.json").is_file()

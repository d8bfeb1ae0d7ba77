"""The three examples of docs/any_model.md, run as they stand on the page."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from natix_hf import SelectiveClassifier
from natix_hf.bundle.policy import Policy, write_policy
from natix_hf.calibration import Calibration, Promise

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "any_model.md").read_text(encoding="utf-8")
FOREST, MINER = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
[SHELL] = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
MINERS_PYTHON = ROOT / ".venv-miner" / "bin" / "python"
HEAVY = ("torch", "transformers", "datasets", "sklearn", "pyarrow", "matplotlib", "PIL", "yaml", "typer", "scipy")


def run(arguments: list[str], folder: Path) -> str:
    found = {"PYTHONPATH": str(ROOT), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        arguments, cwd=folder, env=os.environ | found, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_forest(tmp_path: Path) -> None:
    said = run([sys.executable, "-c", FOREST], tmp_path)
    of_all, accepted = map(float, re.findall(r"wrong among all (\S+), among accepted (\S+)", said)[0])
    assert accepted <= 0.05 < of_all and "with probability at least 0.9" in said
    assert SelectiveClassifier.load(tmp_path / "policy.json").feasible


@pytest.mark.skipif(shutil.which("bash") is None, reason="the command of the page is for bash")
def test_a_table_from_anywhere(tmp_path: Path) -> None:
    """Its header and its options are the page's."""
    header = re.search(r"^picture,.*$", PAGE, re.MULTILINE)
    assert header is not None
    rng = np.random.default_rng(0)
    with (tmp_path / "answers.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header[0].split(","))
        for video, defect in enumerate(rng.integers(0, 2, 1000)):
            for z in rng.normal(5 * defect - 2, 1.4, 3):
                writer.writerow([f"{video}.png", f"{1 / (1 + np.exp(-z)):.6f}", ("ok", "defect")[defect], f"v{video}"])
    command = tmp_path / "natix-hf"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m natix_hf "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    said = run(["bash", "-euo", "pipefail", "-c", SHELL], tmp_path)
    shown = re.search(r"^columns .*?(?=^```$)", PAGE, re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert [line.split()[0] for line in said.splitlines() if not line.startswith("plot ")] == [
        line.split()[0] for line in shown[0].splitlines()
    ]
    assert SelectiveClassifier.load(tmp_path / "policy.json", names=("ok", "defect")).feasible
    assert len(list((tmp_path / "plots").glob("*.png"))) == 3


@pytest.mark.parametrize("where", ["here without what is heavy", "in the official miner's environment"])
def test_the_miners_box(where: str, tmp_path: Path) -> None:
    promise = Promise(True, "x", {"None": 0.4, "Roadwork": 1.1}, "error", 0.05, 0.1, True)
    policy = Policy(0.3, "a" * 64, "b" * 64, Calibration("temperature", 1 / 1.7), promise=promise)
    write_policy(tmp_path / "policy.json", policy)
    z = policy.unfold(np.log([0.93 / 0.07]))
    [accepted], [probability] = policy.accepts(z, abs(z - 0.3)), policy.probability(z)
    assert accepted
    python, code = sys.executable, f"import sys; sys.modules |= dict.fromkeys({HEAVY})\n{MINER}"
    if "official" in where:
        if not MINERS_PYTHON.is_file():
            pytest.skip("the official miner's environment is not made: make test-miner makes it")
        python, code = str(MINERS_PYTHON), MINER
    assert run([python, "-c", code], tmp_path) == f"Roadwork {round(float(probability), 4)}\n"

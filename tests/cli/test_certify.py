"""`natix-hf certify`: a table of answers in, a policy and a guarantee out."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command
from facts import tells

from natix_hf import SelectiveClassifier


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """900 answers of 300 videos, with the words of somebody's labels."""
    rng = np.random.default_rng(0)
    of_video = rng.integers(0, 2, 300)
    path = tmp_path / "answers.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", "prob", "label", "video"])
        for video in np.repeat(np.arange(300), 3):
            p = 1 / (1 + np.exp(-rng.normal(5 * of_video[video] - 2, 1.2)))
            writer.writerow([f"{video}.png", f"{p:.9f}", ("leer", "voll")[of_video[video]], f"v{video}"])
    return path


def columns(path: Path) -> tuple[Any, ...]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    label = [int(row["label"] == "voll") for row in rows]
    return [float(row["prob"]) for row in rows], label, [row["video"] for row in rows]


def test_a_table_is_certified(table: Path, tmp_path: Path, command: Command) -> None:
    written = ("--out", tmp_path / "new" / "policy.json", "--plot", tmp_path / "plots")
    code, out, err = command("certify", table, "--names", "leer,voll", *written)
    assert (code, err) == (0, "")
    expected = SelectiveClassifier.fit(*columns(table), names=("leer", "voll"), probabilities=True)
    loaded = SelectiveClassifier.load(tmp_path / "new" / "policy.json")
    assert loaded.policy == expected.policy
    assert expected.describe() in out and "prob" in out and "video" in out
    assert str(tmp_path / "new" / "policy.json") in out
    assert len(list((tmp_path / "plots").glob("*.png"))) == 3


def test_as_json(table: Path, command: Command) -> None:
    options = ("--prior", "0.3", "--classwise", "--alpha", "0.2", "--seed", 4)
    code, out, _ = command("certify", table, "--names", "leer,voll", "--json", *options)
    found = json.loads(out)
    expected = SelectiveClassifier.fit(
        *columns(table), names=("leer", "voll"), probabilities=True, prior=0.3, classwise=True, alpha=0.2, seed=4
    )
    assert code == 0 and found["feasible"] is True and found["policy"] is None
    assert found["threshold_logit"] == expected.policy.threshold_logit and found["guarantee"] == expected.guarantee
    assert set(found["parts"]) == {"leer", "voll"}
    assert found["made_from"]["fitting"]["groups"] + found["made_from"]["certifying"]["groups"] == 300


def test_without_a_certificate_the_policy_is_written_and_the_exit_code_is_1(
    table: Path, tmp_path: Path, command: Command
) -> None:
    path = tmp_path / "policy.json"
    code, out, err = command("certify", table, "--names", "leer,voll", "--alpha", "0.001", "--out", path)
    assert (code, err) == (1, "") and "2302" in out  # accepted groups without an error
    assert not SelectiveClassifier.load(path).feasible


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ((), ("answers.csv, line 2", "--names")),
        (("--names", "leer"), ("--names", "leer")),
        (("--names", "leer,voll", "--prior", "half"), ("--prior", "half")),
        (("--names", "leer,voll", "--prior", "0.2,0.4,0.6"), ("--prior", "0.2,0.4,0.6")),
        (("--names", "leer,voll", "--logit", "prob", "--probability", "prob"), ("--logit", "--probability")),
        (("--names", "leer,voll", "--probability", "p"), ("'p'", "prob")),
        (("--names", "leer,voll", "--loss", "mcc"), ("loss", "mcc")),
        (("--names", "leer,voll", "--threshold", "best"), ("threshold", "best")),
        (("--names", "leer,voll", "--alpha", "2"), ("alpha", "2")),
    ],
    ids=str,
)
def test_bad_usage(options: tuple[str, ...], facts: tuple[str, ...], table: Path, command: Command) -> None:
    code, out, err = command("certify", table, *options)
    assert (code, out) == (2, "") and tells(err.strip(), *facts)

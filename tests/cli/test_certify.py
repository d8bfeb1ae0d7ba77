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
from natix_hf.terminal import set_verbosity, verbosity


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
        *((("--names", "leer,voll", "--prior", prior), ("prior",))
          for prior in ("", ",", "0_5", "nan", "inf", "0.2,x", "0,1", "0.8,0.2", "[0.5]")),
        *((("--names", "leer,voll", "--threshold", cut), ("threshold", "mcc"))
          for cut in ("1_0", "", "MCC", "nan", "0.5,0.6")),
        (("--names", "leer,voll", "--threshold", "1.5"), ("threshold", "1.5")),
        (("--names", ",voll"), ("names", "''")), (("--names", "leer,leer"), ("names", "leer")),
        (("--names", "leer,voll", "--looks", "9" * 400), ("looks",)),
        (("--names", "leer,voll", "--seed", "9" * 60), ("seed",)),
        (("--names", "leer,voll", "--model", ""), ("model",)),
    ],
    ids=str,
)  # fmt: skip
def test_bad_usage(options: tuple[str, ...], facts: tuple[str, ...], table: Path, command: Command) -> None:
    code, out, err = command("certify", table, *options)
    assert (code, out) == (2, "") and tells(err.strip(), *facts)


NAMED = ("--names", "leer,voll")


def test_the_answers_are_never_replaced(table: Path, tmp_path: Path, command: Command) -> None:
    before = table.read_bytes()
    (tmp_path / "link.csv").symlink_to(table)
    (tmp_path / "hard.csv").hardlink_to(table)
    (tmp_path / "folder").symlink_to(tmp_path, target_is_directory=True)
    for out in (table, tmp_path / "x" / ".." / table.name, *(tmp_path / name for name in (
        "link.csv", "hard.csv", "folder/answers.csv", "./answers.csv"))):  # fmt: skip
        (tmp_path / "x").mkdir(exist_ok=True)
        code, told, err = command("certify", table, *NAMED, "--out", out)
        assert (code, told) == (2, "") and tells(err.strip(), "--out", out)
        assert table.read_bytes() == before
    code, _, err = command("certify", tmp_path / "link.csv", *NAMED, "--out", table)
    assert code == 2 and tells(err.strip(), "--out") and table.read_bytes() == before
    picture = tmp_path / "plots" / "risk_coverage.png"
    picture.parent.mkdir()
    picture.symlink_to(table)
    assert command("certify", table, *NAMED, "--plot", picture.parent)[0] == 2 and table.read_bytes() == before


def test_a_policy_replaces_an_older_one(table: Path, tmp_path: Path, command: Command) -> None:
    for seed in (0, 1):
        assert command("certify", table, *NAMED, "--seed", seed, "--out", tmp_path / "policy.json")[0] == 0
        made = SelectiveClassifier.load(tmp_path / "policy.json").policy.made_from
        assert made is not None and made.seed == seed


@pytest.mark.parametrize(
    "options",
    [
        ("--out", "."), ("--out", ""), ("--out", "answers.csv/p.json"), ("--plot", "answers.csv"),
        ("--plot", "answers.csv/plots"), ("--out", "new", "--plot", "new"), ("--out", "new", "--plot", "new/plots"),
        ("--out", "plots/reliability_after.png", "--plot", "./plots"), ("--out", "/proc/x.json"),
        ("--out", "n" * 300),
    ],
    ids=str,
)  # fmt: skip
def test_places_where_nothing_can_be_written(
    options: tuple[str, ...], table: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    if options[-1].startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("no /proc")
    monkeypatch.chdir(tmp_path)
    code, out, err = command("certify", table, *NAMED, *options)
    assert (code, out) == (2, "") and ".tmp" not in err and len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [table]


def test_an_empty_row_is_told(table: Path, command: Command) -> None:
    text = table.read_text(encoding="utf-8")
    table.write_text(text + ",,,\n", encoding="utf-8")
    usual = verbosity()
    try:
        for quiet in ((), ("--quiet",)):
            code, out, err = command("certify", table, *NAMED, *quiet)
            assert (code, err) == (0, "") and tells(out.splitlines()[0], "note", "1 empty row")
    finally:
        set_verbosity(usual)
    [note] = json.loads(command("certify", table, *NAMED, "--json")[1])["notes"]
    assert tells(note, "1 empty row")

"""Tables of answers from anywhere: what is found in them, and what is refused with its row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refusals import refused

from natix_hf.errors import DataError, UsageError
from natix_hf.intake.answers import AnswerTable, read_answers

LOGITS, LABELS, GROUPS = [-1.5, 2.25, 0.0, -3e-2], [0, 1, 1, 0], ["a", "b", "b", "c"]


def written(folder: Path, kind: str, columns: dict[str, Any]) -> Path:
    path = folder / f"answers.{kind}"
    if kind == "npz":
        np.savez(path, **columns)
    elif kind == "parquet":
        pq.write_table(pa.table(columns), path)
    else:
        between = "\t" if kind == "tsv" else ","
        rows = [between.join(map(str, row)) for row in (list(columns), *zip(*columns.values(), strict=True))]
        path.write_text("\n".join(rows) + "\n", encoding="utf-8-sig")
    return path


def same(found: AnswerTable, values: Any = LOGITS, groups: Any = GROUPS) -> bool:
    assert np.array_equal(found.values, np.asarray(values, float)), found.values
    assert found.labels.tolist() == LABELS and found.labels.dtype == np.int8
    assert (groups is None and found.groups is None) or list(map(str, found.groups)) == groups  # type: ignore[arg-type]
    return True


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "npz"])
def test_every_kind_of_file_says_the_same(kind: str, tmp_path: Path) -> None:
    columns = {"picture": list("wxyz"), "Logit": LOGITS, "label": LABELS, "Video-ID": GROUPS}
    found = read_answers(written(tmp_path, kind, columns))
    assert same(found) and found.probabilities is None
    assert found.columns == {"logit": ["Logit"], "label": ["label"], "group": ["Video-ID"]}


@pytest.mark.parametrize(
    ("columns", "kind", "values", "probabilities"),
    [
        ({"logit_0": [1.0] * 4, "logit_1": LOGITS}, "csv", np.c_[[1.0] * 4, LOGITS], None),
        ({"p1": [0.1, 0.2, 0.3, 0.4], "p0": [0.9, 0.8, 0.7, 0.6]}, "csv",
         np.c_[[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4]], True),
        ({"prob_1": [0.1, 0.2, 0.3, 0.4]}, "parquet", [0.1, 0.2, 0.3, 0.4], True),
        ({"Score": LOGITS}, "csv", LOGITS, None),
        ({"logits": np.c_[[1.0] * 4, LOGITS]}, "npz", np.c_[[1.0] * 4, LOGITS], None),
        ({"logits": np.c_[[1.0] * 4, LOGITS].tolist()}, "parquet", np.c_[[1.0] * 4, LOGITS], None),
    ],
    ids=["logits of both", "probabilities of both", "of yes", "score", "array", "lists"],
)  # fmt: skip
def test_answers_by_their_usual_names(
    columns: dict[str, Any], kind: str, values: Any, probabilities: bool | None, tmp_path: Path
) -> None:
    found = read_answers(written(tmp_path, kind, columns | {"y_true": LABELS}))
    assert same(found, values, None) and found.probabilities is probabilities


def test_columns_that_are_named(tmp_path: Path) -> None:
    columns = {"a, b": LOGITS, "c": [1.0] * 4, "label": LABELS, "y": [1 - label for label in LABELS], "logit": [9] * 4}
    path = written(tmp_path, "parquet", columns | {"camera": GROUPS})
    found = read_answers(path, logit="a, b", label="label", group="camera")
    assert same(found) and found.probabilities is False
    assert same(read_answers(path, logit="c,a, b".replace("a, b", "logit"), label="label", group="camera"),
                np.c_[[1.0] * 4, [9] * 4])  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["ok", "defect", "defect", "ok"], ("ok", "defect")), ([False, True, True, False], None),
        (["False", "true", "TRUE", "false"], None), ([0.0, 1.0, 1.0, 0.0], None), (["0", "1", "1", "0"], None),
        (["non", "ouï", "1", "0"], ("non", "ouï")),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_labels_as_people_write_them(labels: list[Any], names: Any, kind: str, tmp_path: Path) -> None:
    if kind != "parquet" or len({type(label) for label in labels}) == 1:
        path = written(tmp_path, kind, {"logit": LOGITS, "label": labels})
        assert same(read_answers(path, names=names), LOGITS, None)


FOUR = {"group": [1, 2, 3, 4], "label": LABELS}
BASE = {"logit": LOGITS, "label": LABELS}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "no answers": ({"label": LABELS, "x": LOGITS}, {}, ("--logit", "--probability", "label, x")),
    "no labels": ({"logit": LOGITS, "x": LABELS}, {}, ("--label", "logit, x")),
    "two kinds of answers": (BASE | {"prob": [0.1] * 4}, {}, ("logit", "prob", "--logit", "--probability")),
    "two labels": (BASE | {"target": LABELS}, {}, ("label", "target", "--label")),
    "two groups": (BASE | {"video": GROUPS, "track": GROUPS}, {}, ("video", "track", "--group")),
    "a score of either": ({"score": [0.1] * 4, "label": LABELS}, {}, ("--logit score", "--probability score")),
    "a column that is not there": (BASE, {"logit": "z"}, ("'z'", "--logit", "logit, label")),
    "a label that is not there": (BASE, {"label": "y"}, ("'y'", "--label")),
    "three columns": (BASE, {"logit": "a,b,c"}, ("a,b,c",)),
    "the label as the answer": (BASE, {"logit": "label"}, ("two things",)),
    "the group as the label": (BASE, {"group": "label"}, ("two things",)),
    "a word for a number": ({"logit": [1, "x", 2, 3], "label": LABELS}, {}, ("line 3", "logit", "'x'")),
    "an empty cell": ({"logit": [1, 2, "", 3], "label": LABELS}, {}, ("line 4", "empty")),
    "nan": ({"logit": [1, 2, 3, "nan"], "label": LABELS}, {}, ("line 5", "nan", "finite")),
    "infinity": ({"logit": ["-inf", 2, 3, 4], "label": LABELS}, {}, ("line 2", "inf")),
    "a number with an underscore": ({"logit": ["1_0", 2, 3, 4], "label": LABELS}, {}, ("line 2", "1_0")),
    "a word for a label": (BASE | {"label": ["no", "yes", "yes", "no"]}, {}, ("line 2", "'no'", "--names")),
    "another word": (BASE | {"label": ["a", "b", "c", "a"]}, {"names": ("a", "b")}, ("line 4", "'c'", "a or b")),
    "a third label": (BASE | {"label": [0, 1, 2, 1]}, {}, ("line 4", "'2'")),
    "an empty label": (BASE | {"label": [0, 1, 0, ""]}, {}, ("line 5", "empty")),
    "an empty group": (BASE | {"group": ["a", "", "b", "c"]}, {}, ("line 3", "group", "empty")),
    "names that turn the labels": (BASE, {"names": ("1", "0")}, ("--names", "'1'")),
    "one name in two spellings": ({"logit_0": LOGITS, "logit_1": LOGITS, "logit 1": LOGITS} | FOUR, {},
                                  ("logit_0, logit_1", "logit_0, logit 1", "--logit")),
    "three classes": ({f"logit_{k}": LOGITS for k in range(3)} | FOUR, {}, ("logit_2", "logit_1", "--logit")),
    "classes from 1": ({"p_1": [0.1] * 4, "p_2": [0.9] * 4} | FOUR, {}, ("p_2", "p_1", "--probability")),
    "a pair in two spellings": ({"prob_1": [0.1] * 4, "prob0": [0.9] * 4} | FOUR, {}, ("prob0", "prob_1")),
    "both kinds named": (BASE, {"logit": "logit", "probability": "logit"}, ("--logit", "--probability")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_clear_is_refused(case: str, tmp_path: Path) -> None:
    columns, named, facts = REFUSED[case]
    refused((DataError, UsageError), lambda: read_answers(written(tmp_path, "csv", columns), **named), *facts)


@pytest.mark.parametrize(
    ("kind", "columns", "facts"),
    [
        ("parquet", {"logit": [1.0, None, 2.0, 3.0], "label": LABELS}, ("row 2", "empty")),
        ("parquet", {"logit": LOGITS, "label": [0, None, 1, 1]}, ("row 2", "label")),
        ("parquet", {"logit": [[1.0, 2.0], [1.0]] * 2, "label": LABELS}, ("logit", "one number or two")),
        ("parquet", {"logit": LOGITS, "label": LABELS, "group": ["a", None, "b", "c"]}, ("row 2", "group")),
        ("npz", {"logit": [1.0, np.nan, 2, 3], "label": LABELS}, ("row 2", "nan")),
        ("npz", {"logit": LOGITS, "label": LABELS[:-1]}, ("label", "3", "4")),
        ("npz", {"logit": LOGITS, "label": np.array([0, 1, 1, None], dtype=object)}, ("npz", "pickle")),
        ("npz", {"logit": np.array(LOGITS) * 1j, "label": LABELS}, ("logit", "complex128")),
        ("npz", {"logit": np.array(LOGITS) > 0, "label": LABELS}, ("logit", "bool")),
        ("npz", {"logit": np.array(LABELS).astype("M8[s]"), "label": LABELS}, ("logit", "datetime64")),
        ("npz", {"logit": np.array([b"1_0", b"2", b"3", b"4"]), "label": LABELS}, ("row 1", "1_0")),
        ("npz", {"logit": LOGITS, "label": np.array(LABELS)[:, None]}, ("label", "[4, 1]")),
        ("npz", {"logit": [], "label": [], "names": ["no", "yes"]}, ("no rows",)),
        ("npz", BASE | {"group": np.array(["a", "", "b", "c"])}, ("row 2", "group", "empty")),
        ("npz", BASE | {"group": np.array(["a", " ", "b", "c"])}, ("row 2", "group", "empty")),
        ("npz", BASE | {"group": np.array([b"a", b"", b"b", b"c"])}, ("row 2", "group", "empty")),
        ("npz", BASE | {"group": np.arange(8).reshape(4, 2)}, ("group", "[4, 2]")),
        ("npz", BASE | {"group": np.array([0, "NaT", 2, 3], dtype="M8[s]")}, ("row 2", "group", "empty")),
        ("parquet", BASE | {"group": ["a", "", "b", "c"]}, ("row 2", "group", "empty")),
        ("parquet", BASE | {"group": ["a", " ", "b", "c"]}, ("row 2", "group", "empty")),
        ("parquet", BASE | {"group": [b"a", b"", b"b", b"c"]}, ("row 2", "group", "empty")),
        ("parquet", {"logit": [b"1", b"2", b"3", b"4"], "label": LABELS}, ("row 1", "logit")),
        ("parquet", {"logit": [["1_0", "2"]] * 4, "label": LABELS}, ("row 1", "1_0")),
        ("parquet", {"logit": [[1.0, None]] * 4, "label": LABELS}, ("row 1", "empty")),
        ("parquet", {"logit": [[True, False]] * 4, "label": LABELS}, ("row 1", "True")),
    ],
    ids=str,
)
def test_rows_of_arrays_are_named(kind: str, columns: dict[str, Any], facts: tuple[str, ...], tmp_path: Path) -> None:
    refused(DataError, lambda: read_answers(written(tmp_path, kind, columns)), *facts)


def test_arrays_that_nobody_needs_may_have_any_length(tmp_path: Path) -> None:
    columns = {"logit": LOGITS, "label": LABELS, "group": np.array([b"a", b"b", b"b", b"c"])}
    assert same(read_answers(written(tmp_path, "npz", columns | {"classes": np.arange(999), "seed": np.array(3)})))


def test_numbers_of_other_columns_do_not_matter(tmp_path: Path) -> None:
    columns = {"logit_0": [1.0] * 4, "logit_1": LOGITS, "label": LABELS, "feature_2": LOGITS, "x2": LOGITS}
    assert same(read_answers(written(tmp_path, "csv", columns)), np.c_[[1.0] * 4, LOGITS], None)
    both = columns | {"logit_2": LOGITS}
    found = read_answers(written(tmp_path, "csv", both), logit="logit_0,logit_1")
    assert same(found, np.c_[[1.0] * 4, LOGITS], None)


@pytest.mark.parametrize("value", ["9" * 400, "[1, " + "9" * 400 + "]", "9" * 5000, "1e999", "true", "null"])
@pytest.mark.parametrize("column", ["logit", "label"])
def test_a_value_off_the_scale_is_one_line(value: str, column: str, tmp_path: Path) -> None:
    rows = ['{"logit": 1.5, "label": 1}', '{"logit": 2, "label": 0}'.replace("2" if column == "logit" else "0", value)]
    if (column, value) == ("label", "true"):
        return  # a label
    if value.startswith("["):
        rows[0] = rows[0].replace("1.5", "[1, 2]") if column == "logit" else rows[0]
    (tmp_path / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    refused(DataError, lambda: read_answers(tmp_path / "a.jsonl"), "a.jsonl, line 2")


def test_an_empty_row_is_passed_over_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("logit,label\n-1.5,0\n2.25,1\n,\n\n0,1\n-0.03,0\n", encoding="utf-8")
    found = read_answers(tmp_path / "a.csv")
    assert same(found, LOGITS, None) and any("1 empty row" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "content", "facts"),
    [
        ("a.csv", b"", ("empty",)), ("a.csv", b"logit,label\n", ("no rows",)), ("a.csv", b"a,a\n1,1\n", ("'a'",)),
        ("a.csv", b"\x00\x01", ("UTF-8",)), ("a.npz", b"PK no zip", ("npz",)), ("a.parquet", b"PAR1", ("parquet",)),
        ("a.xlsx", b"", ("csv", "npz")), ("a.csv", b"logit,label\n1,1,1\n", ("line 2",)),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(name: str, content: bytes, facts: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    refused((DataError, UsageError), lambda: read_answers(tmp_path / name), name, *facts)


def test_no_file(tmp_path: Path) -> None:
    refused(UsageError, lambda: read_answers(tmp_path / "a.csv"), tmp_path / "a.csv")
    refused(UsageError, lambda: read_answers(tmp_path), tmp_path)

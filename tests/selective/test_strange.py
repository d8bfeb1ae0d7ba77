"""Arguments, arrays and paths that nobody should pass: refused in one line, or understood as what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from refusals import refused
from scipy.special import expit

from natix_hf import SelectiveClassifier
from natix_hf.bundle.policy import Policy, read_policy, write_policy
from natix_hf.calibration import Promise
from natix_hf.errors import DataError, UsageError, VerificationError

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 2, 400)
Z = RNG.normal(4 * Y - 2, 1.2)
HUGE, ENDLESS = 10**400, 10**5000
NA = pd.NA


def fit(logits: Any = Z, labels: Any = Y, **named: Any) -> SelectiveClassifier:
    return SelectiveClassifier.fit(logits, labels, **named)


@pytest.mark.parametrize(
    ("named", "name"),
    [
        *(({"looks": looks}, "looks") for looks in (HUGE, ENDLESS, 10**10, 1.5, True, "2", None, 0, np.float64(2))),
        *(({"seed": seed}, "seed") for seed in (1.0, True, HUGE, ENDLESS, None, np.int64(-1))),
        *(({share: value}, share) for share in ("alpha", "delta")
          for value in (None, "0.1", True, np.nan, np.inf, 1, np.float32(0), HUGE, [0.1])),
        *(({"min_coverage": value}, "min_coverage") for value in (0, 2, "x", np.nan, HUGE)),
        *(({"classwise": value}, "classwise") for value in ("no", 1, None)),
        *(({"epsilon": value}, "epsilon") for value in ("x", None, True, 0.5, np.nan, HUGE)),
        *(({"threshold": value}, "threshold") for value in (None, True, "0.5", np.nan, np.inf, HUGE, [0.5], b"mcc")),
        *(({"names": value}, "names") for value in (None, 5, {"a": 1, "b": 2}, {"a", "b"}, ("a",), b"ab", iter("a"))),
        ({"names": ("a\ud800", "b")}, "names"), ({"names": ("", "b")}, "names"),
        *(({"model": value}, "model") for value in (5, "", " ", "a\nb", "\ud800", b"x")),
        *(({"probabilities": value}, "probabilities") for value in ("no", 0, 1, "x")),
        *(({"loss": value}, "loss") for value in (None, ["error"], "ERROR")),
        *(({"prior": value}, "prior") for value in ("0.5", "x", True, {"a": 1}, (0.2, 0.5, 0.8), (0.2,), HUGE)),
        ({"prior": (0.2, None)}, "prior"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_strange_argument_is_refused_by_its_name(named: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError) as caught:
        fit(**named)
    told = str(caught.value)
    assert told.startswith(name) and "null" not in told and "\n" not in told and len(told) < 300


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    given = {"alpha": np.float32(0.125), "delta": np.float64(0.1), "looks": np.int64(2), "seed": np.uint8(3)}
    given |= {"min_coverage": np.float32(0.25), "classwise": np.bool_(True), "prior": np.array([0.25, 0.75])}
    given |= {"epsilon": np.float32(2**-20), "threshold": np.float32(0.5), "probabilities": np.bool_(True)}
    plain = {name: value.tolist() for name, value in given.items()}
    found = fit(expit(Z), names=np.array(["a", "b"]), **given)
    assert found.policy == fit(expit(Z), names=("a", "b"), **plain).policy
    found.save(tmp_path / "policy.json")
    assert SelectiveClassifier.load(tmp_path / "policy.json").policy == found.policy


def masked(values: np.ndarray) -> Any:
    return np.ma.masked_array(values, mask=np.arange(len(values)) == 7)


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        ({"labels": pd.array([1, NA, *Y[2:]], dtype="Int64")}, ("labels", "position 1")),
        ({"labels": pd.array([NA, *(Y[1:] == 1)], dtype="boolean")}, ("labels", "position 0")),
        ({"labels": [None, *Y[1:]]}, ("labels", "position 0")),
        ({"groups": pd.array(["a", NA, *map(str, range(398))], dtype="string")}, ("groups", "position 1")),
        ({"groups": pd.array([0, 1, NA, *range(397)], dtype="Int64")}, ("groups", "position 2")),
        ({"groups": [pd.NaT, *pd.to_datetime(np.arange(399))]}, ("groups", "position 0")),
        ({"groups": ["a", " ", *map(str, range(398))]}, ("groups", "position 1", "name")),
        ({"groups": np.array(["a", "b", "", *map(str, range(397))])}, ("groups", "position 2", "name")),
        ({"groups": np.array(["a", "", *map(str, range(398))], dtype="S")}, ("groups", "position 1", "name")),
        ({"logits": pd.array([NA, *Z[1:]], dtype="Float64")}, ("logits",)),
        ({"logits": masked(Z)}, ("logits", "position 7", "masked")),
        ({"logits": np.ma.masked_array(np.c_[-Z, Z], mask=np.c_[Z > 99, np.arange(400) == 9])}, ("position 9",)),
        ({"labels": masked(Y)}, ("labels", "position 7", "masked")),
        ({"groups": masked(np.arange(400))}, ("groups", "position 7", "masked")),
        ({"logits": [[1], [1, 2]]}, ("[n, 2]",)),
    ],
    ids=str,
)
def test_a_row_without_a_value_is_no_row_of_evidence(given: dict[str, Any], facts: tuple[str, ...]) -> None:
    refused(DataError, lambda: fit(**given), *facts)


def test_arrays_that_mask_nothing_and_tables_without_gaps_are_read() -> None:
    whole = np.ma.masked_array(Z, mask=Z > 1e9)
    found = fit(whole, pd.array(Y, dtype="Int64"), groups=pd.array(np.arange(400) // 2, dtype="string"))
    assert found.policy == fit(Z, Y, groups=np.arange(400) // 2).policy


@pytest.mark.parametrize(
    "values", [[[1], [1, 2]], [["a"], [1, 2]], (1.0 for _ in "ab"), {1.0}, None, 1.0, [NA], ["a"], masked(Z), []],
    ids=lambda values: type(values).__name__,  # the text of a generator holds an address
)  # fmt: skip
def test_predict_refuses_what_is_no_array_of_answers(values: Any) -> None:
    refused(DataError, lambda: fit().predict(values))


# What values are.


def test_a_policy_of_probabilities_takes_no_logits(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    found = fit(expit(Z), probabilities=True)
    found.save(path)
    refused(VerificationError, lambda: SelectiveClassifier.load(path, probabilities=False), path, "probabilities")
    refused(UsageError, lambda: found.predict(Z, probabilities=False), "probabilities")
    refused(UsageError, lambda: SelectiveClassifier(found.policy, probabilities=False).predict(Z), "probabilities")
    for value in ("x", 1, 0):
        strange: Any = value
        refused(UsageError, lambda: SelectiveClassifier.load(path, probabilities=strange), "True", "None")  # noqa: B023
        refused(UsageError, lambda: found.predict(Z, probabilities=strange), "True", "None")  # noqa: B023
    loaded = SelectiveClassifier.load(path, probabilities=True)
    assert np.array_equal(loaded.predict(expit(Z)).decision, found.predict(expit(Z)).decision)


def test_what_is_stated_must_be_something_that_fit_could_be_told(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    fit(model="a").save(path)
    stated: list[tuple[dict[str, Any], str]] = [
        ({"model": 5}, "model"), ({"model": ""}, "model"), ({"names": {"no", "yes"}}, "names"),
        ({"names": 5}, "names"), ({"prior": "0.5"}, "prior"), ({"prior": True}, "prior"),
    ]  # fmt: skip
    for named, name in stated:
        refused(UsageError, lambda: SelectiveClassifier.load(path, **named), name)  # noqa: B023


# Files.


def test_places_where_no_policy_can_be(tmp_path: Path) -> None:
    found, file = fit(), tmp_path / "file"
    file.write_text("kept", encoding="utf-8")
    for path in (tmp_path, "", ".", file / "policy.json", "a\0b"):
        with pytest.raises(UsageError) as caught:
            found.save(path)
        assert ".tmp" not in str(caught.value) and "\n" not in str(caught.value)
    if Path("/proc/self").exists():
        refused(UsageError, lambda: found.save("/proc/x.json"), "/proc/x.json cannot")
    assert file.read_text(encoding="utf-8") == "kept" and list(tmp_path.iterdir()) == [file]


def test_places_where_no_plot_can_be(tmp_path: Path) -> None:
    found, file = fit(), tmp_path / "file"
    file.write_text("kept", encoding="utf-8")
    for path in (file, file / "plots"):
        refused(UsageError, lambda: found.plot(path), file, "folder")  # noqa: B023
    assert file.read_text(encoding="utf-8") == "kept"


def test_a_promise_that_lacks_its_settings_can_be_shown() -> None:
    policy = Policy(0.0, "a", "b", promise=Promise(True, "x", None, "error"))
    assert "no guarantee" in repr(SelectiveClassifier(policy))


def test_the_file_of_a_fit_is_read_after_an_editor_marked_it(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    write_policy(path, fit().policy)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert SelectiveClassifier.load(path).policy == read_policy(path) == fit().policy

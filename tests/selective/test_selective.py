"""A guarantee for any model's answers: what is fitted on which half, what is promised, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from facts import tells
from refusals import refused
from scipy.optimize import minimize_scalar
from scipy.special import expit, ndtr

from natix_hf import SelectiveClassifier
from natix_hf.bundle.names import BUNDLE_MANIFEST
from natix_hf.bundle.policy import GateUse, Policy, read_policy, write_policy
from natix_hf.calibration import Calibration, Promise
from natix_hf.errors import DataError, UsageError, VerificationError
from natix_hf.labels import LabelNames
from natix_hf.selective.fitting import Answers, halves

NAMES = LabelNames(no="no", yes="yes")


def answers(n: int = 600, seed: int = 0, mu: float = 2.0, per_group: int = 1) -> tuple[np.ndarray, np.ndarray, Any]:
    """Logits of two Gaussians, labels and groups of rows with one label."""
    rng = np.random.default_rng(seed)
    groups = np.arange(n) // per_group
    labels = rng.integers(0, 2, groups[-1] + 1)[groups]
    return rng.normal(mu * (2 * labels - 1), 1.5), labels, groups


# The halves.


@pytest.mark.parametrize("per_group", [1, 3, 7])
def test_the_halves_share_no_group_and_split_each_class_in_two(per_group: int) -> None:
    z, y, g = answers(601, per_group=per_group)
    order = np.random.default_rng(1).permutation(z.size)
    first, second = halves(z[order], y[order], g[order], 5, NAMES)
    assert not set(first.groups) & set(second.groups)
    both = {(z, y, g) for half in (first, second) for z, y, g in zip(*half, strict=True)}
    assert both == set(zip(z, y, g, strict=True))
    for label in (0, 1):
        one, other = (np.unique(half.groups[half.labels == label]).size for half in (first, second))
        assert other - one in (0, 1)
    again, elsewhere = (halves(z[order], y[order], g[order], seed, NAMES)[0].logits for seed in (5, 6))
    assert np.array_equal(again, first.logits) and not np.array_equal(elsewhere, first.logits)


def test_each_half_does_its_own_work() -> None:
    """Temperature and threshold by slow references on the first half; the promise by hand on the second."""
    z, y, g = answers(900, per_group=2)
    found = SelectiveClassifier.fit(z, y, g, alpha=0.1, seed=3)
    first, second = halves(z, y, g, 3, NAMES)
    assert found.evidence is not None
    for half, kept in ((first, found.evidence.fitting), (second, found.evidence.certifying)):
        assert all(np.array_equal(a, b) for a, b in zip(half, kept, strict=True))

    def loss(log_t: float) -> float:
        return float(np.logaddexp(0, np.where(first.labels == 1, -1, 1) * first.logits / np.exp(log_t)).sum())

    best = minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9})
    assert found.temperature == pytest.approx(np.exp(best.x), rel=1e-5)
    middles = np.sort(first.logits)[:-1] / 2 + np.sort(first.logits)[1:] / 2
    mcc = [np.corrcoef(first.logits > t, first.labels)[0, 1] for t in middles]
    threshold = found.policy.threshold_logit
    assert np.corrcoef(first.logits > threshold, first.labels)[0, 1] == pytest.approx(max(mcc))
    rows = found.evidence.rows
    assert len(rows.labels) == np.unique(second.groups).size
    assert set(rows.confidence) <= set(abs(second.logits - threshold))
    part = found.evidence.report.parts["every answer"]
    assert found.policy.promise.accept_above is not None
    [cut] = set(found.policy.promise.accept_above.values())
    wrong = rows.decisions != rows.labels
    assert (part.accepted, part.errors) == ((rows.confidence > cut).sum(), wrong[rows.confidence > cut].sum())
    made = found.policy.made_from
    assert made is not None and (made.fitting.rows, made.certifying.rows) == (first.labels.size, second.labels.size)


def test_the_fit_never_looks_at_the_labels_of_the_certifying_half() -> None:
    """A wrong label in each of its groups, too few to change the group's class, moves nothing but the promise."""
    z, y, g = answers(900, per_group=3)
    _, second = halves(z, y, g, 0, NAMES)
    wrong = y.copy()
    wrong[np.isin(g, second.groups) & (np.arange(900) % 3 == 0)] ^= 1
    found, moved = SelectiveClassifier.fit(z, y, g), SelectiveClassifier.fit(z, wrong, g)
    assert moved.policy.threshold_logit == found.policy.threshold_logit
    assert moved.policy.calibration == found.policy.calibration
    assert found.feasible and not moved.feasible


def test_the_promise_holds_as_often_as_it_says() -> None:
    """300 draws of 300 rows, a tenth of the labels flipped at random: the true risk is known in closed form."""
    alpha, delta, broken, certified = 0.08, 0.2, 0, 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 2, 300)
        z = rng.normal(1.3 * (2 * y - 1), 1)
        given = np.where(rng.random(300) < 0.02, 1 - y, y)
        found = SelectiveClassifier.fit(z, given, alpha=alpha, delta=delta, seed=seed)
        if not found.feasible:
            continue
        certified += 1
        assert found.policy.promise.accept_above is not None
        [cut] = set(found.policy.promise.accept_above.values())
        t = found.policy.threshold_logit
        right = (ndtr(1.3 - t - cut) + ndtr(1.3 + t - cut)) / 2
        wrong = (ndtr(-1.3 - t - cut) + ndtr(-1.3 + t - cut)) / 2
        risk = (0.98 * wrong + 0.02 * right) / (right + wrong)
        broken += risk > alpha
    assert certified > 200 and broken <= 300 * delta


# What goes in.


def test_every_form_of_the_same_answers_decides_alike() -> None:
    z, y, g = answers(500, per_group=2)
    p = expit(z)
    expected = SelectiveClassifier.fit(z, y, g)
    forms: list[tuple[Any, Any, Any, Any]] = [
        (z.tolist(), y.tolist(), g.tolist(), None),
        (np.c_[z * 0 + 7, z + 7], y.astype(bool), g.astype(str), None),
        (torch.tensor(z, requires_grad=True), torch.tensor(y), torch.tensor(g), None),
        (pd.Series(z, index=np.arange(500)[::-1]), pd.Series(y.astype(float)), pd.Series(g), False),
        (p, y, g, True),
        (np.c_[1 - p, p], y, g, True),
    ]
    for values, labels, groups, probabilities in forms:
        found = SelectiveClassifier.fit(values, labels, groups, probabilities=probabilities)
        got, wanted = found.predict(values), expected.predict(z)
        assert np.array_equal(got.answer, wanted.answer)
        np.testing.assert_allclose(got.probability, wanted.probability, atol=1e-9)
        assert np.array_equal(got.decision, wanted.decision)


def test_certain_probabilities_stay_at_the_top_and_count_as_epsilon() -> None:
    z, y, _ = answers(400)
    p = np.clip(np.round(expit(z), 2), 0, 1)
    found = SelectiveClassifier.fit(p, y, probabilities=True, epsilon=0.005)
    assert found.evidence is not None and found.evidence.raised == ((p == 0) | (p == 1)).sum() > 0
    got = found.predict([1.0, 0.99, 0.0, 0.01])
    assert got.confidence[0] > got.confidence[1] and got.confidence[2] > got.confidence[3]
    assert np.isfinite(got.confidence).all()
    narrow = found.predict(np.array([[1e-12, 1.0], [0.01, 0.99]]))
    assert narrow.confidence[0] == got.confidence[0]


def test_a_threshold_of_ones_own() -> None:
    z, y, _ = answers(400)
    as_logit = SelectiveClassifier.fit(z, y, threshold=0.7)
    as_probability = SelectiveClassifier.fit(expit(z), y, threshold=float(expit(0.7)), probabilities=True)
    assert as_logit.policy.threshold_logit == 0.7
    assert as_probability.policy.threshold_logit == pytest.approx(0.7)


Z, Y, G = answers(60)
P = expit(Z)
REFUSED: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], tuple[object, ...]]] = {
    "nan": ((np.r_[np.nan, Z[1:]], Y), {}, DataError, ("nan", "position 0")),
    "inf in a column": ((np.c_[Z, np.r_[Z[:-1], np.inf]], Y), {}, DataError, ("inf", "59", "[:, 1]")),
    "probabilities unsaid": ((P, Y), {}, DataError, ("probabilities=True", "probabilities=False")),
    "two columns unsaid": ((np.c_[1 - P, P], Y), {}, DataError, ("probabilities=True",)),
    "logits said to be probabilities": ((Z, Y), {"probabilities": True}, DataError, ("[0, 1]", "probabilities=True")),
    "not adding up": ((np.c_[P, P], Y), {"probabilities": True}, DataError, ("position 0", "one column")),
    "three columns": ((np.c_[Z, Z, Z], Y), {}, DataError, ("[60, 3]", "[n, 2]")),
    "one column too deep": ((Z[:, None], Y), {}, DataError, ("[:, 0]",)),
    "words": ((["a"] * 60, Y), {}, DataError, ("numbers",)),
    "no rows": (([], []), {}, DataError, ("empty",)),
    "one row": (([3.0], [1]), {}, DataError, ("1", "both classes")),
    "one class": ((Z, np.ones(60)), {}, DataError, ("60", "both classes")),
    "one positive": ((Z, np.eye(60)[0]), {}, DataError, ("labelled 1", '"yes"', "1 of the 60 rows")),
    "one group": ((Z, Y, np.zeros(60)), {}, DataError, ("60", "one group")),
    "groups of one class only": ((Z, Y, np.where(Y, "a", "b")), {}, DataError, ("labelled 0", "1 of the 2 groups")),
    "a group without a name": ((Z, Y, [None, *"b" * 59]), {}, DataError, ("groups", "position 0")),
    "labels as words": ((Z, np.where(Y, "yes", "no")), {}, DataError, ("labels ==", "0")),
    "labels of -1": ((Z, 2 * Y - 1), {}, DataError, ("-1", "position")),
    "too short": ((Z, Y[1:]), {}, DataError, ("60", "59")),
    "alpha": ((Z, Y), {"alpha": 0}, UsageError, ("alpha", "0")),
    "alpha in words": ((Z, Y), {"alpha": "low"}, UsageError, ("alpha", "low")),
    "delta": ((Z, Y), {"delta": 1.5}, UsageError, ("delta", "1.5")),
    "loss": ((Z, Y), {"loss": "mcc"}, UsageError, ("loss", "mcc", "fnr")),
    "prior": ((Z, Y), {"prior": 1.0}, UsageError, ("prior", "1.0")),
    "a turned interval": ((Z, Y), {"prior": (0.8, 0.2)}, UsageError, ("prior", "(0.8, 0.2)")),
    "coverage": ((Z, Y), {"min_coverage": 2}, UsageError, ("min_coverage", "2")),
    "threshold": ((Z, Y), {"threshold": "best"}, UsageError, ("threshold", "best", "mcc")),
    "threshold off the scale": ((P, Y), {"threshold": 2.0, "probabilities": True}, UsageError, ("threshold", "2.0")),
    "seed": ((Z, Y), {"seed": -1}, UsageError, ("seed", "-1")),
    "epsilon": ((P, Y), {"probabilities": True, "epsilon": 0}, UsageError, ("epsilon", "0")),
    "one name": ((Z, Y), {"names": "yes"}, UsageError, ("names", "yes")),
    "a name that is taken": ((Z, Y), {"names": ("no", "abstain")}, UsageError, ("abstain",)),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_fitted_is_refused(case: str) -> None:
    given, named, error, facts = REFUSED[case]
    refused(error, lambda: SelectiveClassifier.fit(*given, **named), *facts)


@pytest.mark.parametrize(
    "values",
    [np.full(400, 3.0), -answers(400)[0], np.round(answers(400)[0]), np.sign(answers(400)[0]) * 5],
    ids=["all equal", "backwards", "few values", "constant confidence"],
)
def test_poor_answers_fit_and_promise_no_more_than_they_show(values: np.ndarray) -> None:
    y = answers(400)[1]
    found = SelectiveClassifier.fit(values, y, alpha=0.05)
    got = found.predict(values)
    assert np.isfinite(got.probability).all()
    if not found.feasible:
        assert got.accepted.all() and found.guarantee.startswith("none")
        assert set(got.decision) <= {"no", "yes"}
    else:
        assert (got.answer != y)[got.accepted].mean() < 0.1


def test_nothing_promised_is_said_with_what_it_would_take() -> None:
    z, y, _ = answers(60, mu=5)
    found = SelectiveClassifier.fit(z, y, alpha=0.01)
    assert not found.feasible and "230" in found.guarantee and "no guarantee" in repr(found)


@pytest.mark.parametrize("loss", ["error", "fnr", "fpr"])
@pytest.mark.parametrize("classwise", [False, True])
def test_every_kind_of_promise(loss: Any, classwise: bool) -> None:
    z, y, _ = answers(4000, mu=1.5)
    found = SelectiveClassifier.fit(z, y, alpha=0.05, loss=loss, classwise=classwise, names=("κόκκινο", "grün"))
    promise = found.policy.promise
    assert found.feasible and (promise.loss, promise.classwise) == (loss, classwise)
    assert promise.accept_above is not None and set(promise.accept_above) == {"κόκκινο", "grün"}
    assert set(found.predict(z).decision) == {"κόκκινο", "grün", "abstain"}


def test_what_it_says_of_itself() -> None:
    z, y, g = answers(600, per_group=2)
    with_groups, without = SelectiveClassifier.fit(z, y, g, model="resnet-7"), SelectiveClassifier.fit(z, y)
    for found, facts in ((with_groups, ("300 groups", "resnet-7", "one row of each")), (without, ("600 rows",))):
        for fact in (*facts, f"{found.temperature:.4g}", found.guarantee):
            assert fact in found.describe()
    assert "nobody has said" in without.guarantee and "nobody has said" not in with_groups.guarantee
    assert tells(repr(with_groups), "groups", "0.05", "0.9")


# The file.


def test_saved_and_loaded_it_answers_alike(tmp_path: Path) -> None:
    z, y, g = answers(800, per_group=2)
    found = SelectiveClassifier.fit(z, y, g, names=("leer", "voll"), model="abc", prior=0.5)
    found.save(tmp_path / "policy.json")
    loaded = SelectiveClassifier.load(
        tmp_path / "policy.json", names=("leer", "voll"), model="abc", prior=0.5, probabilities=False
    )
    assert loaded.policy == found.policy == read_policy(tmp_path / "policy.json")
    for one, other in zip(vars(found.predict(z)).values(), vars(loaded.predict(z)).values(), strict=True):
        assert np.array_equal(one, other)
    for k in range(5):  # one by one as all at once
        assert loaded.predict(z[k : k + 1]).probability[0] == found.predict(z).probability[k]
    content = json.loads((tmp_path / "policy.json").read_text(encoding="utf-8"))
    assert content["candidate_sha256"] is None is content["model_sha256"]
    assert content["made_from"]["fitting"]["groups"] + content["made_from"]["certifying"]["groups"] == 400
    refused(UsageError, lambda: loaded.plot(tmp_path), "fitted")


@pytest.mark.parametrize(
    ("stated", "facts"),
    [
        ({"names": ("no", "yes")}, ("leer", "voll", "no")),
        ({"names": ("voll", "leer")}, ("leer", "voll")),
        ({"model": "other"}, ("abc", "other")),
        ({"prior": 0.8}, ("0.5", "0.8")),
        ({"prior": (0.4, 0.6)}, ("0.5", "0.4 to 0.6")),
    ],
    ids=str,
)
def test_a_policy_for_something_else_is_refused(stated: dict[str, Any], facts: Any, tmp_path: Path) -> None:
    z, y, _ = answers(800)
    path = tmp_path / "policy.json"
    SelectiveClassifier.fit(z, y, names=("leer", "voll"), model="abc", prior=0.5).save(path)
    refused(VerificationError, lambda: SelectiveClassifier.load(path, **stated), path, *facts)


def test_an_interval_of_priors_is_certified_at_both_ends(tmp_path: Path) -> None:
    """The error among accepted answers, in closed form: two Gaussians whose shares change and whose shapes do not."""
    z, y, _ = answers(6000, mu=1.5)
    found = SelectiveClassifier.fit(z, y, alpha=0.05, prior=(0.2, 0.7))
    middle = SelectiveClassifier.fit(z, y, alpha=0.05, prior=0.45)
    promise = found.policy.promise
    assert found.feasible and promise.prior == (0.2, 0.7) and promise.accept_above is not None
    assert found.policy.threshold_logit == middle.policy.threshold_logit
    [cut] = set(promise.accept_above.values())
    t = found.policy.threshold_logit
    no, yes, c = (-1.5 - t) / 1.5, (1.5 - t) / 1.5, cut / 1.5
    for share in np.linspace(0.2, 0.7, 11):
        wrong = share * ndtr(-c - yes) + (1 - share) * ndtr(no - c)
        right = share * ndtr(yes - c) + (1 - share) * ndtr(-c - no)
        assert wrong / (wrong + right) < 0.055
    assert "0.2 to 0.7" in found.guarantee
    found.save(tmp_path / "policy.json")
    inside: list[Any] = [0.2, 0.5, (0.3, 0.7)]
    outside: list[Any] = [0.1, 0.75, (0.1, 0.5)]
    for prior in inside:
        assert SelectiveClassifier.load(tmp_path / "policy.json", prior=prior).feasible
    for prior in outside:
        with pytest.raises(VerificationError, match=r"0\.2 to 0\.7"):
            SelectiveClassifier.load(tmp_path / "policy.json", prior=prior)


def test_the_share_of_ones_own_rows_is_no_stated_prior(tmp_path: Path) -> None:
    z, y, _ = answers(800)
    SelectiveClassifier.fit(z, y).save(tmp_path / "policy.json")
    load = SelectiveClassifier.load
    refused(VerificationError, lambda: load(tmp_path / "policy.json", prior=0.5), f"{y.mean():.3g}", "prior=0.5")


def test_the_rates_of_a_class_hold_at_every_prior(tmp_path: Path) -> None:
    z, y, _ = answers(2000)
    SelectiveClassifier.fit(z, y, loss="fnr", prior=0.5).save(tmp_path / "policy.json")
    assert SelectiveClassifier.load(tmp_path / "policy.json", prior=0.9).feasible


def test_probabilities_where_logits_were_fitted(tmp_path: Path) -> None:
    z, y, _ = answers(400)
    found = SelectiveClassifier.fit(z, y)
    assert found.predict([0.4]).answer.size == 1  # one logit may well lie there
    refused(DataError, lambda: found.predict(expit(z)), "probabilities=True")
    assert np.array_equal(found.predict(expit(z), probabilities=True).answer, found.predict(z).answer)
    fitted = SelectiveClassifier.fit(expit(z), y, probabilities=True)
    refused(DataError, lambda: fitted.predict(z), "[0, 1]")


# A bundle's policy.

CALIBRATIONS = [Calibration("temperature", 1 / 1.7), Calibration("platt", 0.6, -0.8)]


@pytest.mark.parametrize("fold", ["decision", "calibration", "none"])
@pytest.mark.parametrize("calibration", CALIBRATIONS, ids=["temperature", "platt"])
def test_a_bundles_policy_answers_for_a_plain_pipeline(fold: Any, calibration: Calibration, tmp_path: Path) -> None:
    promise = Promise(True, "x", {"None": 0.4, "Roadwork": 1.1}, "error", 0.05, 0.1, True)
    policy = Policy(0.3, "a" * 64, "b" * 64, calibration, fold, promise=promise)
    write_policy(tmp_path / "policy.json", policy)
    z = np.random.default_rng(0).normal(0, 3, 200)
    folded = policy.folded_slope * z - policy.folded_shift
    loaded = SelectiveClassifier.load(tmp_path, probabilities=True, model="b" * 64)
    got = loaded.predict(expit(folded))
    np.testing.assert_allclose(got.probability, policy.probability(z), atol=1e-9)
    assert np.array_equal(got.answer == 1, policy.decide(z))
    assert np.array_equal(got.accepted, policy.accepts(z, abs(z - 0.3)))
    assert 0 < got.accepted.sum() < 200 and set(got.decision) == {"None", "Roadwork", "abstain"}
    [cut] = policy.probability(np.array([0.3]))
    assert got.threshold == cut
    two = loaded.predict(np.c_[np.zeros(200), folded], probabilities=False)
    assert np.array_equal(two.decision, got.decision)


def test_a_bundles_policy_must_be_told_what_it_is_given(tmp_path: Path) -> None:
    write_policy(tmp_path / "policy.json", Policy(0.3, "a" * 64, "b" * 64))
    refused(UsageError, lambda: SelectiveClassifier.load(tmp_path).predict([3.0]), "probabilities=True")
    refused(VerificationError, lambda: SelectiveClassifier.load(tmp_path, model="c" * 64), "b" * 64, "c" * 64)


def test_a_learned_gate_is_refused(tmp_path: Path) -> None:
    write_policy(tmp_path / "policy.json", Policy(0.3, "a" * 64, "b" * 64, gate=GateUse("learned", "x", "c" * 64)))
    refused(UsageError, lambda: SelectiveClassifier.load(tmp_path), "learned gate", "load_bundle")


def test_a_bundle_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / BUNDLE_MANIFEST).write_text("{}", encoding="utf-8")
    z, y, _ = answers(100)
    refused(UsageError, lambda: SelectiveClassifier.fit(z, y).save(tmp_path / "policy.json"), tmp_path)
    assert not (tmp_path / "policy.json").exists()


# What it needs.

HEAVY = ("torch", "transformers", "datasets", "sklearn", "pyarrow", "matplotlib", "PIL", "yaml", "huggingface_hub")
LIGHT = """
import sys

sys.modules |= dict.fromkeys({blocked!r})  # importing one of them fails
import numpy as np
import natix_hf

if {fits}:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 500)
    fitted = natix_hf.SelectiveClassifier.fit(rng.normal(4 * y - 2, 1), y, classwise=True, prior=0.5)
    fitted.describe(), fitted.save({path!r})
loaded = natix_hf.SelectiveClassifier.load({path!r})
loaded.describe()
print(loaded.predict([-9.0, 9.0]).decision.tolist())
"""


@pytest.mark.parametrize("fits", [True, False], ids=["fit", "answer"])
def test_it_runs_where_nothing_heavy_is_installed(fits: bool, tmp_path: Path) -> None:
    """numpy and scipy fit; numpy alone answers."""
    path, blocked = tmp_path / "policy.json", HEAVY if fits else (*HEAVY, "scipy")
    z, y, _ = answers(500)
    SelectiveClassifier.fit(z, y).save(path)
    code = LIGHT.format(blocked=blocked, fits=fits, path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("['no', 'yes']", 0), done.stderr


def test_plots(tmp_path: Path) -> None:
    z, y, _ = answers(600)
    for found in (SelectiveClassifier.fit(z, y), SelectiveClassifier.fit(z, y, alpha=0.001, classwise=True)):
        drawn = found.plot(tmp_path / "plots")
        assert len(drawn) == 3 and all(path.stat().st_size > 1000 for path in drawn)


def test_the_halves_of_half_a_million_rows_are_quick() -> None:
    z, y, g = answers(500_000, per_group=3)
    first, second = halves(z, y, g, 0, NAMES)
    assert isinstance(first, Answers) and first.labels.size + second.labels.size == 500_000

"""`read_policy.py` of a bundle: it answers as the package does, to the last bit, and refuses what that refuses."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import describe
from facts import tells
from refusals import refused

from natix_hf.bundle import read_policy as alone
from natix_hf.bundle.contents import bundle_problems
from natix_hf.bundle.names import READ_POLICY
from natix_hf.bundle.policy import GateUse, Half, MadeFrom, Policy, read_policy, write_policy
from natix_hf.bundle.shipped import VERSIONS, shipped_sha256
from natix_hf.calibration import Calibration, Promise
from natix_hf.errors import DataError, UsageError, VerificationError
from natix_hf.labels import LabelNames
from natix_hf.provenance.manifest import manifest_seal
from natix_hf.selective.classifier import SelectiveClassifier


def random_policy(rng: np.random.Generator) -> Policy:
    """Any policy that a version may have written: folds, calibrations, promises, names, foreign ones."""
    method = str(rng.choice(["none", "temperature", "platt"]))
    slope = 1.0 if method == "none" else float(np.exp(rng.normal(0, 1)))
    calibration: Any = Calibration(method, slope, float(rng.normal(0, 2)) if method == "platt" else 0.0)  # type: ignore[arg-type]
    labels = LabelNames() if rng.random() < 0.5 else LabelNames(no="schön", yes='a "b"')
    promise = Promise()
    if rng.random() < 0.7:
        classwise = bool(rng.random() < 0.5)
        cut = np.abs(rng.normal(0, 2, 2))
        cuts = {labels.no: float(cut[0]), labels.yes: float(cut[int(classwise)])}
        held = {"loss": "error", "alpha": 0.05, "delta": 0.1, "classwise": classwise}
        prior = (0.2, 0.7) if rng.random() < 0.5 else None
        feasible = bool(rng.random() < 0.8)
        promise = Promise(feasible, "x", cuts if feasible else None, prior=prior, looks=3, **held)  # type: ignore[arg-type]
    given: dict[str, Any] = {"fold": str(rng.choice(["decision", "calibration", "none"]))}
    given |= {"candidate_sha256": "a" * 64, "model_sha256": "b" * 64}
    if rng.random() < 0.5:
        given |= {"config_sha256": "c" * 64, "processor_sha256": "d" * 64}
    if rng.random() < 0.3:
        said = bool(rng.random() < 0.7)
        made = MadeFrom("m", said and bool(rng.random() < 0.5), said, 1e-5, True, 0, 0.3, Half(9, 9), Half(9, 5))
        given = {"candidate_sha256": None, "model_sha256": None, "fold": "none", "made_from": made}
    threshold = float(rng.normal(0, 3)) if rng.random() < 0.9 else float(rng.choice([-40.0, 0.0, 30.0]))
    return Policy(threshold, calibration=calibration, promise=promise, labels=labels, **given)


def random_logits(rng: np.random.Generator, policy: Policy) -> np.ndarray:
    at = policy.folded_threshold
    edges = [at, np.nextafter(at, 9e9), np.nextafter(at, -9e9), 0.0, -0.0, 1e-300, 700.0, -800.0, 1e8, -1e8, 16.2]
    return np.concatenate([rng.normal(0, 4, 60), rng.normal(at, 1e-3, 20), edges])


@pytest.mark.parametrize("seed", range(60))
def test_it_answers_logits_to_the_last_bit(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    policy = random_policy(rng)
    write_policy(tmp_path / "policy.json", policy)
    if policy.made_from is not None and policy.made_from.probabilities:
        with refused_here("logits", "probabilities"):
            alone.read_policy(tmp_path).predict([0.3], probabilities=False)
        return
    folded = random_logits(rng, policy)
    found = alone.read_policy(tmp_path).predict(folded, probabilities=False)
    z = policy.unfold(folded)
    positive, accepted = policy.decide(z), policy.accepts(z, policy.margin(z))
    label = np.where(positive, policy.labels.yes, policy.labels.no)
    assert found.probability.tobytes() == policy.probability(z).tobytes()
    assert found.label.tolist() == label.tolist() and found.accepted.tolist() == accepted.tolist()
    assert found.decision.tolist() == np.where(accepted, label, "abstain").tolist()
    assert found.threshold == float(policy.probability(np.array([policy.threshold_logit]))[0]) and found.note == ""
    assert 0 < positive.sum() < len(z) or abs(policy.threshold_logit) > 20
    for at in (0, -1):  # one by one as all together, however numpy's vectors are cut
        one = alone.read_policy(tmp_path).answer(float(folded[at]), probabilities=False)
        assert (one.label, one.accepted, one.decision) == (label[at], accepted[at], found.decision[at])
        assert one.probability == pytest.approx(found.probability[at], rel=1e-15, abs=1e-300)


def test_the_edges_are_strict(tmp_path: Path) -> None:
    promise = Promise(True, "x", {"None": 0.25, "Roadwork": 0.5}, "error", 0.05, 0.1, True)
    write_policy(tmp_path / "policy.json", Policy(0.5, "a", "b", fold="none", promise=promise))
    z = np.array([0.5, 0.25, 0.2499, 1.0, 1.0001])
    found = alone.read_policy(tmp_path).predict(z, probabilities=False)
    assert found.decision.tolist() == ["abstain", "abstain", "None", "abstain", "Roadwork"]
    assert found.label.tolist() == ["None", "None", "None", "Roadwork", "Roadwork"]


def refused_here(*facts: object) -> Any:
    import conftest

    return conftest.refused(alone.PolicyError, *facts)


@pytest.mark.parametrize("seed", range(40))
def test_it_answers_scores_as_the_package_does_and_refuses_what_that_refuses(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    policy = random_policy(rng)
    write_policy(tmp_path / "policy.json", policy)
    theirs, ours = SelectiveClassifier.load(tmp_path / "policy.json"), alone.SelectiveClassifier.load(tmp_path)
    z = rng.normal(0, 8, 30)
    scores = (1 / (1 + np.exp(-z))).astype(np.float32).astype(np.float64)
    bad = [[0.2, np.nan], [np.inf], [1.1], [-0.1], [], [[0.5, 0.6]], [[0.1, 0.2, 0.7]], ["x"], [None], "0.5", 1 + 2j]
    two = np.stack([1 - scores, scores], axis=1)
    asked = [scores, two, *([score] for score in (0.0, 1.0, 1e-9, 0.99999994, 0.5)), *bad]
    refusals = 0
    for values in asked:
        try:
            expected = theirs.predict(values, probabilities=True)
        except (DataError, UsageError):
            refusals += 1
            with refused_here():
                ours.predict(values, probabilities=True)
            continue
        found = ours.predict(values, probabilities=True)
        assert found.probability.tobytes() == expected.probability.tobytes()
        assert found.decision.tolist() == expected.decision.tolist() and found.threshold == expected.threshold
    assert refusals >= len(bad)


def test_a_number_does_not_say_what_it_is(tmp_path: Path) -> None:
    write_policy(tmp_path / "policy.json", Policy(0.5, "a", "b"))
    policy = alone.read_policy(tmp_path)
    for call in (policy.answer, policy.predict):
        refused(alone.PolicyError, lambda call=call: call(0.93), "probabilities=True", "probabilities=False")  # type: ignore[misc]
    assert alone.SelectiveClassifier.load(tmp_path, probabilities=True).answer(0.93).label == "Roadwork"
    refused(alone.PolicyError, lambda: policy.answer([0.1, 0.2], probabilities=True), "2", "predict")


def pipeline_list(z: float) -> list[dict[str, Any]]:
    """As a stock pipeline makes it of the logit: softmax in float32, the higher score first."""
    logits = np.array([0.0, z], dtype=np.float32)
    exps = np.exp(logits - logits.max())
    rows = [{"label": n, "score": float(s)} for n, s in zip(("None", "Roadwork"), exps / exps.sum(), strict=True)]
    return sorted(rows, key=lambda row: -float(row["score"]))


@pytest.mark.parametrize("z", [-85.0, -60.0, -17.0, -0.3, 0.0, 2.5, 16.9, 40.0, 80.0])
def test_the_list_of_a_pipeline_loses_nothing(z: float, tmp_path: Path) -> None:
    """Where a single score is 0 or 1, the other one still says how far the logit is."""
    for threshold in (0.4, 30.0):
        write_policy(tmp_path / "policy.json", Policy(threshold, "a", "b", Calibration("temperature", 0.05), "none"))
        policy = alone.read_policy(tmp_path)
        found, exact = policy.answer(pipeline_list(z)), policy.answer(z, probabilities=False)
        assert found.probability == pytest.approx(exact.probability, abs=1e-7)
        assert (found.label, found.decision, found.note) == (exact.label, exact.decision, "")
    assert policy.predict([pipeline_list(z)] * 3).probability.tolist() == [found.probability] * 3
    if z > 16.7:
        refused(alone.PolicyError, lambda: policy.answer(1.0, probabilities=True), "position 0", "answer", "logits")


def test_a_score_that_underflows_is_said_or_refused(tmp_path: Path) -> None:
    certified = Promise(True, "x", {"None": 2.0, "Roadwork": 2.0}, "error", 0.05, 0.1, False)
    write_policy(tmp_path / "policy.json", Policy(0.4, "a", "b", promise=certified))
    answer = alone.read_policy(tmp_path).answer(pipeline_list(200.0))
    assert (answer.probability, answer.decision) == (1.0, "Roadwork") and tells(answer.note, "1 of 1", "0 or 1")
    far = Promise(True, "x", {"None": 900.0, "Roadwork": 900.0}, "error", 0.05, 0.1, False)
    write_policy(tmp_path / "policy.json", Policy(0.4, "a", "b", promise=far))
    refused(alone.PolicyError, lambda: alone.read_policy(tmp_path).answer(pipeline_list(200.0)), "acceptance")


@pytest.mark.parametrize(
    "rows",
    [
        [{"label": "Roadwork", "score": 0.9}], [{"label": "no", "score": 0.1}, {"label": "yes", "score": 0.9}],
        [{"label": "None", "score": 0.2}, {"label": "Roadwork", "score": float("nan")}],
        [{"label": "None", "score": 0.9}, {"label": "Roadwork", "score": 0.9}],
        [{"label": "None", "score": 0.1}, {"label": "Roadwork", "score": 0.9}, {"label": "Other", "score": 0.0}],
        [{"label": "Roadwork", "score": 0.5}, {"label": "Roadwork", "score": 0.5}], [{}], [{"label": "None"}, 3],
        [{"label": ["Roadwork"], "score": 0.5}, {"label": "None", "score": 0.5}],
    ],
)  # fmt: skip
def test_what_no_pipeline_of_the_model_gives_is_refused(rows: Any, tmp_path: Path) -> None:
    write_policy(tmp_path / "policy.json", Policy(0.4, "a", "b"))
    with refused_here():
        alone.read_policy(tmp_path).answer(rows)


def test_a_learned_gate_leaves_the_acceptance_open(tmp_path: Path) -> None:
    certified = Promise(True, "x", {"None": 0.1, "Roadwork": 0.1}, "error", 0.05, 0.1, False)
    gate = GateUse("learned", "confidnet", "c" * 64)
    write_policy(tmp_path / "policy.json", Policy(0.4, "a", "b", gate=gate, promise=certified))
    answer = alone.read_policy(tmp_path).answer(2.0, probabilities=False)
    assert (answer.label, answer.accepted, answer.decision) == ("Roadwork", None, None)
    assert tells(answer.note, "gate", "load_bundle")


VALUES: list[Any] = [
    None,
    True,
    0,
    1,
    -1,
    0.5,
    5,
    2,
    3,
    4,
    -0.25,
    "x",
    "",
    "none",
    "margin",
    [],
    [0.1, 0.2],
    {},
    10**400,
]
VALUES += [[0.9, 0.1], [0.0, 0.5], [0.5, 1.0], [0.2, 0.2], [0.2], [0.1, "x"], [0.1, None], {"rows": 1, "groups": 2}]
VALUES += [
    "abstain",
    "Roadwork",
    "NONE",
    "two\nlines",
    " x",
    "fnr",
    1.0,
    0.999,
    {"None": 0.1, "Roadwork": 0.2},
    "error",
    {"None": 0.1, "Roadwork": 0.1},
    1e308,
    float("nan"),
    float("inf"),
    "a" * 64,
]


def places(content: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path] if path else []
    for key in content if isinstance(content, dict) else ():
        found += places(content[key], (*path, key))
    return found


def mutated(content: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Another value, a key too many or too few, anywhere; mostly under a seal that fits."""
    content = copy.deepcopy(content)
    where = places(content)
    for _ in range(int(rng.integers(1, 3))):
        *way, last = where[int(rng.integers(len(where)))]
        inner = content
        for key in way:
            inner = inner.get(key, {}) if isinstance(inner, dict) else {}
        if not isinstance(inner, dict):
            continue
        kind = rng.random()
        if kind < 0.7:
            inner[last] = VALUES[int(rng.integers(len(VALUES)))]
        elif kind < 0.85:
            inner.pop(last, None)
        else:
            inner[str(rng.choice(["surprise", "labels?", f"{last}?", f"{last.upper()}"]))] = 1
    if "seal" in content and rng.random() < 0.9:
        with contextlib.suppress(ValueError):  # NaN, which json.loads reads and no seal can hold
            content["seal"] = manifest_seal(content)
    return content


def same_verdict(path: Path, content: dict[str, Any]) -> bool:
    """Both read the file, or both refuse it; True if they read it."""
    path.write_text(json.dumps(content), encoding="utf-8")
    try:
        expected = read_policy(path)
    except VerificationError:
        with refused_here("policy.json"):
            alone.read_policy(path)
        return False
    found = alone.read_policy(path)
    assert (found.feasible, found.yes) == (expected.promise.feasible, expected.labels.yes), content
    return True


CERTIFIED = Promise(True, "x", {"None": 0.1, "Roadwork": 0.1}, "error", 0.05, 0.1, False, (0.2, 0.6), 3)
CONFIGS = {"config_sha256": "c" * 64, "processor_sha256": "d" * 64}


@pytest.mark.parametrize(
    "policy",
    [
        Policy(0.25, "a", "b", Calibration("platt", 0.5, 0.3), "calibration", promise=CERTIFIED, **CONFIGS),
        Policy(0.25, None, None, Calibration("temperature", 0.5), "none", promise=CERTIFIED,
               made_from=MadeFrom("m", True, True, 1e-5, True, 0, 0.3, Half(9, 9), Half(9, 5))),
        Policy(0.25, "a", "b", gate=GateUse("learned", "x", "c" * 64)),
    ],
    ids=["bundle", "foreign", "gate"],
)  # fmt: skip
def test_every_value_in_every_place(policy: Policy, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    write_policy(path, policy)
    whole = json.loads(path.read_text(encoding="utf-8"))
    verdicts = []
    for *way, last in places(whole):
        for value in ["gone", *VALUES]:
            content = copy.deepcopy(whole)
            inner = content
            for key in way:
                inner = inner[key]
            inner.pop(last) if isinstance(value, str) and value == "gone" else inner.update({last: value})
            if last == "threshold_logit" or way == ["calibration"]:
                content.pop("folded_shift")
            with contextlib.suppress(ValueError):  # NaN, which json.loads reads and no seal can hold
                content["seal"] = manifest_seal(content)
            verdicts.append(same_verdict(path, content))
        more = copy.deepcopy(whole)
        inner = more
        for key in way:
            inner = inner[key]
        inner[f"{last}?"] = inner[last]  # as the file's own table marks a key that may be missing
        assert not same_verdict(path, more | {"seal": manifest_seal(more)}), last
    assert 20 < sum(verdicts) < len(verdicts) / 2


@pytest.mark.parametrize("seed", range(5))
def test_it_reads_what_the_package_reads_and_nothing_else(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    path, read = tmp_path / "policy.json", 0
    for _ in range(40):
        policy = random_policy(rng)
        write_policy(path, policy)
        assert alone.read_policy(path).feasible == policy.promise.feasible
        content = json.loads(path.read_text(encoding="utf-8"))
        if rng.random() < 0.3:
            content = {k: v for k, v in content.items() if k != "seal"} | {"schema": int(rng.integers(1, 7))}
        content = mutated(content, rng) if rng.random() < 0.9 else content
        read += same_verdict(path, content)
    assert read > 0  # else nothing was compared


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": 5, "schema": 5}', "[" * 4000, '{"a": 1e999}', "nul"])
def test_what_is_no_policy_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(text, encoding="utf-8")
    with refused_here("policy.json"):
        alone.read_policy(tmp_path)
    with refused_here("gone"):
        alone.read_policy(tmp_path / "gone")


def test_it_stands_alone_on_the_command_line(tmp_path: Path) -> None:
    """Copied away, with Python's own modules and numpy: nothing of this package is there."""
    write_policy(tmp_path / "policy.json", Policy(0.4, "a", "b", Calibration("temperature", 0.5)))
    script = tmp_path / READ_POLICY
    script.write_bytes(Path(alone.__file__).read_bytes())
    lines = "import sys; sys.path.insert(0, sys.argv[1]); import read_policy as r; code = r.main(sys.argv[2:]);"
    lines += "print(sorted({m.partition('.')[0] for m in sys.modules} & {'natix_hf', 'torch', 'scipy', 'PIL'}));"

    def run(*arguments: str, isolated: str = "-I", **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, isolated, "-c", lines + "sys.exit(code)", str(tmp_path), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False, env=os.environ | env
        )

    done = run(str(tmp_path / "policy.json"), "0.93")
    expected = alone.read_policy(tmp_path).answer(0.93, probabilities=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]"
    assert tells(done.stdout.splitlines()[0], "0.93", "Roadwork", f"{expected.probability:.4f}")
    write_policy(tmp_path / "other.json", Policy(0.4, "a", "b", labels=LabelNames(no="無し", yes="道路")))
    for encoding, told in (("ascii", "\\u9053\\u8def"), ("cp1252", "\\u9053\\u8def"), ("utf-8", "道路")):
        done = run(str(tmp_path / "other.json"), "0.93", isolated="-s", PYTHONIOENCODING=encoding)
        assert done.returncode == 0 and tells(done.stdout.splitlines()[0], f"score of {told} 0.93"), done.stderr
    for wrong in (("1.7",), ("x",), (), ("nan",)):
        refusal = run(str(tmp_path / "policy.json"), *wrong)
        assert refusal.returncode == 1 and len(refusal.stderr.splitlines()) == 1, refusal.stderr


def test_its_bytes_are_known() -> None:
    assert VERSIONS[-1] == shipped_sha256(), "the file has changed: add its sha256 to VERSIONS"


def test_a_strangers_file_in_its_place_is_refused(bundle: Path) -> None:
    assert (bundle / READ_POLICY).read_bytes().replace(b"\r", b"") == Path(alone.__file__).read_bytes().replace(
        b"\r", b""
    )
    assert bundle_problems(bundle) == []
    (bundle / READ_POLICY).write_text("import os\n", encoding="utf-8")
    describe(bundle)
    [problem] = bundle_problems(bundle)
    assert tells(problem, READ_POLICY, "do not run")
    (bundle / READ_POLICY).unlink()
    describe(bundle)  # as before there was one
    assert bundle_problems(bundle) == []

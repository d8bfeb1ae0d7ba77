"""Answer by a `policy.json` of natix_hf with this one file and numpy: no natix_hf, no torch, no transformers.

Every bundle holds a copy, for machines on which natix_hf cannot be installed, such as the subnet's official miner's.
It takes what a plain pipeline gives and makes of it what `natix_hf.load_bundle` answers:

    from read_policy import read_policy
    policy = read_policy("policy.json")
    answer = policy.answer(classify(image))  # the list that a pipeline("image-classification") returns
    answer.decision, answer.probability      # "abstain" where the guarantee does not cover the answer

It reads what `SelectiveClassifier.save` wrote too. For a quick look: `python read_policy.py policy.json 0.93`, where
0.93 is the pipeline's score of yes. Python 3.10 and numpy 1.24 or later. Licence: Apache-2.0.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SCHEMAS = (2, 3, 4, 5)
_FOREIGN, _SEALED = 4, 5  # the first schema that may belong to no bundle, and the first one under a seal
ABSTAIN = "abstain"
_MOST_BYTES, _DEEPEST, _LONGEST_NAME = 2**20, 50, 60
# float32 holds no number between 1 - 6e-8 and 1, so a single score of 1 says no more than a logit of 16.
_EPSILON, _TINY, _TINY32 = 1e-7, float(np.finfo(np.float64).tiny), float(np.finfo(np.float32).tiny)
_ROUNDING = 2e-3  # of two scores that add up to 1
_NESTED = (dict, list)
_CLOSE = 1e-3  # a probability may be off by this much where a score is as good as 0 or 1


class PolicyError(ValueError):
    """A policy that cannot be used, or values that it cannot answer. The text is one line."""


@dataclass(frozen=True)
class Answer:
    """One answer, or from `predict` n of them: then every field but `threshold` and `note` is an array [n].

    Args:
        probability: The calibrated probability of yes.
        label: The name of the answer, by the fitted threshold.
        accepted: The guarantee covers the answer. None if the policy has a learned gate: it reads the picture's
            features, which are not here, so nobody can say.
        decision: The label, or "abstain" if the answer is not accepted. None as above.
        threshold: The probability above which the answer is yes.
        note: Why something is None, or that a score was as good as 0 or 1. Empty otherwise.
    """

    probability: Any
    label: Any
    accepted: Any
    decision: Any
    threshold: float
    note: str = ""


class SelectiveClassifier:
    """A policy, ready to answer. [`read_policy`] makes one; `content` is what the file says, checked."""

    def __init__(self, content: dict[str, Any], probabilities: bool | None = None) -> None:
        made = content["made_from"]
        self.content = content
        self.no, self.yes = content["labels"]["no"], content["labels"]["yes"]
        self.feasible: bool = content["risk_control"]["feasible"]
        self.guarantee: str = content["risk_control"]["guarantee"]
        self._learned = content["gate"]["kind"] == "learned"
        self._kind = made["probabilities"] if made is not None and (made["said"] or made["probabilities"]) else None
        self._said = _kind_of(probabilities)
        self._epsilon = _EPSILON if made is None else made["epsilon"]

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, probabilities: bool | None = None) -> SelectiveClassifier:
        """Read a policy; `probabilities` as in `predict`, for all later calls."""
        return cls(_checked(Path(path)), probabilities)

    def answer(self, value: Any, probabilities: bool | None = None) -> Answer:
        """Answer one picture: the list of a pipeline, or a number as in `predict`."""
        single = isinstance(value, int | float | np.number)
        found = self.predict([value] if single else value, probabilities)
        if len(found.label) != 1:
            raise PolicyError(f"answer takes one picture, and here are {len(found.label)}: use predict")
        one = [None if array is None else array.tolist()[0] for array in (found.accepted, found.decision)]
        return Answer(float(found.probability[0]), str(found.label[0]), one[0], one[1], found.threshold, found.note)

    def predict(self, values: Any, probabilities: bool | None = None) -> Answer:
        """Answer pictures, or abstain.

        Args:
            values: What a pipeline returns for one picture or for many; or the model's logits, [n] (yes minus no) or
                [n, 2] (no, yes); or scores of the same shapes with `probabilities=True`.
            probabilities: What the numbers are, for a number does not say. A pipeline's list needs none.

        Raises:
            PolicyError: if nobody has said what the values are, if they are no finite numbers, or if a score is so
                close to 0 or 1 that the answer depends on what float32 has lost. That is so of a single score; a
                pipeline's list holds both, the smaller one in full.
        """
        said = self._said if probabilities is None else _kind_of(probabilities)
        lists = _pipeline_lists(values)
        if lists is not None:
            said, values = True, [self._scores(one, n) for n, one in enumerate(lists)]
        if said is False and self._kind:
            raise PolicyError(
                "the policy was fitted to probabilities, and these are said to be logits: give it scores"
            )
        said = self._kind if said is None else said
        if said is None:
            raise PolicyError(
                "the policy does not say what these values are: pass probabilities=True for the scores of a pipeline, "
                "or probabilities=False for logits"
            )
        columns = _columns(values)
        folded, clipped = _difference(columns), np.zeros(columns[0].size, dtype=bool)
        if said and lists is not None and not self._kind:  # softmax gives the smaller score in full
            folded, clipped = _logits_of(columns, _TINY), np.minimum(*columns) < _TINY32
        elif said:
            folded = _logits_of(columns, self._epsilon)
            clipped = clipped if self._kind else folded != _logits_of(columns, _TINY)
        self._require_clear(folded, clipped)
        return self._answers(self._unfold(folded), clipped)

    def _answers(self, z: np.ndarray, clipped: np.ndarray) -> Answer:
        positive, notes = self._decide(z), []
        label, accepted, decision = np.where(positive, self.yes, self.no), None, None
        if self._learned:
            notes.append("accepted or not is unknown: the policy's learned gate needs natix_hf.load_bundle")
        else:
            accepted = self._accepts(positive, z)
            decision = np.where(accepted, label, ABSTAIN)
        if clipped.any():
            notes.append(f"{int(clipped.sum())} of {len(z)} scores are as good as 0 or 1: right to {_CLOSE:g}")
        threshold = float(self._probability(np.array([self.content["threshold_logit"]], dtype=np.float64))[0])
        return Answer(self._probability(z), label, accepted, decision, threshold, "; ".join(notes))

    # The arithmetic of natix_hf.bundle.policy, operation by operation, so that the last bit agrees.

    def _unfold(self, folded: np.ndarray) -> np.ndarray:
        slope, shift = _folded(self.content)
        return np.asarray((folded + shift) / slope)

    def _probability(self, z: np.ndarray) -> np.ndarray:
        fitted = self.content["calibration"]
        with np.errstate(over="ignore"):  # exp overflows to infinity, and the probability is 0
            return np.asarray(1 / (1 + np.exp(-(fitted["slope"] * z + fitted["intercept"]))))

    def _decide(self, z: np.ndarray) -> np.ndarray:
        return np.asarray(z > self.content["threshold_logit"])

    def _accepts(self, positive: np.ndarray, z: np.ndarray) -> np.ndarray:
        cuts = self.content["risk_control"]["thresholds"]
        if cuts is None:
            return np.ones(len(positive), dtype=bool)
        margin = np.abs(z - self.content["threshold_logit"])
        return np.asarray(margin > np.where(positive, cuts[self.yes], cuts[self.no]))

    def _scores(self, one: Any, n: int) -> list[Any]:
        """The scores of no and yes in what a pipeline returned for picture n."""
        named = [item for item in one if isinstance(item, Mapping) and isinstance(item.get("label"), str)]
        scores = {item["label"]: item.get("score") for item in named}
        if set(scores) != {self.no, self.yes} or len(one) != 2:
            raise PolicyError(
                f"the list of picture {n} has the labels {_cut(sorted(map(str, scores)))}, and the policy answers "
                f"{self.no} and {self.yes}: it is of another model, or top_k left one out"
            )
        return [scores[self.no], scores[self.yes]]

    def _require_clear(self, folded: np.ndarray, clipped: np.ndarray) -> None:
        """Refuse a row whose answer depends on the logit that its score hides. It lies anywhere from the clipped value
        outwards; what is alike at both ends is alike in between."""
        rows = np.flatnonzero(clipped)
        z, far = self._unfold(folded[rows]), folded[rows] > 0
        wrong = {"answer": self._decide(z) != far}
        if not self._learned:
            wrong["acceptance"] = ~self._accepts(self._decide(z), z)
        wrong["probability"] = np.abs(self._probability(z) - far) > _CLOSE
        for n, row in enumerate(rows):
            for what in [what for what, of in wrong.items() if of[n]][:1]:
                raise PolicyError(
                    f"the score at position {row} is too close to {int(far[n])} for this policy, whose {what} depends "
                    f"on how far the logit is beyond {folded[row]:+.1f}: pass logits with probabilities=False, or the "
                    "list of a pipeline, which holds both scores"
                )


def read_policy(path: str | os.PathLike[str]) -> SelectiveClassifier:
    """Read a `policy.json`, or the one in a folder, and check its form, its values and its seal.

    Raises:
        PolicyError: if it is missing, damaged, edited, or of another schema.
    """
    return SelectiveClassifier.load(path)


def _kind_of(probabilities: Any) -> bool | None:
    if probabilities is not None and not isinstance(probabilities, bool | np.bool_):
        raise PolicyError(f"probabilities must be True, False or None, found {_cut(probabilities)}")
    return None if probabilities is None else bool(probabilities)


def _pipeline_lists(values: Any) -> list[Any] | None:
    """What a pipeline returned, one list a picture; None for anything else."""
    if not isinstance(values, list | tuple) or not values:
        return None
    if all(isinstance(item, Mapping) for item in values):
        return [values]
    each = all(isinstance(one, list | tuple) and one and isinstance(one[0], Mapping) for one in values)
    return list(values) if each else None


def _columns(values: Any) -> list[np.ndarray]:
    """One or two columns of finite numbers, float64 [n] each."""
    if hasattr(values, "detach"):  # a tensor; numpy knows no bfloat16
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    if np.ma.is_masked(values):
        raise PolicyError("a value is masked: leave out such rows")
    try:
        given: np.ndarray = np.asarray(values)
        if given.dtype.kind not in "biufO":
            raise ValueError(f"found {given.dtype}")
        array = given.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise PolicyError(f"the values must be numbers: {_cut(str(error))}") from None
    if array.size == 0 or array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] != 2):
        raise PolicyError(f"the values must have the shape [n] or [n, 2], found {list(array.shape)}")
    finite = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    if not finite.all():
        position = int(np.argmin(finite))
        raise PolicyError(f"the values must be finite, found {_cut(array[position].tolist())} at position {position}")
    return [array] if array.ndim == 1 else [array[:, 0], array[:, 1]]


def _difference(columns: list[np.ndarray]) -> np.ndarray:
    with np.errstate(over="ignore"):
        found = columns[0] if len(columns) == 1 else columns[1] - columns[0]
    if not np.isfinite(found).all():
        raise PolicyError(f"the logits are too far apart at position {int(np.argmin(np.isfinite(found)))}: scale them")
    return np.asarray(found)


def _logits_of(columns: list[np.ndarray], epsilon: float) -> np.ndarray:
    """The logits of scores, of which the smaller one counts as at least `epsilon`."""
    yes = columns[-1]
    no = columns[0] if len(columns) == 2 else 1 - yes
    wrong = (yes < 0) | (yes > 1) | (no < 0) | (no > 1) | (np.abs(no + yes - 1) > _ROUNDING)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise PolicyError(f"the scores of no and yes at position {row} are {no[row]:g} and {yes[row]:g}: no such pair")
    return np.asarray(np.log(np.maximum(yes, epsilon)) - np.log(np.maximum(no, epsilon)))


def _folded(content: Mapping[str, Any]) -> tuple[float, float]:
    """Slope a and shift c of the bundle's own logit, z' = a z - c, for the logit z before folding."""
    fitted, fold = content["calibration"], content["fold"]
    slope = 1.0 if fold == "none" else fitted["slope"]
    if fold == "decision":
        return slope, fitted["slope"] * content["threshold_logit"]
    return slope, -fitted["intercept"] if fold == "calibration" else 0.0


# What the file may hold. A set: one of these. A list: these in this order. A tuple: any of these. "?": may be missing.
_NAME = (str, None)
_PROMISE = {
    "feasible": bool, "guarantee": str, "thresholds": (dict, None), "loss?": {"error", "fnr", "fpr", None},
    "alpha?": (float, None), "delta?": (float, None), "classwise?": (bool, None), "prior?": ([float, float], None),
    "looks?": (int, None),
}  # fmt: skip
_HALF = {"rows": int, "groups": int}
_MADE = {
    "model": _NAME, "probabilities": bool, "said": bool, "epsilon": float, "groups_known": bool, "seed": int,
    "share": float, "fitting": _HALF, "certifying": _HALF,
}  # fmt: skip
_SHAPE = {
    "threshold_logit": float, "candidate_sha256": _NAME, "model_sha256": _NAME,
    "calibration": {"method": {"none", "temperature", "platt"}, "slope": float, "intercept": float},
    "fold": {"decision", "calibration", "none"},
    "gate": {"kind": {"margin", "learned"}, "method?": _NAME, "sha256?": _NAME}, "risk_control": _PROMISE,
    "onnx": ({"sha256": str, "max_difference": float}, None), "labels?": {"no": str, "yes": str},
    "config_sha256?": _NAME, "processor_sha256?": _NAME, "made_from?": (_MADE, None), "folded_shift?": (float, None),
}  # fmt: skip


def _misfit(value: Any, shape: Any, where: str = "") -> str | None:
    """What is not as `_SHAPE` has it, in words, or None."""
    if isinstance(shape, tuple):
        found = [_misfit(value, each, where) for each in shape]
        return None if None in found else found[0]
    if isinstance(shape, dict) and isinstance(value, dict):
        lacking = [key for key in shape if key[-1] != "?" and key not in value]
        if lacking:
            return f"it has no {where}{lacking[0]}"
        known = {key.rstrip("?"): rule for key, rule in shape.items()}
        each = [_misfit(item, known.get(key, ...), f"{where}{key}.") for key, item in value.items()]
        return next((problem for problem in each if problem), None)
    if isinstance(shape, set):
        fits = (value is None or isinstance(value, str)) and value in shape
    elif isinstance(shape, list):
        fits = isinstance(value, list) and len(value) == len(shape) and not any(map(_misfit, value, shape))
    elif shape is dict:  # of numbers
        fits = isinstance(value, dict) and not any(_misfit(item, float) for item in value.values())
    elif shape is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    else:
        fits = value is None if shape is None else type(value) is shape
    told = "is unknown" if shape is ... else f"is {_cut(value)}"
    return None if fits else f"{_cut(where.rstrip('.'))} {told}"


def _checked(path: Path) -> dict[str, Any]:
    """The content of a policy, with what an older one leaves out."""
    path = path / "policy.json" if path.is_dir() else path
    content: Any = _strict_json(path)
    schema = content.get("schema") if isinstance(content, dict) else None
    if type(schema) is not int or schema not in SCHEMAS:
        raise PolicyError(f"{path} is not a policy of schema {SCHEMAS[-1]}: take the read_policy.py of its bundle")
    seal = content.pop("seal", None) if schema >= _SEALED else None
    if schema >= _SEALED and seal != _seal(content):
        raise PolicyError(f"{path} was changed: its seal does not fit its content")
    del content["schema"]
    try:
        problem = _misfit(content, _SHAPE) or _problem(content, schema)
    except OverflowError:
        problem = "a number is too large"
    if problem:
        raise PolicyError(f"{path} is damaged: {problem}")
    checked: dict[str, Any] = content
    return checked


def _problem(content: dict[str, Any], schema: int) -> str | None:
    """What no version has written in a file of the right shape, or None. Fills in what the file leaves out."""
    for key in ("config_sha256", "processor_sha256", "made_from"):
        content.setdefault(key, None)
    names = content.setdefault("labels", {"no": "None", "yes": "Roadwork"})
    fitted, promise, made = content["calibration"], content["risk_control"], content["made_from"]
    method, slope, intercept, shift = fitted["method"], fitted["slope"], fitted["intercept"], None
    if slope > 0:
        shift = _folded(content)[1]
    cuts, given = promise["thresholds"], [promise.get(key) for key in ("loss", "alpha", "delta", "classwise")]
    prior, looks = promise.get("prior"), promise.get("looks")
    weights = {content["candidate_sha256"], content["model_sha256"]}
    configs = {content["config_sha256"], content["processor_sha256"]}
    alone = weights | configs == {None} and content["onnx"] is None
    plain = content["fold"] == "none" and content["gate"]["kind"] == "margin"
    wrong = {
        "labels": not all(map(_is_name, names.values())) or names["no"].lower() == names["yes"].lower(),
        "calibration": slope <= 0 or (method != "platt" and intercept != 0) or (method == "none" and slope != 1),
        "folded_shift": shift is None or not math.isfinite(shift) or content.get("folded_shift") not in (None, shift),
        "gate": content["gate"]["kind"] == "learned" and content["gate"].get("sha256") is None,
        "feasible or thresholds": promise["feasible"] != (cuts is not None),
        "thresholds": cuts is not None and set(cuts) != set(names.values()),
        "loss, alpha, delta or classwise": None in given and (promise["feasible"] or given != [None] * 4),
        "alpha or delta": any(share is not None and not 0 < share < 1 for share in given[1:3]),
        "classwise": cuts is not None and not given[3] and len(set(cuts.values())) > 1,
        "prior": prior is not None and not (given[0] == "error" and 0 < prior[0] <= prior[1] < 1),
        "looks": looks is not None and looks < 1,
        "a sha256": (made is None and None in weights) or (None in configs and configs != {None}),
        "a sha256 of a config": schema < _SEALED and configs != {None},
        "made_from": made is not None and not (schema >= _FOREIGN and plain and alone and _is_sound(made)),
    }
    return next((f"what it says of {what} cannot be" for what, is_so in wrong.items() if is_so), None)


def _is_name(name: str) -> bool:
    plain = name == name.strip() and name.isprintable() and 1 <= len(name) <= _LONGEST_NAME
    return plain and name.lower() != ABSTAIN


def _is_sound(made: Mapping[str, Any]) -> bool:
    halves = all(1 <= half["groups"] <= half["rows"] for half in (made["fitting"], made["certifying"]))
    said = made["said"] or not made["probabilities"]
    return halves and said and 0 < made["epsilon"] < 0.5 and 0 <= made["share"] <= 1 and made["seed"] >= 0


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _strict_json(path: Path) -> Any:
    """A regular file of bounded size: JSON without NaN, infinity, keys that stand twice, and depth."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > _MOST_BYTES:
            raise PolicyError(f"{path} is no file of at most {_MOST_BYTES:,} bytes")
        text = path.read_bytes().decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_pairs, parse_float=_finite, parse_constant=_finite)
        level = [value]
        for _ in range(_DEEPEST + 1):
            nested = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, _NESTED)]
            level = [item for items in nested for item in items]
        if level:
            raise ValueError("it is nested too deep")
    except OSError as error:
        raise PolicyError(f"{path} cannot be read ({error.strerror})") from None
    except PolicyError:
        raise
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{path} is not readable JSON ({_cut(str(error))}): it was damaged") from None
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no number of JSON")
    return value


def _cut(value: object) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= 80 else f"{text[:79]}…"


def _write(stream: Any, text: str) -> None:
    """Write what the terminal can show: another letter of a name as its code."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def main(arguments: list[str]) -> int:
    """`python read_policy.py policy.json 0.93 [--logit]`: print the answer to a score of yes, or to a logit."""
    logit, given = "--logit" in arguments, [argument for argument in arguments if argument != "--logit"]
    try:
        if len(given) != 2:
            raise PolicyError("usage: python read_policy.py policy.json SCORE, or policy.json LOGIT --logit")
        policy = read_policy(given[0])
        try:
            value = float(given[1])
        except ValueError:
            raise PolicyError(f"{_cut(given[1])} is no number: give the score of {policy.yes}") from None
        answer = policy.answer(value, probabilities=not logit)
    except PolicyError as error:
        _write(sys.stderr, f"{' '.join(str(error).splitlines())}\n")
        return 1
    what = f"{'logit' if logit else f'score of {policy.yes}'} {value:g}"
    told = f"P({policy.yes}) {answer.probability:.4f}, yes above {answer.threshold:.4f}"
    lines = [f"{what}: {answer.decision or answer.label}  {told}", *([f"note: {answer.note}"] if answer.note else [])]
    _write(sys.stdout, "\n".join([*lines, policy.guarantee, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

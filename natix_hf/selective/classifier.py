"""`SelectiveClassifier`: temperature, threshold, abstention and a guarantee for any model's answers.

It needs numpy to answer and scipy to fit; neither torch nor transformers is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from natix_hf.bundle.names import POLICY
from natix_hf.bundle.policy import MadeFrom, Policy, read_policy
from natix_hf.calibration.logits import EPSILON, as_logits
from natix_hf.calibration.risk_rows import Loss
from natix_hf.errors import UsageError, VerificationError
from natix_hf.labels import ABSTAIN
from natix_hf.selective.clipped import check_clipped
from natix_hf.selective.stated import Shares, differences, kind_of_values, label_names, model_name
from natix_hf.selective.told import halves, lines
from natix_hf.selective.written import drawing, write

if TYPE_CHECKING:
    from natix_hf.selective.fitting import Evidence

# So many answers in [0, 1] are no accident where logits are due.
_TELLING = 20


@dataclass(frozen=True)
class SelectiveAnswers:
    """Answers to n rows. Returned by [`SelectiveClassifier.predict`].

    Args:
        probability (`np.ndarray` of float64, shape `(n,)`): The calibrated probability of yes, label 1.
        answer (`np.ndarray` of int8, shape `(n,)`): 0 or 1, by the fitted threshold.
        label (`np.ndarray` of str, shape `(n,)`): The name of the answer.
        accepted (`np.ndarray` of bool, shape `(n,)`): True where the guarantee covers the answer. Without a guarantee
            every answer is accepted.
        decision (`np.ndarray` of str, shape `(n,)`): The label, or `"abstain"` where the answer is not accepted.
        confidence (`np.ndarray` of float64, shape `(n,)`): Distance to the threshold, in logits before calibration.
        threshold (`float`): The probability above which the answer is yes.
    """

    probability: np.ndarray
    answer: np.ndarray
    label: np.ndarray
    accepted: np.ndarray
    decision: np.ndarray
    confidence: np.ndarray
    threshold: float


class SelectiveClassifier:
    """A calibrated yes/no classifier that may abstain, over the logits or probabilities of any model.

    [`SelectiveClassifier.fit`] makes one from labelled answers, [`SelectiveClassifier.load`] from a `policy.json`, a
    bundle's too. Neither imports torch.

    Attributes:
        policy ([`Policy`]): Threshold, calibration, acceptance cuts and the guarantee in words.
        evidence ([`Evidence`], *optional*): What the guarantee rests on: counts, coverage and the rows. `None` if the
            policy was loaded.

    Example:
        >>> import natix_hf, numpy as np
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.integers(0, 2, 2000)
        >>> logits = rng.normal(4 * labels - 2, 1.5)
        >>> classifier = natix_hf.SelectiveClassifier.fit(logits, labels, alpha=0.05, delta=0.1)
        >>> classifier.feasible
        True
        >>> classifier.predict([-6.0, 0.1, 6.0]).decision.tolist()
        ['no', 'abstain', 'yes']
    """

    def __init__(self, policy: Policy, evidence: Evidence | None = None, probabilities: bool | None = None) -> None:
        if policy.gate.kind == "learned":
            raise UsageError(
                "the policy has a learned gate, which reads the picture's features and not only logits: answer with "
                "natix_hf.load_bundle, or export the bundle without phase 3"
            )
        self.policy, self.evidence = policy, evidence
        made = policy.made_from
        self._probabilities = probabilities
        if probabilities is None and made is not None:
            self._probabilities = made.probabilities if made.said or made.probabilities else None

    @classmethod
    def fit(
        cls,
        logits: Any,
        labels: Any,
        groups: Any | None = None,
        *,
        alpha: float = 0.05,
        delta: float = 0.1,
        loss: Loss = "error",
        prior: Shares | None = None,
        classwise: bool = False,
        min_coverage: float | None = None,
        looks: int = 1,
        seed: int = 0,
        names: Sequence[str] = ("no", "yes"),
        probabilities: bool | None = None,
        epsilon: float = EPSILON,
        threshold: str | float = "mcc",
        model: str | None = None,
    ) -> SelectiveClassifier:
        """Fit temperature and threshold on one half of the answers, and certify abstention on the other half.

        The halves are drawn by group, within class. The first half gives the temperature (Guo et al. 2017), the
        decision threshold and the cuts to try. From each group of the second half one row is drawn, and these rows
        certify: with probability at least `1 - delta` over their draw, the risk among accepted answers of new groups
        is at most `alpha`. If nothing can be certified, `feasible` is False, `guarantee` says why, and every answer is
        accepted.

        The model must not have been trained on these rows.

        Args:
            logits (`array-like` of shape `(n,)` or `(n, 2)`): Logits of label 1, or of labels 0 and 1; with
                `probabilities=True` probabilities. Lists, tensors and columns of a table will do.
            labels (`array-like` of shape `(n,)`): The true labels, 0 or 1.
            groups (`array-like` of shape `(n,)`, *optional*): What each row belongs to, such as its video: rows of one
                group are not independent. `None`: each row counts as a group, and the guarantee says so.
            alpha (`float`, defaults to 0.05): Largest risk allowed among the accepted answers.
            delta (`float`, defaults to 0.1): Largest probability that the guarantee is false.
            loss (`str`, defaults to `"error"`): `"error"`, the share of wrong answers; `"fnr"`, the share answered 0
                among label 1; `"fpr"`, the share answered 1 among label 0.
            prior (`float` or pair of `float`, *optional*): Share of label 1 where the classifier will be used, or an
                interval of it. The error rate is promised there, temperature and threshold are fitted to it (to the
                middle of an interval). `None`: the share of these rows.
            classwise (`bool`, defaults to `False`): One cut and one guarantee for each answer.
            min_coverage (`float`, *optional*): Smallest share of accepted answers at which a guarantee is given.
            looks (`int`, defaults to 1): Number of fits of the same answers, with other settings or seeds, that share
                `delta`. Nobody counts them but you.
            seed (`int`, defaults to 0): Draws the halves and the row of each group.
            names (pair of `str`, defaults to `("no", "yes")`): Names of answers 0 and 1.
            probabilities (`bool`, *optional*): What the values are. `None`: logits, and values that look like
                probabilities are refused.
            epsilon (`float`, defaults to 1e-7): Probabilities count as at least this. A forest of k trees gives
                probabilities of 0 and 1, which mean about 1 / (2 k).
            threshold (`str` or `float`, defaults to `"mcc"`): The objective of the decision threshold (`"mcc"`,
                `"balanced_accuracy"` or `"f1"`), or the threshold itself, as a logit or, with `probabilities=True`, as
                a probability.
            model (`str`, *optional*): Which model gave the answers, in words or as a hash. The policy keeps it.

        Returns:
            [`SelectiveClassifier`]: With its `evidence`.

        Raises:
            [`DataError`]: If an array is invalid, or a half lacks a class.
            [`UsageError`]: If an argument is out of range.
        """
        from natix_hf.selective.fitting import fit
        from natix_hf.selective.wanted import number, wanted

        labelled, probabilities = label_names(names), kind_of_values(probabilities)
        want = wanted(alpha, delta, loss, prior, classwise, min_coverage, looks, threshold, seed)
        made = MadeFrom(
            model=model_name(model),
            probabilities=bool(probabilities),
            said=probabilities is not None,
            epsilon=number(epsilon, "epsilon", "between 0 and 0.5, both excluded", 0, 0.5),
            groups_known=groups is not None,
            seed=want.seed,
        )
        z, raised = as_logits(logits, probabilities, made.epsilon)
        return cls(*fit(z, raised, labels, groups, want, labelled, made))

    @property
    def feasible(self) -> bool:
        """True if a guarantee was certified. If False, every answer is accepted."""
        return self.policy.promise.feasible

    @property
    def guarantee(self) -> str:
        """The guarantee in words, or why there is none."""
        return self.policy.promise.guarantee

    @property
    def temperature(self) -> float | None:
        """What logits are divided by, or `None` if the calibration is no temperature."""
        fitted = self.policy.calibration
        return 1 / fitted.slope if fitted.method != "platt" else None

    def predict(self, logits: Any, probabilities: bool | None = None) -> SelectiveAnswers:
        """Answer, or abstain.

        Args:
            logits (`array-like` of shape `(n,)` or `(n, 2)`): Answers of the model that the policy was fitted for: as
                in `fit`, or of a bundle's model as a plain pipeline gives them.
            probabilities (`bool`, *optional*): What the values are. Defaults to what was said in `fit` or `load`. If
                nobody has said that they are logits, 20 values or more that all lie in [0, 1] are refused.

        Returns:
            [`SelectiveAnswers`]: One answer per row, in the same order.

        Raises:
            [`DataError`]: If the array is invalid, or a score of 0 or 1 is too coarse for the policy of a bundle or of
                logits: the answer depends on how large the logit is.
            [`UsageError`]: If nobody has said what the values are, or they are said to be of another kind than in
                `fit`.
        """
        policy, (z, clipped) = self.policy, self._read(logits, probabilities)
        if clipped is not None:
            check_clipped(policy, z, clipped)
        z = policy.unfold(z)
        confidence, positive = policy.margin(z), policy.decide(z)
        accepted = policy.accepts(z, confidence)
        label = np.where(positive, policy.labels.yes, policy.labels.no)
        [cut] = policy.probability(np.array([policy.threshold_logit])).tolist()
        return SelectiveAnswers(
            probability=policy.probability(z),
            answer=positive.astype(np.int8),
            label=label,
            accepted=accepted,
            decision=np.where(accepted, label, ABSTAIN),
            confidence=confidence,
            threshold=cut,
        )

    def _read(self, values: Any, probabilities: bool | None) -> tuple[np.ndarray, np.ndarray | None]:
        """The logits of the model, float64 [n], and which ones are only known to lie at 0 or beyond, bool [n], unless
        the policy was fitted to such values."""
        made, said = self.policy.made_from, kind_of_values(probabilities)
        said = self._probabilities if said is None else said
        for problem in differences(self.policy, None, None, None, said):
            raise UsageError(f"the policy {problem}")
        if said is None and made is None:
            raise UsageError(
                "a bundle's policy does not say what these values are: pass probabilities=True for the scores of a "
                "pipeline, or probabilities=False for logits"
            )
        epsilon = EPSILON if made is None else made.epsilon
        if said is None and _few(values):
            said = False  # few logits may all lie in [0, 1]; fit has seen that those of this model do not
        z, raised = as_logits(values, said, epsilon)
        if not raised or (made is not None and made.probabilities):
            return z, None
        return z, z != as_logits(values, said, np.finfo(np.float64).tiny)[0]

    def save(self, path: str | Path) -> None:
        """Write the policy, as a bundle holds it, to a file such as `policy.json`.

        Raises:
            [`UsageError`]: If the file cannot be written, or belongs to a bundle.
        """
        write(Path(path), self.policy)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        names: Sequence[str] | None = None,
        prior: Shares | None = None,
        model: str | None = None,
        probabilities: bool | None = None,
    ) -> SelectiveClassifier:
        """Read a `policy.json` that `save`, `natix-hf certify` or a bundle wrote.

        What you state is compared with the policy, and refused if it differs. With a bundle's policy, `predict` takes
        the answers of the bundle's model, as a plain pipeline gives them.

        Args:
            path (`str` or `Path`): The file, or the folder of a bundle.
            names (pair of `str`, *optional*): The names that answers 0 and 1 must have.
            prior (`float` or pair of `float`, *optional*): The share of label 1 that you expect, or an interval. An
                error rate that is promised for another one is refused.
            model (`str`, *optional*): The model that the answers will come from: what `fit` was told, or the sha256 of
                a bundle's `model.safetensors`.
            probabilities (`bool`, *optional*): What `predict` will be given. A bundle's policy needs it.

        Returns:
            [`SelectiveClassifier`]: Ready to answer.

        Raises:
            [`VerificationError`]: If the file is missing or damaged, or differs from what you state.
            [`UsageError`]: If the policy has a learned gate, which needs more than logits.
        """
        file = Path(path) / POLICY if Path(path).is_dir() else Path(path)
        policy, said = read_policy(file), kind_of_values(probabilities)
        for problem in differences(policy, names, prior, model_name(model), said):
            raise VerificationError(f"{file} {problem}")
        return cls(policy, probabilities=said)

    def describe(self) -> str:
        """What was fitted on which rows, and what is promised, in a few lines."""
        return "\n".join(lines(self.policy, self.evidence))

    def __repr__(self) -> str:
        names, promise = self.policy.labels, self.policy.promise
        told = "no guarantee"
        if promise.feasible and promise.alpha is not None and promise.delta is not None:
            told = f"{promise.loss} at most {promise.alpha:g} with probability {1 - promise.delta:g}"
        return f"SelectiveClassifier({names.no!r} or {names.yes!r}, {halves(self.policy)}, {told})"

    def plot(self, folder: str | Path) -> list[Path]:
        """Draw `risk_coverage.png`, `reliability_before.png` and `reliability_after.png`, of the certifying half.

        Args:
            folder (`str` or `Path`): Where to; it is made if need be.

        Returns:
            `list[Path]`: The files.

        Raises:
            [`UsageError`]: If the policy was loaded, since it does not hold the answers, or nothing can be written.
        """
        if self.evidence is None:
            raise UsageError("a loaded policy holds no answers to plot: plot where it is fitted")
        from natix_hf.selective.plots import plot

        with drawing(Path(folder)):
            return plot(Path(folder), self.policy, self.evidence)


def _few(values: Any) -> bool:
    try:
        return bool(np.shape(values)[:1] < (_TELLING,))
    except ValueError:  # rows of several lengths, which are refused as such
        return False

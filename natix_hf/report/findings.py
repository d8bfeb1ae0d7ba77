"""The findings that a reader needs before the figures: did the promise hold, and what weakens a claim."""

from __future__ import annotations

from dataclasses import dataclass

from natix_hf.data.groups import NONE
from natix_hf.models.architectures import is_unknown_to_the_miner
from natix_hf.report.facts import NOT_FINISHED, NOT_RUN, RunFacts
from natix_hf.runs.graph import ORDER

_AT_MOST = {
    "error": "At most {alpha} of the accepted answers are wrong",
    "fnr": 'At most {alpha} of the accepted pictures labelled "{yes}" are answered "{no}"',
    "fpr": 'At most {alpha} of the accepted pictures labelled "{no}" are answered "{yes}"',
}
_EITHER = "At most {alpha} of the accepted answers of either kind are wrong"
_EITHER_RATE = "At most {alpha} of the accepted pictures of either class are answered wrongly"


@dataclass(frozen=True)
class Promise:
    """The promise of a bundle about its accepted answers, and the evidence on test.

    Args:
        words: The promise in one sentence.
        feasible: True if something is promised.
        held: True if the promise held on the test rows. None if nothing is promised or no relevant row was accepted.
        beyond_doubt: True if the whole interval of a risk on test lies above the promise.
    """

    words: str
    feasible: bool
    held: bool | None = None
    beyond_doubt: bool = False


def find_promise(facts: RunFacts) -> Promise:
    """Find what the bundle of a run promises, and compare it with test."""
    policy, evaluation = facts.results.policy, facts.results.evaluation
    made = policy.promise if policy is not None else None
    if made is None or made.loss is None or made.alpha is None:
        return Promise("Nothing is promised: the bundle was made without phase 5 and accepts every answer", False)
    if not made.feasible:
        return Promise(f"Nothing is promised: no threshold could be certified for {percent(made.alpha)}", False)
    by_class = _EITHER if made.loss == "error" else _EITHER_RATE
    words = by_class if made.classwise else _AT_MOST[made.loss]
    words = words.format(alpha=percent(made.alpha), yes=facts.labels.yes, no=facts.labels.no)
    measured = evaluation.selective.risks.values() if evaluation is not None else []
    values = [(risk.value, risk.interval[0]) for risk in measured if risk.value is not None]
    above = [low for value, low in values if value > made.alpha]
    doubtless = any(low is not None and low > made.alpha for low in above)
    return Promise(words, True, not above if values else None, doubtless)


def find_warnings(facts: RunFacts) -> list[str]:
    """The warnings about a run, one sentence each, most serious first."""
    return [
        *(f"{problem}: natix-hf verify tells more" for problem in facts.problems),
        *_of_leaks(facts.leaks),
        *_of_phases(facts),
        *_of_promise(facts),
        *_of_figures(facts),
        *_of_calibration(facts),
        *_of_data(facts),
        *_of_lineage(facts),
    ]


def _of_leaks(leaks: list[str]) -> list[str]:
    if not leaks:
        return []
    more = f", and {len(leaks) - 3} more" if len(leaks) > 3 else ""
    return [f"Rows leak between the splits, so the figures cannot be trusted: {'; '.join(leaks[:3])}{more}"]


def _of_phases(facts: RunFacts) -> list[str]:
    known = facts.phases.values()
    stale = ", ".join(str(phase.phase.number) for phase in known if phase.stale)
    cut_off = ", ".join(str(phase.phase.number) for phase in known if phase.state == NOT_FINISHED)
    found = []
    if stale:
        found.append(f"Run again phase {stale}: the results that it was made from have changed")
    if cut_off:
        found.append(f"Not shown here because not finished: phase {cut_off}")
    if facts.phases[6].state == NOT_RUN:
        found.append("Phase 6 has not run: there are no figures on test and no bundle yet")
    return found


def _of_promise(facts: RunFacts) -> list[str]:
    promise, policy = find_promise(facts), facts.results.policy
    made = policy.promise if policy is not None else None
    if promise.held is False and made is not None and made.alpha is not None:
        doubt = "by more than chance explains" if promise.beyond_doubt else "but chance may explain it"
        alpha = percent(made.alpha)
        return [f"On test the risk of the accepted answers is above the promised {alpha}, {doubt}"]
    if made is not None and made.asked_for and not made.feasible:
        return [f"The promise: {made.guarantee}"]
    if promise.feasible and promise.held is None and facts.results.evaluation is not None:
        return ["Test says nothing about the promise, because no answer that it covers was accepted"]
    return []


def _of_figures(facts: RunFacts) -> list[str]:
    evaluation = facts.results.evaluation
    if evaluation is None:
        return []
    found = []
    mcc = evaluation.as_found.figure("mcc")
    low, high = mcc.interval
    if mcc.value is None:
        found.append("The MCC on test is undefined: all rows, or all answers, are of one class")
    elif low is not None and low <= 0 and low != high:
        found.append("The interval of the MCC on test includes 0: test cannot tell the model from chance")
    groups = evaluation.groups
    if groups.few:
        found.append(
            f'Few {evaluation.unit}: test has {groups.positive_groups} labelled "{facts.labels.yes}" and '
            f'{groups.negative_groups} labelled "{facts.labels.no}", '
            "so its intervals are wide and uncertain themselves"
        )
    return found


def _of_calibration(facts: RunFacts) -> list[str]:
    fitted, decision, found = facts.results.calibration, facts.results.decision, []
    if fitted is not None and fitted.no_optimum:
        found.append("No temperature fits val_select best, so the probabilities are not calibrated")
    elif fitted is not None and (fitted.ece_reduction_percent or 0) < 0:
        before, after = (errors["ece"].value for errors in (fitted.before, fitted.after))
        found.append(f"Calibration did not lower the ECE on val_calib: {before:.3f} before, {after:.3f} after it")
    for name, groups in (
        ("val_select", decision.val_select_groups if decision is not None else None),
        ("val_calib", fitted.groups if fitted is not None else None),
    ):
        if groups is not None and groups.few:
            least = min(groups.positive_groups, groups.negative_groups)
            found.append(f"Few groups: {name}, which {_DECIDES[name]}, has {least} of the rarer class")
    return found


_DECIDES = {"val_select": "decided on threshold and champion", "val_calib": "decided on calibration and promise"}


def _of_data(facts: RunFacts) -> list[str]:
    found = []
    architecture = facts.bundle_config.get("model_type")
    if facts.labels.of_subnet and is_unknown_to_the_miner(architecture):
        found.append(f"The subnet's official miner (transformers 4.45.2) cannot load a {architecture}")
    noise = facts.section.get("data", {}).get("label_noise")
    if noise:
        found.append(f"{percent(noise)} of the train labels were flipped on purpose (data.label_noise)")
    alike = facts.read["near_duplicates_across_splits"] if facts.read is not None else 0
    if facts.read is not None and alike and facts.read["groups"]["from"] == NONE:
        found.append(
            f"{alike:,} rows look like a row of another split and no groups are known (data.group_by), so the figures "
            "on test may be too good"
        )
    if facts.dropped:
        told = ", ".join(f"{count} x {reason}" for reason, count in facts.dropped.items())
        found.append(f"{sum(facts.dropped.values())} rows were left out: {told}")
    return found


def _of_lineage(facts: RunFacts) -> list[str]:
    told = [facts.phases[number] for number in ORDER if facts.phases[number].counts]
    found = []
    dirty = [str(p.phase.number) for p in told if (p.manifest.get("git") or {}).get("dirty")]
    if dirty:
        found.append(f"Code with uncommitted changes ran in phase {', '.join(dirty)}")
    versions: dict[str, dict[str, list[str]]] = {}
    for phase in told:
        for name, version in phase.manifest.get("packages", {}).items():
            versions.setdefault(name, {}).setdefault(version, []).append(str(phase.phase.number))
    for name, by_version in versions.items():
        if len(by_version) > 1:
            where = ", ".join(f"{version} in phase {', '.join(numbers)}" for version, numbers in by_version.items())
            found.append(f"The phases ran with different versions of {name}: {where}")
    return found


def percent(share: float) -> str:
    """A share as a percentage with up to three digits."""
    return f"{100 * share:.3g}%"

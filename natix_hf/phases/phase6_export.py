"""Phase 6: evaluate the champion on test once, then build, reload, compare and publish the bundle.

The export, step two, reads no row.
"""

from __future__ import annotations

from typing import Any

from natix_hf.bundle.build import build_bundle
from natix_hf.bundle.names import BUNDLE, BUNDLE_MANIFEST, MODEL_CARD, README
from natix_hf.bundle.push import check_push, push_bundle, say_published
from natix_hf.errors import VerificationError
from natix_hf.labels import SUBNET, LabelNames
from natix_hf.models.architectures import is_unknown_to_the_miner
from natix_hf.phases.phase6_evaluate import SCORES_PLOT, Evaluated, evaluate_champion
from natix_hf.phases.phase6_evaluate import finished_parts as finished_parts
from natix_hf.provenance.files import file_sha256, read_json
from natix_hf.recipe import Recipe
from natix_hf.report.card import card_facts, render_card
from natix_hf.results.candidate import Candidate
from natix_hf.results.decision import Decision
from natix_hf.runs.context import Outcome, PhaseContext
from natix_hf.runs.lineage import bundle_lineage
from natix_hf.runs.verify import run_problems
from natix_hf.subnet.official import IMAGE_SIZE, size_line
from natix_hf.subnet.submission import five_fields
from natix_hf.terminal import say

_SUBNET_SOURCE = "natix-network-org/roadwork"


def run(context: PhaseContext) -> Outcome:
    """Leave the evaluation and the bundle."""
    config = context.recipe.phase6
    decision = context.decision()
    champion = context.champion(decision)
    if config.push:  # find out before test is read whether the Hub would refuse
        check_push(str(config.repo_id), config.tag)
    return export(context, decision, champion, evaluate_champion(context, decision, champion))


def export(context: PhaseContext, decision: Decision, champion: Candidate, measured: Evaluated) -> Outcome:
    """Build the bundle of an evaluated champion, and publish it if the recipe says so."""
    recipe, config, bundle = context.recipe, context.recipe.phase6, context.folder / BUNDLE
    _warn_of_the_miner(recipe, read_json(champion.model / "config.json")["model_type"], measured.policy.labels)
    lineage = bundle_lineage(context, champion, decision)
    folders = context.upstream(0), context.training_of(decision)
    facts = card_facts(recipe, *folders, champion, decision, measured.policy, measured.evaluation, lineage)
    threshold_plot = context.upstream(2) / "plots" / "threshold.png"
    scrc = context.finished(5)
    scrc_plots = sorted((scrc / "plots").glob("*.png")) if scrc is not None else []
    policy = build_bundle(
        bundle,
        champion.model,
        measured.policy,
        evaluation=measured.evaluation.content(),
        card=render_card(facts),
        model_card=_five_fields(context),
        plots=[threshold_plot, context.folder / SCORES_PLOT, *scrc_plots],
        lineage=lineage,
        images=measured.pictures,
        expected_logits=measured.logits,
        gate=measured.gate,
        onnx=config.onnx,
    )
    published = None
    if config.push:
        for problem in run_problems(context.run_dir):
            raise VerificationError(f"{problem}; nothing was published")
        done = push_bundle(bundle, str(config.repo_id), config.private, config.tag)
        say_published(done)
        facts_of_push = {"repo_id": done.repo_id, "commit": done.commit, "manifest_sha256": done.manifest_sha256}
        published = facts_of_push | {"tag": done.tag}
    as_found = measured.evaluation.as_found
    metrics = {
        "champion": champion.name,
        "candidate_sha256": policy.candidate_sha256,
        "model_sha256": policy.model_sha256,
        "bundle_manifest_sha256": file_sha256(bundle / BUNDLE_MANIFEST),
        "published": published,
        "test_mcc": as_found.metrics["mcc"],
        "test_mcc_interval": list(as_found.intervals["mcc"]),
    }
    mcc = "undefined" if metrics["test_mcc"] is None else f"{metrics['test_mcc']:.3f}"
    of_the_attempt = tuple(f"{BUNDLE}/{name}" for name in (README, MODEL_CARD, BUNDLE_MANIFEST))
    return Outcome(metrics, f"MCC {mcc} on test; bundle built, reloaded and compared", of_the_attempt)


def _warn_of_the_miner(recipe: Recipe, architecture: str, labels: LabelNames) -> None:
    """Say what keeps the subnet's official miner from using the bundle, where it is meant for the subnet."""
    data = recipe.data
    of_subnet = data.exam or data.label_rule == "scene_description" or _SUBNET_SOURCE in str(data.source)
    if not labels.of_subnet:
        if of_subnet or recipe.phase6.submitted_by is not None:
            say(
                f'warning: the subnet\'s official miner reads the label "{SUBNET.yes}" only, but this bundle answers '
                f'"{labels.yes}" and "{labels.no}": leave data.labels out for a bundle that it can use'
            )
    elif is_unknown_to_the_miner(architecture):
        say(f"warning: the subnet's official miner (transformers 4.45.2) cannot load a {architecture}")
    if labels.of_subnet and recipe.phase6.submitted_by is not None and recipe.model.image_size != IMAGE_SIZE:
        say(f"warning: {size_line(recipe.model.image_size)}")


def _five_fields(context: PhaseContext) -> dict[str, Any] | None:
    """The subnet's five fields. The submission time is that of an interrupted attempt if there was one: it may have
    published the same bundle."""
    config, before = context.recipe.phase6, context.folder / BUNDLE / MODEL_CARD
    description = context.recipe.section("phase6.description")
    name = config.model_name or context.recipe.name
    fields = five_fields(name, description, config.version, config.submitted_by)
    if fields is not None and before.is_file():
        fields["submission_time"] = read_json(before)["submission_time"]
    return fields

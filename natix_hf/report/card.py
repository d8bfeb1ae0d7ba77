"""The model card: a Jinja template filled with the figures of the run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from natix_hf.bundle.policy import Policy
from natix_hf.bundle.push import REPO_PLACEHOLDER
from natix_hf.data.reading import read_reading
from natix_hf.data.splits import SPLITS
from natix_hf.metrics.table import told_metrics
from natix_hf.models.architectures import ARCHITECTURES, is_unknown_to_the_miner
from natix_hf.models.config import PACKAGED_PREFIX
from natix_hf.provenance.files import read_json
from natix_hf.provenance.manifest import read_manifest
from natix_hf.recipe import Recipe
from natix_hf.report.errors_told import errors_by_level, told_errors, told_risk
from natix_hf.report.metadata import card_metadata, told_licence
from natix_hf.report.reading import ReadInShort, in_cell, in_code, in_markdown, read_in_short
from natix_hf.resources import resource_folder
from natix_hf.results.candidate import Candidate
from natix_hf.results.card_figures import table_rows
from natix_hf.results.decision import Decision
from natix_hf.results.evaluation import Evaluation
from natix_hf.results.figures import Gain
from natix_hf.runs.lineage import public_name, public_sources

_TEMPLATE = "bundle.md.jinja"


@dataclass(frozen=True)
class CardFacts:
    """Everything that the card says, as plain values: the template only chooses the words."""

    # given by the user
    model_name: str
    description: str
    question: str
    version: str
    licence: dict[str, str] | None  # `license`, `license_name`, `license_link`; None: none was stated
    widget: list[str]
    # from the recipe and the splits
    architecture: str
    backbone: str
    backbone_packaged: bool  # the backbone comes with this package
    adapter: str
    image_size: int
    onnx: bool  # the bundle has a model.onnx
    dataset: str
    origins: dict[str, dict[str, Any] | None]  # `hub_origin` of "dataset" and "backbone"; None: not from the Hub
    sources: list[dict[str, Any]]  # `hub_origin` of several sources of labelled images
    unlabelled: list[dict[str, Any]]  # `hub_origin` of further images
    counts: dict[str, dict[str, int]]
    dropped: int
    read: ReadInShort | None  # what was read from the source; None where an earlier version has divided the rows
    # measured
    evaluation: Evaluation
    decision: Decision
    policy: Policy
    training: dict[str, Any]
    explora: dict[str, Any] | None  # the figures of phase 4, if it trained the model
    merges: dict[str, dict[str, Any]]  # the proof of every merge, by the name of the merged model
    lineage: dict[str, Any]


def render_card(facts: CardFacts) -> str:
    """Render the text of README.md, with the metadata block that the Hub reads."""
    labels, origins, model = facts.policy.labels, facts.origins, facts.origins["backbone"]
    data = card_metadata(
        labels=labels,
        architecture=facts.architecture,
        evaluation=facts.evaluation,
        licence=facts.licence,
        base_model=model["repo"] if model is not None else None,
        datasets=[origin["repo"] for origin in (origins["dataset"], *facts.sources, *facts.unlabelled) if origin],
        widget=facts.widget,
        model_index={
            "model": facts.model_name,
            "dataset": facts.dataset,
            "type": origins["dataset"]["repo"] if origins["dataset"] else facts.dataset.lower().replace(" ", "-"),
        },
    )
    card = ModelCard.from_template(
        data,
        template_path=str(resource_folder("model_cards") / _TEMPLATE),
        facts=facts,
        rows=table_rows(facts.evaluation),
        notes=facts.evaluation.notes({name: name.replace("_", " ") for name in told_metrics(card=True)}),
        told_gain=lambda gain: Gain(**gain).told,
        repo=REPO_PLACEHOLDER,
        head=ARCHITECTURES[facts.architecture].head,
        unknown_to_the_miner=labels.of_subnet and is_unknown_to_the_miner(facts.architecture),
        labels=labels,
        cell=in_cell,
        code=in_code,
        in_markdown=in_markdown,
        errors_by_level=partial(errors_by_level, facts.evaluation),
        told_licence=told_licence(facts.licence),
        told_risk=lambda name: in_markdown(told_risk(name, labels)),
        told_errors=told_errors(facts.evaluation, labels),
        grouped=any(count["groups"] != count["rows"] for count in facts.counts.values()),
    )
    return re.sub(r"\n{3,}", "\n\n", str(card)) + "\n"


def _licence(recipe: Recipe) -> dict[str, str] | None:
    stated = {key: getattr(recipe.phase6, key) for key in ("license", "license_name", "license_link")}
    return {key: value for key, value in stated.items() if value is not None} or None


def card_facts(
    recipe: Recipe,
    data_folder: Path,
    trained: Path,
    champion: Candidate,
    decision: Decision,
    policy: Policy,
    evaluation: Evaluation,
    lineage: dict[str, Any],
) -> CardFacts:
    """Collect the facts for a champion's card. They come from a manifest, because the recipe may have changed since.

    Args:
        data_folder: The folder of phase 0, which counts the rows and says what was read.
        trained: The folder of the phase that says how the champion was trained.
    """
    read, source = read_reading(data_folder / SPLITS), recipe.data.plain()["source"]
    split, made_by = read_manifest(data_folder)["metrics"], read_manifest(trained)
    sections, measured = made_by["section"], made_by["metrics"]
    explora = sections.get("phase4")
    stage, model = (explora and explora["supervised"]) or sections["phase1"], sections["model"]
    training = measured["supervised"] if explora else measured
    trainings = ({"backbone": measured} if explora else {}) | {"classifier": training}
    hub, backbone = lineage["hub"], model["backbone"]
    return CardFacts(
        model_name=recipe.phase6.model_name or recipe.name,
        description=recipe.section("phase6.description"),
        question=recipe.data.asked_question,
        version=recipe.phase6.version,
        licence=_licence(recipe),
        widget=recipe.phase6.widget,
        architecture=read_json(champion.model / "config.json")["model_type"],
        backbone=public_name(backbone, hub["backbone"]) if backbone else "random weights",
        backbone_packaged=bool(backbone) and backbone.startswith(PACKAGED_PREFIX),
        adapter=training.get("adapter", stage["adapter"]),  # for `auto`, the adapter that it chose
        image_size=model["image_size"],
        onnx=recipe.phase6.onnx,
        dataset=public_sources(source, hub["dataset"]),
        origins={name: hub[name] for name in ("dataset", "backbone")},
        sources=hub["sources"],
        unlabelled=hub["unlabelled"],
        counts=split["counts"],
        dropped=split["dropped"],
        read=read_in_short(read, source) if read is not None else None,
        evaluation=evaluation,
        decision=decision,
        policy=policy,
        training=training,
        explora=measured if explora else None,
        merges={what: facts["merge"] for what, facts in trainings.items() if facts.get("merge")},
        lineage=lineage,
    )

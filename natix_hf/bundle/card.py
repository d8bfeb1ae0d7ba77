"""The model card: a Jinja template filled with the figures of the run, and the subnet's five fields."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from natix_hf.bundle.policy import Policy
from natix_hf.models.classifier import ID2LABEL
from natix_hf.models.config import UNKNOWN_TO_THE_MINER
from natix_hf.resources import resource_folder

_TEMPLATE = "bundle.md.jinja"
# Where the card's examples name the bundle, until a push puts the repository there.
_REPO_PLACEHOLDER = "PATH_OR_REPO_ID"
_EXAMPLES = re.compile(r'((?:natix_hf\.load_bundle\(|pipeline\("image-classification", model=)")[^"]*(?=")')
_TOLD_METRICS = (
    "mcc",
    "balanced_accuracy",
    "recall",
    "specificity",
    "precision",
    "auroc",
    "auprc",
    "ece",
    "brier",
    "nll",
)


@dataclass(frozen=True)
class CardFacts:
    """Everything that the card says; plain values, so that the template decides nothing but wording."""

    # given by the user
    model_name: str
    description: str
    version: str
    # from the recipe and the splits
    architecture: str
    backbone: str
    backbone_packaged: bool  # it comes with this package
    adapter: str
    image_size: int
    onnx: bool  # the bundle has a model.onnx
    dataset: str
    origins: dict[
        str, dict[str, Any] | None
    ]  # of "dataset" and "backbone", what `hub_origin` told; None: not from there
    unlabelled: list[dict[str, Any]]  # the same of further images from the Hub
    counts: dict[str, dict[str, int]]
    dropped: int
    # measured
    evaluation: dict[str, Any]
    decision: dict[str, Any]
    policy: Policy
    training: dict[str, Any]
    explora: dict[str, Any] | None  # what phase 4 measured, where the model comes from it
    merges: dict[str, dict[str, Any]]  # the proof of every merge, by what was merged
    lineage: dict[str, Any]


def render_card(facts: CardFacts) -> str:
    """The text of README.md, with a metadata block that the Hub reads."""
    metrics = facts.evaluation["as_found"]["metrics"]
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Roadwork or none",
            dataset_type=facts.dataset.lower().replace(" ", "-"),
            dataset_name=facts.dataset,
            dataset_split="test",
            metric_type=name,
            metric_name=name.replace("_", " "),
            metric_value=round(metrics[name], 4),
        )
        for name in ("mcc", "balanced_accuracy", "auroc")
        if metrics[name] is not None
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["natix_hf", "streetvision", "roadwork", facts.architecture],
        model_name=facts.model_name,
        base_model=_repo(facts.origins["backbone"]),
        datasets=[origin["repo"] for origin in (facts.origins["dataset"], *facts.unlabelled) if origin] or None,
        eval_results=results,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(resource_folder("model_cards") / _TEMPLATE),
        facts=facts,
        told=_TOLD_METRICS,
        repo=_REPO_PLACEHOLDER,
        unknown_to_the_miner=UNKNOWN_TO_THE_MINER,
        labels=ID2LABEL,
    )
    return str(card)


def name_repository(card: str, repo_id: str) -> str:
    """The card with the name of a repository in its two examples, whatever stood there: a bundle may move on."""
    return _EXAMPLES.sub(lambda found: found[1] + repo_id, card)


def _repo(origin: dict[str, Any] | None) -> str | None:
    return origin["repo"] if origin is not None else None


def subnet_model_card(
    model_name: str, description: str, version: str, submitted_by: str | None
) -> dict[str, Any] | None:
    """The five fields of the subnet's `model_card.json`; None without a hotkey, which nobody else can fill in."""
    if submitted_by is None:
        return None
    return {
        "model_name": model_name,
        "description": description,
        "version": version,
        "submitted_by": submitted_by,
        "submission_time": int(time.time()),
    }

"""The metadata block of a model card, which the Hub reads. It states what is known and leaves out the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import EvalResult, ModelCardData

from natix_hf.errors import printable
from natix_hf.labels import LabelNames
from natix_hf.metrics.table import METRICS
from natix_hf.models.architectures import architecture_of
from natix_hf.results.card_figures import hub_figures
from natix_hf.results.evaluation import Evaluation


def card_metadata(
    *,
    labels: LabelNames,
    architecture: str,
    evaluation: Evaluation | None,
    licence: Mapping[str, str] | None = None,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    widget: Sequence[str] = (),
    model_index: Mapping[str, str] | None = None,
) -> ModelCardData:
    """Fill the metadata of a card.

    The library is `transformers`, whose own code loads the bundle, so that the Hub's button shows lines that work. An
    architecture whose classification head transformers lacks belongs to `natix_hf`: those lines would fail.

    Args:
        evaluation: The evaluation on test; None: nothing was measured, so neither metrics nor figures are stated.
        licence: `license`, and for another licence than the Hub's `license_name` and `license_link`. None: none is
            stated.
        base_model: The repository that training began from.
        datasets: The repositories of the images.
        widget: Addresses of public pictures.
        model_index: `model`, `dataset` and `type`, to state the figures under; None states no figures.
    """
    measured = evaluation.as_found.metrics if evaluation is not None else {}
    results, name_of_model = None, None
    if evaluation is not None and model_index is not None:
        results = [
            EvalResult(
                task_type="image-classification",
                task_name=f"{labels.yes} or {labels.no}",
                dataset_type=model_index["type"],
                dataset_name=model_index["dataset"],
                dataset_split="test",
                metric_type=name,
                metric_name=name.replace("_", " "),
                metric_value=value,
            )
            for name, value in hub_figures(evaluation).items()
        ]
        name_of_model = model_index["model"] if results else None
    found, stated = architecture_of(architecture), licence or {}
    return ModelCardData(
        license=stated.get("license"),
        license_name=stated.get("license_name"),
        license_link=stated.get("license_link"),
        library_name="natix_hf" if found is not None and found.head else "transformers",
        pipeline_tag="image-classification",
        base_model=base_model,
        base_model_relation="finetune" if base_model is not None else None,
        datasets=list(dict.fromkeys(datasets)) or None,
        metrics=[row.hub_id for name, row in METRICS.items() if row.hub_id and measured.get(name) is not None] or None,
        tags=["natix_hf", *(["streetvision", "roadwork"] if labels.of_subnet else []), architecture],
        widget=[{"src": address, "example_title": _title(address)} for address in widget] or None,
        model_name=name_of_model,
        eval_results=results or None,
    )


def _title(address: str) -> str:
    return printable(unquote(PurePosixPath(urlsplit(address).path).stem)).replace("_", " ").replace("-", " ")


def told_licence(licence: Mapping[str, Any] | None) -> str:
    """The licence of the model in Markdown."""
    if not licence:
        return (
            "Licence of the model: **none was stated**. Ask its owner before you use it. The owner can state one: "
            "`phase6.license` in the recipe, or `license=` in Python."
        )
    if licence.get("license_name"):
        return f"Licence of the model: [{licence['license_name']}]({licence['license_link']})."
    return f"Licence of the model: `{licence['license']}`."

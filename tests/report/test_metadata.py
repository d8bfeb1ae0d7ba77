"""The metadata of a card: the Hub reads back what is known. Nothing is invented, and no path or secret gets in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY_RECIPE, refused
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from natix_hf.bundle.licences import LICENCES, is_public_address
from natix_hf.errors import RecipeError
from natix_hf.labels import LabelNames
from natix_hf.models.architectures import ARCHITECTURES
from natix_hf.recipe import parse_recipe
from natix_hf.report.metadata import card_metadata, told_licence
from natix_hf.results.card_figures import hub_figures
from natix_hf.results.evaluation import Evaluation

OTHER = {"license": "other", "license_name": "own-1", "license_link": "https://example.org/l.txt"}


def _export(**keys: Any) -> Any:
    return parse_recipe({**TINY_RECIPE, "phase6": keys}).phase6


@pytest.mark.parametrize("labels", [LabelNames(), LabelNames(yes='Cracked: "yes"', no="- whole")])
def test_what_is_written_is_read_back(finished_run: Path, labels: LabelNames) -> None:
    evaluation = Evaluation.read(finished_run / "phase6_export")
    index = {"model": "No: 1\n# title", "dataset": "a + b: c", "type": "org/Data"}
    data = card_metadata(
        labels=labels, architecture="dinov2", evaluation=evaluation, licence=OTHER, base_model="org/base",
        datasets=["org/Data", "org/more", "org/Data"], widget=["https://example.org/a%20b/road-works_1.jpg"],
        model_index=index,
    )  # fmt: skip
    again = ModelCard(f"---\n{data.to_yaml()}\n---\n# text").data
    assert again.to_dict() == data.to_dict()
    raw = yaml.safe_load(data.to_yaml())
    name, results = model_index_to_eval_results(raw["model-index"])
    assert eval_results_to_model_index(name, results) == raw["model-index"]
    assert {r.metric_type: r.metric_value for r in results} == hub_figures(evaluation)
    assert {(r.dataset_type, r.dataset_split) for r in results} == {("org/Data", "test")}
    assert (raw["license"], raw["license_name"], raw["license_link"]) == tuple(OTHER.values())
    assert (raw["base_model"], raw["base_model_relation"]) == ("org/base", "finetune")
    assert raw["datasets"] == ["org/Data", "org/more"]
    assert raw["widget"] == [{"src": "https://example.org/a%20b/road-works_1.jpg", "example_title": "road works 1"}]
    assert ("roadwork" in raw["tags"]) == labels.of_subnet


def test_nothing_known_is_nothing_stated(finished_run: Path) -> None:
    bare = {"library_name", "pipeline_tag", "tags"}
    assert set(card_metadata(labels=LabelNames(), architecture="vit", evaluation=None).to_dict()) == bare
    evaluation = Evaluation.read(finished_run / "phase6_export")
    undefined = replace(
        evaluation.as_found, metrics=dict.fromkeys(evaluation.as_found.metrics) | {"recall": 1.0}
    )
    index = {"model": "m", "dataset": "d", "type": "d"}
    found = card_metadata(
        labels=LabelNames(), architecture="vit", evaluation=replace(evaluation, as_found=undefined), model_index=index
    ).to_dict()
    assert set(found) == bare | {"metrics"} and found["metrics"] == ["recall"]  # no empty model-index
    assert "none was stated" in told_licence(None) and "`mit`" in told_licence({"license": "mit"})


def test_the_button_of_the_hub_shows_what_works() -> None:
    """Stock transformers loads every architecture but the one whose head it lacks."""
    library = {
        name: card_metadata(labels=LabelNames(), architecture=name, evaluation=None).library_name
        for name in ARCHITECTURES
    }
    assert {name for name, of in library.items() if of != "transformers"} == {"dinov3_vit"}
    assert library["dinov3_vit"] == "natix_hf"


def test_a_card_of_a_run_names_no_path(finished_run: Path) -> None:
    text = (finished_run / "phase6_export" / "bundle" / "README.md").read_text(encoding="utf-8")
    data = ModelCard(text).data.to_dict()
    assert not {"license", "base_model", "base_model_relation", "datasets", "widget"} & set(data)
    assert "matthews_correlation" in data["metrics"] and "none was stated" in text
    assert str(finished_run.parent) not in text and "pretrained" not in yaml.safe_dump(data)


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        ({"license": "Apache-2.0"}, ("phase6.license", "Apache-2.0", "other")),
        ({"license": "apache"}, ("phase6.license", "other")),
        ({"license": "other"}, ("phase6.license_name",)),
        ({"license": "mit", "license_name": "x"}, ("phase6.license_name", "other")),
        ({**OTHER, "license_name": "Own Terms"}, ("phase6.license_name", "Own Terms")),
        ({**OTHER, "license_link": "LICENSE"}, ("phase6.license_link", "https")),
        *(
            ({"widget": [address]}, ("phase6.widget",))
            for address in (
                "/home/me/private.jpg", "private.jpg", "file:///home/me/private.jpg", "http://example.org/a.jpg",
                "https://me:secret@example.org/a.jpg", "https://example.org/a.jpg?X-Amz-Signature=secret",
                "https://example.org/a.jpg#t", "https://localhost/a.jpg", "https://192.168.0.1/a.jpg",
                "https://example.org", "https://example.org:8443/a.jpg", "https://example.org/a b.jpg", "",
            )
        ),
    ],
)  # fmt: skip
def test_what_the_hub_would_refuse_or_a_secret_is_refused_before_work(given: Any, facts: tuple[str, ...]) -> None:
    with refused(RecipeError, *facts):
        _export(**given)


def test_what_may_be_a_secret_is_no_public_address() -> None:
    """By itself: recipes refuse what looks like a token before they look at the key."""
    assert is_public_address("https://example.org/pictures/a%20b.jpg")
    for address in ("https://example.org/a.jpg?v=2", "https://me@example.org/a.jpg", "https://example.org/a.jpg#x"):
        assert not is_public_address(address)


def test_every_identifier_is_taken() -> None:
    for licence in LICENCES - {"other"}:
        assert _export(license=licence).license == licence
    assert _export(**OTHER).license_name == "own-1"

"""What was typed in YAML reaches text keys as it was typed, and no other key notices."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from facts import tells

from natix_hf.data.config import DataConfig
from natix_hf.errors import RecipeError
from natix_hf.labels import LabelNames
from natix_hf.recipe import Recipe, load_recipe, parse_recipe
from natix_hf.section import OF_DATA, Section
from natix_hf.typed import Typed, untyped
from natix_hf.yaml12 import read_yaml

LOOK_LIKE_SOMETHING_ELSE = (
    "yes no Yes NO on off True false y n 0 1 01 -1 +1 1.0 1.50 .5 5. 1e3 1E-4 0x1F 0o17 017 0b1 1_000 1:30 12:30:45 "
    "2024-01-01 2024-01-01T10:00:00Z .inf -.INF .NaN 1__0 = 1,5 ~pictures nullable NaN None"
).split()


@dataclass(frozen=True)
class Example(Section):
    text: Annotated[str | None, "Text.", OF_DATA] = None
    texts: Annotated[list[str], "A list of text.", OF_DATA] = field(default_factory=list)
    other: str = ""
    flag: bool = False
    flag_or_null: bool | None = None
    whole: int = 0
    number: float = 0.0
    number_or_text: float | str = 0.0
    anything: dict[str, Any] = field(default_factory=dict)


def _example(**given: str) -> Example:
    return Example.build({key: read_yaml(text) for key, text in given.items()})


def _clean(value: Any) -> bool:
    """No value is of a kind that JSON does not have, down to the very type."""
    if isinstance(value, dict):
        return all(type(key) is str and _clean(item) for key, item in value.items())
    return all(map(_clean, value)) if isinstance(value, list) else type(value) in (str, int, float, bool, type(None))


@pytest.mark.parametrize("typed", LOOK_LIKE_SOMETHING_ELSE)
def test_a_text_key_takes_what_was_typed(typed: str, tmp_path: Path) -> None:
    listed = typed.replace(",", "")  # which ends an entry of a list
    example = _example(text=typed, other=typed, texts=f"[a, {listed}]")
    assert (example.text, example.other, example.texts[1]) == (typed, typed, listed)
    assert type(example.text) is str and _clean(example.plain()) and _clean(example.mapping())
    path = tmp_path / "a.yaml"
    path.write_text(f"data:\n  positive_class: {typed}\n  slices: [unsure, {listed}]\n", encoding="utf-8")
    recipe = load_recipe(str(path))
    assert recipe == load_recipe(str(path), [f"data.positive_class={typed}"])
    assert (recipe.data.positive_class, recipe.data.slices[1]) == (typed, listed)
    again = parse_recipe(yaml.safe_load(yaml.safe_dump(recipe.mapping())), name="a")  # a run may write it down
    assert again == recipe and again.section_sha256("data") == recipe.section_sha256("data")


@pytest.mark.parametrize("typed", ["null", "~", "Null", "NULL", ""])
def test_nothing_stays_nothing(typed: str) -> None:
    assert read_yaml(typed) is None and _example(text=typed).text is None


@pytest.mark.parametrize("text", LOOK_LIKE_SOMETHING_ELSE)
def test_yaml_1_2_and_quotes(text: str) -> None:
    """Only numbers and true and false are no text; what is quoted is text, for every key."""
    found = read_yaml(text)
    assert isinstance(found, str | Typed) and (found if isinstance(found, str) else found.text) == text
    assert read_yaml(f"'{text}'") == text and type(read_yaml(f'"{text}"')) is str
    with pytest.raises(RecipeError):
        _example(whole=f"'{text}'")


def test_other_keys_take_what_it_stands_for() -> None:
    for text, value in {"true": True, "yes": True, "ON": True, "false": False, "No": False, "off": False}.items():
        assert _example(flag=text).flag is _example(flag_or_null=text).flag_or_null is value
    for text, value in {"7": 7, "007": 7, "-7": -7, "0x1F": 31, "0o17": 15, "10_000": 10_000}.items():
        found = _example(whole=text, number=text)
        assert (found.whole, found.number) == (value, value) and type(found.whole) is int
        assert type(found.number) is float
    assert _example(number="1e-4").number == _example(number_or_text="1e-4").number_or_text == 1e-4
    assert _example(number_or_text="yes").number_or_text == "yes"
    inside = _example(anything="{a: 1, b: [no, 1e3, {c: yes}], 1: 01, no: text, 2.0: null}").anything
    assert inside == {"a": 1, "b": [False, 1000.0, {"c": True}], "1": 1, "no": "text", "2.0": None} and _clean(inside)
    assert load_recipe("quickstart", ["phase1.eval_strategy=no"]).phase1.training_fields()["eval_strategy"] == "no"
    adapted = load_recipe("quickstart", ["phase1.adapter=lora", "phase1.adapter_options={use_dora: yes, r: 08}"])
    assert json.dumps(adapted.phase1.adapter_options) == '{"use_dora": true, "r": 8}'


@pytest.mark.parametrize(
    ("key", "typed", "facts"),
    [("whole", "yes", ["whole", "'yes'"]), ("whole", "1.5", ["whole", "1.5", "float"]), ("flag", "1", ["flag", "1"]),
     ("flag", "y", ["flag", "'y'"]), ("text", "[1, no]", ["text", "[1, False]"]), ("number", "12:30", ["'12:30'"]),
     ("number", "2024-01-01", ["'2024-01-01'"]), ("whole", "true", ["whole", "True"])],
)  # fmt: skip
def test_what_does_not_fit_is_told_as_it_was_typed(key: str, typed: str, facts: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        _example(**{key: typed})
    assert tells(caught.value, *facts) and "Typed" not in str(caught.value)


def test_merged_mappings() -> None:
    assert untyped(read_yaml("a: &a {no: 1, x: 2}\nb: {<<: *a, x: 3}")) == {
        "a": {"no": 1, "x": 2}, "b": {"no": 1, "x": 3},
    }  # fmt: skip


def test_from_python_a_key_of_the_data_takes_numbers_and_truths() -> None:
    """Only such a key: a source or a column called 3 is a mistake."""
    assert DataConfig(positive_class=True) == DataConfig(positive_class="true")  # type: ignore[arg-type]
    assert DataConfig(positive_class=1) == DataConfig(positive_class="1")  # type: ignore[arg-type]
    assert Example(texts=["a", 1, False]).texts == ["a", "1", "false"]  # type: ignore[list-item]
    assert parse_recipe({"data": {"labels": {"no": 0, "yes": 1}}}).data.labels == LabelNames("0", "1")
    for wrong in ({"source": 3}, {"label_column": True}, {"positive_class": 1.5}, {"positive_class": ["a"]}):
        with pytest.raises(RecipeError) as caught:
            DataConfig(**wrong)  # type: ignore[arg-type]
        assert tells(caught.value, f"data.{next(iter(wrong))}", next(iter(wrong.values())))


@pytest.mark.parametrize(
    ("given", "names"),
    [("data.labels={no: intact, yes: cracked}", ("intact", "cracked")), ("data.labels.yes=shirt", ("None", "shirt")),
     ("data.labels={no: no, yes: yes}", ("no", "yes")), ("data.labels.no=0", ("0", "Roadwork")),
     ("data.labels={yes: on}", ("None", "on")), ("data.labels=null", ("None", "Roadwork"))],
)  # fmt: skip
def test_the_names_of_the_answers(given: str, names: tuple[str, str]) -> None:
    labels = load_recipe("quickstart", [given]).data.labels
    assert (labels.no, labels.yes) == names and labels.id2label == dict(enumerate(names))


@pytest.mark.parametrize(
    ("labels", "facts"),
    [({"no": ""}, ["no", "''"]), ({"yes": " a"}, ["yes", "' a'"]), ({"yes": "a\nb"}, ["yes", "a\\nb"]),
     ({"no": "x" * 61}, ["no", "60"]), ({"no": "abstain"}, ["no", "abstain"]), ({"yes": "None"}, ["yes", "'None'"]),
     ({"yes": "none"}, ["yes", "'None'"]), ({"maybe": "x"}, ["labels.maybe"]), ({"yes": None}, ["yes", "None"])],
)  # fmt: skip
def test_names_that_cannot_be_used(labels: dict[str, Any], facts: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"data": {"labels": labels}})
    assert tells(caught.value, "data.labels", *facts)


def test_the_question_is_the_description_where_none_is_given() -> None:
    """In what a manifest records: null stays null in the recipe."""
    own = {"data": {"labels": {"no": "intact", "yes": "cracked"}}}
    asked = {"data": own["data"] | {"question": "Is the tile cracked?"}}
    given = asked | {"phase6": {"description": "Tiles."}}
    told = [parse_recipe(content).section("phase6.description") for content in ({}, own, asked, given)]
    assert told == ["Is there roadwork in this picture?", "Cracked or intact?", "Is the tile cracked?", "Tiles."]
    assert parse_recipe(asked).mapping()["phase6"]["description"] is None
    hashes = [parse_recipe(content).section_sha256("phase6", "data.question") for content in ({}, own, asked, given)]
    assert len(set(hashes)) == 4
    first = Recipe()
    for number in ("phase1", "data"):
        assert parse_recipe(asked).section_sha256(number) == first.section_sha256(number)
    assert first.sections("data.labels", "data.question", "phase2") == first.sections("phase2")
    for wrong in ("", "  ", "a\nb"):
        with pytest.raises(RecipeError):
            DataConfig(question=wrong)

"""`natix-hf keys` and docs/keys.md: every key with type, default and meaning, from the code."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Command
from facts import tells

from natix_hf import keys
from natix_hf.section import key_types


def test_the_page_is_what_the_code_says() -> None:
    page = Path(__file__).parents[2] / "docs" / "keys.md"
    assert page.read_text(encoding="utf-8") == keys.as_markdown(), "python -m natix_hf.keys > docs/keys.md"


def test_every_key_has_a_sentence(command: Command) -> None:
    """In the list of all keys and in that of its section."""
    code, everything, _ = command("keys")
    assert code == 0
    for place, section in keys.sections().items():
        rows = keys.keys_of(section)
        assert {row.name for row in rows} == set(key_types(section))
        shown = keys.as_text(place)
        for row in rows:
            assert row.meaning[0].isupper() or row.meaning.split()[0] == "scene_description", row.name
            assert row.meaning.endswith(".") and len(row.meaning) > 10, row.name
            assert "typing." not in row.type and "<" not in row.type, row.type
            assert f"{place}.{row.name}".lstrip(".") in shown
        repeated = place.startswith(("phase4.supervised", "data.source.group_by"))  # the keys of another section
        assert repeated or f"{place}: " in everything or not place


@pytest.mark.parametrize(
    ("asked", "shown", "missing"),
    [
        ("phase1", ("phase1.learning_rate", "0.0005", "a number", "TrainingArguments"), "phase2"),
        ("phase3.learning_rate", ("phase3.learning_rate", "0.001", "Peak learning rate"), "weight_decay"),
        ("data.augment", ("data.augment.crop_scale", "[0.5, 1]", "a list of numbers"), "data.source"),
        ("phase4.supervised", ("phase4.supervised.adapter",), "probe_steps"),
        ("phase2", ("mcc | balanced_accuracy | f1",), "TrainingArguments"),
    ],
)
def test_a_section_or_a_key(command: Command, asked: str, shown: tuple[str, ...], missing: str) -> None:
    code, out, _ = command("keys", asked)
    assert code == 0
    assert all(part in out for part in shown)
    assert missing not in out


@pytest.mark.parametrize(
    ("asked", "facts"),
    [
        ("phas1", ("phas1", "'phase1'")),
        ("data.augmant", ("data.augmant", "'augment'")),
        ("data.augmant.flip", ("data.augmant", "'data.augment'")),
        ("phase1.lr", ("phase1.lr", "'learning_rate'")),
        ("phase9.x", ("phase9", "'phase")),
        ("zzzz.x", ("zzzz", "phase4.crops")),
    ],
)
def test_what_is_not_there_names_the_nearest(command: Command, asked: str, facts: tuple[str, ...]) -> None:
    code, out, err = command("keys", asked)
    assert (code, out) == (2, "")
    assert tells(err.strip(), *facts)

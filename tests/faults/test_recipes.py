"""A short form of `recipes.py`, and the bounds that it cannot see."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from facts import tells

sys.path.append(str(Path(__file__).parent))

from natix_hf.errors import RecipeError
from natix_hf.recipe import parse_recipe
from recipes import attack


def test_mutated_recipes_are_accepted_or_refused_in_a_line() -> None:
    assert attack(450, seed=3) == 0


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ({"phase1": {"learning_rate": 1e9}}, ("phase1.learning_rate", "1000000000.0", "1,000")),
        ({"phase1": {"weight_decay": 1e40}}, ("phase1.weight_decay", "1e+40", "1,000")),
        ({"phase1": {"num_train_epochs": 1e12}}, ("phase1.num_train_epochs", "1,000,000")),
        ({"data": {"slices": ["/etc/passwd"]}}, ("data.slices", "/etc/passwd", "column")),
        ({"data": {"label_column": "../label"}}, ("data.label_column", "../label", "column")),
        ({"data": {"positive_class": "a" * 9000, "on_overlap": "b" * 9000}}, ("data.on_overlap", "…")),
        ({"model": {"config": {"model_type": "vit", "num_hidden_layers": 20_000}}}, ("num_hidden_layers", "20000")),
    ],
)
def test_absurd_values_are_named_with_their_bounds(content: dict[str, Any], facts: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(content)
    assert tells(caught.value, *facts) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "content",
    [
        {"phase1": {"learning_rate": 10.0, "max_grad_norm": 1e9, "num_train_epochs": 5000, "adam_epsilon": 1e-20}},
        {"data": {"slices": ["image/encoded", "Wetter (heute)"], "label_column": "meta.label", "seed": 2**32 - 1}},
        {"phase4": {"max_steps": 10**7, "rank": 1024, "per_device_train_batch_size": 65_536}},
    ],
)
def test_what_somebody_may_try_is_accepted(content: dict[str, Any]) -> None:
    parse_recipe(content)

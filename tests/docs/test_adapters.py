"""The page on adapters knows every adapter, and the sizes that it states are those that the code makes."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageClassification, Dinov2Config

from natix_hf.models.adapters import ADAPTERS, add_adapter
from natix_hf.models.classifier import head_of
from natix_hf.models.tuner import count_trainable
from natix_hf.trainers.profit_config import START_ELSEWHERE

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
SIZES = {name: int(size.replace(",", "")) for name, size in re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", PAGE, re.M)}
# What they draw or look for in the weights does not work without weights. Their sizes are the same in every block.
NEED_WEIGHTS = ("boft", "shira")


@pytest.fixture(scope="module")
def shell() -> Any:
    """DINOv2-B without weights: the defaults of its config."""
    with torch.device("meta"):
        return AutoModelForImageClassification.from_config(Dinov2Config(num_labels=2))


@pytest.fixture(scope="module")
def one_block() -> Any:
    return AutoModelForImageClassification.from_config(Dinov2Config(num_labels=2, num_hidden_layers=1))


def _size(model: Any, name: str) -> int:
    return count_trainable(add_adapter(copy.deepcopy(model), name, {}, 10**6, 0)) - count_trainable(head_of(model))


def test_every_adapter_is_on_the_page_once() -> None:
    rest = re.findall(r"`(\w+)`", PAGE[PAGE.index("no reason to prefer them") : PAGE.index("## Nine at one size")])
    assert sorted([*SIZES, *rest]) == sorted(ADAPTERS)


def test_the_page_names_those_that_do_not_begin_at_the_base() -> None:
    """`tests/trainers/test_profit.py` looks at where each begins."""
    named = PAGE[PAGE.index("stock one.") : PAGE.index("begin with random numbers")]
    assert sorted(re.findall(r"`(\w+)`", named)) == sorted(START_ELSEWHERE)


@pytest.mark.parametrize("name", SIZES)
def test_its_size_on_the_page_is_its_size(name: str, shell: Any, one_block: Any) -> None:
    if name in NEED_WEIGHTS:
        assert SIZES[name] == 12 * _size(one_block, name)
    else:
        with torch.device("meta"):
            assert SIZES[name] == _size(shell, name)

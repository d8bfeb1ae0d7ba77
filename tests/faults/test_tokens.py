"""A token is never shown and never written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from tokens import TOKEN, attack

from natix_hf.errors import NatixError, UsageError, cut, printable, redacted
from natix_hf.recipe import parse_recipe


def test_no_token_in_any_message_or_file() -> None:
    assert attack(0) == 0


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"GET https://ann:{TOKEN}@host/a", "GET https://***@host/a"),
        ("git+ssh://ann:pass@host/a", "git+ssh://***@host/a"),
        ("http://host/?a=b&token=xyz&c=d", "http://host/?a=b&token=***&c=d"),
        ("https://h/?X-Amz-Signature=0af1&X-Amz-Credential=me", "https://h/?X-Amz-Signature=***&X-Amz-Credential=***"),
        (f"Authorization: Bearer {TOKEN}", "Authorization: Bearer ***"),
        ("hf_dataset/train and hf_hub", "hf_dataset/train and hf_hub"),  # names of people's own
        ("mail ann@host, https://host/a@b", "mail ann@host, https://host/a@b"),
    ],
)
def test_what_is_hidden_and_what_stays(text: str, left: str) -> None:
    assert redacted(text) == left
    assert str(NatixError(text)) == left


def test_values_are_cut_and_cannot_steer_a_terminal() -> None:
    assert 70 < len(cut("a" * 10_357)) <= 80 and cut("short") == "'short'" and cut(10**5000).isprintable()
    assert TOKEN[:12] not in cut("x" * 40 + TOKEN) and TOKEN[-12:] not in cut("x" * 40 + TOKEN)
    assert printable("a\x1b[31m\u202e\r") == "a\\x1b[31m\\u202e\\r"


def test_a_recipe_with_a_token_is_refused_from_python_too() -> None:
    for content in ({"phase6": {"description": TOKEN}}, {"model": {"config": {"model_type": "vit", TOKEN: 1}}}):
        with pytest.raises(UsageError, match="HF_TOKEN") as caught:
            parse_recipe(content)
        assert TOKEN not in str(caught.value)

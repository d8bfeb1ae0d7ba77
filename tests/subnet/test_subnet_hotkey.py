"""Hotkeys: the published addresses of the development accounts, and every typing error in one of them."""

from __future__ import annotations

import doctest

import pytest

from natix_hf.subnet import hotkey
from natix_hf.subnet.hotkey import is_hotkey

ALICE = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"


@pytest.mark.parametrize(
    "address",
    [
        ALICE,
        "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty",  # Bob
        "15oF4uVJwmo4TdGW7VfQxNLavjCXviqxT9S1MgbjMNHr6Sp5",  # Alice on Polkadot: prefix 0
        "HNZata7iMYWmk5RvZRTiAsSDhV8366zq2YGb3tLH5Upf74F",  # Alice on Kusama: prefix 2
    ],
)  # fmt: skip
def test_published_addresses(address: str) -> None:
    assert is_hotkey(address)


@pytest.mark.parametrize("address", ["", "1", "5Grwva", ALICE[:-1], ALICE + "1", "1" + ALICE, "0x" * 24, "z" * 48])
def test_no_addresses(address: str) -> None:
    assert not is_hotkey(address)


def test_every_wrong_letter_is_found() -> None:
    changed = [ALICE[:i] + ("2" if c != "2" else "3") + ALICE[i + 1 :] for i, c in enumerate(ALICE)]
    assert not any(map(is_hotkey, changed))  # chance passes one in 65536


def test_doctest() -> None:
    assert doctest.testmod(hotkey).failed == 0

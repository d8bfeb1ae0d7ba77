"""Hotkeys: the published addresses of the development accounts, and every typing error in one of them."""

from __future__ import annotations

import doctest
from hashlib import blake2b

from natix_hf.subnet import hotkey
from natix_hf.subnet.hotkey import is_hotkey

ALICE = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"


PUBLISHED = {
    "Alice": ALICE, "Bob": "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty",
    "Alice on Polkadot, prefix 0": "15oF4uVJwmo4TdGW7VfQxNLavjCXviqxT9S1MgbjMNHr6Sp5",
    "Alice on Kusama, prefix 2": "HNZata7iMYWmk5RvZRTiAsSDhV8366zq2YGb3tLH5Upf74F",
}  # fmt: skip


def encoded(payload: bytes) -> str:
    """With its right checksum."""
    number, text = int.from_bytes(payload + blake2b(b"SS58PRE" + payload).digest()[:2], "big"), ""
    while number:
        number, letter = divmod(number, 58)
        text = hotkey._ALPHABET[letter] + text
    return text


def test_published_addresses_and_no_addresses() -> None:
    assert all(map(is_hotkey, PUBLISHED.values())) and is_hotkey(encoded(bytes([42, *range(32)])))
    wrong = ["", "1", "5Grwva", ALICE[:-1], ALICE + "1", "1" + ALICE, "0x" * 24, "z" * 48]
    wrong += [encoded(bytes([42, *range(length)])) for length in (8, 31, 33)]  # accounts of another length
    assert not any(map(is_hotkey, wrong))


def test_every_wrong_letter_is_found() -> None:
    changed = [ALICE[:i] + ("2" if c != "2" else "3") + ALICE[i + 1 :] for i, c in enumerate(ALICE)]
    assert not any(map(is_hotkey, changed))  # chance passes one in 65536


def test_doctest() -> None:
    assert doctest.testmod(hotkey).failed == 0

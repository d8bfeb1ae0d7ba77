"""Hotkeys: addresses of the Bittensor chain in the SS58 format. Their checksum reveals typing errors."""

from __future__ import annotations

from hashlib import blake2b

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"  # base58, as in Bitcoin
_ACCOUNT_BYTES, _CHECKSUM_BYTES = 32, 2


def is_hotkey(address: str) -> bool:
    """Check that an address is a valid SS58 address of a 32-byte account, on any network.

    Source: docs.polkadot.com, "SS58 address format". An address consists of the network prefix (one byte, or two for
    networks from 64 on), the account, and a checksum. The checksum is the first two bytes of blake2b-512 over
    `SS58PRE`, the prefix and the account.

    Args:
        address (`str`): The address in base58.

    Returns:
        `bool`: True if the length, the prefix and the checksum are right.

    Example:
        >>> is_hotkey("5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY")
        True
        >>> is_hotkey("5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQZ")
        False
    """
    number = 0
    for letter in address:
        if letter not in _ALPHABET:
            return False
        number = number * 58 + _ALPHABET.index(letter)
    zeros = len(address) - len(address.lstrip(_ALPHABET[0]))
    raw = bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")
    if not raw or raw[0] >= 128:
        return False
    prefix_bytes = 1 if raw[0] < 64 else 2
    payload, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    right_length = len(payload) == prefix_bytes + _ACCOUNT_BYTES
    return right_length and blake2b(b"SS58PRE" + payload).digest()[:_CHECKSUM_BYTES] == checksum

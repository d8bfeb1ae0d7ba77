"""The StreetVision subnet: its challenges, its reward and its identifiers. This module imports nothing heavy."""

from __future__ import annotations

from typing import Any

_PLACES = {
    "challenge_image": "challenge",
    "challenge_jpeg": "challenge",
    "expected_reward": "rewards",
    "is_hotkey": "hotkey",
    "mean_reward": "expectation",
    "reward": "rewards",
    "wait_until": "payout",
}
__all__ = [
    "challenge_image",
    "challenge_jpeg",
    "expected_reward",
    "is_hotkey",
    "mean_reward",
    "reward",
    "wait_until",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"natix_hf.subnet.{_PLACES[name]}"), name)

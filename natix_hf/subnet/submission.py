"""The five fields of `model_card.json`, which the subnet requires beside a model."""

from __future__ import annotations

import time
from typing import Any


def five_fields(model_name: str, description: str, version: str, submitted_by: str | None) -> dict[str, Any] | None:
    """Build the subnet's `model_card.json`. Returns None without a hotkey, because only the miner knows it.

    Args:
        model_name, description, version (`str`): Text of the fields.
        submitted_by (`str`, *optional*): The miner's hotkey.

    Returns:
        `dict` or `None`: The five fields; `submission_time` is the current time in seconds since 1970.
    """
    if submitted_by is None:
        return None
    return {
        "model_name": model_name,
        "description": description,
        "version": version,
        "submitted_by": submitted_by,
        "submission_time": int(time.time()),
    }

"""What the subnet wants beside a model: the five fields of `model_card.json`."""

from __future__ import annotations

import time
from typing import Any


def five_fields(model_name: str, description: str, version: str, submitted_by: str | None) -> dict[str, Any] | None:
    """The five fields of the subnet's `model_card.json`; None without a hotkey, which nobody else can fill in."""
    if submitted_by is None:
        return None
    return {
        "model_name": model_name,
        "description": description,
        "version": version,
        "submitted_by": submitted_by,
        "submission_time": int(time.time()),
    }

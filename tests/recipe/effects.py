"""One perturbation of a recipe and what must differ: shared by the tables of this folder."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Look = Callable[..., Any]


def changed(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of a recipe's content with `key`, as in `data.augment.flip`, set to `value`."""
    first, _, rest = key.partition(".")
    return content | {first: changed(content.get(first, {}), rest, value) if rest else value}


def remembered(run: Callable[[dict[str, Any]], Any]) -> Look:
    """`look(content, time=0)`: what `run` makes of a content; one run for each content and time."""
    cached = functools.cache(lambda text, time: run(json.loads(text)))
    return lambda content, time=0: cached(json.dumps(content, sort_keys=True), time)


def require_effect(look: Look, observe: Callable[[Any], Any], before: dict[str, Any], key: str, value: Any) -> None:
    """Asserts that `key` changes what `observe` sees, and that chance does not."""
    first, again = (_plain(observe(look(before, time))) for time in (0, 1))
    assert first == again
    assert first != _plain(observe(look(changed(before, key, value))))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | torch.Tensor):
        array = np.asarray(value)
        return array.shape, array.tobytes()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value

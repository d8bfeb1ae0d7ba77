"""A call that must be refused, in one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from facts import tells


def refused(error: type[Exception], call: Callable[[], object], *facts: object) -> None:
    """`call` raises `error`, and its message of one line tells every fact."""
    with pytest.raises(error) as caught:
        call()
    assert tells(caught.value, *facts)

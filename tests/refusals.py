"""A call that must be refused, in one line."""

from __future__ import annotations

from collections.abc import Callable

import conftest


def refused(error: type[Exception] | tuple[type[Exception], ...], call: Callable[[], object], *facts: object) -> None:
    """`call` raises `error`, and its message of one line tells every fact."""
    with conftest.refused(error, *facts):
        call()

"""Progress bars of transformers, which say nothing where models are small and many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def no_loading_bars() -> Iterator[None]:
    """Inside, `from_pretrained` and `save_pretrained` draw no bar."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()

"""Progress bars of transformers. They tell nothing if models are small and many are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def no_loading_bars() -> Iterator[None]:
    """Draw no bars in `from_pretrained` and `save_pretrained` while this context is open."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()

"""Keeping transformers' own bars and remarks out of our output.

Holds:
- `quiet_transformers`: context in which transformers shows errors only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and warnings, and put them back as they were.

    What of them matters to us (weights missing from a checkpoint) is checked, not read from a warning. Bars of
    downloads belong to huggingface_hub and stay.
    """
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()

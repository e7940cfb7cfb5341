"""Where every random draw of a search comes from.

Holds: `Purpose`, `rng`.
"""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream of draws is for. The numbers are part of every recorded run: add new ones, never renumber."""

    START = 1
    """Random legal genotypes for a search that begins with a race."""
    OFFSPRING = 2
    """Mutations of a generation."""
    BATCHES = 3
    """Blocks of text on which a rung is measured; `index` is the rung."""
    BASELINE = 4
    """Blocks of text on which a baseline measures."""
    LASTING = 5
    """Blocks of text on which children are confirmed, the same in all generations."""


def rng(seed: int, generation: int, purpose: Purpose, index: int = 0) -> np.random.Generator:
    """A fresh generator that depends on nothing but its arguments, so resuming needs no generator's state.

    Args:
        seed: of the run, 0 or more.
        generation: 0 is the race that finds a start.
        purpose: see `Purpose`.
        index: tells streams of one purpose and generation apart.

    Raises:
        ValueError: a negative number.
    """
    if min(seed, generation, index) < 0:
        raise ValueError(f"seed {seed}, generation {generation} and index {index} must be 0 or more")
    return np.random.default_rng([seed, generation, int(purpose), index])

"""What several measurements share: a population of children, and a text of blocks of one length.

Holds: `offspring`, `block_drops`, `whole_blocks`.
"""

import math

import numpy as np

from evoray.evolve import LevelSwitch, Purpose, rng
from evoray.model import load_tokenizer
from evoray.space import Genotype, Space
from evoray.tokens import BosPolicy, Role, TokenText, read_text


def offspring(space: Space, count: int) -> list[Genotype]:
    """Distinct children of the uniform 3-bit parent, by the paper's mutation."""
    parent, mutate, draws = space.uniform("3"), LevelSwitch(equal_steps=True), rng(0, 1, Purpose.OFFSPRING)
    assert parent is not None
    found: dict[Genotype, None] = {}
    while len(found) < count:
        child = mutate(space, parent, draws)
        if child is not None and child != parent:
            found[child] = None
    return list(found)


def block_drops(blocks: int, count: int) -> np.ndarray:
    """Rows of distinct children, int8 [N, blocks] with 0 for a dropped block and -1 for one that stays.

    N is `count`, or as many as there are.

    The parent lacks a quarter of the blocks. A child puts some back and drops as many others: min(U{1..3}, U{1..3}).
    """
    draws = rng(0, 1, Purpose.OFFSPRING)
    parent = np.full(blocks, -1, dtype=np.int8)
    gone = max(1, blocks // 4)
    parent[draws.choice(blocks, gone, replace=False)] = 0
    most = sum(
        math.comb(gone, switches) * math.comb(blocks - gone, switches) for switches in range(1, min(gone, 3) + 1)
    )
    found: dict[bytes, np.ndarray] = {}
    while len(found) < min(count, most):
        child = parent.copy()
        switches = min(draws.integers(1, 4), draws.integers(1, 4), gone)
        child[draws.choice(np.flatnonzero(parent == 0), switches, replace=False)] = -1
        child[draws.choice(np.flatnonzero(parent == -1), switches, replace=False)] = 0
        found[child.tobytes()] = child
    return np.stack(list(found.values()))


def whole_blocks(model: str, data: str, length: int, tokens: int = 65536) -> TokenText:
    """Blocks of exactly `length` tokens of the search share of a text, so that nothing measured is padding."""
    text = read_text(
        data,
        Role.search,
        load_tokenizer(model),
        sequence_length=length,
        max_tokens=tokens,
        bos=BosPolicy.none,
    )
    kept = [index for index, block in enumerate(text.blocks) if len(block) == length]
    return TokenText(
        tuple(text.blocks[index] for index in kept), tuple(text.documents[index] for index in kept), length
    )

"""What several measurements share: a population of children, and a text of blocks of one length.

Holds: `offspring`, `whole_blocks`.
"""

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

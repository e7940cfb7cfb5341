"""Batches: what goes through the model in one pass.

    Batch           blocks of a text, each cut to some length, padded to one length
    draw_batches    an exact number of tokens, drawn at random
    all_batches     every block, whole

A batch fixes its cuts and its padding, because shapes decide floating point: the same batch gives the same bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from evoray.errors import EvorayError, UserError
from evoray.tokens.blocks import TokenText, cut_to

__all__ = ["Batch", "all_batches", "draw_batches"]

# Blocks are sorted by length only among this many (or a batch's worth, if that is more): enough to save most of the
# padding, while blocks of all lengths still come early in a draw.
WINDOW = 64

# A cut of one token would predict nothing.
SHORTEST_CUT = 2


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, right padded.

    Attributes:
        text: Digest of the text the blocks are of.
        blocks: Index of each row's block in `TokenText.blocks`.
        cuts: Tokens of each row, the first ones of its block.
        padded: Columns; tokens of the longest row or more.
    """

    text: str
    blocks: tuple[int, ...]
    cuts: tuple[int, ...]
    padded: int

    def __post_init__(self) -> None:
        if not self.blocks or len(self.blocks) != len(self.cuts):
            raise ValueError(
                f"{len(self.blocks)} blocks and {len(self.cuts)} cuts in a batch; at least one, and a cut for each"
            )
        if min(self.cuts) < SHORTEST_CUT or max(self.cuts) > self.padded:
            raise ValueError(f"cuts {self.cuts} of a batch; each must be {SHORTEST_CUT} to {self.padded} tokens")

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return sum(self.cuts)

    def ids(self, text: TokenText) -> np.ndarray:
        """The token ids.

        Args:
            text: The text this batch was made of.

        Returns:
            int32 [rows, padded], right padded with `TokenText.pad`.

        Raises:
            EvorayError: It is another text, or has shorter blocks.
        """
        if text.digest != self.text:
            raise EvorayError(
                f"batch of text {self.text[:12]}, but tokens of text {text.digest[:12]}; give its own text"
            )
        ids = np.full((len(self.blocks), self.padded), TokenText.pad, dtype=np.int32)
        for row, (block, cut) in enumerate(zip(self.blocks, self.cuts, strict=True)):
            if cut > len(text.blocks[block]):
                raise EvorayError(f"a batch cuts block {block} to {cut} tokens; it has {len(text.blocks[block])}")
            ids[row, :cut] = text.blocks[block][:cut]
        return ids


def draw_batches(
    text: TokenText, tokens: int, rng: np.random.Generator, rows_tokens: int, skip: int = 0
) -> list[Batch]:
    """Draws blocks at random, without replacement, until exactly `tokens` tokens are together.

    Every block is drawn whole but the last, which is cut to the total. Where that would leave it one token, which
    predicts nothing, the block before it gives one up.

    Args:
        text: Where to draw from.
        tokens: Total without padding, 2 to `text.tokens`.
        rng: Decides the order; the same state gives the same batches.
        rows_tokens: Most tokens of a batch with padding; a longer block is a batch of its own.
        skip: Blocks of the order that are passed over. Behind its last block the order begins anew.

    Raises:
        UserError: More tokens than the text has, or less than 2.
    """
    if tokens > text.tokens:
        raise UserError(
            f"{tokens} tokens asked of each draw are more tokens than the search text has ({text.tokens}); "
            "ask for fewer, or read more text"
        )
    if tokens < SHORTEST_CUT:
        raise UserError(f"{tokens} tokens predict nothing; ask for at least {SHORTEST_CUT}")
    drawn: list[tuple[int, int]] = []
    left = tokens
    order = np.roll(rng.permutation(len(text.blocks)), -skip)
    for block in order.tolist():
        cut = cut_to(len(text.blocks[block]), left, SHORTEST_CUT)
        drawn.append((block, cut))
        left -= cut
        if not left:
            break
    return list(_group(text, drawn, rows_tokens))


def all_batches(text: TokenText, rows_tokens: int) -> list[Batch]:
    """Every block of the text once and whole, in an order that is always the same.

    Args:
        text: What to batch.
        rows_tokens: As for `draw_batches`.
    """
    return list(_group(text, [(index, len(block)) for index, block in enumerate(text.blocks)], rows_tokens))


def _group(text: TokenText, rows: list[tuple[int, int]], rows_tokens: int) -> Iterator[Batch]:
    """Groups (block, cut) rows; no batch reaches beyond a window, so its rows differ little in length."""
    if rows_tokens < 1:
        raise UserError(f"{rows_tokens} tokens per pass; give at least 1")
    window = max(WINDOW, rows_tokens // text.sequence_length)
    for start in range(0, len(rows), window):
        rest = sorted(rows[start : start + window], key=lambda row: -row[1])
        while rest:
            padded = rest[0][1]
            count = max(1, rows_tokens // padded)
            blocks, cuts = zip(*rest[:count], strict=True)
            yield Batch(text.digest, blocks, cuts, padded)
            rest = rest[count:]

"""Batches: exact totals, no block twice, never wider than allowed."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoray.errors import EvorayError, UserError
from evoray.tokens import Batch, TokenText, all_batches, draw_batches

SEQUENCE_LENGTH = 40


def make_text(lengths: list[int]) -> TokenText:
    """Every token is another number, so that each can be recognised."""
    bounds = np.cumsum([1, *lengths])
    blocks = tuple(np.arange(start, stop) for start, stop in pairwise(bounds))
    return TokenText(blocks, tuple(f"document {number}" for number in range(len(lengths))), SEQUENCE_LENGTH)


texts = st.lists(st.integers(3, SEQUENCE_LENGTH), min_size=1, max_size=200).map(make_text)


def check(batches: list[Batch], text: TokenText, rows_tokens: int) -> None:
    """What holds for all batches."""
    drawn = [block for batch in batches for block in batch.blocks]
    assert len(drawn) == len(set(drawn))
    for batch in batches:
        assert batch.text == text.digest
        assert batch.padded == max(batch.cuts)
        assert len(batch.blocks) == 1 or len(batch.blocks) * batch.padded <= rows_tokens
        assert list(batch.cuts) == sorted(batch.cuts, reverse=True)
        ids = batch.ids(text)
        assert ids.dtype == np.int32
        assert ids.shape == (len(batch.blocks), batch.padded)
        for row, block, cut in zip(ids, batch.blocks, batch.cuts, strict=True):
            assert 2 <= cut <= len(text.blocks[block])
            assert row.tolist() == text.blocks[block][:cut].tolist() + [0] * (batch.padded - cut)


@given(texts, st.data(), st.integers(1, 400), st.integers(0, 2**32))
def test_draw_is_exact_and_without_replacement(
    text: TokenText, data: st.DataObject, rows_tokens: int, seed: int
) -> None:
    tokens = data.draw(st.integers(2, text.tokens))
    batches = draw_batches(text, tokens, np.random.default_rng(seed), rows_tokens)
    check(batches, text, rows_tokens)
    assert sum(batch.tokens for batch in batches) == tokens
    # Whole blocks but for the last drawn, and one token of the one before it.
    short = sorted(
        len(text.blocks[block]) - cut
        for batch in batches
        for block, cut in zip(batch.blocks, batch.cuts, strict=True)
        if cut < len(text.blocks[block])
    )
    assert len(short) <= 2
    assert short[:-1] in ([], [1])
    assert batches == draw_batches(text, tokens, np.random.default_rng(seed), rows_tokens)


@given(texts, st.integers(1, 400))
def test_all_batches_hold_every_block_whole(text: TokenText, rows_tokens: int) -> None:
    batches = all_batches(text, rows_tokens)
    check(batches, text, rows_tokens)
    assert sum(batch.tokens for batch in batches) == text.tokens
    assert batches == all_batches(text, rows_tokens)


def test_windows_bound_how_far_sorting_reaches() -> None:
    text = make_text([3 + index % 38 for index in range(200)])
    batches = all_batches(text, 80)
    position = 0
    for start in range(0, 200, 64):
        window = list(range(start, min(start + 64, 200)))
        expected = sorted(window, key=lambda index: (-len(text.blocks[index]), index))
        found: list[int] = []
        while len(found) < len(window):
            found += batches[position].blocks
            position += 1
        assert found == expected
    assert position == len(batches)


def test_a_big_pass_is_filled_beyond_a_window() -> None:
    text = make_text([SEQUENCE_LENGTH] * 200)
    assert [len(batch.blocks) for batch in all_batches(text, 100 * SEQUENCE_LENGTH)] == [100, 100]


def test_blocks_before_one_left_over_token_give_one_up() -> None:
    text = make_text([5, 5])
    (batch,) = draw_batches(text, 6, np.random.default_rng(0), 100)
    assert batch.cuts == (4, 2)


def test_every_block_is_drawn_first_equally_often() -> None:
    text = make_text([10] * 4)
    draws = 400
    first = [draw_batches(text, 10, np.random.default_rng([7, n]), 100)[0].blocks[0] for n in range(draws)]
    spread = math.sqrt(draws * 0.25 * 0.75)
    assert all(abs(first.count(block) - draws / 4) < 4 * spread for block in range(4))


def test_too_many_or_too_few_tokens() -> None:
    text = make_text([5, 5])
    with pytest.raises(UserError, match=r"11 tokens .* more tokens than the search text has \(10\)"):
        draw_batches(text, 11, np.random.default_rng(0), 100)
    with pytest.raises(UserError, match="1 tokens predict nothing"):
        draw_batches(text, 1, np.random.default_rng(0), 100)
    with pytest.raises(UserError, match="0 tokens per pass"):
        all_batches(text, 0)


def test_batches_are_read_from_their_own_text_only() -> None:
    text, other = make_text([5, 5]), make_text([5, 6])
    with pytest.raises(EvorayError, match=f"batch of text {text.digest[:12]}, but tokens of text {other.digest[:12]}"):
        all_batches(text, 100)[0].ids(other)
    with pytest.raises(EvorayError, match="cuts block 1 to 6 tokens; it has 5"):
        Batch(text.digest, (1,), (6,), 6).ids(text)


@pytest.mark.parametrize(
    ("blocks", "cuts", "padded"), [((), (), 4), ((0,), (3, 3), 4), ((0,), (1,), 4), ((0,), (5,), 4)]
)
def test_malformed_batches_are_refused(blocks: tuple[int, ...], cuts: tuple[int, ...], padded: int) -> None:
    with pytest.raises(ValueError, match="batch"):
        Batch("text", blocks, cuts, padded)

"""Token blocks: exact counts, one document each, the same text for the same question."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from evoray.errors import UserError
from evoray.tokens import BosPolicy, Role, TokenText, read_text, resolve_bos
from evoray.tokens.blocks import cut_to

TEXTS = [f"{number:03d} " + "x" * (number * 7 % 90) for number in range(120)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """120 documents of 4 to 93 bytes, which are as many tokens."""
    path = tmp_path_factory.mktemp("corpus") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return str(path)


def read(source: str, role: Role, tokenizer: PreTrainedTokenizerFast, **changed: Any) -> TokenText:
    asked: dict[str, Any] = {"sequence_length": 32, "max_tokens": None, "bos": BosPolicy.none} | changed
    return read_text(source, role, tokenizer, **asked)


def texts_of(text: TokenText, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [tokenizer.decode(block.tolist()) for block in text.blocks]


def test_blocks_are_the_documents_cut_at_the_sequence_length(corpus: str, tokenizer: PreTrainedTokenizerFast) -> None:
    text = read(corpus, Role.all, tokenizer)
    expected = {
        (hashlib.sha256(whole.encode()).hexdigest(), whole[start : start + 32])
        for whole in TEXTS
        for start in range(0, len(whole), 32)
        if len(whole[start : start + 32]) >= 16
    }
    found = list(zip(text.documents, texts_of(text, tokenizer), strict=True))
    assert set(found) == expected
    assert text.tokens == sum(len(block) for _, block in found)
    assert {block.dtype for block in text.blocks} == {np.dtype(np.int32)}
    assert text.document_digests == tuple(dict.fromkeys(text.documents))


def test_three_texts_never_meet_and_are_all_there_is(corpus: str, tokenizer: PreTrainedTokenizerFast) -> None:
    parts = [set(read(corpus, role, tokenizer).documents) for role in (Role.hessian, Role.search, Role.judge)]
    assert sum(len(part) for part in parts) == len(set.union(*parts))
    assert set.union(*parts) == set(read(corpus, Role.all, tokenizer).documents)


def test_same_question_same_text_and_the_seed_shuffles(corpus: str, tokenizer: PreTrainedTokenizerFast) -> None:
    first, again, other = (read(corpus, Role.search, tokenizer, seed=seed) for seed in (1, 1, 2))
    assert first.digest == again.digest
    assert first.digest != other.digest
    assert sorted(texts_of(first, tokenizer)) == sorted(texts_of(other, tokenizer))
    assert texts_of(first, tokenizer) != sorted(texts_of(first, tokenizer))


def test_excluded_documents_are_left_out(corpus: str, tokenizer: PreTrainedTokenizerFast) -> None:
    everything = read(corpus, Role.all, tokenizer)
    out = set(everything.document_digests[::2])
    rest = read(corpus, Role.all, tokenizer, exclude=out)
    assert set(rest.documents) == set(everything.documents) - out


@pytest.mark.parametrize("max_tokens", [*range(3, 50), *range(50, 1000, 37)])
def test_limit_is_met_exactly(corpus: str, tokenizer: PreTrainedTokenizerFast, max_tokens: int) -> None:
    text = read(corpus, Role.all, tokenizer, max_tokens=max_tokens)
    assert text.tokens == max_tokens
    # Only the last block, or the one before it for its sake, is cut below the shortest whole one.
    assert all(len(block) >= 16 for block in text.blocks[:-2])
    assert all(len(block) >= 13 for block in text.blocks[-2:-1])


@given(st.integers(2, 16), st.data())
def test_cutting_meets_every_limit(least: int, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(2 * least - 1, 60), min_size=1, max_size=30))
    limit = left = data.draw(st.integers(least, sum(sizes)))
    taken: list[int] = []
    for size in sizes:
        if left:
            taken.append(cut_to(size, left, least))
            assert least <= taken[-1] <= size
            left -= taken[-1]
    assert sum(taken) == limit
    assert taken[:-2] == sizes[: len(taken)][:-2]


def test_streams_keep_their_order_and_stop_early(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = 0

    def rows() -> Any:
        nonlocal drawn
        while True:
            drawn += 1
            yield {"text": f"endless {drawn:08d}"}

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows())
    text = read("house/endless", Role.all, tokenizer, max_tokens=160)
    assert texts_of(text, tokenizer) == [f"endless {number:08d}" for number in range(1, 11)]
    assert drawn < 200


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (BosPolicy.none, ["abcdef", "ghijkl", "mnopqr"]),
        (BosPolicy.document, ["<s>abcde", "fghijk", "lmnopq"]),
        (BosPolicy.block, ["<s>abcde", "<s>fghij", "<s>klmno"]),
    ],
)
@pytest.mark.parametrize("written", ["", "<s>"])
def test_bos_stands_where_the_policy_says_and_never_twice(
    tmp_path: Path,
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
    policy: BosPolicy,
    expected: list[str],
    written: str,
) -> None:
    if written and policy is BosPolicy.none:
        expected = ["<s>abcde", "fghijk", "lmnopq"]  # the text's own token stays
    (tmp_path / "a.txt").write_text(written + "abcdefghijklmnopqr")
    for puts_bos in (False, True):
        tokenizer = make_tokenizer(bos=True, puts_bos=puts_bos)
        text = read(str(tmp_path), Role.all, tokenizer, sequence_length=6, min_block=5, bos=policy)
        assert texts_of(text, tokenizer) == expected


def test_auto_bos_follows_the_tokenizer(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    assert resolve_bos(BosPolicy.auto, make_tokenizer()) is BosPolicy.none
    assert resolve_bos(BosPolicy.auto, make_tokenizer(bos=True)) is BosPolicy.none
    assert resolve_bos(BosPolicy.auto, make_tokenizer(puts_bos=True)) is BosPolicy.document
    assert resolve_bos(BosPolicy.block, make_tokenizer(bos=True)) is BosPolicy.block
    for policy in (BosPolicy.document, BosPolicy.block):
        with pytest.raises(UserError, match=f"bos policy '{policy}' needs a tokenizer with a beginning"):
            resolve_bos(policy, make_tokenizer())


def test_long_documents_make_no_warning(
    tmp_path: Path,
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "a.txt").write_text("x" * 500)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # else caplog would see nothing
    loud = make_tokenizer()
    with caplog.at_level(logging.WARNING):
        loud("x" * 500)
        assert "longer than" in caplog.text  # it would warn
        caplog.clear()
        read(str(tmp_path), Role.all, make_tokenizer())
    assert not caplog.records


def test_digest_is_of_lengths_tokens_and_sequence_length() -> None:
    def digest(blocks: list[list[int]], sequence_length: int = 8) -> str:
        return TokenText(tuple(np.array(block) for block in blocks), ("d",) * len(blocks), sequence_length).digest

    assert digest([[1, 2, 3], [4, 5, 6]]) == digest([[1, 2, 3], [4, 5, 6]])
    different = [
        digest([[1, 2, 3], [4, 5, 6]]),
        digest([[1, 2, 3, 4, 5, 6]]),
        digest([[4, 5, 6], [1, 2, 3]]),
        digest([[1, 2, 3], [4, 5, 7]]),
        digest([[1, 2, 3], [4, 5, 6]], sequence_length=9),
    ]
    assert len(set(different)) == len(different)


def test_text_keeps_its_own_tokens() -> None:
    mine = np.arange(5, dtype=np.int32)
    text = TokenText((mine,), ("d",), 8)
    mine[:] = 0
    assert text.blocks[0].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="read-only"):
        text.blocks[0][0] = 1


@pytest.mark.parametrize(("length", "documents"), [(2, 1), (9, 1), (5, 2)])
def test_malformed_texts_are_refused(length: int, documents: int) -> None:
    with pytest.raises(ValueError, match="blocks"):
        TokenText((np.zeros(length, np.int32),), ("d",) * documents, 8)


def test_errors_name_what_there_was(tmp_path: Path, corpus: str, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "a.txt").write_text("a single document, number 3")
    digest = hashlib.sha256(b"a single document, number 3").hexdigest()
    assert int(digest[:16], 16) / 2**64 < 0.25
    assert read(str(tmp_path), Role.hessian, tokenizer).documents == (digest,)
    for role in (Role.search, Role.judge):
        with pytest.raises(UserError, match=rf"no {role} text in '{tmp_path}': 1 documents, 0 of them .* --separator"):
            read(str(tmp_path), role, tokenizer)
    with pytest.raises(UserError, match=r"120 documents, 120 of them .*none of those with 100 tokens"):
        read(corpus, Role.all, tokenizer, sequence_length=128, min_block=100)
    with pytest.raises(UserError, match="2 tokens of text are too few; ask for at least 3"):
        read(corpus, Role.all, tokenizer, max_tokens=2)
    with pytest.raises(UserError, match="sequence length 4 is too short; give at least 5"):
        read(corpus, Role.all, tokenizer, sequence_length=4)

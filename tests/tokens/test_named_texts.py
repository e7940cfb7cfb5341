"""Named sets: what is asked of the hub, and that the side to judge on is cut as the paper cuts it."""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerFast

from evoray.errors import UserError
from evoray.tokens import BosPolicy, Role, TextSource, TokenText, read_text

C4 = {"revision": "607bd4c8450a42878aa9ddc051a65a055450ef87", "streaming": True}
ASKED = {
    ("wikitext2", "learn"): (
        ("Salesforce/wikitext", "wikitext-2-raw-v1"),
        {"split": "train", "streaming": True},
    ),
    ("wikitext2", "judge"): (
        ("Salesforce/wikitext", "wikitext-2-raw-v1"),
        {"split": "test", "streaming": True},
    ),
    ("c4", "learn"): (
        ("allenai/c4", "default"),
        {"split": "train", "data_files": {"train": "en/c4-train.00000-of-01024.json.gz"}} | C4,
    ),
    ("c4", "judge"): (
        ("allenai/c4", "default"),
        {"split": "validation", "data_files": {"validation": "en/c4-validation.00000-of-00008.json.gz"}} | C4,
    ),
    ("fineweb-edu", "learn"): (
        ("HuggingFaceFW/fineweb-edu", "sample-10BT"),
        {"split": "train", "streaming": True},
    ),
}
ASKED["fineweb-edu", "judge"] = ASKED["fineweb_edu", "judge"] = ASKED["fineweb-edu", "learn"]


class Hub:
    """A hub that answers every question with the same rows, and counts how many are taken."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.taken = 0

    def load_dataset(self, *arguments: Any, **named: Any) -> Any:
        self.asked.append((arguments, named))

        def rows() -> Any:
            for text in self.texts:
                self.taken += 1
                yield {"text": text, "url": "elsewhere"}

        return rows()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(datasets, "load_dataset", made.load_dataset)
    return made


def words(count: int, seed: int = 0) -> list[str]:
    """Rows of 1 to 40 characters, all different."""
    draw = random.Random(seed)
    return [f"{number} " + "x" * draw.randrange(40) for number in range(count)]


def read(name: str, role: Role, tokenizer: PreTrainedTokenizerFast, **changes: Any) -> TokenText:
    asked: dict[str, Any] = {"sequence_length": 16, "max_tokens": None, "bos": BosPolicy.none} | changes
    return read_text(name, role, tokenizer, **asked)


def blocks(text: TokenText) -> list[list[int]]:
    return [block.tolist() for block in text.blocks]


def fraction(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


@pytest.mark.parametrize(("name", "side"), ASKED)
def test_what_is_asked_of_the_hub(hub: Hub, tokenizer: PreTrainedTokenizerFast, name: str, side: str) -> None:
    hub.texts = [f"a row of some length, {number}\n" for number in range(60)]
    read(name, Role.all if side == "judge" else Role.search, tokenizer, max_tokens=200, separator="re:^a row")
    assert hub.asked == [ASKED[name, side]]


@pytest.mark.parametrize("name", ["wikitext2", "c4"])
def test_joined_sets_are_judged_in_exact_blocks(hub: Hub, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    hub.texts = ["", " = Oak = \n", "", *words(50), " \n"]
    ids = tokenizer("\n\n".join(hub.texts), add_special_tokens=False)["input_ids"]
    assert len(ids) % 16
    expected = [ids[start : start + 16] for start in range(0, len(ids) - 15, 16)]
    assert blocks(read(name, Role.all, tokenizer)) == expected
    # Neither the seed nor what is too short elsewhere matters; a limit cuts at the end.
    assert blocks(read(name, Role.all, tokenizer, seed=7, min_block=5)) == expected
    assert blocks(read(name, Role.all, tokenizer, max_tokens=40)) == [*expected[:2], expected[2][:8]]


def test_c4_is_judged_on_its_first_1100_rows(hub: Hub, tokenizer: PreTrainedTokenizerFast) -> None:
    hub.texts = words(1500)
    text = read("c4", Role.all, tokenizer)
    ids = tokenizer("\n\n".join(hub.texts[:1100]), add_special_tokens=False)["input_ids"]
    assert [token for block in blocks(text) for token in block] == ids[: len(ids) // 16 * 16]
    assert hub.taken < 1200


def test_fineweb_is_judged_in_pieces_of_its_judging_share(hub: Hub, tokenizer: PreTrainedTokenizerFast) -> None:
    hub.texts = words(300)
    expected = []
    for text in hub.texts:
        if fraction(text) >= 0.75:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            pieces = [ids[start : start + 16] for start in range(0, len(ids), 16)]
            expected += [piece for piece in pieces if len(piece) >= 5]  # fewer could not be cut to a limit
    assert min(map(len, expected)) < 16
    assert blocks(read("fineweb-edu", Role.all, tokenizer)) == expected
    assert read("fineweb_edu", Role.all, tokenizer, max_tokens=300).tokens == 300
    assert TextSource.parse("fineweb-edu").judged_tokens == 524288
    assert TextSource.parse("wikitext2,c4").judged_tokens is None
    # What is learned from is never judged on.
    judged = set(read("fineweb-edu", Role.all, tokenizer).documents)
    for role in (Role.hessian, Role.search):
        assert not judged & set(read("fineweb-edu", role, tokenizer, min_block=5).documents)


def test_special_tokens_stand_in_judged_blocks_only_when_asked(
    hub: Hub, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> None:
    hub.texts = ["abcdefgh", "ijkl"]
    tokenizer = make_tokenizer(puts_bos=True)

    def judged(bos: BosPolicy) -> list[str]:
        return [tokenizer.decode(block) for block in read("c4", Role.all, tokenizer, sequence_length=6, bos=bos).blocks]

    plain = ["abcdef", "gh\n\nij"]
    assert [judged(bos) for bos in (BosPolicy.none, BosPolicy.document, BosPolicy.auto)] == [plain] * 3
    assert judged(BosPolicy.block) == ["<s>abcde", "<s>fgh\n\n"]


def test_wikitext_is_learned_from_by_articles(hub: Hub, tokenizer: PreTrainedTokenizerFast) -> None:
    articles = [f" = Tree {number} = \n \n A tree of {number} leaves . \n \n" for number in range(80)]
    hub.texts = [line + "\n" if line else "" for line in "".join(articles).split("\n")]
    found = read("wikitext2", Role.search, tokenizer, sequence_length=128, min_block=5)
    expected = {article.strip("\n") for article in articles if 0.25 <= fraction(article.strip("\n")) < 0.75}
    assert {tokenizer.decode(block) for block in found.blocks} == expected
    assert not TextSource.parse("wikitext2").streamed
    assert TextSource.parse("c4").streamed


def test_a_path_of_that_name_wins(
    hub: Hub, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c4").mkdir()
    (tmp_path / "c4" / "mine.txt").write_text("a text of my own, long enough")
    monkeypatch.chdir(tmp_path)
    assert tokenizer.decode(read("c4", Role.all, tokenizer, sequence_length=64).blocks[0]).startswith("a text of my")
    assert hub.asked == []


def test_sets_too_short_for_a_block(hub: Hub, tokenizer: PreTrainedTokenizerFast) -> None:
    hub.texts = ["short"]
    with pytest.raises(UserError, match=r"no text in 'wikitext2': 1 documents, .*none of those with 16 tokens"):
        read("wikitext2", Role.all, tokenizer)

"""Documents: where files are cut, and that the three texts never meet."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from evoray.errors import UserError
from evoray.tokens import Role, TextSource, cut_text, read_documents

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ date_string }}"
WIKI = (
    " \n = Oak = \n \n An oak . \n \n = = Use = = \n \n Wood : \n = 1 a and b = \n more \n \n = Elm = \n \n An elm . \n"
)


@pytest.mark.parametrize(
    ("separator", "text", "expected"),
    [
        ("none", "a\n\nb", ["a\n\nb"]),
        ("none", " \n\n", []),
        ("auto", "one<|endoftext|>two\n<|endoftext|>\n\nthree\n<|endoftext|>", ["one", "two", "three"]),
        ("auto", WIKI, [WIKI[2 : WIKI.index(" = Elm")].strip("\n"), WIKI[WIKI.index(" = Elm") :].strip("\n")]),
        ("auto", "before\n\n= A =\n\ntext\n\n= B =\n", ["before", "= A =\n\ntext", "= B ="]),
        ("auto", "= A =\n\nonly one heading", ["= A =\n\nonly one heading"]),
        ("<|endoftext|>", "one<|endoftext|>two", ["one", "two"]),
        ("---", "a --- b\n---\nc\n --- \nd", ["a --- b", "c", "d"]),
        (
            "re:^CHAPTER ",
            "front\nCHAPTER 1\nx\nCHAPTER 2\ny CHAPTER 3",
            ["front", "CHAPTER 1\nx", "CHAPTER 2\ny CHAPTER 3"],
        ),
        ("re:^(?=#)", "# a\n# b", ["# a", "# b"]),
    ],
)
def test_cutting(separator: str, text: str, expected: list[str]) -> None:
    assert cut_text(text, separator) == expected


def test_paragraphs_are_gathered_to_about_4000_characters() -> None:
    paragraph = "word " * 199 + "end.\n"  # 1,000 characters
    texts = cut_text("\n".join([paragraph] * 10))
    assert [text.count("end.") for text in texts] == [4, 4, 2]
    # Without blank lines, at a line's end.
    assert [text.count("end.") for text in cut_text(paragraph * 20)] == [8, 8, 4]


@given(st.lists(st.text(alphabet="ab \n=<", max_size=3000), max_size=8), st.sampled_from(["auto", "none", "re:^a"]))
def test_cutting_loses_nothing_but_whitespace(parts: list[str], separator: str) -> None:
    text = "\n\n".join(parts)
    texts = cut_text(text, separator)
    assert "".join("".join(texts).split()) == "".join(text.split())
    assert all(part.strip() for part in texts)


@pytest.mark.parametrize("separator", ["", "  ", "re:", "re:("])
def test_bad_separators(separator: str) -> None:
    with pytest.raises(UserError, match="separator"):
        cut_text("text", separator)


def test_digest_and_role_follow_from_the_text(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [f"text {number}" for number in range(400)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = list(read_documents(TextSource.parse(str(tmp_path)), tokenizer))
    assert [document.text for document in found] == texts
    counts = dict.fromkeys(Role, 0)
    for document in found:
        raw = hashlib.sha256(document.text.encode()).digest()
        assert document.digest == raw.hex()
        fraction = int.from_bytes(raw[:8], "big") / 2**64
        assert document.role == ("hessian" if fraction < 0.25 else "search" if fraction < 0.75 else "judge")
        counts[document.role] += 1
    # 400 draws: three standard deviations are 26 and 30.
    assert abs(counts[Role.hessian] - 100) < 30
    assert abs(counts[Role.search] - 200) < 30


def test_equal_documents_count_once_and_empty_ones_not(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "a.txt").write_text("one\n---\ntwo\n---\n\n---\none")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n{"text": " "}\n{"text": "three"}\n')
    found = read_documents(TextSource.parse(str(tmp_path)), tokenizer, separator="---")
    assert [document.text for document in found] == ["one", "two", "three"]


def test_embedded_search_text_lends_a_third_to_hessians(
    monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast
) -> None:
    import evoray.embedded.text

    monkeypatch.setattr(evoray.embedded.text, "documents", lambda role: [f"{role} {i}" for i in range(60)])
    for document in read_documents(TextSource.parse("embedded"), tokenizer):
        fraction = int(document.digest[:16], 16) / 2**64
        if document.text.startswith("judge"):
            assert document.role is Role.judge
        else:
            assert document.role is (Role.hessian if fraction < 1 / 3 else Role.search)


def test_chats_are_rendered_and_told_apart_by_their_messages(
    tmp_path: Path, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> None:
    chats = [
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
        [{"role": "user", "content": "hi", "name": "Ann"}],
        [],
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    # In a parquet file every message has every key, absent ones as null.
    pyarrow.parquet.write_table(pa.Table.from_pylist([{"messages": chat} for chat in chats]), tmp_path / "a.parquet")

    def documents(name: str, template: str | None) -> list[tuple[str, str]]:
        found = read_documents(TextSource.parse(str(tmp_path / name)), make_tokenizer(chat_template=template))
        return [(document.text, document.digest) for document in found]

    found = documents("a.jsonl", TEMPLATE)
    assert [text for text, _ in found] == ["[user]hi[assistant]ho26 Jul 2024", "[user]hi26 Jul 2024"]
    assert documents("a.parquet", TEMPLATE) == found
    # Another tokenizer's template gives other texts, but the same documents on the same sides.
    assert [digest for _, digest in documents("a.jsonl", "{{ messages[0].content }}")] == [
        digest for _, digest in found
    ]
    with pytest.raises(
        UserError, match=r"a\.jsonl line 1 holds messages, but the model's tokenizer has no chat template"
    ):
        documents("a.jsonl", None)
    with pytest.raises(UserError, match=r"can't render .*a\.jsonl line 1 \(no system message\)"):
        documents("a.jsonl", "{{ raise_exception('no system message') }}")


def test_half_characters_are_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "whole \\ud83d\\ude00"}\n{"text": "half \\ud83d"}\n')
    found = read_documents(TextSource.parse(str(tmp_path)), tokenizer)
    assert next(found).text == "whole 😀"
    with pytest.raises(UserError, match=r"a\.jsonl line 2 holds half a character"):
        next(found)

"""Documents, and which of the three texts each one belongs to.

    Role              Hessians, search, judging, or all
    Document          one text with its digest and role
    cut_text          a .txt file -> texts of documents
    read_documents    source -> documents

The three texts never meet, because the document's digest alone decides its role: whatever the order, the number and
the kind of the files it came in, it is always on the same side.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from evoray.errors import UserError
from evoray.tokens.row import Cutting, Row
from evoray.tokens.source import TextSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["AUTO", "Document", "Role", "cut_text", "read_documents"]

AUTO = "auto"
WHOLE = "none"
PATTERN = "re:"
END_OF_TEXT = "<|endoftext|>"

# Paragraphs gathered into one document: about 1,000 tokens, some blocks' worth, yet many documents per file.
GATHERED = 4_000
# Text without blank lines is cut at the end of a line instead, once it is this long.
LONGEST = 8_000

# An article's heading in WikiText: ` = Title = `. Sections have two and more equal signs on either side, and so no
# title; a formula in a list can look the same, but has no blank lines around it.
HEADING = re.compile(r"\s*= [^=]+ =\s*")

# Halves of UTF-16 characters, which JSON can spell, but no tokenizer can read.
SURROGATE = re.compile("[\ud800-\udfff]")

# Some chat templates print today's date. A fixed one keeps a text the same from day to day.
CHAT_DATE = "26 Jul 2024"


class Role(StrEnum):
    """What a document is for."""

    hessian = "hessian"
    search = "search"
    judge = "judge"
    all = "all"


@dataclass(frozen=True)
class Document:
    """One text of the corpus.

    Attributes:
        text: As the tokenizer takes it; chats are rendered.
        digest: sha256 (hex) of the text; of the messages for a chat, so that it does not depend on the tokenizer.
        role: hessian, search or judge.
        cutting: How its token blocks are cut.
    """

    text: str
    digest: str
    role: Role
    cutting: Cutting = Cutting.usual


def role_of(row: Row, digest: str) -> Role:
    """The role of a document, from its digest's first 8 bytes as a fraction.

    [0, 1/4) is for Hessians, [1/4, 3/4) for search, the rest for judging. In the embedded text search and judging are
    settled by name, so only its search text is divided: [0, 1/3) of it is for Hessians.
    """
    fraction = int(digest[:16], 16) / 2**64
    if row.reserved is not None:
        return Role.judge if row.reserved == "judge" else Role.hessian if fraction < 1 / 3 else Role.search
    return Role.hessian if fraction < 0.25 else Role.search if fraction < 0.75 else Role.judge


def check_separator(separator: str) -> None:
    """Checks the `separator` of `cut_text` before anything is read.

    Raises:
        UserError: It is empty, or no regular expression after `re:`.
    """
    if not separator.removeprefix(PATTERN).strip():
        raise UserError(f"separator {separator!r} is empty; give auto, none, a line ({END_OF_TEXT}) or re:PATTERN")
    if separator.startswith(PATTERN):
        try:
            re.compile(separator.removeprefix(PATTERN), re.MULTILINE)
        except re.error as error:
            raise UserError(f"separator {separator!r} is no regular expression ({error}); see Python's re") from error


def cut_text(text: str, separator: str = AUTO) -> list[str]:
    """Cuts a .txt file's text into the texts of documents. Only what separates is lost, and empty texts.

    Args:
        text: The file.
        separator: "none": the file is one document. "re:PATTERN": a document begins at each match (multi-line mode).
            Another text: what stands between documents on a line of its own; `<|endoftext|>` also inside a line.
            "auto": `<|endoftext|>` if there is one; else WikiText's article headings if there are two; else
            paragraphs in a row, gathered to about 4,000 characters.

    Raises:
        UserError: As `check_separator`.
    """
    check_separator(separator)
    if separator == WHOLE:
        texts = [text]
    elif separator.startswith(PATTERN):
        pattern = re.compile(separator.removeprefix(PATTERN), re.MULTILINE)
        texts = _cut_before(text, [match.start() for match in pattern.finditer(text)])
    elif separator == END_OF_TEXT or (separator == AUTO and END_OF_TEXT in text):
        texts = text.split(END_OF_TEXT)
    elif separator == AUTO:
        headings = _headings(text)
        texts = _cut_before(text, headings) if len(headings) >= 2 else _gather(text)
    else:
        texts = re.split(rf"^[ \t]*{re.escape(separator.strip())}[ \t]*$", text, flags=re.MULTILINE)
    return [text.strip("\n") for text in texts if text.strip()]


def _cut_before(text: str, starts: list[int]) -> list[str]:
    """Cuts at every offset in `starts`; what is before the first one is a text too."""
    bounds = [0, *starts, len(text)]
    return [text[start:stop] for start, stop in pairwise(bounds)]


def _headings(text: str) -> list[int]:
    """Offsets of WikiText's article headings."""
    lines = text.split("\n")
    starts, offset = [], 0
    for number, line in enumerate(lines):
        # Slices, for a heading may be the first or last line.
        around = lines[max(number - 1, 0) : number] + lines[number + 1 : number + 2]
        if HEADING.fullmatch(line) and not any(other.strip() for other in around):
            starts.append(offset)
        offset += len(line) + 1
    return starts


def _gather(text: str) -> list[str]:
    """Cuts after the first blank line beyond `GATHERED` characters, or the first line end beyond `LONGEST`."""
    texts, lines, size = [], [], 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line)
        if size >= LONGEST or (size >= GATHERED and not line.strip()):
            texts.append("".join(lines))
            lines, size = [], 0
    return [*texts, "".join(lines)]


def read_documents(
    source: TextSource, tokenizer: "PreTrainedTokenizerBase", *, separator: str = AUTO, judged: bool = False
) -> Iterator[Document]:
    """All documents of a source in its order, whatever their role. Equal documents count once, empty ones not at all.

    Args:
        source: Where to read.
        tokenizer: Renders chats by its chat template; not used for anything else.
        separator: How .txt files are cut; see `cut_text`.
        judged: Of named sets, the side that papers judge on.

    Raises:
        UserError: As `TextSource.rows` and `cut_text`; a chat that can't be rendered.
    """
    check_separator(separator)
    seen: set[str] = set()
    for row in source.rows(judged=judged):
        for text, hashed in _texts(row, tokenizer, separator):
            if not text.isascii() and SURROGATE.search(text):
                raise UserError(f"{row.place} holds half a character (a lone surrogate); leave it out or mend it")
            digest = hashlib.sha256(hashed.encode()).hexdigest()
            if digest not in seen:
                seen.add(digest)
                yield Document(text, digest, role_of(row, digest), row.cutting)


def _texts(row: Row, tokenizer: "PreTrainedTokenizerBase", separator: str) -> Iterator[tuple[str, str]]:
    """Each text of a row, and what its digest is of."""
    if isinstance(row.value, list):
        # Null and missing keys are the same message: .parquet files can't leave a key out.
        messages = [{key: value for key, value in message.items() if value is not None} for message in row.value]
        if messages:
            yield _render(messages, row.place, tokenizer), json.dumps(messages, sort_keys=True, default=str)
    else:
        for text in cut_text(row.value, separator) if row.cut else [row.value]:
            if text.strip():
                yield text, text


def _render(messages: list[dict[str, Any]], place: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    if not tokenizer.chat_template:
        raise UserError(
            f"{place} holds messages, but the model's tokenizer has no chat template; "
            "take a column of plain text, or a model with a chat template"
        )
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, date_string=CHAT_DATE))
    except Exception as error:  # templates are programs of the model's makers, and raise what they like
        raise UserError(f"the chat template can't render {place} ({error}); leave the row out") from error

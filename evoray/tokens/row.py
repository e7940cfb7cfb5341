"""Rows: what text comes as, whatever it came from.

Row            one row of a source, before it is a document
Cutting        how its token blocks are cut
pick_column    rows of several columns -> rows of text
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from evoray.errors import UserError

__all__ = ["FORMS", "Cutting", "Row", "first_line", "pick_column"]

FORMS = (
    "a .txt, .jsonl or .parquet file, a folder of them, 'embedded', 'wikitext2', 'c4', 'fineweb-edu', "
    "or a data set NAME[:config][:split][:column]"
)


class Cutting(StrEnum):
    """How a document becomes token blocks.

    usual: of at most the sequence length, short ones left out.
    exact: of exactly the sequence length, the rest left out; as papers cut a text they judge on.
    every: of at most the sequence length, short ones kept; as the EvoPress paper cuts documents that stand apart.
    """

    usual = "usual"
    exact = "exact"
    every = "every"


@dataclass(frozen=True)
class Row:
    """One row of a source.

    Attributes:
        value: The text, or a chat as a list of messages (`role`, `content`).
        place: File and line, or data set and row, for errors.
        cut: Whether the text holds many documents (.txt files).
        reserved: The role a document of the embedded text was given by its name.
        cutting: How its blocks are cut; other than `usual` only in the texts that papers judge on.
    """

    value: str | list[dict[str, Any]]
    place: str
    cut: bool = False
    reserved: Literal["search", "judge"] | None = None
    cutting: Cutting = Cutting.usual


def pick_column(rows: Iterator[tuple[str, Mapping[str, Any]]], column: str | None) -> Iterator[Row]:
    """Takes one column of every row; the first row decides which one where none is wanted."""
    for place, row in rows:
        column = column or _default_column(place, row)
        if column not in row:
            raise UserError(f"no column {column!r} in {place}; its columns are {', '.join(row) or 'none'}")
        value = row[column]
        if value is None:
            continue
        if not isinstance(value, str) and not _is_chat(value):
            raise UserError(f"column {column!r} of {place} is a {type(value).__name__}; it must be text or messages")
        yield Row(value, place)


def _default_column(place: str, row: Mapping[str, Any]) -> str:
    for name in ("text", "messages"):
        if name in row:
            return name
    strings = [name for name, value in row.items() if isinstance(value, str)]
    if len(strings) != 1:
        raise UserError(
            f"{place} has no column 'text' or 'messages', and {len(strings)} columns of strings; "
            f"name one of {', '.join(row) or 'none'} after the source, as in NAME:config:split:COLUMN or FILE:COLUMN"
        )
    return strings[0]


def _is_chat(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(message, dict) and "role" in message for message in value)


def first_line(error: Exception) -> str:
    """The first line of another library's error."""
    return str(error).strip().partition("\n")[0]

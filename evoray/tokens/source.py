"""Where text comes from: files, folders, the embedded text, data sets of the Hugging Face hub.

    Row           one row of a source, before it is a document
    TextSource    what `--data` names; `parse` checks it without reading it, `rows` reads it

A row is a whole .txt file (still to be cut into documents), a line of a .jsonl file, a row of a .parquet file or of
a data set, or a document of the embedded text.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from evoray.errors import EvorayError, UserError

__all__ = ["EMBEDDED", "Row", "TextSource"]

EMBEDDED = "embedded"
SUFFIXES = (".txt", ".jsonl", ".parquet")
FORMS = "a .txt, .jsonl or .parquet file, a folder of them, 'embedded', or a data set NAME[:config][:split][:column]"

# Rows of a .parquet file held as Python objects at a time.
PARQUET_ROWS = 1024


@dataclass(frozen=True)
class Row:
    """One row of a source.

    Attributes:
        value: The text, or a chat as a list of messages (`role`, `content`).
        place: File and line, or data set and row, for errors.
        cut: Whether the text holds many documents (.txt files).
        reserved: The role a document of the embedded text was given by its name.
    """

    value: str | list[dict[str, Any]]
    place: str
    cut: bool = False
    reserved: Literal["search", "judge"] | None = None


@dataclass(frozen=True)
class FileText:
    """One file on this machine; `column` picks the column of .jsonl and .parquet files."""

    path: Path
    column: str | None = None

    def rows(self) -> Iterator[Row]:
        if self.path.suffix.lower() == ".txt":
            text = "".join(line for _, line in self._lines())
            return iter([Row(text, str(self.path), cut=True)])
        if self.path.suffix.lower() == ".jsonl":
            return _pick(self._json_lines(), self.column)
        return _pick(self._parquet_rows(), self.column)

    def _lines(self) -> Iterator[tuple[str, str]]:
        """Place and text of every line, ends of lines as `\\n`."""
        number = 0
        try:
            with self.path.open("rb") as file:
                for number, raw in enumerate(file, start=1):
                    # Some editors put a byte order mark first.
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                    yield f"{self.path} line {number}", line[:-2] + "\n" if line.endswith("\r\n") else line
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path} line {number} is not UTF-8 ({error.reason}); convert the file") from error
        except OSError as error:
            raise UserError(f"text file {self.path} can't be read ({error.strerror}); check its rights") from error

    def _json_lines(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for place, line in self._lines():
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{place} is not JSON ({error}); a .jsonl file has one JSON object per line") from error
            if not isinstance(row, dict):
                raise UserError(f"{place} is {line.strip()[:40]!r}; a .jsonl file has one JSON object per line")
            yield place, row

    def _parquet_rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        from pyarrow import ArrowException, parquet

        number = 0
        try:
            with parquet.ParquetFile(self.path) as file:
                # A column that is not there is left for `_pick`, which names the columns there are.
                known = self.column is not None and self.column in file.schema_arrow.names
                for batch in file.iter_batches(PARQUET_ROWS, columns=[self.column] if known else None):
                    for row in batch.to_pylist():
                        number += 1
                        yield f"{self.path} row {number}", row
        except (ArrowException, OSError) as error:
            raise UserError(
                f"{self.path} can't be read after row {number} ({_line(error)}); write the file anew"
            ) from error


@dataclass(frozen=True)
class EmbeddedText:
    """The text that comes with evoray; training documents of the embedded model are left out."""

    def rows(self) -> Iterator[Row]:
        from evoray.embedded.text import documents

        for role in ("search", "judge"):
            for number, text in enumerate(documents(role), start=1):
                yield Row(text, f"embedded {role} document {number}", reserved=role)


@dataclass(frozen=True)
class HubText:
    """One split of a data set of the hub, streamed, so that only what is used is downloaded."""

    name: str
    config: str | None
    split: str
    column: str | None

    def rows(self) -> Iterator[Row]:
        import datasets

        where = f"data set {':'.join([self.name, self.config or '', self.split])}"
        try:
            stream = iter(datasets.load_dataset(self.name, self.config, split=self.split, streaming=True))
            first = next(stream, None)
        except Exception as error:  # the library, its file systems and the network raise dozens of kinds
            raise UserError(
                f"{where} can't be loaded ({type(error).__name__}: {_line(error)}); give {FORMS}, "
                "or check the network, HF_TOKEN and the names of config and split"
            ) from error
        if first is None:
            return iter(())
        return _pick(self._numbered(where, chain([first], stream)), self.column)

    @staticmethod
    def _numbered(where: str, stream: Iterator[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        number = 0
        while True:
            try:
                row = next(stream, None)
            except Exception as error:  # as above, but here the data set is known to be good
                kind = type(error).__name__
                raise EvorayError(f"{where} broke off after row {number} ({kind}: {_line(error)})") from error
            if row is None:
                return
            number += 1
            yield f"{where} row {number}", row


@dataclass(frozen=True)
class TextSource:
    """One or more places to read text from, in order.

    Attributes:
        spec: As the user wrote it.
        parts: Files (folders are spread into their files, sorted by path), embedded text, data sets.
    """

    spec: str
    parts: tuple[FileText | EmbeddedText | HubText, ...]

    @classmethod
    def parse(cls, spec: str) -> "TextSource":
        """Reads the text form of a source. Files are looked up, but not opened; data sets are not looked up.

        Args:
            spec: Comma-separated list of: a .txt, .jsonl or .parquet file, or a folder (every such file below it),
                each with an optional `:column`; `embedded`; `NAME[:config][:split][:column]`, where an empty field
                means the default (`NAME::validation`).

        Raises:
            UserError: A file that is not there or of another kind, a folder without text, not a name.
        """
        # A comma may belong to a path; then the whole is one.
        names = [spec] if Path(spec).exists() else spec.split(",")
        return cls(spec, tuple(part for name in names for part in _parse_part(name.strip())))

    @property
    def streamed(self) -> bool:
        """Whether some part is streamed: its end is not known, so its order is kept."""
        return any(isinstance(part, HubText) for part in self.parts)

    def rows(self) -> Iterator[Row]:
        """All rows in order.

        Raises:
            UserError: What can't be read or has no such column, naming file and line.
            EvorayError: A stream broke off.
        """
        return chain.from_iterable(part.rows() for part in self.parts)


def _parse_part(spec: str) -> list[FileText | EmbeddedText | HubText]:
    if not spec:
        raise UserError(f"empty name of a text; give {FORMS}")
    if spec == EMBEDDED:
        return [EmbeddedText()]
    head, _, tail = spec.rpartition(":")
    for path, column in ((spec, None), (head, tail or None)):
        if path and Path(path).expanduser().exists():
            return _files(Path(path).expanduser(), column)
    if _looks_like_path(spec) or _looks_like_path(head):
        raise UserError(f"no such text file or folder: {spec!r}; give {FORMS}")
    name, *fields = spec.split(":")
    if len(fields) > 3 or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UserError(f"{spec!r} names no text; give {FORMS}")
    config, split, column = (field or None for field in (fields + [""] * 3)[:3])
    return [HubText(name, config, split or "train", column)]


def _looks_like_path(text: str) -> bool:
    """Whether a missing file was meant, and not a data set; Windows paths (`C:\\text`) included."""
    return text.lower().endswith(SUFFIXES) or "\\" in text or bool(re.match(r"~|\.{0,2}/|[A-Za-z]:/", text))


def _files(path: Path, column: str | None) -> list[FileText | EmbeddedText | HubText]:
    if not path.is_dir():
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"text file {str(path)!r} ends in {path.suffix!r}; it must end in {', '.join(SUFFIXES)}")
        return [FileText(path, column)]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise UserError(f"no text in folder {str(path)!r}; it must hold files that end in {', '.join(SUFFIXES)}")
    return [FileText(file, column) for file in found]


def _pick(rows: Iterator[tuple[str, Mapping[str, Any]]], column: str | None) -> Iterator[Row]:
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


def _line(error: Exception) -> str:
    """The first line of another library's error."""
    return str(error).strip().partition("\n")[0]

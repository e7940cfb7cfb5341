"""Where text comes from: files, folders, the embedded text, data sets of the Hugging Face hub.

    TextSource    what `--data` names; `parse` checks it without reading it, `rows` reads it

A row is a whole .txt file (still to be cut into documents), a line of a .jsonl file, a row of a .parquet file or of
a data set, or a document of the embedded text.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evoray.errors import UserError
from evoray.tokens.hub import HubText
from evoray.tokens.named import NAMED, NamedText
from evoray.tokens.row import FORMS, Row, first_line, pick_column

__all__ = ["EMBEDDED", "Row", "TextSource"]

EMBEDDED = "embedded"
SUFFIXES = (".txt", ".jsonl", ".parquet")

# Rows of a .parquet file held as Python objects at a time.
PARQUET_ROWS = 1024


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
            return pick_column(self._json_lines(), self.column)
        return pick_column(self._parquet_rows(), self.column)

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
                f"{self.path} can't be read after row {number} ({first_line(error)}); write the file anew"
            ) from error


@dataclass(frozen=True)
class EmbeddedText:
    """The text that comes with evoray; training documents of the embedded model are left out."""

    def rows(self) -> Iterator[Row]:
        from evoray.embedded.text import documents

        for role in ("search", "judge"):
            for number, text in enumerate(documents(role), start=1):
                yield Row(text, f"embedded {role} document {number}", reserved=role)


Part = FileText | EmbeddedText | NamedText | HubText


@dataclass(frozen=True)
class TextSource:
    """One or more places to read text from, in order.

    Attributes:
        spec: As the user wrote it.
        parts: Files (folders are spread into their files, sorted by path), embedded text, named sets, data sets.
    """

    spec: str
    parts: tuple[Part, ...]

    @classmethod
    def parse(cls, spec: str) -> "TextSource":
        """Reads the text form of a source. Files are looked up, but not opened; data sets are not looked up.

        Args:
            spec: Comma-separated list of: a .txt, .jsonl or .parquet file, or a folder (every such file below it),
                each with an optional `:column`; `embedded`; a set by its name in papers (`named`), where no path is
                called so; `NAME[:config][:split][:column]`, where an empty field means the default
                (`NAME::validation`).

        Raises:
            UserError: A file that is not there or of another kind, a folder without text, not a name.
        """
        # A comma may belong to a path; then the whole is one.
        names = [spec] if Path(spec).exists() else spec.split(",")
        return cls(spec, tuple(part for name in names for part in _parse_part(name.strip())))

    @property
    def streamed(self) -> bool:
        """Whether some part is streamed: its end is not known, so its order is kept."""
        return any(isinstance(part, HubText) or (isinstance(part, NamedText) and part.streamed) for part in self.parts)

    @property
    def judged_tokens(self) -> int | None:
        """Tokens to judge on where nobody says: all (None), but of named sets with too many what the paper takes."""
        limits = [part.judged_tokens for part in self.parts if isinstance(part, NamedText)]
        return max((limit for limit in limits if limit is not None), default=None)

    def rows(self, *, judged: bool = False) -> Iterator[Row]:
        """All rows in order.

        Args:
            judged: Of named sets, the side that papers judge on.

        Raises:
            UserError: What can't be read or has no such column, naming file and line.
            EvorayError: A stream broke off.
        """
        for part in self.parts:
            yield from part.rows_to_judge() if judged and isinstance(part, NamedText) else part.rows()


def _parse_part(spec: str) -> list[Part]:
    if not spec:
        raise UserError(f"empty name of a text; give {FORMS}")
    if spec == EMBEDDED:
        return [EmbeddedText()]
    head, _, tail = spec.rpartition(":")
    for path, column in ((spec, None), (head, tail or None)):
        if path and Path(path).expanduser().exists():
            return _files(Path(path).expanduser(), column)
    if spec in NAMED:
        return [NAMED[spec]]
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


def _files(path: Path, column: str | None) -> list[Part]:
    if not path.is_dir():
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"text file {str(path)!r} ends in {path.suffix!r}; it must end in {', '.join(SUFFIXES)}")
        return [FileText(path, column)]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise UserError(f"no text in folder {str(path)!r}; it must hold files that end in {', '.join(SUFFIXES)}")
    return [FileText(file, column) for file in found]

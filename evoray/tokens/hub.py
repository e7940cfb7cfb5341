"""Data sets of the Hugging Face hub.

Holds: `HubText`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from evoray.errors import EvorayError, UserError
from evoray.tokens.row import FORMS, Row, first_line, pick_column

__all__ = ["HubText"]


@dataclass(frozen=True)
class HubText:
    """One split of a data set of the hub, streamed, so that only what is used is downloaded.

    Attributes:
        name: Of the data set.
        config: Of it; None for its default.
        split: Of it.
        column: To take; None for the one that is text.
        file: The one file of it to read as that split; None for all.
        revision: Its commit; None for the newest.
    """

    name: str
    config: str | None
    split: str
    column: str | None
    file: str | None = None
    revision: str | None = None

    def rows(self) -> Iterator[Row]:
        import datasets

        where = f"data set {':'.join([self.name, self.config or '', self.split])}"
        try:
            stream = iter(
                datasets.load_dataset(self.name, self.config, split=self.split, streaming=True, **self._narrowed)
            )
            first = next(stream, None)
        except Exception as error:  # the library, its file systems and the network raise dozens of kinds
            raise UserError(
                f"{where} can't be loaded ({type(error).__name__}: {first_line(error)}); give {FORMS}, "
                "or check the network, HF_TOKEN and the names of config and split"
            ) from error
        if first is None:
            return iter(())
        return pick_column(self._numbered(where, chain([first], stream)), self.column)

    @property
    def _narrowed(self) -> dict[str, Any]:
        """Arguments of the library that not every data set has."""
        files = {} if self.file is None else {"data_files": {self.split: self.file}}
        return files if self.revision is None else files | {"revision": self.revision}

    @staticmethod
    def _numbered(where: str, stream: Iterator[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        number = 0
        while True:
            try:
                row = next(stream, None)
            except Exception as error:  # as above, but here the data set is known to be good
                kind = type(error).__name__
                raise EvorayError(f"{where} broke off after row {number} ({kind}: {first_line(error)})") from error
            if row is None:
                return
            number += 1
            yield f"{where} row {number}", row

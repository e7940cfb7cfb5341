"""Data sets that papers judge on, by the names they have there.

Holds: `NamedText`, `NAMED`.

Each has two sides. One to learn from, for Hessians and search: documents apart, shared out by their hash like any other
text. One to judge on, cut as the code of the EvoPress paper (arXiv 2410.14649) cuts it, so that perplexities can stand
beside published ones:

    wikitext2      the test split as one text, blocks of exactly the sequence length
    c4             the first 1,100 rows of one validation file, likewise
    fineweb-edu    documents apart, pieces of at most the sequence length

What is judged on has no special tokens. The paper judges on the second half of fineweb-edu's rows, which a stream can't
reach without reading the first; here the judging share of the documents, by hash, keeps the texts apart instead.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from evoray.errors import UserError
from evoray.tokens.hub import HubText
from evoray.tokens.row import Cutting, Row

__all__ = ["NAMED", "NamedText"]

# What stands between the rows of a text that is judged on as one.
BETWEEN = "\n\n"

C4_REVISION = "607bd4c8450a42878aa9ddc051a65a055450ef87"
C4_ROWS = 1100

# The paper's `eval_tokens`, for a set without an end worth waiting for.
FINEWEB_TOKENS = 524288


@dataclass(frozen=True)
class NamedText:
    """A data set that papers judge on.

    Attributes:
        name: As users write it.
        learned: The side for Hessians and search.
        judged: The side to judge on.
        joined: Whether that side is one text.
        lines: Whether rows of the other side are lines of one text, to be cut into documents at its headings.
        judged_rows: Rows to judge on; None for all.
        judged_tokens: Tokens to judge on where nobody says; None for all.
    """

    name: str
    learned: HubText
    judged: HubText
    joined: bool
    lines: bool = False
    judged_rows: int | None = None
    judged_tokens: int | None = None

    @property
    def streamed(self) -> bool:
        """Whether the side to learn from is too large to be read whole."""
        return not self.lines

    def rows(self) -> Iterator[Row]:
        """Rows for Hessians and search.

        Raises:
            UserError: As `HubText.rows`.
            EvorayError: The stream broke off.
        """
        if not self.lines:
            return self.learned.rows()
        # Every row is a line and brings its own end.
        return iter([Row("".join(_texts(self.learned.rows())), self.name, cut=True)])

    def rows_to_judge(self) -> Iterator[Row]:
        """Rows as the paper judges on them; one where they make one text.

        Raises:
            UserError: As `HubText.rows`.
            EvorayError: The stream broke off.
        """
        rows = islice(self.judged.rows(), self.judged_rows)
        if not self.joined:
            return (replace(row, cutting=Cutting.every) for row in rows)
        return iter([Row(BETWEEN.join(_texts(rows)), self.name, cutting=Cutting.exact)])


def _texts(rows: Iterator[Row]) -> Iterator[str]:
    for row in rows:
        if not isinstance(row.value, str):
            raise UserError(f"{row.place} holds messages; this data set should be text, so check the hub's mirror")
        yield row.value


def _c4(split: str, file: str) -> HubText:
    return HubText("allenai/c4", "default", split, "text", file=f"en/{file}", revision=C4_REVISION)


# The hub moved `wikitext` below its owner; the rows are the same.
_wikitext = HubText("Salesforce/wikitext", "wikitext-2-raw-v1", "train", "text")
_fineweb = HubText("HuggingFaceFW/fineweb-edu", "sample-10BT", "train", "text")

_sets = (
    NamedText("wikitext2", _wikitext, replace(_wikitext, split="test"), joined=True, lines=True),
    NamedText(
        "c4",
        _c4("train", "c4-train.00000-of-01024.json.gz"),
        _c4("validation", "c4-validation.00000-of-00008.json.gz"),
        joined=True,
        judged_rows=C4_ROWS,
    ),
    NamedText("fineweb-edu", _fineweb, _fineweb, joined=False, judged_tokens=FINEWEB_TOKENS),
)

NAMED: dict[str, NamedText] = {text.name: text for text in _sets} | {"fineweb_edu": _sets[-1]}
"""By the name in `--data`; the paper's code writes fineweb_edu."""

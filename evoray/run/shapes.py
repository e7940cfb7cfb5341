"""The shapes that losses are computed in: settled once per run, recorded, equal on all workers and after a resume.

Holds: `Shapes`, `probed_shapes`, `ShapesRecord`, `settled_shapes`.

Shapes decide floating point, and memory decides shapes. So they are found out before the first loss, on one worker.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from evoray.cluster import Pool
from evoray.errors import DeviceFullError, UserError
from evoray.evaluator import Work
from evoray.fitness import Fitness
from evoray.run.directory import RunDirectory
from evoray.run.ground import Ground
from evoray.settings import TOKENS_PER_PASS, VOCABULARY_CHUNK, ChoiceSettings, EvalSettings
from evoray.store import Location
from evoray.tokens import Batch, TokenText

_C = TypeVar("_C", bound=ChoiceSettings)

SHAPES = "shapes.json"

MIB = 1 << 20

LEAST_CHUNK = 256
"""Rows of the head below which products get slow and little memory is saved."""


@dataclass(frozen=True)
class Shapes:
    """What fixes the shapes of passes beside the text.

    Attributes:
        tokens_per_pass: most tokens of a forward pass, padding included.
        vocabulary_chunk: rows of the output head per matrix product.
    """

    tokens_per_pass: int = TOKENS_PER_PASS
    vocabulary_chunk: int = VOCABULARY_CHUNK

    @classmethod
    def of(cls, settings: ChoiceSettings | EvalSettings) -> "Shapes":
        """Those that settings name; what they leave open is as usual."""
        return cls(settings.tokens_per_pass or TOKENS_PER_PASS, settings.vocabulary_chunk or VOCABULARY_CHUNK)

    def smaller(self, longest: int, *, rows: bool = True, chunk: bool = True) -> "Shapes | None":
        """The next smaller ones: fewer rows, and then less of the vocabulary at once. None where nothing is left.

        Args:
            longest: tokens of the longest block, which can't be cut.
            rows, chunk: whether these may shrink.
        """
        if rows and self.tokens_per_pass > longest:
            return Shapes(max(longest, self.tokens_per_pass // 2), self.vocabulary_chunk)
        if chunk and self.vocabulary_chunk > LEAST_CHUNK:
            return Shapes(self.tokens_per_pass, max(LEAST_CHUNK, self.vocabulary_chunk // 2))
        return None


def probed_shapes(
    pool: Pool, text: TokenText, settings: ChoiceSettings | EvalSettings, fitness: Fitness = Fitness.kl
) -> Shapes:
    """The shapes that a worker's memory allows; those that settings name are taken as they are.

    A pass may take half of `--work-memory`, so that states to resume from have the other half; the smallest one all.

    Args:
        pool: one of whose workers is asked.
        text: with the longest blocks that will be measured.
        settings: memory, and what they name.
        fitness: that will be measured.

    Raises:
        UserError: not even one block fits.
    """
    shapes = Shapes.of(settings)
    if settings.tokens_per_pass and settings.vocabulary_chunk:
        return shapes
    longest = max(len(block) for block in text.blocks)
    while True:
        try:
            taken = pool.each([_fullest(text, shapes)], "pass_bytes", fitness)[0]
        except DeviceFullError:
            taken = math.inf
        smaller = shapes.smaller(longest, rows=not settings.tokens_per_pass, chunk=not settings.vocabulary_chunk)
        if taken <= settings.work_memory / (1 if smaller is None else 2):
            return shapes
        if smaller is None:
            size = f"{taken / MIB:,.1f} MiB" if taken < math.inf else "more than there is on its device"
            raise UserError(
                f"a pass of {max(longest, shapes.tokens_per_pass)} tokens takes {size} beside model and variants, and "
                f"--work-memory is {settings.work_memory / MIB:,.1f} MiB; raise it, or lower --tokens-per-pass or "
                "--sequence-length"
            )
        shapes = smaller


def _fullest(text: TokenText, shapes: Shapes) -> Work:
    """A batch of a text than which none takes more memory: as many of its longest blocks as go into a pass."""
    by_length = sorted(range(len(text.blocks)), key=lambda block: -len(text.blocks[block]))
    longest = len(text.blocks[by_length[0]])
    chosen = by_length[: max(1, shapes.tokens_per_pass // longest)]
    batch = Batch(text.digest, tuple(chosen), tuple(len(text.blocks[block]) for block in chosen), longest)
    return Work(batch.ids(text), batch.cuts, vocabulary_chunk=shapes.vocabulary_chunk)


class ShapesRecord:
    """The shapes of a run, and from which generation on they hold.

    Args:
        folder: of the run.

    Raises:
        UserError: the record is damaged.
    """

    def __init__(self, folder: Location) -> None:
        self._place = folder / SHAPES
        self._entries: list[dict[str, Any]] = []
        if self._place.exists():
            try:
                self._entries = list(json.loads(self._place.read_bytes()))
                for entry in self._entries:
                    _shapes(entry)
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{self._place} is damaged; give another run directory") from None

    @property
    def last(self) -> Shapes | None:
        """Those that hold; None where nothing was settled."""
        return _shapes(self._entries[-1]) if self._entries else None

    def begin(self, shapes: Shapes) -> None:
        """Settles the shapes of a run that has measured nothing yet."""
        self._entries = []
        self.add(shapes, 0, "probed at the start")

    def add(self, shapes: Shapes, generation: int, reason: str) -> None:
        """Settles others.

        Args:
            shapes: that hold from now on.
            generation: the first that is measured in them.
            reason: for people.
        """
        self._entries.append({"generation": generation, **asdict(shapes), "reason": reason})
        self._place.write_bytes(json.dumps(self._entries, indent=1).encode())


def settled_shapes(run: RunDirectory, pool: Pool, ground: Ground, settings: _C) -> _C:
    """Settings with the shapes of a run: those it was begun with, or what is found out now.

    Args:
        run: its directory, which keeps them.
        pool: one of whose workers is asked.
        ground: the texts and the fitness.
        settings: which may name some.

    Raises:
        UserError: not even one block fits, or the record is damaged.
    """
    record = ShapesRecord(run.location)
    shapes = record.last if run.measured else None
    if shapes is None:
        longest = max(ground.text, ground.judge_text, key=lambda text: max(map(len, text.blocks)))
        shapes = probed_shapes(pool, longest, settings, ground.fitness)
        record.begin(shapes)
    return settings.model_copy(update=asdict(shapes))


def _shapes(entry: Mapping[str, Any]) -> Shapes:
    return Shapes(int(entry["tokens_per_pass"]), int(entry["vocabulary_chunk"]))

"""A run as its directory tells it, for reading.

Holds: `Run`.
"""

from functools import cached_property
from typing import Any

from evoray.configuration import Configuration
from evoray.errors import UserError
from evoray.run.directory import BEST
from evoray.run.journal import GenerationRow, Journal
from evoray.run.named import read_best
from evoray.store import Location


class Run:
    """What a search left behind. Reads only; a search may be at work meanwhile.

        run = Run("run")
        for row in run.generations:
            print(row.generation, row.fitness, row.bits)

    Args:
        place: the run directory, a folder or URI.

    Raises:
        UserError: the journal is damaged.
    """

    def __init__(self, place: str) -> None:
        self.location = Location.parse(place)
        self.journal = Journal(self.location)

    @property
    def generations(self) -> tuple[GenerationRow, ...]:
        """What was decided, generation by generation."""
        return tuple(self.journal.rows)

    @cached_property
    def best(self) -> dict[str, Any]:
        """What best.json holds.

        Raises:
            UserError: there is none yet, or it is damaged.
        """
        best = read_best(self.location)
        if best is None:
            raise UserError(f"{self.location} has no {BEST}; a search writes it after its first generation")
        return best

    @property
    def configuration(self) -> Configuration:
        """Layer -> level of the best so far."""
        return dict(self.best["configuration"])

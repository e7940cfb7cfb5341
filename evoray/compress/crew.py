"""Who does the work of a build: `Crew`, and `LocalCrew`, this process alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from evoray.compress.hessian import Sums, add_sums
from evoray.compress.recipe import HESSIAN_SHARDS

if TYPE_CHECKING:
    from evoray.compress.work import BuildWork, Finished, Task
    from evoray.store import Variant


class Crew(Protocol):
    """Workers of one build, seen from whoever leads it. Between calls the whole text stands at the same block."""

    def observe(self, block: int, *, moves: bool) -> Sums:
        """One pass of the whole text through a block: what its layers see, shards added in order.

        Args:
            block: the text has passed those before it.
            moves: the text passes this one, too, with the base weights.
        """

    def advance(self, block: int, given: Mapping[str, Variant] | None) -> None:
        """Lets the whole text pass a block.

        Args:
            block: the text has passed those before it.
            given: layer -> variant of the block's layers in the model compressed so far; None for base weights.
        """

    def make(self, tasks: Sequence[Task], take: Callable[[Finished], None]) -> None:
        """Begins to make layers.

        Args:
            tasks: what to make. They may wait while the text goes on, but those of earlier calls are begun first.
            take: called in this thread with what became of each, in any order, now or in later calls.
        """

    def finish(self) -> None:
        """Waits until all that was begun is made and taken."""


class LocalCrew:
    """A crew of one, which does everything at once and in order."""

    def __init__(self, work: BuildWork) -> None:
        self._work = work

    def observe(self, block: int, *, moves: bool) -> Sums:
        total: Sums = {}
        for shard in range(HESSIAN_SHARDS):
            add_sums(total, self._work.observe(shard, block, moves=moves))
        return total

    def advance(self, block: int, given: Mapping[str, Variant] | None) -> None:
        for shard in range(HESSIAN_SHARDS):
            self._work.advance(shard, block, given)

    def make(self, tasks: Sequence[Task], take: Callable[[Finished], None]) -> None:
        for task in tasks:
            take(self._work.make(task))

    def finish(self) -> None:
        pass

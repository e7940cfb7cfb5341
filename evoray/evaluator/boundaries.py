"""States at block boundaries from which candidates resume.

Holds: `BoundaryStack`.
"""

from collections.abc import Collection, Sequence

from torch import Tensor


class BoundaryStack:
    """The states along the path to the present candidate, for those behind it in sorted order.

    Every k-th boundary is kept where all would not fit.

    Args:
        blocks: of the model.
        usable: boundaries from which a pass may start, 0 among them.
        differs: per neighbouring pair of candidates in sorted order the first block where they differ.
        state_bytes: of one state.
        limit: most bytes of all states.
    """

    def __init__(
        self, blocks: int, usable: Collection[int], differs: Sequence[int], state_bytes: int, limit: int
    ) -> None:
        self.blocks, self.differs, self.state_bytes, self.limit = blocks, differs, state_bytes, limit
        # Block -> the last boundary up to it from which a pass may start.
        self._resume_at = [max(b for b in usable if b <= block) for block in range(blocks + 1)]
        self.states: dict[int, Tensor] = {}

    @property
    def bytes(self) -> int:
        """Bytes of the states that are kept."""
        return sum(state.nbytes for state in self.states.values())

    def halve(self) -> bool:
        """Gives half of the room back, and all states; whether there was any room."""
        if not self._fitting:
            return False
        self.states.clear()
        self.limit = self._fitting * self.state_bytes // 2
        return True

    def start(self, step: int) -> int:
        """The block at which a candidate, by its place in sorted order, starts; states behind that are let go."""
        first = self.differs[step - 1] if step else 0
        self.states = {boundary: state for boundary, state in self.states.items() if boundary <= first}
        return max(self.states, default=0)

    def needed(self, step: int, start: int) -> tuple[int, ...]:
        """The boundaries behind `start` that a later candidate resumes from before anything makes them stale."""
        stride = -(-self.blocks // (self._fitting + 1))
        needed: set[int] = set()
        lowest = self.blocks
        for block in self.differs[step:]:
            if block < lowest:
                lowest = block
                needed.add(self._resume_at[lowest - lowest % stride])
            if lowest <= start:
                break
        return tuple(boundary for boundary in needed if boundary > start)

    @property
    def _fitting(self) -> int:
        """How many of the inner boundaries' states fit the limit."""
        return min(self.blocks - 1, max(0, self.limit) // max(1, self.state_bytes))

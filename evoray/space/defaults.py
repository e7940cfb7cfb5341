"""What a search over a kind of store does where the user says nothing.

Holds: `KindDefaults`.
"""

from dataclasses import dataclass

from evoray.space.ties import Tie


@dataclass(frozen=True)
class KindDefaults:
    """What a search over a kind of store does where the user says nothing.

    Attributes:
        tie: which layers share a level.
        equal_steps: switches are between steps of exactly the same cost.
    """

    tie: Tie
    equal_steps: bool

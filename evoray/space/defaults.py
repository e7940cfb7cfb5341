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
    """

    tie: Tie

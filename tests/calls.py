"""Calls of the command line, in this process and into pipes: `Call`, which the fixture `call` gives, and `Outcome`."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """Exit code, and what was written to standard output and standard error."""

    code: int
    out: str
    err: str


Call = Callable[..., Outcome]

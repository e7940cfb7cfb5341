"""What a report says of a run, in numbers.

Holds: `RunNumbers`, and what it consists of: `Generation`, `Rung`, `Part`, `LevelError`, `Judged`; `loss_name`.
"""

from dataclasses import asdict, dataclass
from typing import Any

from evoray.report.allocation import Allocation


@dataclass(frozen=True)
class Generation:
    """One generation of a search.

    Attributes:
        generation: 0 for the race that finds a start.
        total_tokens, total_seconds: spent up to its end.
        fitness: the winner's loss on the last rung, nats per token.
        parent_fitness: the parent's on the same tokens; None where there was none.
        accepted: a child won.
        candidates, tokens, seconds, lost_workers: of this generation.
        busy_seconds: of each worker in it.
        bits, bpw, size: of the winner.
    """

    generation: int
    total_tokens: int
    total_seconds: float
    fitness: float
    parent_fitness: float | None
    accepted: bool
    candidates: int
    tokens: int
    seconds: float
    lost_workers: int
    busy_seconds: tuple[float, ...]
    bits: float
    bpw: float
    size: int


@dataclass(frozen=True)
class Rung:
    """One rung of one generation's race.

    Attributes:
        generation: whose race.
        rung: from 0.
        candidates: that were measured.
        tokens_each: that each of them was measured on.
    """

    generation: int
    rung: int
    candidates: int
    tokens_each: int

    @property
    def tokens(self) -> int:
        """Candidate tokens."""
        return self.candidates * self.tokens_each


@dataclass(frozen=True)
class Part:
    """A part of the checkpoint.

    Attributes:
        name: a kind of layer, or what else there is.
        bytes: as the configuration stores it.
        base_bytes: in the base model; None where that is not known.
    """

    name: str
    bytes: int
    base_bytes: int | None


@dataclass(frozen=True)
class LevelError:
    """The layer errors of one kind at one level, over the blocks."""

    kind: str
    level: str
    layers: int
    mean: float
    least: float
    most: float


@dataclass(frozen=True)
class Judged:
    """One candidate on the held-out text.

    Attributes:
        better_by: by how much `found` has less KL than this one, nats per token.
        interval: half width of the paired 95% interval of that.
    """

    name: str
    bits: float
    bpw: float
    size: int
    sparsity: float
    kl: float
    perplexity: float
    better_by: float
    interval: float


@dataclass(frozen=True)
class RunNumbers:
    """All that a report says of one run.

    Attributes:
        name: what it is called beside others.
        place: the run directory.
        baseline: which baseline it is of; None for a search.
        state: how far it is, for people.
        fitness: name of the loss, None where not even that is known.
        generations: of a search.
        funnel: rungs of all generations.
        allocation: of the best configuration so far.
        parts: of its checkpoint; empty where they are not known.
        errors: of the store's variants; empty where there are none.
        error_levels: levels of `errors`, from the cheapest to the dearest.
        judged: on the held-out text, `found` first; empty before.
        held_out: which text that was, and its tokens.
        doubts: what a reader must not overlook.
        costs: bits, bpw, bytes, size and sparsity of the best configuration.
        facts: what was measured, by whom, how long.
        digests, versions, device, settings: where it comes from.
        notes: what could not be shown, and why.
    """

    name: str
    place: str
    baseline: str | None
    state: str
    fitness: str | None
    generations: tuple[Generation, ...]
    funnel: tuple[Rung, ...]
    allocation: Allocation | None
    parts: tuple[Part, ...]
    errors: tuple[LevelError, ...]
    error_levels: tuple[str, ...]
    judged: tuple[Judged, ...]
    held_out: dict[str, Any]
    doubts: tuple[str, ...]
    costs: dict[str, Any]
    facts: dict[str, Any]
    digests: dict[str, Any]
    versions: dict[str, Any]
    device: dict[str, Any]
    settings: dict[str, Any]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def found(self) -> Judged | None:
        """What the run found, on the held-out text."""
        return next((each for each in self.judged if each.name == "found"), None)


def loss_name(fitness: str | None) -> str:
    """What a fitness measures in nats per token, for people."""
    names = {"kl": "KL", "kl-topk": "KL over top tokens", "perplexity": "cross entropy"}
    return names.get(str(fitness), "loss" if fitness is None else fitness)

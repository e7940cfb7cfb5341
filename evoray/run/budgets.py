"""The budgets of a sweep and their run directories, as its folder tells them.

Imports nothing heavy, so that `evoray inspect` answers at once.

Holds: `SweepRecord`, `refuse_sweep`, `spelled`.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from evoray.errors import UserError
from evoray.run.directory import BEST, IDENTITY, SWEEP
from evoray.run.journal import GENERATIONS
from evoray.settings import flag
from evoray.settings.sweep import SWEPT
from evoray.store import Location


def spelled(value: float) -> str:
    """A budget as a user writes it, and with all of its digits: `3`, `2.25`, `3500000000`."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


@dataclass(frozen=True)
class SweepRecord:
    """What sweep.json says: which budgets there are, and which seeds which.

    Attributes:
        folder: of the sweep.
        budget: name of the budget that is swept, such as target_bits.
        seeds: value -> the value that seeds it, or None; each behind the one that seeds it.
    """

    folder: Location
    budget: str
    seeds: dict[float, float | None] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Location) -> "SweepRecord | None":
        """That of a sweep's folder; None where it is none.

        Raises:
            UserError: it is damaged.
        """
        if not (folder / SWEEP).exists():
            return None
        try:
            read = json.loads((folder / SWEEP).read_bytes())
            if read["budget"] not in SWEPT:
                raise ValueError
            number = int if read["budget"] in ("target_size", "drop_blocks") else float
            seeds: dict[float, float | None] = {}
            for value, seed in read["seeds"]:
                if seed is not None and seed not in seeds:
                    raise ValueError
                seeds[number(value)] = None if seed is None else number(seed)
            return cls(folder, read["budget"], seeds)
        except (ValueError, KeyError, TypeError, OverflowError):
            raise UserError(
                f"{folder / SWEEP} is damaged; name its run directories one by one, or give a sweep another --run"
            ) from None

    def write(self) -> None:
        """Replaces sweep.json."""
        text = json.dumps({"budget": self.budget, "seeds": list(map(list, self.seeds.items()))}, indent=1)
        (self.folder / SWEEP).write_bytes(text.encode())

    def name(self, value: float) -> str:
        """Of the run directory of a budget, such as target-bits-2.25."""
        return f"{self.budget.replace('_', '-')}-{spelled(value)}"

    def run(self, value: float) -> Location:
        """The run directory of a budget."""
        return self.folder / self.name(value)

    def begun(self, value: float) -> bool:
        """Whether anything was measured for a budget."""
        run = self.run(value)
        return (run / GENERATIONS).exists() or (run / BEST).exists()

    @property
    def dearest_is_largest(self) -> bool:
        """Whether a larger budget is less compression."""
        return self.budget not in ("target_sparsity", "drop_blocks")

    def ordered(self) -> list[float]:
        """The budgets, dearest first."""
        return sorted(self.seeds, reverse=self.dearest_is_largest)

    def with_values(self, values: Sequence[float]) -> "SweepRecord":
        """The same with more budgets, each seeded by the nearest of those before it, the nearest first.

        The first of all is the middle one: a search learns most of the levels about its budget, and what it learned in
        the middle is of use on both sides.

        What was settled once stays, but for budgets of which nothing was measured and that are not asked for again:
        a slip of an earlier call must not seed this one.
        """
        kept: set[float] = set()
        for value in self.seeds:
            link: float | None = value if self.begun(value) else None
            while link is not None:
                kept.add(link)
                link = self.seeds[link]
        seeds = {value: seed for value, seed in self.seeds.items() if value in kept}
        asked = [value for value in self.seeds if value in values and value not in kept]
        for value in asked:
            # As it was settled, as long as what seeds it is still there.
            if self.seeds[value] is None or self.seeds[value] in seeds:
                seeds[value] = self.seeds[value]
        new = [value for value in sorted(values, reverse=self.dearest_is_largest) if value not in seeds]
        if new and not seeds:
            seeds[new.pop((len(new) - 1) // 2)] = None
        while new:
            value, seed = min(itertools.product(new, seeds), key=lambda pair: abs(pair[0] - pair[1]))
            seeds[value] = seed
            new.remove(value)
        return SweepRecord(self.folder, self.budget, seeds)

    def check_kind(self, budget: str) -> None:
        """Sees that it is a sweep over this kind of budget.

        Raises:
            UserError: it is over another.
        """
        if self.budget != budget:
            raise UserError(f"{self.folder} holds a sweep over {flag(self.budget)}; give another --run")

    def runs(self) -> list[Location]:
        """The run directories that there are, dearest budget first.

        Raises:
            UserError: none yet.
        """
        found = [run for value in self.ordered() if ((run := self.run(value)) / IDENTITY).exists()]
        if not found:
            raise UserError(f"{self.folder} is a sweep without a run directory yet; run the same evoray sweep again")
        return found


def refuse_sweep(folder: Location) -> None:
    """Where one run is wanted, a sweep's folder is told from any other.

    Raises:
        UserError: it is one; the message names its run directories.
    """
    if (folder / SWEEP).exists() and not (folder / IDENTITY).exists():
        record = SweepRecord.read(folder)
        runs = record.runs() if record is not None else []
        raise UserError(f"{folder} is the folder of a sweep; give one of its run directories: {_joined(runs)}")


def _joined(runs: Sequence[Location]) -> str:
    most = 8
    return ", ".join(map(str, runs[:most])) + (f" and {len(runs) - most} more" if len(runs) > most else "")

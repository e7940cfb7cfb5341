"""A race of paired tests: who is worse beyond doubt leaves, and a child wins only on blocks that did not choose it.

Holds: `SequentialRace`, `Doubts`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evoray.evolve.paired import Tally
from evoray.evolve.race import LEAST, Ahead, Blocks, Draw, Known, Measured, Measurement, RaceResult, Rung, check_racers
from evoray.space import Genotype

Merger = Callable[[Genotype, Sequence[Genotype]], Sequence[Genotype]]
"""The best parent and the children that beat it so far, best first -> new children."""

CHOOSING = Draw(0)


@dataclass(frozen=True)
class Doubts:
    """When a race is sure enough.

    Attributes:
        accepting: the probability, at most, that a race lets any child in that is no better than the parent it
            replaces. It is shared out evenly over the looks at the losses, the children that are looked at, and the
            parents they may be compared with (Bonferroni), so it holds however often one looks.
        leaving: a candidate leaves while its kind is being chosen from when a loss this much higher than the leader's
            would come about by chance with this probability. A good one that leaves costs a chance, not a wrong turn.
        worth: what is left to gain, as a share of the parent's loss, below which no more tokens are spent on it.
    """

    accepting: float = 0.05
    leaving: float = 0.1
    worth: float = 0.001


class SequentialRace:
    """All decisions are paired tests over blocks, after each of which the race looks whether it goes on.

    On all rungs but the last the best children are chosen: everyone is measured on the same blocks, parents too, on
    those of one draw from its beginning to the rung's tokens, each time as many more as there were. After each, who is
    worse than the best child beyond doubt leaves; at the end of a rung no more than its survivors go on. When one child
    is left, it is chosen; when every child is worse than the best parent beyond doubt, the parents stay.

    On the last rung the chosen ones are compared with the parents on a draw that lasts for the run, on blocks that
    chose neither: what is known of a parent there is from races that children lost to it, and need not be measured
    again. There are four looks, at an eighth, a quarter, half and all of the rung's tokens. A child wins when its loss
    is lower beyond doubt, see `Doubts.accepting`, than that of the parent it would replace, and no other that still may
    win has a lower one; it leaves when it looks worse, or has too little to gain. Of several parents the weakest are
    replaced, and only a child that is better than the best beyond doubt stands before it.

    Without parents the rungs only choose, and the best by their mean go on.

    Args:
        offspring: distinct genotypes; may be empty where there are parents.
        parents: distinct genotypes, the best first; none for a race that only picks the best of its candidates.
        rungs: at least one. The last names as many survivors as there are parents, or more.
        known: of parents, on blocks of the lasting draw.
        doubts: when it is sure enough.
        merge: new candidates from children that beat the parent on the first rung; they race from there.

    Raises:
        ValueError: see `check_racers`.
    """

    def __init__(
        self,
        offspring: Sequence[Genotype],
        parents: Sequence[Genotype],
        rungs: Sequence[Rung],
        known: Mapping[Genotype, Known] | None = None,
        *,
        doubts: Doubts = Doubts(),
        merge: Merger | None = None,
    ) -> None:
        check_racers(offspring, parents, rungs)
        self._parents, self._doubts, self._merge = tuple(parents), doubts, merge
        self._choosing = tuple(rungs[:-1]) if parents else tuple(rungs)
        self._last = rungs[-1]
        self._children = [genotype for genotype in offspring if genotype not in self._parents]
        self._first = (*self._parents, *self._children)[0]
        self._chosen_on, self._confirmed_on = Tally(), Tally()
        there_of = {parent: known[parent] for parent in self._parents if known is not None and parent in known}
        self._skip = max((there.skip for there in there_of.values()), default=0)
        for parent, there in there_of.items():
            if len(there.losses_B):
                self._confirmed_on.add([parent], there.losses_B[None], there.tokens_B, there.asked)
        self._rung, self._asked, self._look = 0, 0, 0
        self._tests = 1
        self._pending: Measurement | None = None
        self._measured: list[Measured] = []
        self._result: RaceResult | None = None
        self._next()

    def ask(self) -> Measurement | None:
        """See `Race`."""
        return self._pending

    @property
    def result(self) -> RaceResult:
        """See `Race`."""
        if self._result is None:
            raise RuntimeError(f"the race waits for losses of rung {self._asked}")
        return self._result

    def tell(self, losses_NB: NDArray[np.float64], tokens_B: NDArray[np.int64]) -> None:
        """See `Race`.

        Raises:
            RuntimeError: nothing was asked for any more.
            ValueError: losses or tokens of another shape.
        """
        if self._pending is None:
            raise RuntimeError("the race is decided; it asked for no more losses")
        asked, tally = self._pending, self._confirmed_on if self._pending.drawn.lasting else self._chosen_on
        tally.add(asked.genotypes, losses_NB, np.asarray(tokens_B), asked.tokens)
        self._measured.append(tuple((genotype, tally.mean(genotype)) for genotype in asked.genotypes))
        self._asked += 1
        self._pending = None
        self._next()

    def ahead(self, blocks: Blocks) -> tuple[Ahead, ...]:
        """See `Race`.

        While children are chosen, the parents go on with whoever is left. While they are compared with the parents, all
        of them may come to the looks that are left, and one of all is a parent of the next race.
        """
        pending = self._pending
        if pending is None or not self._parents:
            return ()
        found, skip = list[Ahead](), pending.drawn.skip + blocks(pending)
        if pending.drawn.lasting:
            done = self._confirmed_on.asked(pending.genotypes[0]) + pending.tokens
            for look in looks_at(self._last.tokens):
                if look > done:
                    draw = Draw(0, skip, lasting=True)
                    found.append(Ahead(Measurement(self._asked + 1, pending.genotypes, look - done, draw)))
                    done, skip = look, skip + blocks(found[-1].measurement)
            if self._choosing:
                everyone = (*self._parents, *self._children)
                # The next look comes first: it is likelier than one of several to be the next parent.
                found.insert(1, Ahead(Measurement(0, everyone, self._choosing[0].tokens, CHOOSING), later=True))
            return tuple(found)
        done = self._chosen_on.asked(pending.genotypes[0]) + pending.tokens
        # Newcomers catch up with the parents, who wait for them.
        for rung in self._choosing[self._rung :] if pending.genotypes[0] == self._parents[0] else ():
            while rung.tokens - done >= LEAST:
                found.append(Ahead(Measurement(self._asked + 1, self._parents, _more(rung, done), Draw(0, skip))))
                done, skip = done + found[-1].measurement.tokens, skip + blocks(found[-1].measurement)
        unknown = tuple(parent for parent in self._parents if not self._confirmed_on.blocks(parent))
        if unknown:
            look = looks_at(self._last.tokens)[0]
            found.append(Ahead(Measurement(self._asked + 1, unknown, look, Draw(0, self._skip, lasting=True))))
        return tuple(found)

    def _ask(self, genotypes: Sequence[Genotype], tokens: int, draw: Draw) -> None:
        self._pending = Measurement(self._asked, tuple(genotypes), tokens, draw)

    def _next(self) -> None:
        """Goes on until something has to be measured, or the race is decided."""
        while self._pending is None and self._result is None:
            if self._rung < len(self._choosing):
                self._choose()
            elif self._parents:
                self._confirm()
            else:
                ranked = self._ranked(self._children)
                self._finish(ranked[: self._last.survivors], None)

    # Choosing

    def _choose(self) -> None:
        rung, tally = self._choosing[self._rung], self._chosen_on
        if not self._children or (self._parents and len(self._children) == 1 and tally.blocks(self._children[0])):
            self._rung = len(self._choosing)
            return
        racing = [*self._parents, *self._children]
        # Newcomers first catch up with what the others have.
        behind = [genotype for genotype in racing if tally.blocks(genotype) < tally.blocks(racing[0])]
        if behind:
            self._ask(behind, tally.asked(racing[0]), CHOOSING)
            return
        done = tally.asked(racing[0])
        if done == 0 or rung.tokens - done >= LEAST:
            if done:
                self._leave()
                if len(self._children) <= rung.survivors and self._rung + 1 == len(self._choosing) and self._parents:
                    self._rung += 1
                    return
                racing = [*self._parents, *self._children]
                if not self._children:
                    return
            self._ask(racing, _more(rung, done), Draw(0, tally.blocks(racing[0])))
            return
        if self._rung == 0 and self._merge is not None and self._parents:
            merge, self._merge = self._merge, None
            if new := self._merged(merge):
                self._children += new
                return
        self._leave()
        self._children = self._ranked(self._children)[: rung.survivors]
        self._rung += 1

    def _leave(self) -> None:
        """Takes out children without a loss, and who is worse than the best child or parent beyond doubt."""
        tally = self._chosen_on
        self._children = [child for child in self._children if math.isfinite(tally.mean(child))]
        if not self._children:
            return
        rivals = [self._ranked(self._children)[0]]
        if self._parents:
            rivals.append(self._weakest(tally))
        sure = 1 - self._doubts.leaving
        self._children = [
            child
            for child in self._children
            if all(child == rival or tally.apart(child, rival).doubt < sure for rival in rivals)
        ]

    def _merged(self, merge: Merger) -> list[Genotype]:
        tally, parent = self._chosen_on, self._ranked(self._parents)[:1] or list(self._parents[:1])
        better = [child for child in self._ranked(self._children) if tally.mean(child) < tally.mean(parent[0])]
        old = {*self._parents, *self._children}
        return [new for new in dict.fromkeys(merge(parent[0], better)) if new not in old]

    def _ranked(self, genotypes: Sequence[Genotype]) -> list[Genotype]:
        """Those with a loss, the lowest first; sorted() is stable, so ties keep their order."""
        finite = [genotype for genotype in genotypes if math.isfinite(self._chosen_on.mean(genotype))]
        return sorted(finite, key=self._chosen_on.mean)

    def _weakest(self, tally: Tally, blocks: int | None = None) -> Genotype:
        """The parent that a child would replace, by its first blocks or by all."""
        return max(self._parents, key=lambda parent: tally.mean(parent, blocks))

    # Confirming

    def _confirm(self) -> None:
        tally = self._confirmed_on
        looks = looks_at(self._last.tokens)
        if not self._look:
            self._tests = max(1, len(looks) * len(self._children) * len(self._parents))
        if not self._children:
            self._finish([], None)
            return
        racing = [*self._parents, *self._children]
        wanted = looks[self._look]
        behind = [genotype for genotype in racing if tally.asked(genotype) < wanted]
        if behind:
            # Those that lack the fewest blocks wait for the others, so that all are asked for the same.
            first = min(tally.blocks(genotype) for genotype in behind)
            same = [genotype for genotype in behind if tally.blocks(genotype) == first]
            done = tally.asked(same[0])
            until = next(look for look in looks if look > done)
            self._ask(same, until - done, Draw(0, self._skip + first, lasting=True))
            return
        self._look += 1
        self._judge(tally, over=self._look == len(looks))

    def _judge(self, tally: Tally, *, over: bool) -> None:
        """One look: who wins, who leaves, who is measured further."""
        blocks = min(tally.blocks(genotype) for genotype in (*self._parents, *self._children))
        weakest = self._weakest(tally, blocks)
        level = tally.mean(weakest, blocks)
        ranked = sorted(self._children, key=lambda child: tally.mean(child, blocks))
        apart = {child: tally.apart(child, weakest) for child in ranked}
        certain = [child for child in ranked if self._better(child, weakest)]
        worth = self._doubts.worth * abs(level) if math.isfinite(level) else 0.0
        going = [
            child for child in ranked if child in certain or (apart[child].mean < 0 and apart[child].best() < -worth)
        ]
        if certain and (over or certain[0] == going[0]):
            doubt = min(1.0, apart[certain[0]].doubt * self._tests)
            self._finish(certain if over else [child for child in going if child in certain], doubt)
        elif over or not going:
            self._finish([], None)
        else:
            self._children = going

    def _better(self, genotype: Genotype, parent: Genotype) -> bool:
        """Beyond doubt."""
        return self._confirmed_on.apart(genotype, parent).doubt <= self._doubts.accepting / self._tests

    def _finish(self, children: Sequence[Genotype], doubt: float | None) -> None:
        """Children that won, the best first; the parents fill the other places."""
        if not self._parents:
            kept = tuple(children) or (self._first,)
            self._result = RaceResult(kept[0], self._chosen_on.mean(kept[0]), None, tuple(self._measured), kept)
            return
        tally, whole = self._confirmed_on, [*self._parents, *children]
        blocks = min(tally.blocks(genotype) for genotype in whole)
        if not blocks:
            # Nothing was confirmed: what there is are the blocks that chose.
            tally, blocks = self._chosen_on, min(self._chosen_on.blocks(genotype) for genotype in whole)
        means = {genotype: tally.mean(genotype, blocks) for genotype in whole}
        kept = self._entered(children, means)
        best = next((genotype for genotype in kept if genotype in self._parents), None)
        # A child that is better than a weak parent need not be better than the best, whom it must not pass by luck.
        if best is not None and not any(self._better(child, best) for child in kept if child in children):
            kept = (best, *(genotype for genotype in kept if genotype != best))
        self._result = RaceResult(
            kept[0],
            means[kept[0]],
            min(means[parent] for parent in self._parents),
            tuple(self._measured),
            kept,
            doubt if kept[0] in children else None,
            self._doubts.accepting if self._look else 0.0,
        )

    def _entered(self, children: Sequence[Genotype], means: Mapping[Genotype, float]) -> tuple[Genotype, ...]:
        """Who goes on, by loss: the best children, as long as the next is better than the next weakest parent beyond
        doubt, and the parents that are left."""
        free = self._last.survivors - len(self._parents)
        weakest = sorted(self._parents, key=means.__getitem__, reverse=True)
        replaced = max(0, min(len(children) - free, len(weakest)))
        # The worst of them stands against the best parent that would go.
        while not all(map(self._better, children[:replaced], weakest[:replaced])):
            replaced -= 1
        # Ties go to parents, who stand first, in the order they had.
        stay = [parent for parent in self._parents if parent not in weakest[:replaced]]
        return tuple(sorted([*stay, *children[: replaced + free]], key=means.__getitem__))


def _more(rung: Rung, done: int) -> int:
    """Tokens of the next look on a rung: as many again as there were, so that looks are few and each says much more
    than the one before."""
    more = rung.tokens - done
    return done if done and more >= done + LEAST else more


def looks_at(tokens: int) -> list[int]:
    """After how many tokens the last rung looks at the losses: an eighth, a quarter, half and all."""
    return [tokens // share for share in ((8, 4, 2, 1) if tokens >= 8 * LEAST else (1,))]

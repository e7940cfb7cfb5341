"""The search itself, as an object with ask, tell and stop.

Holds: `Outcome`, `OnePlusLambda`.

    while not strategy.stop:
        race, told = strategy.ask(), []
        while (measurement := race.ask()) is not None:
            told.append(Told(measurement, *measure(measurement)))
            race.tell(told[-1].losses_NB, told[-1].tokens_B)
        strategy.tell(strategy.outcome(race.result), told)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from evoray.errors import UserError
from evoray.evolve.additive import Lessons
from evoray.evolve.draws import Purpose, rng
from evoray.evolve.fixed import FixedRace
from evoray.evolve.mutation import Mutation
from evoray.evolve.paired import Tally
from evoray.evolve.proposals import REPEATS, Mutants, Proposals
from evoray.evolve.race import Known, Race, RaceFactory, RaceResult, Rung, Told
from evoray.evolve.seeding import initial
from evoray.evolve.survey import Survey
from evoray.space import Genotype, Space


@dataclass(frozen=True)
class Outcome:
    """All that a generation leaves behind; telling recorded ones in order restores a strategy exactly.

    Attributes:
        generation: 0 for the race that finds a start.
        winner: the best of those who go on. A list, as it comes out of a journal, becomes a tuple.
        fitness: its loss in nats per token on the last rung; infinite when nothing could be measured.
        population: all who go on, the winner first; the winner alone where nothing is given.
    """

    generation: int
    winner: Genotype
    fitness: float
    population: tuple[Genotype, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "winner", _plain(self.winner))
        object.__setattr__(self, "fitness", float(self.fitness))
        object.__setattr__(self, "population", tuple(map(_plain, self.population)) or (self.winner,))


class OnePlusLambda:
    """(1 + lambda): the parent and its offspring race, and the winner is the next parent; or several parents do.

    The start is, in this order: the one given; the level that meets the target exactly, in every gene (an integer
    target in bits); else the winner of a race over random legal genotypes on the first rung's tokens, which is
    generation 0. Other generations count from 1.

    With a population of more than one, all parents are on the last rung, and its survivors are the next population.
    Generation 0 then always races: the start, if there is one, among random legal genotypes, of whom the best go on.
    There are fewer than asked where a space has hardly more.

    As long as its proposals know too little for it, nobody races: a generation is a survey, and the parents stay.

    Guesses join the first race, whatever it is for: they take places of its random genotypes or offspring, a quarter of
    them at most, evenly out of all guesses where there are more.

    It holds no generator: what a generation draws depends only on seed, generation and the parents, so asking again
    gives the same offspring. Offspring are distinct and none is a parent.

    Args:
        space: what may be chosen.
        offspring: how many a generation; fewer where the parents have hardly more neighbours.
        rungs: of each generation's race, see `evoray.evolve.rungs`.
        mutation: makes a child.
        seed: of all draws.
        generations: after how many to stop, the race for the start not counted.
        initial_candidates: how many genotypes race for the start.
        start: a legal genotype to start from.
        race: makes the races.
        population: how many parents there are; the last rung must have as many survivors.
        initial_tokens: on how many tokens the race for the start is; by default those of the first rung.
        proposals: makes the offspring; by default mutants, as in the paper.
        patience: generations in a row without a new best parent after which to stop; None to go on.
        guesses: genotypes that something cheap holds for good; those that are not legal are left out.

    Raises:
        UserError: counts below their least, or a start that is not legal.
    """

    def __init__(
        self,
        space: Space,
        *,
        offspring: int,
        rungs: Sequence[Rung],
        mutation: Mutation,
        seed: int,
        generations: int,
        initial_candidates: int = 32,
        start: Genotype | None = None,
        race: RaceFactory = FixedRace,
        population: int = 1,
        initial_tokens: int | None = None,
        proposals: Proposals | None = None,
        patience: int | None = None,
        guesses: Sequence[Genotype] = (),
    ) -> None:
        if offspring < 1 or generations < 0 or initial_candidates < 1 or seed < 0:
            raise UserError(
                f"offspring {offspring} and initial candidates {initial_candidates} must be 1 or more, "
                f"generations {generations} and seed {seed} 0 or more"
            )
        if not rungs:
            raise UserError("a search needs at least one rung; give survivors and tokens")
        if population < 1 or rungs[-1].survivors != population or initial_candidates < population:
            raise UserError(
                f"population {population} must be 1 or more, the survivors of the last rung ({rungs[-1].survivors}), "
                f"and at most the initial candidates ({initial_candidates})"
            )
        if initial_tokens is not None and initial_tokens < 1:
            raise UserError(f"initial tokens {initial_tokens} measure nothing; give 1 or more")
        if start is not None and not space.is_legal(start):
            raise UserError(f"the start costs {space.cost(start)}, above the limit {space.limit}; give one within it")
        if patience is not None and patience < 1:
            raise UserError(f"patience {patience} would stop before the first generation; give 1 or more")
        self._space = space
        self._count = offspring
        self._proposals = Mutants(space, mutation) if proposals is None else proposals
        self._patience, self._in_vain = patience, 0
        self._raced = False
        self._known: dict[Genotype, Known] = {}
        self._skip = 0
        self._rungs = tuple(rungs)
        self._seed = seed
        self._generations = generations
        self._initial_candidates = initial_candidates
        self._race = race
        self._size = population
        self._initial_tokens = self._rungs[0].tokens if initial_tokens is None else initial_tokens
        self._start = start if start is not None else space.uniform()
        # More than one parent are always found by a race.
        self._population: tuple[Genotype, ...] = ()
        if self._start is not None and population == 1:
            self._population = (self._start,)
        self._fitness: float | None = None
        self._generation = 1 if self._population else 0
        self._first = self._generation
        legal = [guess for guess in dict.fromkeys(guesses) if space.is_legal(guess) and guess not in self._population]
        self._guesses = _evenly(legal, (offspring if self._first else initial_candidates) // 4)
        self._drawn: tuple[Genotype, ...] | None = None

    @property
    def generation(self) -> int:
        """The one that `ask` gives next."""
        return self._generation

    @property
    def generations(self) -> int:
        """The last one."""
        return self._generations

    @property
    def parent(self) -> Genotype | None:
        """The best so far; None before a start was found."""
        return self._population[0] if self._population else None

    @property
    def population(self) -> tuple[Genotype, ...]:
        """All parents, the best first; none before a start was found."""
        return self._population

    @property
    def fitness(self) -> float | None:
        """The parent's loss in nats per token on the last rung it won; None before it raced."""
        return self._fitness

    @property
    def raced(self) -> bool:
        """Whether any generation was a race that a child could win."""
        return self._raced

    @property
    def lessons(self) -> Lessons | None:
        """What its proposals learned, for a search over the same genes to begin with; None where they don't."""
        return self._proposals.lessons

    @property
    def stop(self) -> bool:
        """Whether there is nothing more to ask."""
        return self.reason is not None

    @property
    def reason(self) -> str | None:
        """Why it stops, for people; None while it goes on."""
        if not self._population:
            return None
        if self._generation > self._generations:
            return f"all {self._generations} generations are done"
        if self._patience is not None and self._in_vain >= self._patience:
            return f"{self._in_vain} generations in a row found nothing better"
        if not self._offspring():
            return f"no legal neighbour of {self._named} was found in {REPEATS} draws of generation {self._generation}"
        return None

    def ask(self) -> Race:
        """The next generation's race, from its beginning.

        Raises:
            RuntimeError: the search has stopped.
        """
        if not self._population:
            rung = Rung(self._size, self._initial_tokens)
            return self._race(self._candidates(), (), (rung,), {})
        if (reason := self.reason) is not None:
            raise RuntimeError(f"the search has stopped: {reason}")
        if self._proposals.surveys:
            return Survey(self._offspring(), self._population, self._rungs[0])
        return self._race(self._offspring(), self._population, self._rungs, self._known)

    def outcome(self, result: RaceResult) -> Outcome:
        """What to record of the current generation's race, and to tell."""
        return Outcome(self._generation, result.winner, result.fitness, result.kept)

    def tell(self, outcome: Outcome, told: Sequence[Told] = ()) -> None:
        """Goes on to the next generation.

        Args:
            outcome: of the race.
            told: all that it measured, in order; without it proposals learn nothing, and nothing is known of parents.

        Raises:
            ValueError: the outcome of another generation, a winner that is not legal, or a population that can't be.
        """
        if outcome.generation != self._generation:
            raise ValueError(f"generation {outcome.generation} was told while {self._generation} is expected")
        if not self._space.is_legal(outcome.winner):
            raise ValueError(f"the winner told for generation {outcome.generation} is not legal in this space")
        whole = outcome.population
        distinct = len(set(whole)) == len(whole) <= self._size and whole[0] == outcome.winner
        if not distinct or not all(map(self._space.is_legal, whole)):
            raise ValueError(
                f"the population told for generation {outcome.generation} must be at most {self._size} legal "
                "genotypes, all different and the winner first"
            )
        self._raced = self._raced or bool(self._population and not self._proposals.surveys)
        if not self._population or not self._proposals.surveys:
            # Parents that change places are nothing new.
            self._in_vain = self._in_vain + 1 if whole[0] in self._population else 0
        self._proposals.learn(told)
        self._known = self._known_of(whole, told)
        self._population = whole
        self._fitness = outcome.fitness
        self._generation += 1
        self._drawn = None

    @property
    def _named(self) -> str:
        return "the parent" if len(self._population) == 1 else f"the {len(self._population)} parents"

    def _known_of(self, population: Sequence[Genotype], told: Sequence[Told]) -> dict[Genotype, Known]:
        """What the next race may know of each parent on the lasting draw.

        Blocks that chose a parent say too much good of it: measured there, its children would have to be luckier than
        it was, and the search would stand still. So with a new parent all begin anew, behind them.
        """
        tally = Tally()
        for genotype, known in self._known.items():
            tally.add([genotype], known.losses_B[None], known.tokens_B, known.asked)
        for each in told:
            asked = each.measurement
            if asked.drawn.lasting:
                tally.add(asked.genotypes, each.losses_NB, each.tokens_B, asked.tokens)
        if new := [genotype for genotype in population if genotype not in self._population]:
            self._skip += max(tally.blocks(genotype) for genotype in new)
            tally = Tally()
        return {genotype: tally.known(genotype, self._skip) for genotype in population}

    def _candidates(self) -> tuple[Genotype, ...]:
        drawn = initial(self._space, self._initial_candidates, rng(self._seed, 0, Purpose.START))
        start = () if self._start is None else (self._start,)
        return tuple(dict.fromkeys((*start, *self._guesses, *drawn)))[: self._initial_candidates]

    def _offspring(self) -> tuple[Genotype, ...]:
        """Drawn when first needed: telling a long journal draws nothing."""
        if self._drawn is None:
            draws = rng(self._seed, self._generation, Purpose.OFFSPRING)
            drawn = self._proposals.offspring(self._population, self._count, draws)
            guesses = self._guesses if self._generation == self._first else ()
            self._drawn = tuple(dict.fromkeys((*guesses, *drawn)))[: self._count]
        return self._drawn


def _evenly(genotypes: Sequence[Genotype], most: int) -> tuple[Genotype, ...]:
    """So many of them, in order, with gaps of equal size between."""
    count = min(len(genotypes), most)
    return tuple(genotypes[number * len(genotypes) // count] for number in range(count))


def _plain(genotype: Sequence[int]) -> Genotype:
    return tuple(int(index) for index in genotype)

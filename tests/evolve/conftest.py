from itertools import accumulate

import pytest
from hypothesis import strategies as st

from evoray.space import Gene, Space

LEVEL_SETS = [("2", "3", "4", "5", "6"), ("2", "3", "4", "6", "8"), ("2", "4", "8"), ("3", "4"), ("4",)]


def make_space(costs, limit, level=None):
    """A space of genes of one layer each (every third of two tied ones), from each gene's level costs."""
    genes, sites, labels = [], [], []
    for number, each in enumerate(costs):
        layers = tuple(f"{number}.{part}" for part in range(2 if number % 3 == 2 else 1))
        levels = tuple(str(index) for index in range(len(each)))
        genes.append(Gene(f"g{number}", number, layers, levels, tuple(each), tuple(each), tuple(each)))
        sites += layers
        labels += [levels] * len(layers)
    return Space(tuple(genes), limit, tuple(sites), tuple(labels), weights=100, level=level)


@st.composite
def spaces(draw):
    """Few or many genes; sizes times bits (one level set or one for each gene), or any rising costs; any limit."""
    genes = draw(st.integers(1, 12))
    if draw(st.booleans()):
        sizes = draw(st.lists(st.sampled_from([1, 2, 3, 7, 10]), min_size=genes, max_size=genes))
        shared = draw(st.one_of(st.none(), st.sampled_from(LEVEL_SETS)))
        sets = [shared or draw(st.sampled_from(LEVEL_SETS)) for _ in sizes]
        costs = [[size * int(level) for level in levels] for size, levels in zip(sizes, sets, strict=True)]
    else:
        steps = st.lists(st.integers(1, 10**12), min_size=1, max_size=5)
        costs = [list(accumulate(draw(steps))) for _ in range(genes)]
    low, high = sum(each[0] for each in costs), sum(each[-1] for each in costs)
    return make_space(costs, draw(st.one_of(st.just(low), st.just(high), st.integers(low, high + 3))))


@pytest.fixture(scope="session")
def any_space():
    return spaces()


@pytest.fixture(scope="session")
def space_of():
    return make_space


@st.composite
def switched(draw):
    """Genes of levels in one or two budgets, and switches over some of them, freed or counted apart."""
    freed = draw(st.booleans())
    genes, number = [], 0
    costs = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(lambda steps: tuple(accumulate(steps)))
    switches = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    for unit, size in enumerate([*switches, draw(st.integers(0, 3))]):
        names = tuple(f"g{number + each}" for each in range(size))
        number += size
        for name in names:
            each = draw(costs)
            # What a freed switch drops counts for its own budget, so only others may count elsewhere.
            budget = draw(st.integers(0, 1)) if unit == len(switches) else 0
            levels = tuple(map(str, range(len(each))))
            genes.append(Gene(name, unit, (f"{name}.layer",), levels, each, each, each, budget=budget))
        if unit < len(switches):
            paid = (0, draw(st.integers(0, 5)) if freed else 1)
            genes.append(Gene(f"s{unit}", unit, (f"m.{unit}",), ("dropped", "kept"), paid, (0, 0), (0, 0),
                              members=names, budget=0 if freed else 2))  # fmt: skip
    lows = [sum(g.costs[0] for g in genes if g.budget == b and not (freed and b == 0 and g.block < len(switches)))
            for b in range(3)]  # fmt: skip
    highs = [sum(g.costs[-1] for g in genes if g.budget == b) for b in range(3)]
    limits = [draw(st.integers(low, high)) for low, high in zip(lows, highs, strict=True)]
    sites = tuple(site for gene in genes for site in gene.sites)
    labels = tuple(("dropped",) if gene.members else gene.levels for gene in genes)
    return Space(tuple(genes), limits[0], sites, labels, weights=100, further=tuple(limits[1:]), freed=freed)


@pytest.fixture(scope="session")
def switched_space():
    return switched()

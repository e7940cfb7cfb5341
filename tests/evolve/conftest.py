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

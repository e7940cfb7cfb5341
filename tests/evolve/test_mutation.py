from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoray.errors import UserError
from evoray.evolve import LevelSwitch, random_legal

SEEDS = st.integers(0, 2**32)


@settings(max_examples=150, deadline=None)
@given(st.data(), SEEDS, st.booleans(), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_every_child_is_legal(any_space, data, seed, equal_steps, maximum, repairs, refills):
    space = data.draw(any_space)
    mutation = LevelSwitch(equal_steps, maximum, repairs, refills)
    rng = np.random.default_rng(seed)
    parent = random_legal(space, rng)
    for _ in range(10):
        child = mutation(space, parent, rng)
        if child is None:
            continue
        # A reference that trusts nothing of Space: sums by hand.
        assert all(0 <= index < len(gene.costs) for gene, index in zip(space.genes, child, strict=True))
        total = sum(gene.costs[index] for gene, index in zip(space.genes, child, strict=True))
        assert total <= space.limit
        if equal_steps:
            assert total == space.cost(parent)
        parent = child


@settings(max_examples=100, deadline=None)
@given(st.data(), SEEDS)
def test_an_equal_switch_is_one_down_and_one_up_of_the_same_cost_and_none_exists_when_none_is_found(
    any_space, data, seed
):
    space = data.draw(any_space)
    rng = np.random.default_rng(seed)
    parent = random_legal(space, rng)
    pairs = set()
    for down, up in permutations(range(len(parent)), 2):
        if parent[down] == 0 or parent[up] == len(space.genes[up].costs) - 1:
            continue
        child = list(parent)
        child[down] -= 1
        child[up] += 1
        if space.cost(child) == space.cost(parent):
            pairs.add(tuple(child))
    for _ in range(5):
        child = LevelSwitch(equal_steps=True, maximum=1)(space, parent, rng)
        assert (child in pairs) if pairs else (child is None)


@settings(max_examples=100, deadline=None)
@given(st.data(), SEEDS)
def test_a_free_switch_is_found_wherever_a_gene_can_go_up(any_space, data, seed):
    space = data.draw(any_space)
    rng = np.random.default_rng(seed)
    parent = random_legal(space, rng)
    least = [sum(g.costs[0] for g in space.genes) - gene.costs[0] for gene in space.genes]
    can_rise = any(
        index + 1 < len(gene.costs) and rest + gene.costs[index + 1] <= space.limit
        for gene, index, rest in zip(space.genes, parent, least, strict=True)
    )
    child = LevelSwitch(maximum=1)(space, parent, rng)
    assert (child is not None) == can_rise
    if child is not None:
        assert any(new > old for new, old in zip(child, parent, strict=True))


def test_groups_are_drawn_by_their_genes_and_pairs_evenly(space_of):
    # Two genes with steps of 5, four with steps of 1, all in the middle: groups weigh 2 to 4.
    space = space_of([[5, 10, 15]] * 2 + [[1, 2, 3]] * 4, 100)
    rng = np.random.default_rng(1)
    parent = (1,) * 6
    counts = Counter(LevelSwitch(equal_steps=True, maximum=1)(space, parent, rng) for _ in range(6000))
    large = {child: n for child, n in counts.items() if child[:2] != (1, 1)}
    assert len(large) == 2
    assert len(counts) == 2 + 4 * 3
    # Standard deviations are below 40 in each of these.
    assert abs(sum(large.values()) - 2000) < 160
    assert all(abs(n - 1000) < 160 for n in large.values())
    assert all(abs(n - 4000 / 12) < 100 for child, n in counts.items() if child not in large)


def test_a_group_without_a_pair_leaves_the_draw_to_the_others(space_of):
    # The genes of cost 5 are both at their lowest, so only the pair of cost 1 is left.
    space = space_of([[5, 10], [5, 10], [1, 2], [1, 2]], 100)
    rng = np.random.default_rng(2)
    assert {LevelSwitch(True, maximum=1)(space, (0, 0, 0, 1), rng) for _ in range(20)} == {(0, 0, 1, 0)}


def test_numbers_of_switches_are_the_smaller_of_two_throws():
    rng = np.random.default_rng(3)
    counts = Counter(LevelSwitch().switches(rng) for _ in range(9000))
    # min(U{1..3}, U{1..3}): 5/9, 3/9, 1/9; standard deviations below 48.
    assert {n: abs(counts[n] - share * 1000) < 190 for n, share in ((1, 5), (2, 3), (3, 1))} == {1: 1, 2: 1, 3: 1}
    assert set(counts) == {1, 2, 3}
    assert {LevelSwitch(maximum=1).switches(rng) for _ in range(50)} == {1}


def test_a_child_of_one_to_three_equal_switches_changes_two_to_six_genes_by_their_number(space_of):
    space = space_of([[2, 3, 4, 5, 6]] * 200, 800)
    rng = np.random.default_rng(4)
    changed = Counter()
    for _ in range(900):
        child = LevelSwitch(equal_steps=True)(space, (2,) * 200, rng)
        changed[sum(index != 2 for index in child)] += 1
    # Switches rarely meet among 200 genes, so pairs changed follow 5/9, 3/9, 1/9.
    assert changed[2] == pytest.approx(500, abs=60)
    assert changed[4] == pytest.approx(300, abs=60)
    assert changed[6] == pytest.approx(100, abs=45)


def test_slack_is_filled_by_a_step_up_alone_or_after_a_trade(space_of):
    space = space_of([[2, 3, 4]] * 20, 61)
    rng = np.random.default_rng(5)
    children = [LevelSwitch(maximum=1)(space, (1,) * 20, rng) for _ in range(1000)]
    assert {space.cost(child) for child in children} == {61}
    # One gene up; or one up, another down, and a refill, which may be the first gene again.
    changed = Counter(sum(index != 1 for index in child) for child in children)
    assert changed[1] == pytest.approx(500, abs=65)
    assert changed[2] + changed[3] == 1000 - changed[1]


def test_genes_of_every_size_go_up_about_as_often(space_of):
    """Pairs drawn blindly and rejected would hardly ever raise the gene of size 8 for one of size 1."""
    sizes = [1, 2, 4, 8] * 10
    space = space_of([[size * bits for bits in (2, 3, 4, 5, 6)] for size in sizes], 4 * sum(sizes))
    rng = np.random.default_rng(6)
    mutation = LevelSwitch(maximum=1, refills=0)
    raised = Counter()
    for _ in range(4000):
        child = mutation(space, (2,) * 40, rng)
        raised.update(size for size, index in zip(sizes, child, strict=True) if index > 2)
    assert all(raised[size] == pytest.approx(1000, abs=130) for size in (1, 2, 4, 8))


def test_a_further_rule_of_a_space_is_kept(space_of, monkeypatch):
    space = space_of([[1, 2, 3]] * 4, 8)
    rule = type(space).is_legal
    monkeypatch.setattr(type(space), "is_legal", lambda self, g: rule(self, g) and g[0] == 1)
    rng = np.random.default_rng(7)
    children = {LevelSwitch(maximum=1)(space, (1, 1, 1, 1), rng) for _ in range(60)}
    assert None in children
    assert {child[0] for child in children if child} == {1}


def test_senseless_settings_and_parents_are_refused(space_of):
    with pytest.raises(UserError, match="at most 0 switches"):
        LevelSwitch(maximum=0)
    with pytest.raises(UserError, match="repairs 0"):
        LevelSwitch(repairs=0)
    with pytest.raises(ValueError, match="costs 6, above the limit 5"):
        LevelSwitch()(space_of([[1, 2, 3]] * 2, 5), (2, 2), np.random.default_rng(0))

"""What `--preset evopress` becomes for each budget, on a model with eight blocks and on stores."""

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from searches import Material

from evoray.errors import UserError
from evoray.run.plan import SearchPlan, plan_search
from evoray.run.problem import choose_unmeasured
from evoray.settings import MutationRule, ProposalRule, SearchSettings, load_settings

BLOCKS = 8
"""Of the embedded model."""


def planned(tmp_path: Path, **given: Any) -> SearchPlan:
    usual = {"data": "embedded", "run": str(tmp_path / "run"), "preset": "evopress", "judge_tokens": 512}
    return plan_search(load_settings(SearchSettings, usual | given))


@pytest.mark.parametrize("drop", [1, 3, 4, 7, 8])
def test_generations_follow_from_what_is_dropped(tmp_path: Path, drop: int) -> None:
    plan = planned(tmp_path, model="embedded", drop_blocks=drop, search_tokens=32768)
    # ceil(k (n - k) / 1.5), and one generation where nothing can be traded.
    exact = Fraction(2 * drop * (BLOCKS - drop), 3)
    expected = {1: 5, 3: 10, 4: 11, 7: 5, 8: 1}[drop]
    assert plan.settings.generations == max(1, math.ceil(exact)) == expected
    assert [(rung.survivors, rung.tokens) for rung in plan.rungs] == [(2, 2048), (1, 32768)]
    assert plan.settings.offspring == 32
    assert plan.settings.mutation is MutationRule.budget
    # A start is drawn and raced for: 64 candidates on 2048 tokens, or as many as there are.
    race = plan.strategy(None).ask().ask()
    assert race is not None
    assert race.tokens == 2048
    assert len(race.genotypes) == min(64, math.comb(BLOCKS, drop) ** 2)
    assert len(set(race.genotypes)) == len(race.genotypes)


@pytest.mark.parametrize(
    ("how", "units"), [({"drop_entire_block": True}, BLOCKS), ({"drop_two_consecutive": True}, BLOCKS // 2)]
)
def test_blocks_and_pairs_are_counted_as_what_is_dropped(tmp_path: Path, how: dict[str, Any], units: int) -> None:
    plan = planned(tmp_path, model="embedded", drop_blocks=2, search_tokens=32768, **how)
    assert len(plan.ground.space.genes) == units
    assert plan.settings.generations == math.ceil(Fraction(2 * 2 * (units - 2), 3))


def test_what_may_not_be_dropped_does_not_count(tmp_path: Path) -> None:
    # Five attention and three MLP sublayers: n is the larger number.
    words = ["attn+mlp", "attn", "none", "attn", "mlp", "attn", "attn+mlp", "none"]
    (tmp_path / "allowed.txt").write_text("\n".join(words) + "\n")
    plan = planned(
        tmp_path, model="embedded", drop_blocks=2, search_tokens=32768, droppable=str(tmp_path / "allowed.txt")
    )
    assert [gene.budget for gene in plan.ground.space.genes].count(0) == 5
    assert plan.settings.generations == 2 * 3 / 1.5


def test_generations_that_are_given_stay(tmp_path: Path) -> None:
    plan = planned(tmp_path, model="embedded", drop_blocks=2, search_tokens=32768, generations=3)
    assert plan.settings.generations == 3
    without = planned(tmp_path, model="embedded", drop_blocks=2, preset=None, tokens=(64, 128, 256), search_tokens=1024)
    assert without.settings.generations == 150
    assert without.settings.initial_candidates == 32


def test_the_usual_proposals_learn_unless_there_are_too_many_steps_to_learn_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = {"model": "embedded", "drop_blocks": 2, "preset": None, "tokens": (64, 128, 256), "search_tokens": 1024}
    assert planned(tmp_path, **usual).settings.proposals is ProposalRule.learned
    monkeypatch.setattr("evoray.run.plan.MOST_STEPS", 2 * BLOCKS)
    assert planned(tmp_path, **usual).settings.proposals is ProposalRule.learned
    monkeypatch.setattr("evoray.run.plan.MOST_STEPS", 2 * BLOCKS - 1)
    assert planned(tmp_path, **usual).settings.proposals is ProposalRule.mutation
    assert planned(tmp_path, **usual, proposals="learned").settings.proposals is ProposalRule.learned


def test_what_costs_nothing_is_guessed_where_offspring_are_learned(deep: Material, tmp_path: Path) -> None:
    usual = {"model": deep.model, "store": deep.store, "data": deep.text, "preset": None, "target_bits": 2.8}
    small = {"tokens": (64, 128, 256), "search_tokens": 1024}
    plan = planned(tmp_path, **usual, **small)
    assert plan.settings.guesses
    assert plan.guesses[0] == choose_unmeasured("dp", plan.ground, plan.settings)
    assert len(set(plan.guesses)) > 2
    assert all(map(plan.ground.space.is_legal, plan.guesses))
    assert {*plan.strategy(None).ask().ask().genotypes} & {*plan.guesses}
    # Half a candidate for each of the two steps of each gene.
    assert plan.settings.survey == len(plan.ground.space.genes)
    for changes in ({"proposals": "mutation"}, {"guesses": False}):
        without = planned(tmp_path, **usual, **small, **changes)
        assert (without.settings.guesses, without.guesses) == (False, ())
        assert without.identity != plan.identity
    assert planned(tmp_path, **usual, **small, proposals="mutation").settings.survey == 0
    with pytest.raises(UserError, match="--survey 8: --proposals screened learns nothing"):
        planned(tmp_path, **usual, **small, proposals="screened", survey=8)
    drops = {"model": "embedded", "drop_blocks": 2, "preset": None}
    assert planned(tmp_path, **drops, **small).guesses == ()


def test_a_sparsity_is_searched_as_in_the_paper(deep: Material, tmp_path: Path) -> None:
    store = deep.with_store(
        tmp_path / "store", kind="sparsity", method="magnitude", target_sparsity=0.5, steps=2, step_weights=300
    ).store
    plan = planned(tmp_path, model=deep.model, store=store, target_sparsity=0.5, search_tokens=65536)
    settings = plan.settings
    assert (settings.generations, settings.offspring, settings.switches) == (400, 64, 3)
    assert [(rung.survivors, rung.tokens) for rung in plan.rungs] == [(8, 2048), (2, 16384), (1, 65536)]
    assert (settings.tie, settings.mutation) == ("none", MutationRule.budget)
    # The start is the target itself in every layer, and no race.
    parent = plan.strategy(None).parent
    assert parent is not None
    assert set(plan.ground.space.configuration(parent).values()) == {"0"}
    offspring = plan.strategy(None).ask().ask()
    assert offspring is not None
    assert (len(offspring.genotypes), offspring.tokens) == (64, 2048)


def test_bits_are_searched_as_in_the_paper(deep: Material, tmp_path: Path) -> None:
    plan = planned(tmp_path, model=deep.model, store=deep.store, target_bits=3, search_tokens=131072)
    settings = plan.settings
    assert (settings.generations, settings.offspring, settings.switches) == (150, 128, 3)
    assert [(rung.survivors, rung.tokens) for rung in plan.rungs] == [(16, 2048), (4, 16384), (1, 131072)]
    assert (settings.tie, settings.mutation) == ("none", MutationRule.equal_steps)
    # As long as the model reads, which is less than the paper's 8192 tokens.
    assert settings.sequence_length == 128

"""Settings of known experiments: each is sound, and gives way to what is given beside it."""

from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from evoray.errors import EvorayError, UserError
from evoray.settings import (
    BuildSettings,
    Preset,
    Recipe,
    SearchSettings,
    find_recipe,
    load_settings,
    matching_recipes,
    recipes,
)

BLOCKS = {
    "Qwen/Qwen3-8B": 36,
    "google/gemma-3-12b-it": 48,
    "meta-llama/Llama-2-7b-hf": 32,
    "meta-llama/Llama-3.1-8B": 32,
    "meta-llama/Llama-3.1-8B-Instruct": 32,
    "meta-llama/Llama-3.3-70B-Instruct": 80,
    "meta-llama/Meta-Llama-3-8B": 32,
    "microsoft/Phi-3-medium-128k-instruct": 40,
    "microsoft/phi-4": 40,
    "mistralai/Mistral-7B-v0.3": 32,
    "mistralai/Mistral-Small-24B-Instruct-2501": 40,
}
"""Blocks by the models' own configurations."""

EACH = [pytest.param(recipe, id=recipe.name) for recipe in recipes()]


def searched(recipe: Recipe, **given: Any) -> SearchSettings:
    store = {} if recipe.build is None else {"store": "variants"}
    return load_settings(SearchSettings, {"recipe": recipe.name, "run": "run", **store, **given})


@pytest.mark.parametrize("recipe", EACH)
def test_a_recipe_lacks_nothing_but_paths(recipe: Recipe) -> None:
    search = searched(recipe)
    assert search.model == recipe.model
    assert BLOCKS[recipe.model] == recipe.blocks
    assert all(getattr(recipe, name).strip() for name in ("title", "source", "note"))
    family, _, budget = recipe.place
    if recipe.build is None:
        assert "depth" in family
        assert search.drop_blocks == Fraction(budget) * recipe.blocks
        assert search.target is None
        return
    assert search.drop_blocks is None
    assert getattr(search, search.target or "") == float(budget)
    build = load_settings(BuildSettings, {"recipe": recipe.name, "store": "variants"})
    assert (build.model, build.data) == (search.model, search.data)
    if build.kind == "quantization":
        assert search.target == "target_bits"
        levels = sorted(map(int, build.levels or ()))
        assert levels[0] < float(budget) < levels[-1]
    else:
        assert search.target == "target_sparsity"
        # Steps are around one target, so a store serves no other.
        assert build.target_sparsity == search.target_sparsity


def test_the_papers_recipes_are_the_experiments_of_its_code() -> None:
    """Configurations that were published with the paper, by the models' names there."""
    paper = [recipe for recipe in recipes() if recipe.place[0].startswith("evopress")]
    assert all(searched(recipe).preset is Preset.evopress for recipe in paper)
    published = {
        "evopress-bits": {
            "meta-llama/Llama-2-7b-hf": "2.25 2.5 3 4",
            "meta-llama/Llama-3.1-8B": "2.25 2.5 3",
            "meta-llama/Meta-Llama-3-8B": "2.25 2.5 3 4",
            "microsoft/Phi-3-medium-128k-instruct": "2.25 2.5 3",
            "mistralai/Mistral-7B-v0.3": "2.25 2.5 3 4",
        },
        "evopress-sparsity": {
            "meta-llama/Llama-2-7b-hf": "0.5 0.6 0.7",
            "meta-llama/Llama-3.1-8B": "0.5 0.6 0.7",
            "meta-llama/Meta-Llama-3-8B": "0.5 0.6 0.7",
            "microsoft/Phi-3-medium-128k-instruct": "0.7",
            "mistralai/Mistral-7B-v0.3": "0.5 0.6 0.7",
        },
        "evopress-depth": dict.fromkeys(
            (
                "meta-llama/Llama-2-7b-hf",
                "meta-llama/Llama-3.1-8B",
                "meta-llama/Meta-Llama-3-8B",
                "mistralai/Mistral-7B-v0.3",
            ),
            "0.125 0.25 0.375 0.5",
        ),
    }
    found = {(recipe.place[0], recipe.model, recipe.place[2]) for recipe in paper}
    assert found == {
        (family, model, budget)
        for family, models in published.items()
        for model, budgets in models.items()
        for budget in budgets.split()
    }
    bits = searched(find_recipe("evopress-bits/mistral-7b-v0.3/2.25"))
    assert (bits.generations, bits.offspring, bits.survivors, bits.tokens, bits.tie, bits.sequence_length) == (
        *(150, 128, (16, 4, 1), (2048, 16384, 131072), "none", 8192),
    )
    sparse = searched(find_recipe("evopress-sparsity/llama-2-7b/0.6"))
    assert (sparse.generations, sparse.offspring, sparse.survivors, sparse.tokens, sparse.sequence_length) == (
        *(400, 64, (8, 2, 1), (2048, 16384, 65536), 4096),
    )
    deep = searched(find_recipe("evopress-depth/llama-3-8b/0.375"))
    assert (deep.drop_blocks, deep.offspring, deep.survivors, deep.tokens, deep.initial_candidates) == (
        *(12, 32, (2, 1), (2048, 32768), 64),
    )
    gptq = load_settings(BuildSettings, {"recipe": "evopress-bits/llama-3-8b/3", "store": "s"})
    assert (gptq.levels, gptq.group_size, gptq.symmetric, gptq.hessian_tokens, gptq.hessian_level) == (
        *(("2", "3", "4", "5", "6"), 128, False, 2**23, "3"),
    )


def test_names_are_unique_and_files_are_packaged() -> None:
    names = [recipe.name for recipe in recipes()]
    assert len(set(names)) == len(names) >= 60
    folder = files("evoray") / "recipes"
    pyproject = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert '"evoray" = ["recipes/*.yaml"]' in pyproject
    assert {file.name for file in folder.iterdir()} == {f"{recipe.place[0]}.yaml" for recipe in recipes()}


def test_flags_win_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    recipe = find_recipe("evopress-bits/llama-3-8b/3")
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump({"recipe": recipe.name, "offspring": 7, "generations": 9, "search-tokens": 4096}))
    given = {"run": "run", "store": "variants", "generations": 5}
    found = load_settings(SearchSettings, given, file)
    assert (found.generations, found.offspring, found.search_tokens) == (5, 7, 4096)
    assert (found.target_bits, found.model) == (3, recipe.model)  # of the recipe
    assert (found.switches, found.tie) == (3, "none")  # of the preset that it names
    # A recipe that is given as a flag takes the place of the file's.
    other = load_settings(SearchSettings, given | {"recipe": "bits/qwen3-8b/4"}, file)
    assert (other.model, other.target_bits, other.tie, other.offspring) == ("Qwen/Qwen3-8B", 4, None, 7)


def test_a_budget_or_levels_take_the_place_of_the_recipes() -> None:
    bits = searched(find_recipe("bits/qwen3-8b/3"), target_size="3.5GB")
    assert (bits.target_bits, bits.target_size) == (None, 3_500_000_000)
    assert searched(find_recipe("evopress-depth/llama-3-8b/0.5"), drop_blocks=6).drop_blocks == 6
    sparse = {"recipe": "evopress-sparsity/llama-3-8b/0.5", "store": "s"}
    assert load_settings(BuildSettings, sparse | {"levels": "0.4,0.5"}).target_sparsity is None
    assert load_settings(BuildSettings, sparse | {"levels": "0.4,0.5"}).levels == ("0.4", "0.5")
    assert load_settings(BuildSettings, sparse | {"steps": 4}).steps == 4


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        (SearchSettings, "evopres-bits/llama-3-8b/3", "near are evopress-bits/llama-3-8b/3"),
        (SearchSettings, "evopress-bits/llama-3-8b", "stands for 4; give one, such as evopress-bits/llama-3-8b/2.25"),
        (SearchSettings, "evopress-bits", "stands for 18; give one"),
        (SearchSettings, "qqq", "families are bits, depth, evopress-bits, evopress-depth, evopress-sparsity, sparsity"),
        (SearchSettings, "", "there is no recipe ''"),
        (BuildSettings, "depth/phi-4/0.25", "only drops, which needs no variants; go on with evoray search --recipe"),
    ],
)
def test_names_that_do_not_say_one(kind: type[Any], name: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("(", r"\(")) as error:
        load_settings(kind, {"recipe": name, "store": "s", "run": "r"} if kind is SearchSettings else {"recipe": name})
    assert "\n" not in str(error.value)


def test_a_family_and_a_model_match_whole_parts() -> None:
    assert {recipe.place[0] for recipe in matching_recipes("evopress-bits")} == {"evopress-bits"}
    assert [recipe.place[2] for recipe in matching_recipes("evopress-bits/llama-3-8b/")] == ["2.25", "2.5", "3", "4"]
    with pytest.raises(UserError, match="there is no recipe"):
        matching_recipes("evopress")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budgets": {"0.3": {"drop_share": 0.3}}}, "0.3 of 32 blocks is no whole number"),
        ({"titel": "x"}, "recipes/f.yaml of this evoray is damaged"),
    ],
)
def test_damaged_files_are_no_mistake_of_the_user(change: dict[str, Any], said: str) -> None:
    from evoray.settings.recipes import _family

    sound = {"title": "t", "source": "s", "note": "n", "models": {"m": {"model": "a/b", "blocks": 32}}}
    sound |= {"budgets": {0.5: {"drop_share": 0.5}}}
    assert [(each.name, each.search["drop_blocks"]) for each in _family("f", sound)] == [("f/m/0.5", 16)]
    with pytest.raises(EvorayError, match=said) as error:
        _family("f", sound | change)
    assert not isinstance(error.value, UserError)

"""Recipes for the terminal, each with the same for programs.

Holds: `recipe_list`, `recipe_page`.
"""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import yaml
from rich.console import Group, RenderableType
from rich.table import Table

from evoray.settings import Recipe


def recipe_list(found: Sequence[Recipe]) -> tuple[RenderableType, list[dict[str, Any]]]:
    """A table for each family, a line for each of its models.

    Args:
        found: at least one, in the order of `evoray.settings.recipes`.
    """
    tables: dict[str, Table] = {}
    for family, name in dict.fromkeys(recipe.place[:2] for recipe in found):
        same = [recipe for recipe in found if recipe.place[:2] == (family, name)]
        if family not in tables:
            tables[family] = table = Table(
                title=f"{family}: {same[0].title}", caption=same[0].source, title_justify="left", caption_justify="left"
            )
            for column in ("family and model", "budgets", "blocks", "model"):
                table.add_column(column, justify="right" if column == "blocks" else "left")
        budgets = ", ".join(recipe.place[2] for recipe in same)
        tables[family].add_row(f"{family}/{name}", budgets, str(same[0].blocks), same[0].model)
    hint = f"a recipe is FAMILY/MODEL/BUDGET: evoray recipes {found[0].name} shows one"
    return Group(*(part for table in tables.values() for part in (table, "")), hint), [
        _figures(recipe) for recipe in found
    ]


def recipe_page(recipe: Recipe) -> tuple[RenderableType, dict[str, Any]]:
    """One recipe: where it comes from, its settings, and the commands that run it."""
    facts = Table(show_header=False, box=None)
    for name in ("title", "source", "note"):
        facts.add_row(name, getattr(recipe, name))
    facts.add_row("model", f"{recipe.model}, {recipe.blocks} blocks")
    parts = {"build": recipe.build, "search": recipe.search}
    settings = yaml.safe_dump({name: part for name, part in parts.items() if part}, sort_keys=False, width=1000)
    return Group(facts, "", settings, *_commands(recipe)), _figures(recipe)


def _commands(recipe: Recipe) -> list[str]:
    named, store = ["--recipe", recipe.name], ["--store", "variants"]
    search = ["evoray", "search", *named, "--run", "run"]
    if recipe.build is None:
        return [shlex.join(search)]
    return [shlex.join(["evoray", "build", *named, *store]), shlex.join([*search[:4], *store, *search[4:]])]


def _figures(recipe: Recipe) -> dict[str, Any]:
    return {**asdict(recipe), "commands": _commands(recipe)}

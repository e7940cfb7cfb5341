"""Settings of known experiments, kept in the package: the defaults of `--recipe`.

A file in `evoray/recipes` is a family of experiments: models and budgets of which each pair is one recipe, named
FAMILY/MODEL/BUDGET, and the settings of `evoray build` and `evoray search` that they share. What a model says wins over
what the family says, and what a budget says over both.

Holds: `Recipe`, `recipes`, `find_recipe`, `matching_recipes`, `recipe_values`.
"""

import difflib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.resources import as_file, files
from typing import Any, Literal

from pydantic import Field, ValidationError

from evoray.errors import EvorayError, UserError
from evoray.settings.choice import TARGETS
from evoray.settings.fields import Names, Settings
from evoray.settings.yaml_file import read_yaml

_STEPS = ("target_sparsity", "steps", "step_weights")
_INSTEAD: dict[str, Sequence[tuple[Sequence[str], Sequence[str]]]] = {
    "build": ((("levels",), _STEPS), (_STEPS, ("levels",))),
    "search": ((TARGETS, TARGETS),),
}
"""Part -> pairs: who gives one of the first names means it in the place of the recipe's second names."""


class _Part(Settings):
    """What a model or a budget adds to its family."""

    build: dict[str, Any] = Field(default_factory=dict)
    search: dict[str, Any] = Field(default_factory=dict)


class _Model(_Part):
    model: str
    blocks: int
    budgets: Names | None = None
    """Those that there are for this model; None for all of the family."""


class _Budget(_Part):
    drop_share: float | None = None
    """Share of the model's blocks, for `drop_blocks`."""


class _Family(_Part):
    title: str
    source: str
    note: str
    build: dict[str, Any] | None = None  # type: ignore[assignment] # wider, which is safe where nothing is assigned
    models: dict[str, _Model]
    budgets: dict[str, _Budget]


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Attributes:
        name: FAMILY/MODEL/BUDGET.
        title: what it is.
        source: where the settings come from.
        note: what else to know.
        model: id on the hub.
        blocks: of the model.
        build: settings of `evoray build`; None where no variants are needed.
        search: settings of `evoray search`.
    """

    name: str
    title: str
    source: str
    note: str
    model: str
    blocks: int
    build: dict[str, Any] | None
    search: dict[str, Any]

    @property
    def place(self) -> tuple[str, str, str]:
        """Family, model and budget."""
        family, model, budget = self.name.split("/")
        return family, model, budget


@functools.cache
def recipes() -> tuple[Recipe, ...]:
    """All of them, in the order of the files and of what stands in each.

    Raises:
        EvorayError: a file of the package is damaged.
    """
    found: list[Recipe] = []
    for file in sorted((files("evoray") / "recipes").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yaml"):
            with as_file(file) as path:
                found += _family(path.stem, read_yaml(path))
    return tuple(found)


def _family(name: str, content: Mapping[str, Any]) -> list[Recipe]:
    # YAML reads a budget's name as a number.
    budgets = {str(key): value for key, value in content.get("budgets", {}).items()}
    try:
        family = _Family(**{**content, "budgets": budgets})
    except ValidationError as error:
        raise EvorayError(f"recipes/{name}.yaml of this evoray is damaged: {error.errors()[0]['msg']}") from None
    found = []
    for called, model in family.models.items():
        for label in model.budgets or tuple(family.budgets):
            budget = family.budgets[label]
            search = {"model": model.model, **family.search, **model.search, **budget.search}
            if budget.drop_share is not None:
                search["drop_blocks"] = _blocks(f"{name}/{called}/{label}", model.blocks, budget.drop_share)
            build = family.build
            if build is not None:
                build = {"model": model.model, **build, **model.build, **budget.build}
            found.append(
                Recipe(
                    f"{name}/{called}/{label}",
                    family.title,
                    family.source,
                    family.note,
                    model.model,
                    model.blocks,
                    build,
                    search,
                )
            )
    return found


def _blocks(name: str, blocks: int, share: float) -> int:
    count = blocks * Fraction(str(share))
    if count.denominator != 1:
        raise EvorayError(f"recipe {name} of this evoray is damaged: {share} of {blocks} blocks is no whole number")
    return int(count)


def find_recipe(name: str) -> Recipe:
    """The one of this name.

    Raises:
        UserError: there is none, or the name stands for several.
    """
    found = matching_recipes(name)
    if len(found) == 1 and found[0].name == name:
        return found[0]
    raise UserError(
        f"recipe {name!r} stands for {len(found)}; give one, such as {found[0].name}; evoray recipes {name} lists them"
    )


def matching_recipes(name: str) -> tuple[Recipe, ...]:
    """The one of this name, or all of a family, or of a family's model.

    Raises:
        UserError: there is none.
    """
    found = tuple(recipe for recipe in recipes() if f"{recipe.name}/".startswith(name.rstrip("/") + "/"))
    if not found:
        parts = [recipe.place for recipe in recipes()]
        known = dict.fromkeys("/".join(place[:count]) for place in parts for count in (1, 2, 3))
        near = difflib.get_close_matches(name, known, n=3)
        families = dict.fromkeys(place[0] for place in parts)
        remedy = f"near are {', '.join(near)}" if near else f"families are {', '.join(families)}"
        raise UserError(f"there is no recipe {name!r}; {remedy}; evoray recipes lists all")
    return found


def recipe_values(name: str, part: Literal["build", "search"], given: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values for one verb, without those in whose place something else is given.

    Args:
        name: of the recipe.
        part: the verb.
        given: what wins over it.

    Raises:
        UserError: no such recipe, or one that has nothing to build.
    """
    recipe = find_recipe(name)
    values = recipe.build if part == "build" else recipe.search
    if values is None:
        raise UserError(f"recipe {name} only drops, which needs no variants; go on with evoray search --recipe {name}")
    aside = {
        other
        for names, others in _INSTEAD[part]
        if any(given.get(each) is not None for each in names)
        for other in others
    }
    return {key: value for key, value in values.items() if key not in aside}

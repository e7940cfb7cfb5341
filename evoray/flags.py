"""Fields of settings as flags of the command line: their help, and what a shell completes.

Holds: `option_of`, `complete_recipes`.
"""

import types
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BeforeValidator
from pydantic_core import PydanticUndefined
from rich.markup import escape

from evoray.settings import Settings, flag, recipes


def option_of(kind: type[Settings], field: str) -> Any:
    """A field as a flag. All but switches reach the settings as text, which alone decide what is right.

    Args:
        kind: the class of settings.
        field: name in it.
    """
    info, annotation = kind.model_fields[field], _plain(kind.model_fields[field].annotation)
    choices, default = _choices(annotation), info.default
    said = [info.description or ""]
    if choices:
        said.append(f"One of: {', '.join(choices)}." if len(choices) > 1 else f"Only: {choices[0]}.")
    if default is PydanticUndefined:
        said.append("Required.")
    elif default is not None and "Default:" not in said[0]:
        said.append(f"Default: {_spelled(default)}.")
    owner = next(base for base in reversed(kind.__mro__) if field in vars(base).get("__annotations__", {}))
    return typer.Option(
        None,
        flag(field) if annotation is not bool else f"{flag(field)}/{flag('no_' + field)}",
        help=escape(" ".join(said)),  # names of extras stand in brackets
        metavar=None if annotation is bool else "CHOICE" if choices else _metavar(annotation, info.metadata),
        show_default=False,
        autocompletion=_completion(field, choices),
        rich_help_panel=owner.__name__.removesuffix("Settings"),
    )


def _completion(field: str, choices: Sequence[str]) -> Callable[[str], list[str]] | None:
    """What a shell offers behind a flag; None leaves it to the shell, which offers files."""
    if field == "recipe":
        return complete_recipes
    return (lambda incomplete: [name for name in choices if name.startswith(incomplete)]) if choices else None


def complete_recipes(incomplete: str) -> list[str]:
    """Names of recipes that begin so; they are read from files only now."""
    return [recipe.name for recipe in recipes() if recipe.name.startswith(incomplete)]


def _spelled(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _plain(annotation: Any) -> Any:
    """The type of a field that may be None."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice.value for choice in annotation] if isinstance(annotation, type(StrEnum)) else []


def _metavar(annotation: Any, metadata: Sequence[Any]) -> str:
    if get_origin(annotation) is Annotated:
        annotation, *metadata = get_args(annotation)
    if get_origin(annotation) is tuple:
        return "LIST"
    if annotation is int:
        return "SIZE" if any(isinstance(part, BeforeValidator) for part in metadata) else "INT"
    return "NUMBER" if annotation is float else "TEXT"

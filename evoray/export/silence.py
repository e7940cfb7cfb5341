"""Zero weights for what is dropped: `--depth zeros`, in every format that writes a checkpoint.

A sublayer whose weights and biases are zero adds nothing, so the model keeps its form and any engine runs it.

Holds: `silent_sublayers`, `silence`.
"""

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

from evoray.errors import UserError
from evoray.model import DropKind, ModelAdapter


def silent_sublayers(adapter: ModelAdapter, dropped: Iterable[str]) -> list[str]:
    """The sublayers that have to add nothing, so that the model does without what is dropped.

    Args:
        adapter: the model, with its base weights in place.
        dropped: sublayers and blocks.

    Raises:
        UserError: zeros in this model's weights don't make it do without them.
    """
    dropped = list(dropped)
    adapter.check_droppable(dropped)
    silent: list[str] = []
    for name in dropped:
        site = adapter.droppable[name]
        silent += adapter.sublayers[site.block] if site.kind is DropKind.block else [name]
    silent = list(dict.fromkeys(silent))
    try:
        adapter.check_droppable(silent)
    except UserError as error:
        raise UserError(
            f"dropped blocks of this model can't be written as a plain checkpoint: {str(error).split(';')[0]}; "
            "use the configuration file"
        ) from None
    return silent


def silence(adapter: ModelAdapter, sublayers: list[str]) -> None:
    """Writes zeros into the weights and biases of sublayers.

    Raises:
        UserError: they belong to other parts of the model too.
    """
    parameters = {id(parameter): parameter for name in sublayers for parameter in adapter.silenced(name)}
    modules: set[torch.nn.Module] = {module for name in sublayers for module in adapter.modules(name)}
    for name, parameter in _outside(adapter.model, modules):
        if id(parameter) in parameters:
            raise UserError(f"{name} is a weight of dropped sublayers too, so it can't be zero; drop none of them")
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.zero_()


def _outside(model: PreTrainedModel, modules: set[torch.nn.Module]) -> list[tuple[str, torch.nn.Parameter]]:
    """Names and parameters of all that lies in none of some modules."""
    inside = {part for module in modules for part in module.modules()}
    return [
        (f"{name}.{kind}", parameter)
        for name, module in model.named_modules()
        if module not in inside
        for kind, parameter in module.named_parameters(recurse=False)
    ]

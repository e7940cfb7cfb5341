"""Which layer has how many bits, as `quantization_config` of a GPTQ checkpoint says it: one set of bits, and rules.

GPTQModel's `dynamic` maps regular expressions over module names to settings; `+:` rules change some, `-:` rules keep a
module dense. GPTQModel, vLLM and SGLang all take the first rule whose expression `re.match`es the module's name, and no
other. `re.match` binds only the start, so ours end with `$`; they never overlap, so their order means nothing.

vLLM asks by the names of its own modules, where q_proj, k_proj, v_proj are one qkv_proj, and gate_proj, up_proj one
gate_up_proj (`get_dynamic_override` in its gptq_utils). A rule that names the parts alone is not found there, and
loading ends with an assertion on shapes. So rules name both, and all parts of such a module must be packed alike. Text
models inside others are `model.language_model` to transformers and `language_model.model` to vLLM: both are named.

Holds: `Packing`, `dynamic_rules`, `module_patterns`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# Last part of a module's name -> last part of the name of the module that engines make of it and its siblings.
_FUSED_NAME = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
    "w1": "gate_up_proj",
    "w3": "gate_up_proj",
}

_INNER = {"model.language_model": r"(?:model\.language_model|language_model\.model)"}


@dataclass(frozen=True, order=True)
class Packing:
    """How a layer's codes are packed.

    Attributes:
        bits: per code.
        group_size: input columns per scale; -1: a whole row.
    """

    bits: int
    group_size: int


def dynamic_rules(packed: Mapping[str, Packing], dense: Iterable[str], usual: Packing) -> dict[str, dict[str, Any]]:
    """The rules for all modules that are not packed as usual.

    Args:
        packed: module -> how it is packed. Parts that engines fuse are packed alike, or are all dense.
        dense: modules that have weights.
        usual: what holds where there is no rule.

    Returns:
        Rule -> settings. No two of them match the same module, so their order means nothing.
    """
    rules: dict[str, dict[str, Any]] = {f"-:{pattern}": {} for pattern in module_patterns(dense)}
    modules: dict[Packing, list[str]] = defaultdict(list)
    for name, packing in packed.items():
        modules[packing].append(name)
    for packing in sorted(modules):
        settings: dict[str, Any] = {"bits": packing.bits} if packing.bits != usual.bits else {}
        if packing.group_size != usual.group_size:
            settings["group_size"] = packing.group_size
        if settings:
            rules |= {f"+:{pattern}": dict(settings) for pattern in module_patterns(modules[packing])}
    return rules


def module_patterns(modules: Iterable[str]) -> list[str]:
    """Regular expressions that match these modules, and what engines fuse of them, and nothing else.

    Siblings share an expression, and so do blocks in which the same siblings are meant.

    >>> module_patterns(["h.0.q_proj", "h.0.o_proj", "h.2.q_proj", "h.2.o_proj", "head"])
    ['^h\\\\.(?:0|2)\\\\.(?:q_proj|o_proj|qkv_proj)$', '^head$']
    """
    siblings: dict[str, list[str]] = defaultdict(list)
    for module in modules:
        parent, _, last = module.rpartition(".")
        siblings[parent].append(last)
    # The parent's name on both sides of its first number, and the siblings -> these numbers.
    numbers: dict[tuple[str, str, tuple[str, ...]], list[str]] = defaultdict(list)
    for parent, names in siblings.items():
        fused = dict.fromkeys(_FUSED_NAME[name] for name in names if name in _FUSED_NAME)
        before, number, after = re.fullmatch(r"(.*?)(?:(?<![^.])(\d+)(?![^.])(.*))?", parent).groups()  # type: ignore[union-attr]
        numbers[before, after or "", tuple(dict.fromkeys([*names, *fused]))].append(number or "")
    return [_pattern(before, block, after, names) for (before, after, names), block in numbers.items()]


def _pattern(before: str, block: list[str], after: str, names: tuple[str, ...]) -> str:
    start = next(
        (inner + re.escape(before.removeprefix(name)) for name, inner in _INNER.items() if before.startswith(name)),
        re.escape(before),
    )
    parent = start + (_any_of(block) if block != [""] else "") + re.escape(after)
    return f"^{parent}{re.escape('.') if parent else ''}{_any_of(names)}$"


def _any_of(texts: Iterable[str]) -> str:
    escaped = [re.escape(text) for text in texts]
    return escaped[0] if len(escaped) == 1 else f"(?:{'|'.join(escaped)})"

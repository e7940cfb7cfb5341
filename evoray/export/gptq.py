"""A checkpoint in the layout of GPTQ, for GPTQModel, vLLM and SGLang: `--format gptq`.

Codes, scales and zero points are those of the store; nothing is rounded again. A layer of I columns and O rows has

    qweight  int32 [I * bits / 32, O]   the codes of each row as an unsigned little-endian bit stream, so that with 3
                                        bits codes 10 and 21 of every 32 lie across two words
    qzeros   int32 [G, O * bits / 32]   the zero points of each group as such a stream
    scales   [G, O]                     in the store's dtype
    g_idx    int32 [I]                  group of each column: column // group size. Stores that were built in the order
                                        of activations keep their columns and groups where they were, so it is plain

The first version of this format keeps zero points less one (`checkpoint_format: gptq`), the second as they are
(`gptq_v2`). Symmetric stores, whose zero points are all 2^(bits-1), are written in the first, which every engine loads.
Others are written in the second: the first can't say 0, and GPTQModel and transformers refuse it without `sym`.

What engines take: GPTQModel all of it; vLLM before mid-2026 (its `gptq`) all of it, since then (its `auto_gptq`) only
symmetric layers of 4 and 8 bits in groups of 32, 64, 128 or whole rows. transformers itself knows no rules for single
layers (`dynamic`), so it loads only what has the same bits everywhere.

Holds: `export`, `WARNINGS`, `LOADING`, `Plan`, `quantization_config`.

Shape letters: O out, I in, G groups.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evoray.configuration import configuration_text
from evoray.export.gptq_rules import Packing, dynamic_rules
from evoray.export.packable import Refusal, Rule, decoded, packable_layers, without_codes
from evoray.export.silence import silence, silent_sublayers
from evoray.export.source import ExportSource
from evoray.formats import dense_weight
from evoray.formats.packed import QuantizedWeight, pack_codes
from evoray.model import ModelAdapter, load_tokenizer, quiet_transformers
from evoray.space.costs import dropped_layers
from evoray.space.ties import tie
from evoray.store import Manifest, Variant

LOADING = """\
```python
from gptqmodel import GPTQModel

model = GPTQModel.load("FOLDER")
```

vLLM and SGLang read the same layout: `vllm serve FOLDER`.
"""

WARNINGS: tuple[str, ...] = (
    "Where layers have different bits (`dynamic` in quantization_config), load it with GPTQModel, vLLM or SGLang: "
    "transformers itself does not read these rules.",
    "vLLM since mid-2026 loads only GPTQ layers of 4 and 8 bits without zero points. Others are for GPTQModel.",
)

BITS = (2, 3, 4, 8)
"""Bits that the layout has in all engines. GPTQModel packs 5 to 7 in a layout of its own, which others don't read."""

GROUP_SIZES = (-1, 16, 32, 64, 128, 256, 512, 1024)
"""What GPTQModel's kernels take. vLLM's fast ones take -1, 32, 64 and 128."""

WORD = 32
"""Rows and columns must be multiples of this, so that streams of any bits end with a word."""


@dataclass(frozen=True)
class Plan:
    """Which layers are packed, and how.

    Attributes:
        packed: layer -> how; those that are dropped stand in `zeros`, too.
        dense: layer -> why it keeps a dequantized weight.
        zeros: layers of dropped sublayers, which are packed as nothing but zeros.
        variants: layer -> variant, of all layers with a level.
    """

    packed: Mapping[str, Packing]
    dense: Mapping[str, Refusal]
    zeros: frozenset[str]
    variants: Mapping[str, Variant]

    @property
    def usual(self) -> Packing:
        """Of what most layers have, bits first."""
        bits = _most(packing.bits for packing in self.packed.values())
        return Packing(bits, _most(packing.group_size for packing in self.packed.values()))


def export(source: ExportSource, stage: Path) -> None:
    """Writes a GPTQ checkpoint.

    Layers at their base weight, embeddings and head are as in the base model. Dropped sublayers are zeros.

    Args:
        source: what to write.
        stage: an empty folder.

    Raises:
        UserError: the layout can't hold a layer at its level; the message names what would have avoided it.
    """
    _plan(source, {})  # before the weights are read
    assert source.variants is not None
    manifest = source.variants.manifest
    loaded = source.load(source.facts.dtype)
    kinds = {layer.name: type(loaded.get_submodule(layer.name)) for layer in source.facts.layers}
    plan = _plan(source, {name: kind.__name__ for name, kind in kinds.items() if kind is not nn.Linear})
    if plan.dense:
        # A dtype that holds base weights and dequantized ones without rounding either.
        loaded.to(torch.promote_types(loaded.dtype, getattr(torch, manifest.scale_dtype)))
    adapter = ModelAdapter(loaded, allow_partial=source.allow_partial)
    silence(adapter, silent_sublayers(adapter, source.dropped))
    for name in plan.dense:
        base = adapter.layers[name].base
        with torch.no_grad():
            base.copy_(adapter.ready(name, dense_weight(plan.variants[name], base.dtype)))
    adapter.close()
    for name, packing in plan.packed.items():
        zeros = name in plan.zeros
        weight = _nothing(loaded, name, packing, manifest) if zeros else decoded(plan.variants[name])
        loaded.set_submodule(name, _PackedLinear(weight, loaded.get_submodule(name).bias, manifest.symmetric))
    dense = [name for name, module in loaded.named_modules() if isinstance(module, nn.Linear)]
    settings = quantization_config(plan, dense, manifest.symmetric)
    loaded.config.quantization_config = settings
    with quiet_transformers():
        loaded.save_pretrained(stage, safe_serialization=True)
        load_tokenizer(source.model, source.revision, source.trust_remote_code).save_pretrained(stage)
    # Where engines looked before configurations had a place for it, and some still do.
    (stage / "quantize_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (stage / "evoray-configuration.txt").write_text(configuration_text(source.configuration), encoding="utf-8")


def quantization_config(plan: Plan, dense: list[str], symmetric: bool) -> dict[str, Any]:
    """What `config.json` says of the layers.

    Args:
        plan: which layers are packed, and how.
        dense: names of all linear modules that are not packed.
        symmetric: whether all zero points are 2^(bits-1).
    """
    version = "gptq" if symmetric else "gptq_v2"
    return {
        "quant_method": "gptq",
        "bits": plan.usual.bits,
        "group_size": plan.usual.group_size,
        "desc_act": False,
        "sym": symmetric,
        "lm_head": False,
        "checkpoint_format": version,
        # The same once more: newer GPTQModel and transformers ask by this name.
        "format": version,
        "pack_dtype": "int32",
        "dynamic": dynamic_rules(plan.packed, dense, plan.usual),
    }


def _plan(source: ExportSource, odd: Mapping[str, str]) -> Plan:
    """Decides for each layer, and refuses what can't be.

    Args:
        source: what is written.
        odd: layer -> kind of its module, of those that are no plain linear modules.

    Raises:
        UserError: see `export`.
    """

    def judge(variant: Variant) -> Packing | Refusal:
        assert source.variants is not None
        return _refusal(variant, odd.get(variant.layer)) or _packing(variant, source.variants.manifest)

    found = packable_layers(source, "gptq", judge)
    plan = Plan(found.packed, found.dense, frozenset(), found.variants)
    gone = dropped_layers(source.configuration, source.facts.droppable)
    groups = tie([layer.name for layer in source.facts.layers])
    # Packed, too, because that takes little room.
    shapes = {
        layer.name: (layer.out_features, layer.in_features) for layer in source.facts.layers if layer.name in gone
    }
    zeros = {
        name: plan.usual
        for group in groups
        for name in group
        if all(part in shapes and part not in odd and _fits(*shapes[part], plan.usual) for part in group)
    }
    return Plan({**found.packed, **zeros}, plan.dense, frozenset(zeros), plan.variants)


def _fits(out_features: int, in_features: int, packing: Packing) -> bool:
    whole = packing.group_size == -1 or in_features % packing.group_size == 0
    return whole and out_features % WORD == 0 and in_features % WORD == 0


def _refusal(variant: Variant, odd: str | None) -> Refusal | None:
    """Why a variant can't be packed; None where it can."""
    meta = variant.meta
    if odd is not None:
        return Refusal(Rule.linear, f"is a {odd}, and engines look for codes in nn.Linear only", "use --format hf")
    if refusal := without_codes(variant):
        return refusal
    bits, group_size = meta["bits"], meta["group_size"]
    if bits not in BITS:
        remedy = "use evoray build --levels 2,3,4,8, or evoray search --levels with some of these"
        return Refusal(Rule.bits, f"has {bits} bits, and GPTQ has 2, 3, 4 or 8", remedy)
    out_features, in_features = meta["shape"]
    if out_features % WORD or in_features % WORD:
        reason = f"has {out_features} rows and {in_features} columns, and GPTQ packs multiples of {WORD}"
        return Refusal(Rule.shape, reason, "use --format hf")
    if group_size not in GROUP_SIZES and group_size != in_features:
        reason = f"has groups of {group_size}, and GPTQ has {', '.join(map(str, GROUP_SIZES[1:]))} or whole rows"
        return Refusal(Rule.group_size, reason, "use evoray build --group-size 128")
    return None


def _packing(variant: Variant, manifest: Manifest) -> Packing:
    group_size = variant.meta["group_size"]
    # One group a row is the same under either name; the store's own is taken where engines know it.
    if manifest.group_size == -1 or group_size not in GROUP_SIZES:
        group_size = -1
    return Packing(variant.meta["bits"], group_size)


def _nothing(model: PreTrainedModel, name: str, packing: Packing, manifest: Manifest) -> QuantizedWeight:
    """A weight of zeros: all codes are the zero point, all scales are 0."""
    out_features, in_features = model.get_submodule(name).weight.shape
    group_size = in_features if packing.group_size == -1 else packing.group_size
    middle, groups = 1 << (packing.bits - 1), (out_features, in_features // group_size)
    return QuantizedWeight(
        codes_OI=torch.full((out_features, in_features), middle, dtype=torch.uint8),
        scale_OG=torch.zeros(groups, dtype=getattr(torch, manifest.scale_dtype)),
        zero_OG=None if manifest.symmetric else torch.full(groups, middle, dtype=torch.uint8),
        bits=packing.bits,
        group_size=group_size,
    )


def _most(values: Any) -> int:
    """The most frequent value, the smallest of equal ones."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


class _PackedLinear(nn.Module):
    """What stands in a linear module's place when the model is saved: it names the tensors, and does no more."""

    def __init__(self, weight: QuantizedWeight, bias: nn.Parameter | None, symmetric: bool) -> None:
        super().__init__()
        # Rows of our streams are rows of the weight, theirs are columns: the words are the same.
        self.register_buffer("qweight", _turned(pack_codes(weight.codes_OI, weight.bits)))
        if symmetric:
            stored_OG = torch.full(weight.scale_OG.shape, (1 << (weight.bits - 1)) - 1, dtype=torch.uint8)
        else:
            assert weight.zero_OG is not None
            stored_OG = weight.zero_OG
        self.register_buffer("qzeros", pack_codes(_turned(stored_OG), weight.bits))
        self.register_buffer("scales", _turned(weight.scale_OG))
        columns = torch.arange(weight.codes_OI.shape[1], dtype=torch.int32)
        self.register_buffer("g_idx", columns // weight.group_size)
        self.bias = bias


def _turned(matrix: Tensor) -> Tensor:
    return matrix.T.contiguous()

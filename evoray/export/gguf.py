r"""What llama.cpp needs to make a GGUF file with a type for each layer: `--format gguf`.

GGUF types have their own codes, scales and rounding: `llama-quantize` makes them from the base model. So this writes no
weights, but a file of types and the two commands that use it. What comes out has the searched bits only nearly:

    level     2      3       4     5     6       8
    type      Q2_K   Q3_K    Q4_K  Q5_K  Q6_K    Q8_0
    bits      2.625  3.4375  4.5   5.5   6.5625  8.5    per weight, with scales

Bits are those of the blocks in llama.cpp's ggml-common.h: 84, 110, 144, 176 and 210 bytes for 256 weights, 34 for 32.
(2.5625, as is often told of Q2_K, leaves out one of the two fp16 scales of its block.) Where a layer's columns are no
multiple of 256, `llama-quantize` falls back to types with blocks of 32 (Q4_0, Q5_0, Q5_1, Q8_0), and where they are no
multiple of 32 to F16. What is written here is what it would fall back to.

`--tensor-type-file` takes `regex=type` words between white space, with no comments. Each expression is a std::regex,
put in lower case and looked for anywhere in a tensor's name; the first that is found counts. So ours are anchored on
both sides and name each tensor once. They hold only under a quantized type on the command line, and not for embeddings
and head, which have flags of their own.

Holds: `export`, `WARNINGS`, `TYPES`, `GgufType`, `layer_type`, `tensor_name`, `tensor_pattern`.
"""

import re
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from evoray.configuration import BASE, configuration_text
from evoray.errors import UserError
from evoray.export.source import ExportSource
from evoray.model import LayerShape
from evoray.space.costs import configuration_costs, more

WARNINGS: tuple[str, ...] = (
    "GGUF types have other codes than the search measured: its result holds only nearly. Judge the GGUF file again.",
)

TENSOR_TYPES, COMMANDS, README = "tensor-types.txt", "command.txt", "README.md"
"""Files of types, of the two commands, and of what they mean."""


@dataclass(frozen=True)
class GgufType:
    """A type of GGUF tensors.

    Attributes:
        name: as llama.cpp writes it.
        block: weights of a row that share a block.
        block_bytes: of codes and scales in a block.
        file_type: what to call a file on the command line most of whose tensors are of it; empty where that is nothing.
    """

    name: str
    block: int
    block_bytes: int
    file_type: str = ""

    @property
    def bits(self) -> Fraction:
        """Bits per weight."""
        return Fraction(8 * self.block_bytes, self.block)


# Of the mixes that go by a type's name, those which need no importance matrix.
TYPES: Mapping[int, GgufType] = {
    2: GgufType("Q2_K", 256, 84, "Q2_K"),
    3: GgufType("Q3_K", 256, 110, "Q3_K_S"),
    4: GgufType("Q4_K", 256, 144, "Q4_K_S"),
    5: GgufType("Q5_K", 256, 176, "Q5_K_S"),
    6: GgufType("Q6_K", 256, 210, "Q6_K"),
    8: GgufType("Q8_0", 32, 34, "Q8_0"),
}
"""Bits of a level -> type."""

# tensor_type_fallback in llama-quant.cpp.
_FALLBACK: Mapping[int, GgufType] = {
    2: GgufType("Q4_0", 32, 18, "Q4_0"),
    3: GgufType("Q4_0", 32, 18, "Q4_0"),
    4: GgufType("Q5_0", 32, 22, "Q5_0"),
    5: GgufType("Q5_1", 32, 24, "Q5_1"),
    6: TYPES[8],
}
_DENSE: Mapping[str, GgufType] = {
    "float16": GgufType("F16", 1, 2),
    "bfloat16": GgufType("BF16", 1, 2),
    "float32": GgufType("F32", 1, 4),
}

# gguf-py/gguf/tensor_mapping.py: the names of llama, mistral, qwen2, qwen3, gemma and all that are built like them, and
# of phi3, whose gate and up are one tensor called up.
_TENSORS: Mapping[str, str] = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def export(source: ExportSource, stage: Path) -> None:
    """Writes the file of types, the commands, and what they mean.

    Args:
        source: what to write.
        stage: an empty folder.

    Raises:
        UserError: levels, layers or drops that GGUF files can't have; the message says what can be done.
    """
    if source.dropped:
        raise UserError(
            f"{source.dropped[0]}{more(source.dropped)} is dropped, and llama-quantize drops no sublayers; write a "
            "checkpoint by --format hf first, and convert that"
        )
    if source.options.allow_dense:
        raise UserError("--allow-dense is not for --format gguf, which writes no weights; leave it out")
    variants = source.needed_variants()
    if variants is None:
        raise UserError("no layer of the configuration has a level, so there is no type to say; convert the base model")
    if variants.manifest.kind == "sparsity":
        raise UserError(
            "the store is of kind sparsity, and GGUF types have no masks: zeros would take their full bits; search a "
            "store of evoray build --kind quantization, or use --format hf"
        )
    if source.facts.dtype not in _DENSE:
        raise UserError(
            f"the model's weights are {source.facts.dtype}, and GGUF has {', '.join(_DENSE)}; save it in one of these"
        )
    layers, dense = source.facts.layers, _DENSE[source.facts.dtype]
    types = {layer.name: layer_type(layer, source.layers.get(layer.name, BASE), dense) for layer in layers}
    tensors = {layer.name: tensor_name(layer.name) for layer in layers}
    lines = [f"{tensor_pattern(tensors[name])}={type_.name.lower()}\n" for name, type_ in types.items()]
    (stage / TENSOR_TYPES).write_text("".join(lines), encoding="utf-8")
    counts = Counter(type_.file_type for type_ in types.values() if type_.file_type)
    if not counts:
        raise UserError("all layers have their base weight, so there is no type to say; convert the base model")
    commands = _commands(source, dense, counts.most_common(1)[0][0])
    (stage / COMMANDS).write_text(commands, encoding="utf-8")
    (stage / README).write_text(_readme(source, types, commands), encoding="utf-8")
    (stage / "evoray-configuration.txt").write_text(configuration_text(source.configuration), encoding="utf-8")


def layer_type(layer: LayerShape, level: str, dense: GgufType) -> GgufType:
    """The type of a layer at a level.

    Args:
        layer: name and shape.
        level: bits, or base.
        dense: type of base weights.

    Raises:
        UserError: no type has this level.
    """
    if level == BASE:
        return dense
    if not level.isdecimal():
        raise UserError(
            f"{layer.name} has level {level}, and GGUF types have no masks: zeros would take their full bits; use "
            "evoray search --levels with whole bits alone, or --format hf"
        )
    bits = int(level)
    if bits not in TYPES:
        raise UserError(
            f"{layer.name} has {bits} bits, and GGUF has types of {', '.join(map(str, TYPES))}; use "
            "evoray search --levels with these alone"
        )
    type_ = TYPES[bits]
    if layer.in_features % type_.block and bits in _FALLBACK:
        type_ = _FALLBACK[bits]
    return _DENSE["float16"] if layer.in_features % type_.block else type_


def tensor_name(layer: str) -> str:
    """The name that `convert_hf_to_gguf.py` gives a layer's weight.

    Raises:
        UserError: it is not known.

    >>> tensor_name("model.layers.3.self_attn.o_proj")
    'blk.3.attn_output.weight'
    """
    found = re.fullmatch(r"model\.(?:language_model\.)?layers\.(\d+)\.(.+)", layer)
    if found is None or found[2] not in _TENSORS:
        raise UserError(
            f"{layer} has no name in GGUF files that evoray knows, only layers of models built like llama, mistral, "
            "qwen2, qwen3, gemma and phi3 have; use --format hf, and convert that"
        )
    return f"blk.{found[1]}.{_TENSORS[found[2]]}.weight"


def tensor_pattern(tensor: str) -> str:
    r"""A regular expression, of Python as of C++, that finds this name and no other, wherever it looks.

    >>> tensor_pattern("blk.3.attn_q.weight")
    '^blk\\.3\\.attn_q\\.weight$'
    """
    return f"^{re.escape(tensor)}$"


def _commands(source: ExportSource, dense: GgufType, file_type: str) -> str:
    type_ = dense.name.lower()
    base = f"base-{type_}.gguf"
    convert = ["python", "convert_hf_to_gguf.py", str(source.facts.folder.absolute())]
    quantize = ["llama-quantize", "--tensor-type-file", TENSOR_TYPES]
    # Flags come before the file names, or they are not read.
    quantize += ["--token-embedding-type", type_, "--output-tensor-type", type_]
    commands = [[*convert, "--outtype", type_, "--outfile", base], [*quantize, base, "model.gguf", file_type]]
    return "".join(f"{shlex.join(command)}\n" for command in commands)


def _readme(source: ExportSource, types: Mapping[str, GgufType], commands: str) -> str:
    assert source.variants is not None
    costs = configuration_costs(source.variants.manifest, source.layers)
    weights = {layer.name: layer.out_features * layer.in_features for layer in source.facts.layers}
    bits = sum(weights[name] * type_.bits for name, type_ in types.items()) / sum(weights.values())
    levels = {layer.name: source.layers.get(layer.name, BASE) for layer in source.facts.layers}
    pairs = sorted(Counter((levels[name], type_.name, type_.bits) for name, type_ in types.items()).items())
    rows = "".join(f"| {level} | {name} | {float(each)} | {count} |\n" for (level, name, each), count in pairs)
    return f"""# A GGUF file with a type for each layer

An approximation: GGUF's types have other codes, scales and rounding than the variants that were searched, and
llama-quantize makes them anew from the base weights. What was measured of this configuration does not hold for the
file that comes out. Judge it again, for example by llama-perplexity.

| | bits per weight of the layers |
|---|---|
| searched, codes alone | {costs.bits:.4f} |
| searched, with scales and zero points | {costs.bpw:.4f} |
| GGUF, with scales | {float(bits):.4f} |

| level | type | bits per weight | layers |
|---|---|---|---|
{rows}
Types in K have blocks of 256 columns; layers whose columns are no multiple of that have the next wider type with
blocks of 32.

Run in this folder, with the two programs of llama.cpp (one whose llama-quantize has --tensor-type-file):

```
{commands}```

Embeddings and head keep the base model's type, as they did in the search; other types for them are smaller
(`--token-embedding-type q6_K --output-tensor-type q6_K`). The expressions hold only if the last word is a quantized
type. An importance matrix (llama-imatrix, then `--imatrix FILE`) helps types of 2 and 3 bits.
"""

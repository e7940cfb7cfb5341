"""A checkpoint of the store's own codes, for vLLM and others: `--format compressed-tensors`.

Format `pack-quantized`, with a config group for each scheme (bits, group size, symmetric or not), whose targets are the
exact names of its layers. Names are those of the separate layers, also where an engine fuses them: vLLM looks for
`qkv_proj` by the names of its parts. A packed layer of O rows, I columns and G groups has

    weight_packed      int32 [O, ceil(I * bits / 32)]
    weight_scale       [O, G] in the checkpoint's dtype
    weight_shape       int64 [2]: O and I
    weight_zero_point  int32 [ceil(O * bits / 32), G], where it is asymmetric

The bytes of all tensors in the files are the size that costs of cost format compressed-tensors promise (`Costs.size`,
"size" in best.json), `weight_shape` included. They are more only for layers that `--allow-dense` keeps dense, and for
what is dropped: it counts as nothing, and its zeros are stored as dense weights.

Codes, scales and zero points are those of the store. Nothing is rounded again: dequantized by the library a weight has
the bits that were measured.

Holds: `export`, `WARNINGS`, `LOADING`, `DEPTHS`, `packed_tensors`, `quantization_config`.

Shape letters: O out, I in, G groups.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from evoray.configuration import configuration_text
from evoray.errors import UserError
from evoray.export.depth import Expected, whole_blocks, without_blocks
from evoray.export.packable import decoded
from evoray.export.schemes import WHOLE_ROW, Plan, plan
from evoray.export.silence import silence, silent_sublayers
from evoray.export.source import Depth, ExportSource
from evoray.formats import dense_weight
from evoray.formats.packed import QuantizedWeight
from evoray.model import ModelAdapter, load_tokenizer, quiet_transformers
from evoray.store import Variant

WARNINGS: tuple[str, ...] = (
    "Don't give transformers `dequantize=True` (or `run_compressed=False`): it then unpacks every layer by the first "
    "config group, and where there are several the weights may be wrong without a word. Without it each layer is "
    "unpacked by its own group, at the first forward pass.",
    "transformers can't load packed zero points, which asymmetric layers have; vLLM can. Variants of `evoray build "
    "--symmetric` have none.",
    "Load it in the dtype that its config.json names. In another one scales are cast before they are multiplied, so "
    "weights differ from those that were measured by a rounding.",
)
"""For who uses a checkpoint. The first two were seen with transformers 5.23 and 5.24."""

LOADING = """\
```
vllm serve FOLDER
```

or, with `pip install compressed-tensors`:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```
"""

DEPTHS = (Depth.zeros, Depth.removed)

_FORMAT = "pack-quantized"


def export(source: ExportSource, stage: Path) -> None:
    """Writes a checkpoint of packed codes.

    Layers at their base weight, embeddings, head and norms are as in the base model. Dropped sublayers are zeros; with
    `--depth removed` dropped blocks are gone, and what was written is loaded again and compared.

    Args:
        source: what to write.
        stage: an empty folder.

    Raises:
        UserError: the library is missing; a layer can't be packed, and the message names the rule and what would have
            avoided it; something dropped can't be said by zeros.
    """
    pack = _packer()
    layers = plan(source)
    expected = _write(source, layers, pack, stage)
    if expected is not None:
        # The model that was written is gone from memory by now.
        with quiet_transformers():
            again = AutoModelForCausalLM.from_pretrained(
                stage, dtype=getattr(torch, source.facts.dtype), trust_remote_code=source.trust_remote_code
            )
        expected.check(again.eval(), "--depth removed")


def _write(source: ExportSource, layers: Plan, pack: Callable[..., Tensor], stage: Path) -> Expected | None:
    """Writes the checkpoint; returns what it has to be when it is loaded again, where blocks are removed."""
    loaded = source.load(source.facts.dtype)
    adapter = ModelAdapter(loaded, allow_partial=source.allow_partial)
    removing = source.options.depth is Depth.removed
    removed, loose = whole_blocks(adapter, source.dropped) if removing else ((), source.dropped)
    if removed and not all(scheme.symmetric for scheme in layers.packed.values()):
        raise UserError(
            "--depth removed: what is written is loaded again to see that it is right, and transformers loads no "
            "packed zero points; build the store with --symmetric, or use --depth zeros"
        )
    silent = silent_sublayers(adapter, loose)
    for name in layers.dense:
        base = adapter.layers[name].base
        with torch.no_grad():
            base.copy_(adapter.ready(name, _unrounded(layers.variants[name], base.dtype)))
    expected = None
    if removed:
        for name in layers.packed:
            base = adapter.layers[name].base
            with torch.no_grad():
                base.copy_(adapter.ready(name, dense_weight(layers.variants[name], base.dtype)))
        expected = Expected.of(adapter, source.dropped, removed)
    silence(adapter, silent)
    adapter.close()
    tensors = loaded.state_dict()
    for name in layers.packed:
        del tensors[f"{name}.weight"]
        parts = packed_tensors(decoded(layers.variants[name]), pack)
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    linear = [name for name, module in loaded.named_modules() if isinstance(module, nn.Linear)]
    if removed:
        # New name -> old one.
        names, _ = without_blocks({name: name for name in linear}, loaded.config, removed, adapter.blocks_name)
        tensors, loaded.config = without_blocks(tensors, loaded.config, removed, adapter.blocks_name)
        linear = list(names)
        layers = replace(layers, packed={new: layers.packed[old] for new, old in names.items() if old in layers.packed})
    with quiet_transformers():
        loaded.save_pretrained(stage, state_dict=tensors, safe_serialization=True)
        load_tokenizer(source.model, source.revision, source.trust_remote_code).save_pretrained(stage)
    config = json.loads((stage / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = quantization_config(layers, linear)
    (stage / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (stage / "evoray-configuration.txt").write_text(configuration_text(source.configuration), encoding="utf-8")
    return expected


def packed_tensors(weight: QuantizedWeight, pack: Callable[..., Tensor]) -> dict[str, Tensor]:
    """What stands in a checkpoint in place of a layer's weight.

    Args:
        weight: its codes.
        pack: the library's `pack_to_int32`.

    Returns:
        Last part of the name -> tensor.
    """
    middle = 1 << (weight.bits - 1)

    def signed(codes: Tensor) -> Tensor:
        # The library's codes run from -2^(bits-1), ours from 0.
        return (codes.to(torch.int16) - middle).to(torch.int8)

    tensors = {
        "weight_packed": pack(signed(weight.codes_OI), weight.bits),
        "weight_scale": weight.scale_OG,
        "weight_shape": torch.tensor(weight.codes_OI.shape),
    }
    if weight.zero_OG is not None:
        tensors["weight_zero_point"] = pack(signed(weight.zero_OG), weight.bits, packed_dim=0)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def quantization_config(layers: Plan, linear: Iterable[str]) -> dict[str, Any]:
    """What `config.json` says of the layers.

    Args:
        layers: which are packed, and how.
        linear: names of all linear modules of the model.
    """
    import compressed_tensors
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    groups = {}
    for index, (scheme, names) in enumerate(layers.groups.items()):
        whole = scheme.group_size == WHOLE_ROW
        weights = QuantizationArgs(
            num_bits=scheme.bits,
            symmetric=scheme.symmetric,
            strategy="channel" if whole else "group",
            group_size=None if whole else scheme.group_size,
        )
        # By exact names: an expression would have to be escaped and bound at both ends, and vLLM, which renames the
        # modules of some models, renames such targets by their first part.
        groups[f"group_{index}"] = QuantizationScheme(targets=names, weights=weights, format=_FORMAT)
    config = QuantizationConfig(
        config_groups=groups,
        format=_FORMAT,
        quantization_status="compressed",
        ignore=[name for name in linear if name not in layers.packed],
    )
    return {**config.model_dump(mode="json"), "version": compressed_tensors.__version__}


def _packer() -> Callable[..., Tensor]:
    """The library's `pack_to_int32`.

    Raises:
        UserError: there is no library, or an old one, which packs odd bits in another way.
    """
    remedy = "pip install 'evoray[export]'"
    try:
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    except ImportError as error:
        raise UserError(f"--format compressed-tensors needs compressed-tensors 0.18 ({error}); {remedy}") from None
    if pack_to_int32(torch.zeros(1, 32, dtype=torch.int8), 3).shape != (1, 3):
        raise UserError(f"this compressed-tensors pads codes, and vLLM reads those of 0.18 and later; {remedy}")
    pack: Callable[..., Tensor] = pack_to_int32
    return pack


def _unrounded(variant: Variant, dtype: torch.dtype) -> Tensor:
    """A variant's weight, [O, I] in the checkpoint's dtype.

    Raises:
        UserError: the dtype can't hold it.
    """
    weight_OI = dense_weight(variant, dtype)
    if not torch.equal(weight_OI.float(), dense_weight(variant, torch.float32)):
        raise UserError(
            f"layer {variant.layer}, level {variant.level}: its values have more digits than {dtype}; use --format hf"
        )
    return weight_OI

"""A transformers checkpoint with dequantized weights: `--format hf`.

Holds: `export`, `DEPTHS`, `LOADING`, `LOADING_COMPRESSED`.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from evoray.configuration import BASE, configuration_text
from evoray.errors import UserError
from evoray.export.depth import Expected, whole_blocks, without_blocks
from evoray.export.no_op import leave_out, read_as_llama, write_config
from evoray.export.silence import silence, silent_sublayers
from evoray.export.source import Depth, ExportSource
from evoray.formats import dense_weight
from evoray.model import ModelAdapter, load_model, load_tokenizer, quiet_transformers

DEPTHS = tuple(Depth)
LOADING = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

Engines that run the base model run it as well.
"""
LOADING_COMPRESSED = """
The weights are dequantized: it takes no less memory than the base model's weights of the same shapes do.
"""


def export(source: ExportSource, stage: Path) -> None:
    """Writes a checkpoint that `AutoModelForCausalLM.from_pretrained` loads as it is.

    Weights are exactly what the store's codes dequantize to: the very values that the search measured. So it takes the
    room of the base model, or more where scales have more digits than the checkpoint's dtype; it is for judging and for
    engines that quantize by themselves.

    What is dropped is said as `source.options.depth` says. `zeros`: weights and biases of dropped sublayers are zero,
    those of dropped blocks in all their sublayers: the model keeps its form, and any engine runs it. `removed`: dropped
    blocks are gone, and sublayers dropped alone are zero. `no-op`: dropped sublayers are gone, and `block_configs`
    says so; that, only engines with such models load.

    Args:
        source: what to write.
        stage: an empty folder.

    Raises:
        UserError: the configuration needs a store, or something dropped can't be said in this form.
    """
    dtype, expected = _write(source, stage)
    # The model that was written is gone from memory by now.
    if source.options.depth is Depth.removed:
        expected.check(_loaded_again(source, stage, dtype), "--depth removed")
    elif source.options.depth is Depth.no_op:
        expected.check(read_as_llama(stage, dtype), "--depth no-op")


def _write(source: ExportSource, stage: Path) -> tuple[torch.dtype, Expected]:
    """Writes the checkpoint; returns in which dtype, and what it has to be when it is loaded again."""
    variants = source.needed_variants()
    depth = source.options.depth
    # A dtype that holds base weights and dequantized ones without rounding either.
    exact = getattr(torch, source.facts.dtype)
    if variants is not None:
        exact = torch.promote_types(exact, getattr(torch, variants.manifest.scale_dtype))
    loaded = source.load(str(exact).removeprefix("torch."))
    adapter = ModelAdapter(loaded, allow_partial=source.allow_partial)
    removed, loose = whole_blocks(adapter, source.dropped) if depth is Depth.removed else ((), source.dropped)
    silent = silent_sublayers(adapter, loose)
    # A layer that lies in what is dropped needs no variant.
    gone = {layer for name in silent for layer in adapter.droppable[name].layers}
    gone |= {layer for layer, ref in adapter.layers.items() if ref.block in removed}
    for layer, level in source.layers.items():
        if variants is None or level == BASE or layer in gone:
            continue
        dtype = adapter.layers[layer].base.dtype
        weight_OI = dense_weight(variants.read(layer, level), dtype)
        # Written into the parameter itself, so that the base weight's memory is reused and ties are kept.
        with torch.no_grad():
            adapter.layers[layer].base.copy_(adapter.ready(layer, weight_OI))
    expected = Expected.of(adapter, source.dropped, removed)
    silence(adapter, silent)
    adapter.close()
    tensors = loaded.state_dict()
    entries: list[dict[str, Any]] = []
    if removed:
        tensors, loaded.config = without_blocks(tensors, loaded.config, removed, adapter.blocks_name)
    elif depth is Depth.no_op:
        tensors, entries = leave_out(adapter, loaded.config, tensors, silent)
    with quiet_transformers():
        loaded.save_pretrained(stage, state_dict=tensors, safe_serialization=True)
        load_tokenizer(source.model, source.revision, source.trust_remote_code).save_pretrained(stage)
    if entries:
        write_config(stage, entries)
    (stage / "evoray-configuration.txt").write_text(configuration_text(source.configuration), encoding="utf-8")
    return exact, expected


def _loaded_again(source: ExportSource, stage: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The checkpoint that was written.

    Raises:
        UserError: it does not load.
    """
    try:
        return load_model(
            str(stage),
            dtype=str(dtype).removeprefix("torch."),
            device="cpu",
            trust_remote_code=source.trust_remote_code,
        )
    except UserError as error:
        reason = str(error).partition(": ")[2].partition(";")[0]
        raise UserError(
            f"--depth removed: a {source.facts.model_class} without these blocks does not load ({reason}); "
            "use --depth zeros, or the configuration file"
        ) from error

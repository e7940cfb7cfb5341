"""Exported checkpoints of configurations that drop sublayers and blocks: plain models with the measured logits."""

from pathlib import Path

import pytest
import torch
from stores import tiny_store
from tiny import tiny_ids, tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from evoray.configuration import DROPPED, KEPT, Configuration
from evoray.embedded import model_path
from evoray.errors import UserError
from evoray.export import ExportSource, export
from evoray.formats import dense_weight
from evoray.model import ModelAdapter, checkpoint_facts
from evoray.store import VariantStore

pytestmark = pytest.mark.usefixtures("same_products")

# Per family the first block's attention, the second's feed-forward, the last block.
SITES = {
    "llama": ("model.layers.0.self_attn", "model.layers.1.mlp", "model.layers.2"),
    "gpt2": ("transformer.h.0.attn", "transformer.h.1.mlp", "transformer.h.2"),
    "opt": ("model.decoder.layers.0.self_attn", "model.decoder.layers.1.fc1+fc2", "model.decoder.layers.2"),
    "bloom": ("transformer.h.0.self_attention", "transformer.h.1.mlp", "transformer.h.2"),
}


def saved(folder: Path, family: str, dtype: torch.dtype = torch.float32, **changes: object) -> str:
    tiny_model(family, **changes).to(dtype).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((Path(model_path()) / name).read_bytes())
    return str(folder)


def loaded(folder: str | Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


@pytest.mark.parametrize("family", SITES)
def test_a_configuration_of_drops_alone_needs_no_store(family: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", family, torch.float16)
    attention, feed_forward, block = SITES[family]
    configuration: Configuration = {attention: DROPPED, feed_forward: DROPPED, block: DROPPED}
    kept = feed_forward.replace(".1.", ".0.")
    out = export("hf", ExportSource.open(model, None, {**configuration, kept: KEPT}), str(tmp_path / "out"))
    adapter = ModelAdapter(loaded(model))
    base = adapter.logits(tiny_ids(vocabulary=90))
    for name in configuration:
        adapter.drop(name)
    wanted = adapter.logits(tiny_ids(vocabulary=90))
    assert torch.equal(loaded(out)(input_ids=tiny_ids(vocabulary=90), use_cache=False).logits, wanted)
    assert not torch.equal(wanted, base)
    # Nothing else has changed, and the files are as large as they were.
    silenced = {
        id(parameter)
        for name in (attention, feed_forward, *adapter.sublayers[2])
        for parameter in adapter.silenced(name)
    }
    before = {name: (tensor, id(tensor) in silenced) for name, tensor in adapter.model.named_parameters()}
    for name, tensor in loaded(out).named_parameters():
        old, zero = before[name]
        assert torch.equal(tensor, old) or (zero and not tensor.any()), name
    sizes = [sum(file.stat().st_size for file in Path(place).glob("*.safetensors")) for place in (model, out)]
    assert sizes[0] == sizes[1]


def test_drops_and_variants_together(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama")
    digest = checkpoint_facts(model).weights_digest
    store = tiny_store(tmp_path / "store", loaded(model), model=model, weights_digest=digest)
    variants = VariantStore.open(store)
    configuration: Configuration = {layer.name: "3" for layer in variants.manifest.layers}
    configuration |= {"model.layers.1": DROPPED, "model.layers.2.mlp": DROPPED, "model.layers.0.mlp": KEPT}
    out = export("hf", ExportSource.open(model, store, configuration), str(tmp_path / "out"))
    adapter = ModelAdapter(loaded(model))
    for layer in variants.manifest.layers:
        adapter.swap(layer.name, adapter.ready(layer.name, dense_weight(variants.read(layer.name, "3"), adapter.dtype)))
    adapter.drop("model.layers.1")
    adapter.drop("model.layers.2.mlp")
    ids = tiny_ids(vocabulary=90)
    assert torch.equal(loaded(out)(input_ids=ids, use_cache=False).logits, adapter.logits(ids))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama")
    post_norm = saved(tmp_path / "post", "opt", do_layer_norm_before=False)
    layer = "model.layers.0.mlp.up_proj"
    for place, configuration, said in [
        (model, {"model.layers.0.mlp": "3"}, "model.layers.0.mlp has no level '3'; choose dropped or kept"),
        (model, {layer: "3"}, f"{layer} at level 3; give the --store"),
        (model, {layer: DROPPED}, f"{layer} can't be dropped: it is no sublayer or block"),
        (model, {"model.layers.9": KEPT}, "of LlamaForCausalLM run from model.layers.0.self_attn to model.layers.2"),
        (post_norm, {"model.decoder.layers.0.self_attn": DROPPED}, "OPTForCausalLM .* does not return its input"),
        (post_norm, {"model.decoder.layers.0": DROPPED}, "can't be written as a plain checkpoint: .* its input"),
    ]:
        with pytest.raises(UserError, match=said):
            export("hf", ExportSource.open(place, None, configuration), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()

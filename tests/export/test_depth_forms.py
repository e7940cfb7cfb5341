"""Checkpoints without what is dropped: they load, generate with a cache, and are the model that was measured."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from stores import tiny_store
from tiny import tiny_ids, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from evoray.configuration import DROPPED, KEPT, Configuration
from evoray.embedded import model_path
from evoray.errors import UserError
from evoray.export import Depth, ExportOptions, ExportSource, export
from evoray.export.depth import Expected, without_blocks
from evoray.export.no_op import read_as_llama
from evoray.formats import dense_weight
from evoray.model import ModelAdapter, checkpoint_facts
from evoray.store import VariantStore

pytestmark = pytest.mark.usefixtures("same_products")

SLIDING, FULL = "sliding_attention", "full_attention"

# family -> (changes of its configuration, name of its blocks, dropped blocks, a loose sublayer, expected settings)
CASES: dict[str, tuple[dict[str, Any], str, tuple[int, ...], str, dict[str, Any]]] = {
    "llama": ({"num_hidden_layers": 4}, "model.layers", (0, 2), "3.mlp", {"num_hidden_layers": 2}),
    "qwen3": (
        {"num_hidden_layers": 4, "layer_types": [FULL, SLIDING, FULL, SLIDING], "sliding_window": 4,
         "use_sliding_window": True},
        "model.layers", (1, 2), "0.self_attn", {"num_hidden_layers": 2, "layer_types": [FULL, SLIDING]},
    ),
    "gpt2": ({"n_layer": 4}, "transformer.h", (1,), "2.attn", {"n_layer": 3}),
    "gemma3": (
        {"num_hidden_layers": 5, "layer_types": [SLIDING, FULL, SLIDING, SLIDING, FULL], "sliding_window": 4},
        "model.layers", (0, 3), "", {"num_hidden_layers": 3, "layer_types": [FULL, SLIDING, FULL]},
    ),
    # As many ends of a text as blocks: no list of the blocks.
    "mistral": ({"eos_token_id": [2, 3, 4]}, "model.layers", (1,), "0.mlp",
                {"num_hidden_layers": 2, "eos_token_id": [2, 3, 4]}),
    # Its blocks can't be written with zeros: a norm stands behind the residual sum.
    "opt": ({"do_layer_norm_before": False}, "model.decoder.layers", (2,), "", {"num_hidden_layers": 2}),
    "bloom": ({"n_layer": 4}, "transformer.h", (0, 3), "1.mlp", {"n_layer": 2}),
    "mamba": ({"num_hidden_layers": 4}, "backbone.layers", (1, 2), "", {"num_hidden_layers": 2}),
}  # fmt: skip


def saved(folder: Path, model: PreTrainedModel) -> str:
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((Path(model_path()) / name).read_bytes())
    return str(folder)


def loaded(folder: str | Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


def source(model: str, configuration: Configuration, depth: Depth, store: str | None = None) -> ExportSource:
    return ExportSource.open(model, store, configuration, options=ExportOptions(depth=depth))


def measured(model: str, dropped: list[str], ids: torch.Tensor) -> torch.Tensor:
    adapter = ModelAdapter(loaded(model))
    for name in dropped:
        adapter.drop(name)
    return adapter.logits(ids)


def greedy(model: PreTrainedModel, ids: torch.Tensor, tokens: int) -> torch.Tensor:
    """The slow way: the whole text again for each token, without a cache."""
    for _ in range(tokens):
        logits = model(input_ids=ids, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    return ids


@pytest.mark.parametrize("family", CASES)
def test_blocks_are_gone_and_the_rest_is_what_was_measured(family: str, tmp_path: Path) -> None:
    changes, blocks_name, blocks, loose, settings = CASES[family]
    model = saved(tmp_path / "model", tiny_model(family, **changes))
    dropped = [f"{blocks_name}.{block}" for block in blocks] + ([f"{blocks_name}.{loose}"] if loose else [])
    out = export("hf", source(model, dict.fromkeys(dropped, DROPPED), Depth.removed), str(tmp_path / "out"))
    ids = tiny_ids(vocabulary=90)
    small = loaded(out)
    assert torch.equal(small(input_ids=ids, use_cache=False).logits, measured(model, dropped, ids))
    # What is written: the base model's tensors under other numbers, and zeros for the loose sublayer alone.
    before = {name: tensor for file in Path(model).glob("*.safetensors") for name, tensor in load_file(file).items()}
    after = {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}
    kept = [block for block in range(ModelAdapter(loaded(model)).n_blocks) if block not in blocks]
    short = blocks_name if any(name.startswith(blocks_name) for name in before) else blocks_name.partition(".")[2]
    wanted = {name: tensor for name, tensor in before.items() if not name.startswith(f"{short}.")}
    for new, old in enumerate(kept):
        for name, tensor in before.items():
            if name.startswith(f"{short}.{old}."):
                zero = bool(loose) and name.startswith(f"{short}.{loose}.") and (tensor.ndim > 1 or "bias" in name)
                wanted[name.replace(f"{short}.{old}.", f"{short}.{new}.", 1)] = tensor * 0 if zero else tensor
    assert after.keys() == wanted.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in wanted.items())
    config = json.loads((out / "config.json").read_text())
    assert {name: config[name] for name in settings} == settings
    # Everything else of the configuration is as it was.
    original = json.loads((Path(model) / "config.json").read_text())
    assert {name: value for name, value in config.items() if name not in settings} == {
        name: value for name, value in original.items() if name not in settings
    }


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma3"])
def test_it_generates_with_a_cache_what_it_would_without(family: str, tmp_path: Path) -> None:
    changes, blocks_name, blocks, _, _ = CASES[family]
    model = saved(tmp_path / "model", tiny_model(family, **changes))
    dropped = {f"{blocks_name}.{block}": DROPPED for block in blocks}
    small = loaded(export("hf", source(model, dropped, Depth.removed), str(tmp_path / "out")))
    small.generation_config.eos_token_id = None  # else some of these models say no more than a word
    ids = tiny_ids(rows=1, tokens=9, vocabulary=90)
    made = small.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, use_cache=True)
    assert torch.equal(made, greedy(small, ids, 12))
    # Each block has its own part of the cache, numbered from 0.
    cache: Any = small(input_ids=ids, use_cache=True).past_key_values
    assert len(cache) == len(ModelAdapter(small).blocks)


def test_a_block_without_any_sublayer_is_gone_as_well_and_variants_are_in_place(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", tiny_model("llama", num_hidden_layers=4))
    digest = checkpoint_facts(model).weights_digest
    store = tiny_store(tmp_path / "store", loaded(model), model=model, weights_digest=digest)
    variants = VariantStore.open(store)
    configuration: Configuration = {layer.name: "3" for layer in variants.manifest.layers}
    configuration |= {f"model.layers.1.{part}": DROPPED for part in ("self_attn", "mlp")}
    configuration |= {"model.layers.0.mlp": DROPPED, "model.layers.3": KEPT}
    out = export("hf", source(model, configuration, Depth.removed, store), str(tmp_path / "out"))
    adapter = ModelAdapter(loaded(model))
    for layer in variants.manifest.layers:
        adapter.swap(layer.name, adapter.ready(layer.name, dense_weight(variants.read(layer.name, "3"), adapter.dtype)))
    for name in ("model.layers.1.self_attn", "model.layers.1.mlp", "model.layers.0.mlp"):
        adapter.drop(name)
    ids = tiny_ids(vocabulary=90)
    assert torch.equal(loaded(out)(input_ids=ids, use_cache=False).logits, adapter.logits(ids))
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 3


@pytest.mark.parametrize("model_type", ["smollm3", "diffllama"])
def test_lists_of_any_name_and_values_that_follow_a_blocks_number(model_type: str, tmp_path: Path) -> None:
    """smollm3 says in a list which blocks rotate; diffllama computes a constant from the number of each."""
    config = AutoConfig.for_model(
        model_type, vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        **({"no_rope_layers": [1, 1, 0, 1]} if model_type == "smollm3" else {}),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model = saved(tmp_path / "model", made)
    told = source(model, {"model.layers.1": DROPPED}, Depth.removed)
    if model_type == "smollm3":
        out = export("hf", told, str(tmp_path / "out"))
        assert json.loads((out / "config.json").read_text())["no_rope_layers"] == [1, 0, 1]
        ids = tiny_ids(vocabulary=90)
        found = loaded(out)(input_ids=ids, use_cache=False).logits
        assert torch.equal(found, measured(model, ["model.layers.1"], ids))
    else:
        with pytest.raises(UserError, match=r"block 2 of DiffLlamaForCausalLM changes with its number .*lambda_init"):
            export("hf", told, str(tmp_path / "out"))
        assert [file.name for file in tmp_path.iterdir()] == ["model"]
    # The last block moves none, so it may go from either.
    last = source(model, {"model.layers.3": DROPPED}, Depth.removed)
    small = loaded(export("hf", last, str(tmp_path / "last")))
    ids = tiny_ids(vocabulary=90)
    found = small(input_ids=ids, use_cache=False).logits
    assert torch.equal(found, measured(model, ["model.layers.3"], ids))


def test_scores_divided_by_the_number_of_a_block(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True))
    with pytest.raises(UserError, match="block 1 of GPT2LMHeadModel changes with its number"):
        export("hf", source(model, {"transformer.h.0": DROPPED}, Depth.removed), str(tmp_path / "out"))
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_what_shows_in_logits_alone() -> None:
    base, blocks = tiny_model("llama"), [0, 2]
    expected = Expected.of(ModelAdapter(base), ["model.layers.1"], [1])
    tensors, config = without_blocks(base.state_dict(), base.config, [1], "model.layers")
    small = type(base).from_pretrained(None, config=config, state_dict=dict(tensors)).eval()
    expected.check(small, "--depth removed")
    with torch.no_grad():
        small.model.norm.weight[0] += 1e-3
    with pytest.raises(
        UserError, match=r"^--depth removed: the logits of the LlamaForCausalLM that was written are not"
    ):
        expected.check(small, "--depth removed")
    with pytest.raises(UserError, match=f"loads 3 blocks where {len(blocks)} are written"):
        expected.check(base, "--depth removed")


def test_shared_keys_are_refused(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", tiny_model("gemma3n"))
    with pytest.raises(UserError):
        export("hf", source(model, {"model.layers.0": DROPPED}, Depth.removed), str(tmp_path / "out"))
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_forms_that_a_format_or_a_model_can_not_have(tmp_path: Path) -> None:
    llama = saved(tmp_path / "llama", tiny_model("llama", intermediate_size=256))
    narrow = saved(tmp_path / "narrow", tiny_model("llama"))
    qwen = saved(tmp_path / "qwen", tiny_model("qwen3"))
    blocks = {f"model.layers.{block}": DROPPED for block in range(3)}
    one: Configuration = {"model.layers.1": DROPPED}
    for name, model, configuration, depth, said in [
        ("evopress", llama, one, Depth.removed, "--depth removed is not for --format evopress; choose zeros$"),
        ("evopress", llama, one, Depth.no_op, "--depth no-op is not for --format evopress; choose zeros$"),
        ("hf", llama, blocks, Depth.removed, "all 3 blocks are dropped"),
        ("hf", qwen, one, Depth.no_op, "this model is of type qwen3"),
        ("hf", narrow, one, Depth.no_op, "width 96 can't be said"),
        ("hf", llama, {"model.layers.0.self_attn": DROPPED}, Depth.no_op, "attention of block 0 is dropped"),
        ("hf", llama, {**one, "model.layers.0.self_attn": DROPPED, "model.layers.2": DROPPED}, Depth.no_op, "block 0"),
        ("hf", llama, {"model.layers.0": DROPPED, "model.layers.1.self_attn": DROPPED}, Depth.no_op, "of block 1 is"),
        ("hf", llama, blocks, Depth.no_op, "engines need that of the first block"),
    ]:
        with pytest.raises(UserError, match=said):
            export(name, source(model, configuration, depth), str(tmp_path / "out"))
        assert sorted(file.name for file in tmp_path.iterdir()) == ["llama", "narrow", "qwen"]


NO_OPS: list[Configuration] = [
    {"model.layers.1.self_attn": DROPPED, "model.layers.2.mlp": DROPPED},
    {"model.layers.0": DROPPED, "model.layers.1.mlp": DROPPED, "model.layers.2.self_attn": DROPPED},
]


@pytest.mark.parametrize("configuration", NO_OPS, ids=["parts", "first"])
@pytest.mark.parametrize("bias", [False, True])
def test_no_ops_are_what_engines_read(
    configuration: Configuration, bias: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"intermediate_size": 512, "attention_bias": bias, "mlp_bias": bias}
    if bias:
        changes["tie_word_embeddings"] = False
        changes["rope_parameters"] = {
            "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }  # fmt: skip
    model = saved(tmp_path / "model", tiny_model("llama", **changes))
    out = export("hf", source(model, configuration, Depth.no_op), str(tmp_path / "out"))
    gone = {
        (block, part)
        for block in range(3)
        for part in ("self_attn", "mlp")
        if DROPPED in (configuration.get(f"model.layers.{block}.{part}"), configuration.get(f"model.layers.{block}"))
    }
    # The names of the base model's tensors but those of the dropped sublayers and their norms; nothing renumbered.
    norms = {"self_attn": "input_layernorm", "mlp": "post_attention_layernorm"}
    away = {f"model.layers.{block}.{name}" for block, part in gone for name in (part, norms[part])}
    before = load_file(Path(model) / "model.safetensors")
    after = load_file(out / "model.safetensors")
    assert set(after) == {name for name in before if ".".join(name.split(".")[:4]) not in away}
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("nemotron-nas", ["DeciLMForCausalLM"])
    # 4 heads share 2 keys; int(2 * 12 * 64 / 3) is 512.
    assert [
        (entry["attention"]["n_heads_in_group"], entry["ffn"]["ffn_mult"]) for entry in config["block_configs"]
    ] == [(None if (block, "self_attn") in gone else 2, None if (block, "mlp") in gone else 12.0) for block in range(3)]
    for block, entry in enumerate(config["block_configs"]):
        assert entry["attention"]["no_op"] is ((block, "self_attn") in gone)
        assert entry["ffn"]["no_op"] is ((block, "mlp") in gone)
        assert not any(part["replace_with_linear"] for part in entry.values())
    assert config["rope_theta"] == (500.0 if bias else 10000.0)
    assert (config["rope_scaling"] or {}).get("rope_type") == ("llama3" if bias else None)
    # The class that comes along gives engines attributes.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    read = AutoConfig.from_pretrained(out, trust_remote_code=True)
    assert [entry.attention.no_op for entry in read.block_configs] == [(b, "self_attn") in gone for b in range(3)]
    assert [entry.ffn.no_op for entry in read.block_configs] == [(b, "mlp") in gone for b in range(3)]
    assert read.to_dict()["block_configs"] == config["block_configs"]
    assert (read.model_type, read.num_hidden_layers, read.attention_bias) == ("nemotron-nas", 3, bias)
    ids = tiny_ids(vocabulary=90)
    wanted = measured(model, list(configuration), ids)
    assert torch.equal(read_as_llama(out, torch.float32)(input_ids=ids, use_cache=False).logits, wanted)
    assert torch.equal(_residual_pairs(out, ids), wanted)


def _residual_pairs(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the blocks as the entries say them, each a plain sum; rotation and attention are transformers' own."""
    spec = importlib.util.spec_from_file_location("configuration_decilm", folder / "configuration_decilm.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    entries = module.DeciLMConfig.from_pretrained(folder).block_configs
    model = read_as_llama(folder, torch.float32)
    rows = torch.arange(ids.shape[1])[None]
    with torch.no_grad():
        state = model.model.embed_tokens(ids)
        rotation = model.model.rotary_emb(state, rows)
        for block, entry in zip(model.model.layers, entries, strict=True):
            if not entry.attention.no_op:
                normed = block.input_layernorm(state)
                state = state + block.self_attn(normed, position_embeddings=rotation, attention_mask=None)[0]
            if not entry.ffn.no_op:
                state = state + block.mlp(block.post_attention_layernorm(state))
        return model.lm_head(model.model.norm(state))


@given(st.integers(1, 12), st.data())
def test_numbers_and_lists(n_blocks: int, data: st.DataObject) -> None:
    blocks = data.draw(st.sets(st.integers(0, n_blocks - 1), max_size=n_blocks - 1))
    config = AutoConfig.for_model("llama", num_hidden_layers=n_blocks, eos_token_id=list(range(n_blocks)))
    config.flags = list(range(n_blocks))
    config.others = list(range(n_blocks + 1))
    tensors = {f"a.h.{block}.{part}": (block, part) for block in range(n_blocks) for part in ("w", "x.1.b")}
    tensors |= {"a.h2.0.w": (0, "h2"), "a.norm": (0, "norm"), "a.hh": (0, "hh")}
    left, smaller = without_blocks(tensors, config, blocks, "a.h")
    kept = [block for block in range(n_blocks) if block not in blocks]
    assert left == {
        **{f"a.h.{new}.{part}": (old, part) for new, old in enumerate(kept) for part in ("w", "x.1.b")},
        "a.h2.0.w": (0, "h2"), "a.norm": (0, "norm"), "a.hh": (0, "hh"),
    }  # fmt: skip
    assert (smaller.num_hidden_layers, smaller.flags) == (len(kept), kept)
    assert (smaller.others, smaller.eos_token_id) == (list(range(n_blocks + 1)), list(range(n_blocks)))
    assert (config.num_hidden_layers, config.flags) == (n_blocks, list(range(n_blocks)))

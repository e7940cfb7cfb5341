"""Dropped sublayers and blocks: what they are, that they add nothing, and that all comes back."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_config, tiny_ids, tiny_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedModel, Zamba2Config, Zamba2ForCausalLM

from evoray.errors import EvorayError, UserError
from evoray.model import DropKind, ModelAdapter, checkpoint_facts, find_droppable, find_structure

pytestmark = pytest.mark.usefixtures("same_products")

# What plain reading of an architecture says: the sublayers of one block, in the order in which they run.
_USUAL = {"self_attn": DropKind.attn, "mlp": DropKind.mlp}
EXPECTED: dict[str, dict[str, DropKind]] = {
    **dict.fromkeys(["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "cohere", "granite"], _USUAL),
    "gemma3_vision": _USUAL,
    "gpt2": {"attn": DropKind.attn, "mlp": DropKind.mlp},
    "opt": {"self_attn": DropKind.attn, "fc1+fc2": DropKind.mlp},
    "gpt_neox": {"attention": DropKind.attn, "mlp": DropKind.mlp},
    "falcon": {"self_attention": DropKind.attn, "mlp": DropKind.mlp},
    "bloom": {"self_attention": DropKind.attn, "mlp": DropKind.mlp},
    "mamba": {"mixer": DropKind.attn},
}
N_BLOCKS = 3


@functools.cache
def adapter_of(family: str) -> ModelAdapter:
    return ModelAdapter(tiny_model(family))


@pytest.fixture(params=EXPECTED)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def silence(model: PreTrainedModel, name: str) -> None:
    """The slow way to drop a sublayer: every matrix and bias under it at zero."""
    parent, _, last = name.rpartition(".")
    for path in last.split("+"):
        for inner, parameter in model.get_submodule(f"{parent}.{path}").named_parameters():
            if parameter.ndim > 1 or inner.endswith("bias"):
                parameter.data.zero_()


def logits(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids_BT, use_cache=False).logits


def test_sites_are_those_of_the_architecture(family: str) -> None:
    adapter = adapter_of(family)
    per_block = EXPECTED[family]
    prefix = adapter.blocks_name
    sites = list(adapter.droppable.values())
    sublayers = [(f"{prefix}.{b}.{path}", b, kind) for b in range(N_BLOCKS) for path, kind in per_block.items()]
    blocks = [(f"{prefix}.{b}", b, DropKind.block) for b in range(N_BLOCKS)]
    assert [(site.name, site.block, site.kind) for site in sites] == sublayers + blocks
    assert adapter.sublayers == [[name for name, b, _ in sublayers if b == block] for block in range(N_BLOCKS)]
    for some in (sites[: len(sublayers)], sites[len(sublayers) :]):
        assert sorted(layer for site in some for layer in site.layers) == sorted(adapter.layers)
        assert all(adapter.layers[layer].block == site.block for site in some for layer in site.layers)
    for site in sites[len(sublayers) :]:
        tensors = adapter.model.get_submodule(site.name).state_dict().values()
        weights = sum(adapter.layers[layer].base.nbytes for layer in site.layers)
        assert site.other_bytes == sum(tensor.nbytes for tensor in tensors) - weights


def test_what_shares_weights_with_another_block_stays() -> None:
    """Blocks 1 and 3 run the same transformer, whose layers are named under the first."""
    config = Zamba2Config(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"], attention_head_dim=16, attention_hidden_size=128,
        num_key_value_heads=4, mamba_d_state=8, n_mamba_heads=4, mamba_ngroups=1, mamba_headdim=32, num_mem_blocks=1,
    )  # fmt: skip
    adapter = ModelAdapter(Zamba2ForCausalLM(config).eval(), allow_partial=True)
    for name in ("model.layers.1", "model.layers.3", "model.layers.1.shared_transformer"):
        with pytest.raises(UserError, match=f"without {name}: it shares weights with other blocks"):
            adapter.check_droppable([name])
    adapter.check_droppable(["model.layers.0", "model.layers.2"])


def test_bytes_that_are_no_layer() -> None:
    sites = adapter_of("opt").droppable
    first = "model.decoder.layers.0"
    # Float32: four biases of 64; of 96 and 64; two norms of 2 x 64 more in the block.
    assert sites[f"{first}.self_attn"].other_bytes == 4 * 4 * 64
    assert sites[f"{first}.fc1+fc2"].other_bytes == 4 * (96 + 64)
    assert sites[first].other_bytes == 4 * (4 * 64 + 96 + 64 + 4 * 64)
    assert sites[f"{first}.fc1+fc2"].layers == (f"{first}.fc1", f"{first}.fc2")


@pytest.mark.parametrize("family", ["llama", "opt", "mamba"])
def test_no_weights_are_needed_to_find_them(family: str) -> None:
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(tiny_config(family))
    found = find_droppable(skeleton, find_structure(skeleton), torch.float32)
    assert found == tuple(adapter_of(family).droppable.values())


def test_a_checkpoint_counts_in_its_own_dtype(tmp_path) -> None:
    tiny_model("opt").half().save_pretrained(tmp_path)
    found = checkpoint_facts(str(tmp_path)).droppable
    wanted = adapter_of("opt").droppable
    assert [site.name for site in found] == list(wanted)
    assert all(2 * site.other_bytes == wanted[site.name].other_bytes for site in found)


def test_every_site_adds_nothing_and_comes_back(family: str) -> None:
    adapter = adapter_of(family)
    plain = tiny_model(family)
    ids_BT = tiny_ids(3, 17)
    base_BTV = logits(plain, ids_BT)
    adapter.check_droppable(adapter.droppable)
    assert all("linear head" in note for note in adapter.notes)  # none about a sublayer of another kind
    for name, site in adapter.droppable.items():
        silenced = copy.deepcopy(plain)
        for sublayer in adapter.sublayers[site.block] if site.kind is DropKind.block else [name]:
            silence(silenced, sublayer)
        wanted_BTV = logits(silenced, ids_BT)
        adapter.drop(name)
        assert torch.equal(adapter.logits(ids_BT), wanted_BTV), name
        assert not torch.equal(wanted_BTV, base_BTV)
        adapter.drop(name, False)
        assert torch.equal(adapter.logits(ids_BT), base_BTV)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "falcon", "bloom", "mamba", "gemma2"])
def test_dropped_sites_compute_nothing(family: str) -> None:
    adapter = adapter_of(family)
    called: list[str] = []
    hooks = [
        layer.module.register_forward_hook(lambda module, args, output, name=name: called.append(name))
        for name, layer in adapter.layers.items()
    ]
    products: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            products.append(function.__name__)
            return function(*args, **(kwargs or {}))

    dropped = [name for name, site in adapter.droppable.items() if site.kind is not DropKind.block]
    for name in dropped:
        adapter.drop(name)
    with Watch():
        adapter.hidden(tiny_ids())
    for name in dropped:
        adapter.drop(name, False)
    for hook in hooks:
        hook.remove()
    assert len(products) > 10  # norms and sums
    assert not any(word in name for name in products for word in ("mm", "attention", "convolution"))
    # Loose layers are called, and answer with zeros.
    assert all("fc" in name for name in called)


COMBINED = ("llama", "gpt2", "opt", "falcon", "bloom", "gemma2")


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_combination_is_the_silenced_model_from_any_start(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(COMBINED))
    adapter = adapter_of(family)
    names = data.draw(st.lists(st.sampled_from(sorted(adapter.droppable)), unique=True))
    silenced = tiny_model(family)
    for name in names:
        site = adapter.droppable[name]
        for sublayer in adapter.sublayers[site.block] if site.kind is DropKind.block else [name]:
            silence(silenced, sublayer)
        adapter.drop(name)
    ids_BT = tiny_ids(2, 9)
    try:
        states: dict[int, Tensor] = {}
        full_BTD = adapter.hidden(ids_BT, keep=range(N_BLOCKS + 1), kept=states)
        assert torch.equal(adapter.logits_from_hidden(full_BTD), logits(silenced, ids_BT))
        start = data.draw(st.integers(0, N_BLOCKS))
        assert torch.equal(adapter.hidden(ids_BT, start=start, hidden_BTD=states[start]), full_BTD)
        stop = data.draw(st.integers(start, N_BLOCKS))
        assert torch.equal(adapter.hidden(ids_BT, start=start, hidden_BTD=states[start], stop=stop), states[stop])
    finally:
        for name in reversed(names):
            adapter.drop(name, False)
    assert torch.equal(adapter.logits(ids_BT), logits(tiny_model(family), ids_BT))


@pytest.mark.parametrize("family", ["llama", "opt", "bloom"])
def test_closing_leaves_the_model_as_it_was(family: str) -> None:
    model = tiny_model(family)
    adapter = ModelAdapter(model)
    for name in adapter.droppable:
        adapter.drop(name)
    adapter.close()
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert torch.equal(logits(model, tiny_ids()), logits(tiny_model(family), tiny_ids()))


def test_half_precision() -> None:
    for family in ("llama", "mamba", "gemma2", "bloom"):
        adapter = ModelAdapter(tiny_model(family).bfloat16())
        adapter.check_droppable(adapter.droppable)


def test_checking_leaves_what_is_dropped() -> None:
    adapter = ModelAdapter(tiny_model("llama"))
    adapter.drop("model.layers.1.mlp")
    before = adapter.logits(tiny_ids())
    adapter.check_droppable(["model.layers.1.mlp", "model.layers.0", "model.layers.2.self_attn"])
    assert torch.equal(adapter.logits(tiny_ids()), before)


def test_norms_behind_the_sum_are_refused_but_for_whole_blocks() -> None:
    adapter = ModelAdapter(tiny_model("opt", do_layer_norm_before=False))
    blocks = [name for name, site in adapter.droppable.items() if site.kind is DropKind.block]
    adapter.check_droppable(blocks)
    for name in ("model.decoder.layers.1.self_attn", "model.decoder.layers.0.fc1+fc2"):
        with pytest.raises(UserError, match=r"OPTForCausalLM .* does not return its input.*--drop-entire-block"):
            adapter.check_droppable([name])


def test_bert_is_refused() -> None:
    adapter = ModelAdapter(tiny_model("bert", is_decoder=True))
    with pytest.raises(UserError, match="BertLMHeadModel can't be run without"):
        adapter.check_droppable(name for name, site in adapter.droppable.items() if site.kind is DropKind.attn)


def test_blocks_that_hand_on_keys_and_values_are_refused_by_name() -> None:
    adapter = ModelAdapter(tiny_model("gemma3n"))
    prefix = adapter.blocks_name
    for block in (0, 1):
        with pytest.raises(UserError, match=rf"Gemma3nForCausalLM can't be run without {prefix}\.{block}: .*fails"):
            adapter.check_droppable([f"{prefix}.{block}"])
    adapter.check_droppable([f"{prefix}.2", f"{prefix}.3"])
    with pytest.raises(UserError, match="does not return its input"):
        adapter.check_droppable([f"{prefix}.2.mlp"])


def test_experts_out_of_reach_are_dropped_all_the_same() -> None:
    adapter = ModelAdapter(tiny_model("qwen3_moe"), allow_partial=True)
    site = adapter.droppable["model.layers.1.mlp"]
    assert (site.kind, site.layers) == (DropKind.mlp, ())
    # Float32: four experts of three matrices, and the router.
    assert site.other_bytes == 4 * (4 * 3 * 64 * 64 + 4 * 64)
    adapter.check_droppable(adapter.droppable)


def test_names_that_are_none() -> None:
    adapter = adapter_of("llama")
    said = r"model.layers.9 is no sublayer or block.*from model.layers.0.self_attn to model.layers.2"
    with pytest.raises(UserError, match=said):
        adapter.check_droppable(["model.layers.9"])
    with pytest.raises(EvorayError, match=said):
        adapter.drop("model.layers.9")


def test_a_sublayer_of_another_kind_than_it_seems_is_noted() -> None:
    model = tiny_model("llama")
    for block in model.model.layers:  # a feed-forward that takes in the position before
        own = block.mlp.forward
        block.mlp.forward = lambda x, own=own: own(x + x.roll(1, dims=1).index_fill(1, torch.tensor([0]), 0))
    adapter = ModelAdapter(model)
    adapter.check_droppable(["model.layers.1.mlp"])
    assert "model.layers.1.mlp counts as mlp, but mixes tokens" in adapter.notes[-1]


class _Odd(nn.Module):
    """Holds a matrix, and neither takes nor gives a state."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, number: int) -> str:
        return str(number)


def test_odd_children_of_a_block_are_no_reason_to_refuse_the_model() -> None:
    model = tiny_model("llama")
    for block in model.model.layers:
        block.odd = _Odd()
        block.spare = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])  # nothing calls them
        block.register_forward_pre_hook(lambda module, args: module.odd(3) and None)
    adapter = ModelAdapter(model)
    usual = ["model.layers.1.self_attn", "model.layers.1.mlp", "model.layers.1"]
    assert set(adapter.sublayers[1]) == {*usual[:2], "model.layers.1.odd", "model.layers.1.spare.0+spare.1"}
    assert adapter.modules("model.layers.1.spare.0+spare.1") == list(model.model.layers[1].spare)
    with pytest.raises(UserError, match=r"LlamaForCausalLM can't be run without .*\(TypeError: _Odd takes no hidden"):
        adapter.check_droppable(["model.layers.1.odd"])
    adapter.check_droppable(["model.layers.1"])
    assert torch.equal(adapter.logits(tiny_ids()), logits(tiny_model("llama"), tiny_ids()))

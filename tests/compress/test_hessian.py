"""Hessians against X^T X of inputs that plain hooks collect, block by token block, without padding."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tiny import VOCABULARY, tiny_model

from evoray.compress.hessian import HessianWalk, Sums, add_sums, shared_inputs, whole_hessian
from evoray.compress.recipe import HESSIAN_SHARDS
from evoray.errors import EvorayError
from evoray.model import ModelAdapter
from evoray.tokens import TokenText

FAMILIES = ("llama", "gpt2", "gemma2", "falcon", "mamba")


def random_text(lengths=(16, 9, 16, 12, 5, 16, 16, 7, 16, 16, 11), seed: int = 0) -> TokenText:
    rng = np.random.default_rng(seed)
    blocks = tuple(rng.integers(3, VOCABULARY - 10, length, dtype=np.int32) for length in lengths)
    return TokenText(blocks, tuple(f"document {index}" for index in range(len(blocks))), 16)


def slow_hessians(adapter: ModelAdapter, text: TokenText) -> dict[str, torch.Tensor]:
    """One row of tokens at a time through the whole model; float64."""
    sums: dict[str, torch.Tensor] = {}

    def collect(name):
        def look(module, args):
            rows = args[0].double().reshape(-1, args[0].shape[-1])
            sums[name] = sums.get(name, 0) + rows.T @ rows / text.tokens

        return look

    hooks = [ref.module.register_forward_pre_hook(collect(name)) for name, ref in adapter.layers.items()]
    for block in text.blocks:
        adapter.logits(torch.from_numpy(block.astype(np.int64))[None])
    for hook in hooks:
        hook.remove()
    return sums


@dataclass(frozen=True)
class Shared:
    """The Hessian of layers with the same inputs."""

    layers: tuple[str, ...]
    matrix_II: torch.Tensor


class Walk:
    """All shards of a text, one after the other."""

    def __init__(self, adapter: ModelAdapter, text: TokenText, tokens_per_pass: int) -> None:
        self.walk, self.text = HessianWalk(adapter, text, tokens_per_pass), text

    def observe(self, block: int, layers: list[str], *, advance: bool) -> list[Shared]:
        total: Sums = {}
        for shard in range(HESSIAN_SHARDS):
            add_sums(total, self.walk.observe(shard, block, layers, advance=advance))
        return [
            Shared(names, whole_hessian(names, lower_II, self.text.tokens))
            for names, lower_II in shared_inputs(layers, total)
        ]

    def advance(self, block: int) -> None:
        for shard in range(HESSIAN_SHARDS):
            self.walk.advance(shard, block)


def walk_all(adapter: ModelAdapter, text: TokenText, tokens_per_pass: int):
    walk = Walk(adapter, text, tokens_per_pass)
    found = []
    for block in range(adapter.n_blocks):
        names = [name for name, ref in adapter.layers.items() if ref.block == block]
        found += walk.observe(block, names, advance=True)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_products_of_all_inputs(family):
    adapter = ModelAdapter(tiny_model(family))
    text = random_text()
    expected = slow_hessians(adapter, text)
    found = {name: shared.matrix_II for shared in walk_all(adapter, text, 48) for name in shared.layers}
    assert set(found) == set(expected) == set(adapter.layers) - adapter.unobserved
    for name, matrix in expected.items():
        assert torch.allclose(found[name].double(), matrix, rtol=1e-4, atol=1e-5 * float(matrix.diagonal().max())), name
        assert torch.equal(found[name], found[name].T)


def test_blocks_that_can_not_be_resumed_are_reached_from_further_back():
    adapter = ModelAdapter(tiny_model("gemma3n"), allow_partial=True)
    assert not adapter.resumable
    text = random_text()
    expected = slow_hessians(adapter, text)
    for shared in walk_all(adapter, text, 64):
        for name in shared.layers:
            scale = float(expected[name].diagonal().max())
            assert torch.allclose(shared.matrix_II.double(), expected[name], rtol=1e-4, atol=1e-5 * scale), name


@pytest.mark.parametrize(
    ("family", "groups"),
    [
        (
            "llama",
            [
                ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                ("self_attn.o_proj",),
                ("mlp.gate_proj", "mlp.up_proj"),
                ("mlp.down_proj",),
            ],
        ),
        ("gpt2", [("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",)]),
        # Attention and MLP side by side read the same normalised state.
        (
            "falcon",
            [
                ("self_attention.query_key_value", "mlp.dense_h_to_4h"),
                ("self_attention.dense",),
                ("mlp.dense_4h_to_h",),
            ],
        ),
    ],
)
def test_layers_that_share_an_input_are_found(family, groups):
    adapter = ModelAdapter(tiny_model(family))
    for block in range(adapter.n_blocks):
        names = [name for name, ref in adapter.layers.items() if ref.block == block]
        prefix = names[0].split(f".{block}.")[0] + f".{block}."
        walk = Walk(adapter, random_text(), 64)
        for before in range(block):
            walk.advance(before)
        found = walk.observe(block, names, advance=False)
        assert [shared.layers for shared in found] == [tuple(prefix + name for name in group) for group in groups]
        assert walk.walk.last_boundary == block


def test_the_walk_is_the_same_bits_every_time_and_with_other_layers_watched():
    adapter = ModelAdapter(tiny_model("llama"))
    text = random_text()
    first, again = walk_all(adapter, text, 48), walk_all(adapter, text, 48)
    assert all(torch.equal(one.matrix_II, other.matrix_II) for one, other in zip(first, again, strict=True))
    walk = Walk(adapter, text, 48)
    walk.observe(0, [], advance=True)
    walk.advance(1)
    names = [name for name, ref in adapter.layers.items() if ref.block == 2]
    late = walk.observe(2, names, advance=True)
    assert [shared.layers for shared in late] == [shared.layers for shared in first[-len(late) :]]
    for one, other in zip(first[-len(late) :], late, strict=True):
        assert torch.equal(one.matrix_II, other.matrix_II)


def test_weights_swapped_behind_the_states_decide_what_later_layers_see():
    adapter = ModelAdapter(tiny_model("llama"))
    text = random_text()
    names = [[name for name, ref in adapter.layers.items() if ref.block == block] for block in range(2)]
    walk = Walk(adapter, text, 48)
    walk.observe(0, names[0], advance=False)
    for name in names[0]:
        adapter.swap(name, adapter.ready(name, adapter.weight_OI(name) * 0.5))
    walk.advance(0)
    found = walk.observe(1, names[1], advance=False)
    expected = slow_hessians(adapter, text)
    for name in names[0]:
        adapter.restore(name)
    for shared in found:
        scale = float(shared.matrix_II.diagonal().max())
        for name in shared.layers:
            assert torch.allclose(shared.matrix_II.double(), expected[name], rtol=1e-4, atol=1e-5 * scale)


def test_inputs_that_are_overwritten_after_a_layer_has_read_them():
    model = tiny_model("llama")
    mlp = model.model.layers[1].mlp

    def in_place(states):
        gate = mlp.gate_proj(states)
        states.mul_(2.0)
        return mlp.down_proj(torch.nn.functional.silu(gate) * mlp.up_proj(states))

    mlp.forward = in_place
    adapter = ModelAdapter(model)
    text = random_text()
    expected = slow_hessians(adapter, text)
    found = {name: shared for shared in walk_all(adapter, text, 48) for name in shared.layers}
    gate, up = "model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"
    assert found[gate].layers == (gate,)
    for name in (gate, up):
        assert torch.allclose(found[name].matrix_II.double(), expected[name], rtol=1e-4, atol=1e-4), name
    assert torch.allclose(found[up].matrix_II, 4 * found[gate].matrix_II, rtol=1e-5)


def test_inputs_that_are_not_finite_are_refused():
    adapter = ModelAdapter(tiny_model("llama"))
    adapter.model.model.layers[0].input_layernorm.weight.data[3] = float("inf")
    names = [name for name, ref in adapter.layers.items() if ref.block == 0]
    with pytest.raises(EvorayError, match=r"model\.layers\.0\.self_attn\.q_proj gets inputs that are not finite"):
        Walk(adapter, random_text(), 48).observe(0, names, advance=True)

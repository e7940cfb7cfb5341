"""Every family: its parts, its probes, resumed passes, logits from hidden states, swapped weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from tiny import tiny_ids, tiny_model
from transformers.pytorch_utils import Conv1D

from evoray.errors import EvorayError, UserError
from evoray.model import ModelAdapter

pytestmark = pytest.mark.usefixtures("same_products")


@dataclass(frozen=True)
class Expected:
    """What plain reading of a family's architecture says.

    `per_block` are the layers of one block by their path inside it; `blocks` the path of the list of blocks.
    """

    blocks: str
    per_block: tuple[str, ...]
    head_is_linear: bool = True


_ATTENTION = tuple(f"self_attn.{part}_proj" for part in "qkvo")
_LLAMA = (*_ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_NEOX_MLP = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")

# All with three blocks.
EXPECTED = {
    "llama": Expected("model.layers", _LLAMA),
    "mistral": Expected("model.layers", _LLAMA),
    "qwen2": Expected("model.layers", _LLAMA),
    "qwen3": Expected("model.layers", _LLAMA),
    "gemma2": Expected("model.layers", _LLAMA, head_is_linear=False),  # logits are soft-capped
    "gemma3": Expected("model.layers", _LLAMA),
    "phi3": Expected("model.layers", ("self_attn.o_proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj")),
    "gpt2": Expected("transformer.h", ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
    "opt": Expected(
        "model.decoder.layers",
        ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"),
    ),
    "gpt_neox": Expected("gpt_neox.layers", ("attention.query_key_value", "attention.dense", *_NEOX_MLP)),
    "falcon": Expected("transformer.h", ("self_attention.query_key_value", "self_attention.dense", *_NEOX_MLP)),
    "mamba": Expected("backbone.layers", ("mixer.in_proj", "mixer.x_proj", "mixer.dt_proj", "mixer.out_proj")),
    "cohere": Expected("model.layers", _LLAMA, head_is_linear=False),  # logits are scaled
    "granite": Expected("model.layers", _LLAMA, head_is_linear=False),  # logits are scaled
    "gemma3_vision": Expected("model.language_model.layers", _LLAMA),
}
N_BLOCKS = 3


@pytest.fixture(params=EXPECTED)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def test_parts_are_those_of_the_architecture(family: str) -> None:
    model = tiny_model(family)
    adapter = ModelAdapter(model)
    expected = EXPECTED[family]
    assert adapter.blocks_name == expected.blocks
    assert adapter.n_blocks == N_BLOCKS
    names = [f"{expected.blocks}.{block}.{path}" for block in range(N_BLOCKS) for path in expected.per_block]
    assert sorted(adapter.layers) == sorted(names)
    assert [ref.block for ref in adapter.layers.values()] == sorted(ref.block for ref in adapter.layers.values())
    for name, ref in adapter.layers.items():
        module = model.get_submodule(name)
        assert ref.module is module
        assert ref.name == name
        assert ref.transposed == isinstance(module, Conv1D)
        as_linear_OI = module.weight.T if isinstance(module, Conv1D) else module.weight
        assert (ref.out_features, ref.in_features) == tuple(as_linear_OI.shape)
        assert torch.equal(adapter.weight_OI(name), as_linear_OI)
    assert adapter.head is model.get_output_embeddings()
    assert adapter.unobserved == {name for name in adapter.layers if name.endswith("dt_proj")}


def test_probes_find_what_the_architecture_does(family: str) -> None:
    adapter = ModelAdapter(tiny_model(family))
    assert adapter.head_is_linear == EXPECTED[family].head_is_linear
    assert adapter.resumable
    assert adapter.boundaries == frozenset(range(N_BLOCKS + 1))
    assert len(adapter.notes) == (0 if adapter.head_is_linear else 1)
    assert all("linear head" in note for note in adapter.notes)


def test_hidden_and_logits_are_the_plain_models(family: str) -> None:
    model = tiny_model(family)
    ids_BT = tiny_ids(3, 17)
    with torch.no_grad():
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    adapter = ModelAdapter(model)
    hidden_BTD = adapter.hidden(ids_BT)
    assert hidden_BTD.shape == (3, 17, adapter.hidden_size)
    assert torch.equal(adapter.logits(ids_BT), logits_BTV)
    assert torch.equal(adapter.logits_from_hidden(hidden_BTD), logits_BTV)
    if adapter.head_is_linear:
        assert adapter.head is not None
        product = torch.nn.functional.linear(hidden_BTD, adapter.head.weight, adapter.head.bias)
        torch.testing.assert_close(product, logits_BTV)
    # Some of a batch is as good as all of it: the output path works on any rows and tokens.
    part = adapter.logits_from_hidden(hidden_BTD[1:2, 4:9])
    torch.testing.assert_close(part, logits_BTV[1:2, 4:9])


def test_resumed_passes_have_the_bits_of_the_full_pass(family: str) -> None:
    adapter = ModelAdapter(tiny_model(family))
    ids_BT = tiny_ids(3, 17)
    states: dict[int, torch.Tensor] = {}
    full_BTD = adapter.hidden(ids_BT, keep=range(N_BLOCKS + 1), kept=states)
    assert sorted(states) == list(range(N_BLOCKS + 1))
    copies = {boundary: state.clone() for boundary, state in states.items()}
    for start in range(N_BLOCKS + 1):
        assert torch.equal(adapter.hidden(ids_BT, start=start, hidden_BTD=states[start]), full_BTD)
        for stop in range(start, N_BLOCKS + 1):
            kept: dict[int, torch.Tensor] = {}
            part = adapter.hidden(
                ids_BT, start=start, hidden_BTD=states[start], stop=stop, keep={start, stop}, kept=kept
            )
            assert torch.equal(part, states[stop])
            assert sorted(kept) == sorted({start, stop})
            assert all(torch.equal(state, states[boundary]) for boundary, state in kept.items())
    assert all(torch.equal(states[boundary], copies[boundary]) for boundary in states)
    # The plain model is untouched by all that.
    assert torch.equal(adapter.hidden(ids_BT), full_BTD)


def test_swapped_weights_act_as_if_written_by_hand(family: str) -> None:
    model = tiny_model(family)
    by_hand = copy.deepcopy(model)
    adapter = ModelAdapter(model)
    ids_BT = tiny_ids(2, 11)
    base_BTV = adapter.logits(ids_BT)
    generator = torch.Generator().manual_seed(5)
    chosen = [name for name, ref in adapter.layers.items() if ref.block == 1]
    for name in chosen:
        weight_OI = adapter.weight_OI(name)
        other_OI = weight_OI + 0.1 * torch.randn(weight_OI.shape, generator=generator)
        adapter.swap(name, adapter.ready(name, other_OI))
        module = by_hand.get_submodule(name)
        with torch.no_grad():
            module.weight.copy_(other_OI.T if isinstance(module, Conv1D) else other_OI)
            expected_BTV = by_hand(input_ids=ids_BT, use_cache=False).logits
        assert torch.equal(adapter.logits(ids_BT), expected_BTV)
        assert not torch.equal(expected_BTV, base_BTV)
    for name in chosen:
        adapter.restore(name)
    assert torch.equal(adapter.logits(ids_BT), base_BTV)


def test_later_tokens_change_nothing(family: str) -> None:
    adapter = ModelAdapter(tiny_model(family))
    ids_BT = tiny_ids(2, 9)
    padded_BT = torch.cat([ids_BT, torch.zeros(2, 6, dtype=torch.long)], dim=1)
    torch.testing.assert_close(adapter.hidden(padded_BT)[:, :9], adapter.hidden(ids_BT), rtol=1e-4, atol=1e-4)


def test_gemma3n_falls_back() -> None:
    """Its last blocks take keys and values from earlier ones, and its logits are soft-capped: no short cut is left."""
    model = tiny_model("gemma3n")
    ids_BT = tiny_ids(3, 17)
    with torch.no_grad():
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    adapter = ModelAdapter(model)
    assert not adapter.head_is_linear
    assert not adapter.resumable
    assert 0 in adapter.boundaries
    assert any("soft cap" in note for note in adapter.notes)
    assert any("resumed at block 1, 2, 3" in note for note in adapter.notes)
    # What is left is right.
    states: dict[int, torch.Tensor] = {}
    hidden_BTD = adapter.hidden(ids_BT, keep={2, 4}, kept=states)
    assert torch.equal(adapter.logits_from_hidden(hidden_BTD), logits_BTV)
    assert torch.equal(adapter.hidden(ids_BT, stop=2), states[2])
    assert torch.equal(adapter.hidden(ids_BT, start=4, hidden_BTD=states[4]), hidden_BTD)
    with pytest.raises(EvorayError, match=r"can't start at block 2 .* \[0, 4\]"):
        adapter.hidden(ids_BT, start=2, hidden_BTD=states[2])


def test_qwen3_moe_is_refused_by_name_unless_allowed() -> None:
    model = tiny_model("qwen3_moe")
    with pytest.raises(UserError, match=r"Qwen3MoeForCausalLM.*Qwen3MoeExperts\.gate_up_proj.*--allow-partial"):
        ModelAdapter(model)
    adapter = ModelAdapter(model, allow_partial=True)
    assert sorted(adapter.layers) == sorted(f"model.layers.{b}.{path}" for b in range(3) for path in _ATTENTION)
    assert "Qwen3MoeExperts" in adapter.notes[0]
    # Attention: 2 x 64 x 64 + 2 x 64 x 32; experts: 4 x 3 x 64 x 64; router: 4 x 64.
    assert adapter.reach == pytest.approx(12288 / (12288 + 49152 + 256))
    assert adapter.resumable


def test_bert_sees_later_tokens_and_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"BertLMHeadModel can't be handled: .*later tokens"):
        ModelAdapter(tiny_model("bert"))


def test_bert_as_decoder_is_handled_through_its_own_output_path() -> None:
    """Between its hidden state and its head lies another layer, so the head alone is not the logits."""
    model = tiny_model("bert", is_decoder=True)
    ids_BT = tiny_ids(3, 17)
    adapter = ModelAdapter(model)
    assert not adapter.head_is_linear
    assert adapter.resumable
    assert torch.equal(adapter.logits_from_hidden(adapter.hidden(ids_BT)), adapter.logits(ids_BT))


def test_electra_has_a_narrower_head() -> None:
    model = tiny_model("electra")
    ids_BT = tiny_ids(3, 17)
    adapter = ModelAdapter(model)
    assert (adapter.hidden_size, adapter.head is not None and adapter.head.in_features) == (64, 32)
    assert not adapter.head_is_linear
    assert "something lies between its hidden state and its head" in adapter.notes[0]
    assert adapter.resumable
    assert torch.equal(adapter.logits_from_hidden(adapter.hidden(ids_BT)), adapter.logits(ids_BT))


def test_a_cohere_without_scale_has_a_linear_head() -> None:
    """The probe looks at what a model does, not at what it is called."""
    assert ModelAdapter(tiny_model("cohere", logit_scale=1.0)).head_is_linear
    assert ModelAdapter(tiny_model("gemma2", final_logit_softcapping=None)).head_is_linear


def test_mamba_rounds_its_state_before_its_head() -> None:
    """It carries float32 between blocks of bfloat16; what the head multiplies with is bfloat16."""
    adapter = ModelAdapter(tiny_model("mamba").to(torch.bfloat16))
    ids_BT = tiny_ids()
    states: dict[int, torch.Tensor] = {}
    hidden_BTD = adapter.hidden(ids_BT, keep={1}, kept=states)
    assert states[1].dtype == torch.float32
    assert hidden_BTD.dtype == torch.bfloat16
    assert adapter.head_is_linear
    assert adapter.resumable
    assert torch.equal(adapter.logits_from_hidden(hidden_BTD), adapter.logits(ids_BT))


def test_half_precision() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    adapter = ModelAdapter(model)
    assert adapter.dtype == torch.bfloat16
    assert adapter.head_is_linear
    assert adapter.resumable
    assert adapter.notes == ()
    name = next(iter(adapter.layers))
    assert adapter.ready(name, torch.ones(64, 64)).dtype == torch.bfloat16
    with pytest.raises(UserError, match="BertLMHeadModel"):
        ModelAdapter(tiny_model("bert").to(torch.bfloat16))
    assert not ModelAdapter(tiny_model("gemma2").to(torch.bfloat16)).head_is_linear

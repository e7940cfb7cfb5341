from hypothesis import given
from hypothesis import strategies as st

from evoray.space import Tie, tie

LLAMA = [f"model.layers.{b}.{n}" for b in (0, 1) for n in (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)]  # fmt: skip


def test_fused_layers_of_a_llama_share_a_gene():
    groups = tie(LLAMA)
    assert [[layer.rpartition(".")[2] for layer in group] for group in groups] == 2 * [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]
    assert all(len({layer.rpartition(".")[0] for layer in group}) == 1 for group in groups)


def test_untied_layers_stand_alone():
    assert tie(LLAMA, Tie.NONE) == tuple((layer,) for layer in LLAMA)


def test_experts_are_tied_inside_each_and_names_without_siblings_stay_alone():
    layers = ["b.experts.0.w1", "b.experts.1.w1", "b.experts.0.w2", "b.experts.0.w3", "c_attn", "q_proj", "x.k_proj"]
    assert tie(layers) == (
        ("b.experts.0.w1", "b.experts.0.w3"),
        ("b.experts.1.w1",),
        ("b.experts.0.w2",),
        ("c_attn",),
        ("q_proj",),
        ("x.k_proj",),
    )


PARTS = st.sampled_from(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "w1", "w2", "w3", "c_fc"])


@given(st.lists(st.tuples(st.integers(0, 3), PARTS), unique=True), st.sampled_from(Tie))
def test_every_layer_is_in_one_group_and_order_is_kept(parts, mode):
    layers = [f"m.{block}.{name}" for block, name in parts]
    groups = tie(layers, mode)
    assert sorted(layer for group in groups for layer in group) == sorted(layers)
    assert [group[0] for group in groups] == sorted((group[0] for group in groups), key=layers.index)
    assert all(list(group) == sorted(group, key=layers.index) for group in groups)

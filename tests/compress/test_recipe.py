"""What is refused before anything is computed, and in which words; what a store's header says."""

import numpy as np
import pytest
import torch
from tiny import tiny_model

from evoray.compress import (
    HessianInputs,
    Method,
    Quantization,
    check_group_size,
    layer_entry,
    parse_levels,
    store_header,
)
from evoray.errors import UserError
from evoray.formats.costs import cost
from evoray.model import checkpoint_facts
from evoray.tokens import TokenText

ALLOWED = "choose any of 2, 3, 4, 5, 6, 7, 8"


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").to(torch.bfloat16).save_pretrained(folder)
    return checkpoint_facts(str(folder))


def text() -> TokenText:
    return TokenText((np.arange(8, dtype=np.int32),), ("d",), 8)


def test_levels_are_sorted_numbers():
    assert parse_levels(["4", 2, " 8 "]) == (2, 4, 8)
    assert Quantization(levels=(8, 2, 3)).labels == ("2", "3", "8")


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        (["1", "4"], f"level 1: codes have 2 to 8 bits; {ALLOWED}"),
        ([9], f"level 9: codes have 2 to 8 bits; {ALLOWED}"),
        (["4.5"], f"level '4.5' is no number of bits; {ALLOWED}"),
        ([4, "4"], "level 4 is named twice; name it once"),
        ([], f"no levels to build; {ALLOWED}"),
    ],
)
def test_levels_that_are_none(levels, words):
    with pytest.raises(UserError) as caught:
        parse_levels(levels)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"group_size": -2}, "group size -2: choose a positive one, or -1 for one group per row"),
        ({"scale_dtype": "int8"}, "scale dtype 'int8': choose one of auto, float16, bfloat16, float32"),
        ({"damping": 0.0}, "damping 0.0: choose a share of the mean diagonal above 0 and below 1, such as 0.01"),
        ({"hessian_level": 7}, "hessian level 7 is not among the levels to build; choose one of 2, 3, 4, 5, 6"),
        ({"tokens_per_pass": 0}, "0 tokens per pass: choose at least 1"),
    ],
)
def test_values_that_are_refused(values, words):
    with pytest.raises(UserError) as caught:
        Quantization(**values)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("levels", "chosen"), [((2, 3, 4, 5, 6), 4), ((2, 4), 4), ((2, 3, 8), 3), ((3,), 3), ((2, 3, 4, 6, 8), 6)]
)
def test_the_level_of_the_quantized_model_is_near_the_middle(levels, chosen):
    assert Quantization(levels=levels).quantized_level == chosen
    assert Quantization(levels=levels, hessian_level=levels[0]).quantized_level == levels[0]


def test_group_sizes_that_do_not_fit_are_told_by_kind_of_layer():
    widths = {f"model.layers.{block}.self_attn.q_proj": 1000 for block in range(12)}
    widths |= {f"model.layers.{block}.mlp.down_proj": 500 for block in range(12)}
    widths |= {"model.layers.3.mlp.router": 250}
    with pytest.raises(UserError) as caught:
        check_group_size(widths, 40)
    assert str(caught.value) == (
        "group size 40 does not divide the input width of mlp.down_proj (width 500) in 12 blocks, "
        "mlp.router (width 250) in 1 block; sizes that fit all: 10, 25, 50, 125, 250, or -1 (one group per row)"
    )
    for fitting in (10, 25, 50, 125, 250, -1, 0):
        check_group_size(widths, fitting)
    with pytest.raises(UserError, match=r"sizes that fit all: only -1 \(one group per row\)"):
        check_group_size({"blocks.0.a": 15, "blocks.0.b": 16}, 16)


def test_the_header_says_how_the_store_is_made(facts):
    recipe = Quantization(levels=(2, 4), group_size=32, hessian_inputs=HessianInputs.QUANTIZED, damping=0.02)
    header = store_header(facts, recipe, text(), compute_dtype="float32", device="cpu")
    assert (header.kind, header.method, header.levels) == ("quantization", "gptq", ("2", "4"))
    assert (header.group_size, header.scale_dtype, header.dtype) == (32, "bfloat16", "bfloat16")
    assert (header.text_digest, header.documents) == (text().digest, ("d",))
    assert header.dense_bytes == facts.dense_bytes
    assert header.settings == {
        "scales": "mse", "damping": 0.02, "act_order": True, "hessian_inputs": "quantized", "hessian_level": 4,
        "hessian_shards": 8, "tokens_per_pass": 4096, "compute_dtype": "float32", "device": "cpu",
        "sequence_length": 8,
    }  # fmt: skip


def test_a_method_without_text_ignores_it(facts):
    recipe = Quantization(method=Method.RTN, group_size=-1, scale_dtype="float32")
    with_text, without = (
        store_header(facts, recipe, given, compute_dtype="float32", device="cpu") for given in (text(), None)
    )
    assert with_text == without
    assert without.text_digest is None
    assert without.scale_dtype == "float32"


def test_headers_that_can_not_be(facts):
    with pytest.raises(UserError, match=r"group size 40 does not divide .*sizes that fit all: 8, 16, 32, or -1"):
        store_header(facts, Quantization(group_size=40), text(), compute_dtype="float32", device="cpu")
    with pytest.raises(UserError, match="method gptq needs text for its Hessians"):
        store_header(facts, Quantization(group_size=32), None, compute_dtype="float32", device="cpu")
    wrong = Quantization(method=Method.RTN, group_size=32, hessian_inputs=HessianInputs.QUANTIZED)
    with pytest.raises(UserError, match="method rtn makes no Hessians"):
        store_header(facts, wrong, None, compute_dtype="float32", device="cpu")


def test_entries_hold_exact_costs(facts):
    for group_size in (32, -1):
        recipe = Quantization(levels=(3, 8), group_size=group_size, symmetric=False)
        header = store_header(facts, recipe, text(), compute_dtype="float32", device="cpu")
        entry = layer_entry("model.layers.0.mlp.down_proj", 0, 64, 96, header)
        assert entry.levels == ("3", "8")
        assert entry.dense_bytes == 64 * 96 * 2
        assert entry.record_bytes == 16
        assert entry.costs["3"] == cost(
            64, 96, bits=3, group_size=96 if group_size < 0 else 32, symmetric=False, scale_dtype="bfloat16"
        )

"""Matrix products on CPUs: right to float32, whatever lies in memory how, and the same in all passes of an adapter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_ids
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from evoray.model import ModelAdapter, settle_numerics
from evoray.model.products import fast_products, library, product


@settings(max_examples=60, deadline=None)
@given(
    leading=st.lists(st.integers(0, 5), max_size=3),
    width=st.integers(1, 700),
    rows=st.integers(1, 40),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_product_is_that_of_float64(leading: list[int], width: int, rows: int, biased: bool, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    x_NI = torch.randn((*leading, width), generator=draws)
    weight_OI = torch.randn((rows, width), generator=draws)
    bias_O = torch.randn(rows, generator=draws) if biased else None
    exact = nn.functional.linear(x_NI.double(), weight_OI.double(), None if bias_O is None else bias_O.double())
    found = product(x_NI, weight_OI, bias_O)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-6 * width**0.5 * 4)


def test_how_an_operand_lies_in_memory_changes_no_bit() -> None:
    """And takes no other kernel: the one for other orders is a thousand times slower."""
    x_NI, weight_OI = torch.randn(7, 96), torch.randn(40, 96)
    wanted = product(x_NI, weight_OI)
    wide, tall = torch.randn(7, 200), torch.randn(80, 96)
    wide[:, :96], tall[::2] = x_NI, weight_OI
    for x, weight in [
        (x_NI.T.contiguous().T, weight_OI),
        (wide[:, :96], weight_OI),
        (x_NI, weight_OI.T.contiguous().T),
        (x_NI, tall[::2]),
    ]:
        assert not (x.is_contiguous() and weight.is_contiguous())
        assert torch.equal(product(x, weight), wanted)


def test_what_else_a_linear_layer_takes_is_right_too() -> None:
    x_NI, weight_OI, bias_O = torch.randn(7, 96), torch.randn(40, 96), torch.randn(40)
    gaps_O, one_O = torch.randn(40, 3)[:, 1], torch.ones(1).expand(40)
    for arguments in [
        (x_NI, weight_OI, gaps_O),
        (x_NI, weight_OI, one_O),
        (x_NI, weight_OI[0]),
        (x_NI, weight_OI, bias_O.expand(7, 40)),
        (x_NI[:, :0], weight_OI[:, :0], bias_O),
        (x_NI, weight_OI, bias_O[:1]),
    ]:
        torch.testing.assert_close(product(*arguments), nn.functional.linear(*arguments), rtol=1e-4, atol=1e-4)


def test_rows_have_the_bits_they_have_alone_in_any_company() -> None:
    x_BTI, weight_OI = torch.randn(4, 64, 512), torch.randn(192, 512)
    whole = product(x_BTI, weight_OI)
    assert torch.equal(product(x_BTI.flip(0), weight_OI).flip(0), whole)


def test_layers_multiply_so_within_the_context_and_without_gradients() -> None:
    layer, x_NI = nn.Linear(600, 30), torch.randn(50, 600)
    wanted = product(x_NI, layer.weight, layer.bias).detach()
    with fast_products():
        with torch.no_grad():
            assert torch.equal(layer(x_NI), wanted)
            assert torch.equal(nn.functional.linear(input=x_NI, weight=layer.weight, bias=layer.bias), wanted)
        assert layer(x_NI).requires_grad
        half = layer.bfloat16()
        with torch.no_grad():
            assert half(x_NI.bfloat16()).dtype is torch.bfloat16


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_what_is_recorded() -> None:
    assert library(torch.device("cuda"), torch.float32) == "torch"
    assert library(torch.device("cpu"), torch.bfloat16) == "torch"
    if torch.backends.mkldnn.is_available():
        assert library(torch.device("cpu"), torch.float32) == "onednn"
        with torch.backends.mkldnn.flags(enabled=False):
            assert library(torch.device("cpu"), torch.float32) == "torch"


def test_a_process_that_asked_for_coarse_products_gets_whole_ones() -> None:
    """A driver of one's own may have said so for a training before."""
    x_NI, weight_OI = torch.randn(64, 256), torch.randn(32, 256)
    wanted = product(x_NI, weight_OI)
    torch.set_float32_matmul_precision("medium")
    settle_numerics()
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.equal(product(x_NI, weight_OI), wanted)


@pytest.mark.parametrize("width", [64, 640])
def test_all_passes_of_an_adapter_multiply_alike(width: int) -> None:
    """Also where the libraries' sums are in another order, from some hundred columns on."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    ids_BT = tiny_ids()
    with torch.no_grad():
        plain_BTV = model(input_ids=ids_BT, use_cache=False).logits
    adapter = ModelAdapter(model)
    assert adapter.notes == ()
    assert adapter.head_is_linear
    assert adapter.resumable
    assert torch.equal(adapter.logits_from_hidden(adapter.hidden(ids_BT)), adapter.logits(ids_BT))
    torch.testing.assert_close(adapter.logits(ids_BT), plain_BTV, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids_BT, use_cache=False).logits, plain_BTV), (
            "the model itself stays as it is"
        )

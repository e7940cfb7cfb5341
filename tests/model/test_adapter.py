"""The adapter's probes and guards, on llamas that were tampered with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_config, tiny_ids, tiny_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

from evoray.errors import EvorayError, UserError
from evoray.model import ModelAdapter, find_structure

pytestmark = pytest.mark.usefixtures("same_products")


class _Loops(LlamaModel):
    """Runs its blocks twice."""

    def forward(self, input_ids: Tensor | None = None, **kwargs: Any) -> Any:
        once = super().forward(input_ids=input_ids, **kwargs).last_hidden_state
        return super().forward(inputs_embeds=once, **kwargs)


class _Backwards(LlamaModel):
    """Runs its blocks from the last to the first."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        blocks = self.layers
        self.layers = nn.ModuleList(reversed(list(blocks)))
        try:
            return super().forward(*args, **kwargs)
        finally:
            self.layers = blocks


class _AddsInPlace(LlamaDecoderLayer):
    """Changes its input."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        hidden_states.add_(0.25)
        return super().forward(hidden_states, *args, **kwargs)


class _TakesNothing(LlamaDecoderLayer):
    """Returns no hidden state."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return {"state": super().forward(hidden_states, *args, **kwargs)}


class _NormedHead(nn.Linear):
    """Normalises its weight before it multiplies."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, nn.functional.normalize(self.weight), self.bias)


class _Deaf(nn.Linear):
    """Uses a copy of its weight."""

    def forward(self, input: Tensor) -> Tensor:
        if not hasattr(self, "copied"):
            self.copied = self.weight.detach().clone()
        return nn.functional.linear(input, self.copied, self.bias)


class _Drifts(nn.Linear):
    """Gives something else at each call."""

    def forward(self, input: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(input) * (1 + 0.01 * self.calls)


def test_blocks_that_run_twice_are_refused() -> None:
    model = tiny_model("llama")
    model.model.__class__ = _Loops
    with pytest.raises(UserError, match=r"in the order \[0, 1, 2, 0, 1, 2\]"):
        ModelAdapter(model)


def test_blocks_that_run_backwards_are_refused_and_left_as_they_were() -> None:
    model = tiny_model("llama")
    model.model.__class__ = _Backwards
    with pytest.raises(UserError, match=r"in the order \[2, 1, 0\]"):
        ModelAdapter(model)
    assert all("forward" not in block.__dict__ for block in model.model.layers)


def test_blocks_without_a_hidden_state_are_refused() -> None:
    model = tiny_model("llama")
    model.model.layers[1].__class__ = _TakesNothing
    with pytest.raises(UserError, match=r"LlamaForCausalLM can't be handled.*returned dict"):
        ModelAdapter(model)


def test_a_model_whose_own_pass_fails_is_refused() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj = nn.Linear(5, 64)
    with pytest.raises(UserError, match=r"LlamaForCausalLM can't be handled: a pass through LlamaModel fails"):
        ModelAdapter(model)


def test_states_survive_blocks_that_change_their_input() -> None:
    model = tiny_model("llama")
    for block in model.model.layers:
        block.__class__ = _AddsInPlace
    adapter = ModelAdapter(model)
    assert adapter.resumable
    ids_BT = tiny_ids()
    states: dict[int, Tensor] = {}
    full_BTD = adapter.hidden(ids_BT, keep=range(4), kept=states)
    # Twice: the first resumed pass must not have changed the state either.
    for start in (0, 1, 2, 3, 0, 1, 2, 3):
        assert torch.equal(adapter.hidden(ids_BT, start=start, hidden_BTD=states[start]), full_BTD)


def test_a_head_that_does_more_than_multiply_is_found() -> None:
    model = tiny_model("llama")
    model.lm_head.__class__ = _NormedHead
    adapter = ModelAdapter(model)
    assert not adapter.head_is_linear
    assert "_NormedHead does more than multiply" in adapter.notes[0]
    ids_BT = tiny_ids()
    assert torch.equal(adapter.logits_from_hidden(adapter.hidden(ids_BT)), adapter.logits(ids_BT))


def test_a_head_with_bias_is_linear() -> None:
    model = tiny_model("llama")
    model.lm_head.bias = nn.Parameter(torch.linspace(-1, 1, model.lm_head.out_features))
    assert ModelAdapter(model).head_is_linear


def test_weights_that_change_nothing_are_named() -> None:
    model = tiny_model("llama")
    model.model.layers[2].mlp.up_proj.__class__ = _Deaf
    adapter = ModelAdapter(model)
    assert adapter.notes == (
        "model class LlamaForCausalLM: 1 of 14 layers tried change nothing on the probe text "
        "(experts without a token, say), model.layers.2.mlp.up_proj among them",
    )
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = _Deaf
    adapter.close()
    with pytest.raises(UserError, match="don't follow the weights of its layers"):
        ModelAdapter(model)


def test_a_model_that_drifts_is_refused() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.__class__ = _Drifts
    with pytest.raises(UserError, match="LlamaForCausalLM can't be handled"):
        ModelAdapter(model)


def test_a_model_that_is_not_finite_is_refused() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight.fill_(float("inf"))
    with pytest.raises(UserError, match=r"not finite in torch\.float32"):
        ModelAdapter(model)


def test_swapping_copies_nothing() -> None:
    adapter = ModelAdapter(tiny_model("gpt2"))
    name = "transformer.h.1.mlp.c_fc"
    module = adapter.layers[name].module
    parameter = module.weight
    base = parameter.data_ptr()
    ready = adapter.ready(name, torch.zeros(96, 64))
    assert ready.shape == (64, 96)  # the module's own layout
    assert ready.is_contiguous()
    adapter.swap(name, ready)
    assert module.weight is parameter
    assert parameter.data_ptr() == ready.data_ptr()
    adapter.restore(name)
    assert parameter.data_ptr() == base == adapter.weight_OI(name).data_ptr()


def test_weights_made_in_inference_mode_can_be_swapped_in() -> None:
    adapter = ModelAdapter(tiny_model("llama"))
    name = "model.layers.0.mlp.up_proj"
    ids_BT = tiny_ids()
    base_BTD = adapter.hidden(ids_BT)
    with torch.inference_mode():
        adapter.swap(name, adapter.ready(name, torch.zeros(96, 64)))
        other_BTD = adapter.hidden(ids_BT)
        adapter.restore(name)
        assert torch.equal(adapter.hidden(ids_BT), base_BTD)
    assert not torch.equal(other_BTD, base_BTD)


def test_shared_weights_count_once_and_swap_together() -> None:
    model = tiny_model("llama")
    first, second = model.model.layers[0].mlp, model.model.layers[1].mlp
    second.up_proj.weight = first.up_proj.weight
    adapter = ModelAdapter(model)
    assert "model.layers.0.mlp.up_proj" in adapter.layers
    assert "model.layers.1.mlp.up_proj" not in adapter.layers
    adapter.swap("model.layers.0.mlp.up_proj", torch.zeros(96, 64))
    assert not second.up_proj.weight.any()
    adapter.restore("model.layers.0.mlp.up_proj")
    assert second.up_proj.weight.any()


def test_close_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    adapter = ModelAdapter(model)
    assert len(model.model.layers) == 3
    adapter.swap("model.layers.0.mlp.up_proj", torch.zeros(96, 64))
    adapter.close()
    assert all("forward" not in block.__dict__ for block in model.model.layers)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


def test_two_adapters_in_turn_on_one_model() -> None:
    model = tiny_model("llama")
    ids_BT = tiny_ids()
    first = ModelAdapter(model)
    expected_BTD = first.hidden(ids_BT)
    first.close()
    assert torch.equal(ModelAdapter(model).hidden(ids_BT), expected_BTD)


def test_wrong_uses_say_so() -> None:
    adapter = ModelAdapter(tiny_model("llama"))
    ids_BT = tiny_ids()
    with pytest.raises(EvorayError, match="needs the state that enters it"):
        adapter.hidden(ids_BT, start=1)
    with pytest.raises(EvorayError, match="blocks 2 to 1 are no part of 3 blocks"):
        adapter.hidden(ids_BT, start=2, hidden_BTD=torch.zeros(2, 12, 64), stop=1)
    with pytest.raises(EvorayError, match="no dict to put them in"):
        adapter.hidden(ids_BT, keep={1})
    with pytest.raises(EvorayError, match="lm_head is no layer of this model"):
        adapter.weight_OI("lm_head")
    with pytest.raises(EvorayError, match=r"shape \(64, 96\) for a layer of shape \(96, 64\)"):
        adapter.ready("model.layers.0.mlp.up_proj", torch.zeros(64, 96))


def test_structure_needs_no_weights() -> None:
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(tiny_config("gpt2"))
    real = ModelAdapter(tiny_model("gpt2"))
    structure = find_structure(skeleton)
    assert structure.reach == 1
    assert {name: (ref.block, ref.out_features, ref.in_features) for name, ref in structure.layers.items()} == {
        name: (ref.block, ref.out_features, ref.in_features) for name, ref in real.layers.items()
    }


def test_a_model_without_a_list_of_blocks_is_refused() -> None:
    model = tiny_model("llama")
    model.model.layers = nn.Sequential(*model.model.layers)
    with pytest.raises(UserError, match="LlamaForCausalLM: no list of blocks"):
        ModelAdapter(model)

"""Gates on stacks of plain modules: every way of passing and returning a hidden state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evoray.model.gate import BlockGate, Route, Stopped, set_route, watch_pass

N_BLOCKS = 4


class _Bare(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, state: Tensor, mask: Tensor | None = None) -> Any:
        return torch.sin(state * self.factor) + (0 if mask is None else mask)


class _Tuple(_Bare):
    def forward(self, state: Tensor, mask: Tensor | None = None) -> Any:
        return super().forward(state, mask), "weights", "cache"


class _InPlace(_Bare):
    def forward(self, state: Tensor, mask: Tensor | None = None) -> Any:
        return state.mul_(self.factor).sin()


class _Stack(nn.Module):
    """A decoder: embeds by doubling, adds a mask in each block, ends with a norm of its own."""

    def __init__(self, kind: type[_Bare], keyword: bool, halves_between: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([kind(1.1 + index) for index in range(N_BLOCKS)])
        self.keyword = keyword
        self.halves_between = halves_between

    def forward(self, ids: Tensor) -> Tensor:
        state = ids.double() * 2
        mask = ids.double() / 7
        for block in self.blocks:
            output = block(mask=mask, state=state) if self.keyword else block(state, mask)
            state = output[0] if isinstance(output, tuple) else output
            if self.halves_between:
                state.mul_(0.5)
        return state + 100


@pytest.fixture(params=[(kind, keyword) for kind in (_Bare, _Tuple, _InPlace) for keyword in (False, True)], ids=str)
def stack(request: pytest.FixtureRequest) -> _Stack:
    kind, keyword = request.param
    return _Stack(kind, keyword)


def _gates(stack: _Stack) -> list[BlockGate]:
    gates = [BlockGate(block, index, N_BLOCKS) for index, block in enumerate(stack.blocks)]
    with torch.no_grad():
        _, order = watch_pass(gates, lambda: stack(torch.arange(3)))
    assert order == list(range(N_BLOCKS))
    return gates


def _routed(gates: list[BlockGate], route: Route, run: Callable[[], Tensor]) -> Tensor:
    set_route(gates, route)
    try:
        with torch.no_grad():
            return run()
    except Stopped as stopped:
        return stopped.state
    finally:
        set_route(gates, None)


def _by_hand(stack: _Stack, ids: Tensor) -> list[Tensor]:
    """States at all boundaries from the blocks' formulas alone."""
    states = [ids.double() * 2]
    for block in stack.blocks:
        mask = 0 if isinstance(block, _InPlace) else ids.double() / 7
        states.append(torch.sin(states[-1] * block.factor) + mask)
    return states


def test_kept_states_are_those_of_the_formulas(stack: _Stack) -> None:
    ids = torch.arange(5)
    gates = _gates(stack)
    kept: dict[int, Tensor] = {}
    last = _routed(gates, Route(keep=range(N_BLOCKS + 1), kept=kept), lambda: stack(ids))
    expected = _by_hand(stack, ids)
    assert torch.equal(last, expected[-1] + 100)
    for boundary, state in enumerate(expected):
        assert torch.equal(kept[boundary], state)


def test_start_and_stop_at_every_boundary(stack: _Stack) -> None:
    ids = torch.arange(5)
    gates = _gates(stack)
    states = _by_hand(stack, ids)
    for start in range(N_BLOCKS + 1):
        injected = states[start].clone()
        last = _routed(gates, Route(start, injected), lambda: stack(ids))
        assert torch.equal(last, states[-1] + 100)
        assert torch.equal(injected, states[start])  # even where blocks change their input
        for stop in range(start, N_BLOCKS + 1):
            assert torch.equal(_routed(gates, Route(start, injected, stop), lambda: stack(ids)), states[stop])


def test_skipped_blocks_do_not_run(stack: _Stack) -> None:
    ids = torch.arange(5)
    gates = _gates(stack)
    ran: list[int] = []
    for index, gate in enumerate(gates):
        inner = gate.forward

        def counted(*args: Any, index: int = index, inner: Callable[..., Any] = inner, **kwargs: Any) -> Any:
            ran.append(index)
            return inner(*args, **kwargs)

        gate.forward = counted
    _routed(gates, Route(2, _by_hand(stack, ids)[2], 3), lambda: stack(ids))
    assert ran == [2]


def test_states_are_copied_only_where_something_changes_them() -> None:
    assert not any(gate.copies for gate in _gates(_Stack(_Bare, False)))
    assert all(gate.copies for gate in _gates(_Stack(_InPlace, False)))
    # The decoder itself changes what a block returned: the last boundary is kept before that.
    halving = _Stack(_Bare, False, halves_between=True)
    gates = _gates(halving)
    assert all(gate.copies for gate in gates)
    kept: dict[int, Tensor] = {}
    last = _routed(gates, Route(keep=range(N_BLOCKS + 1), kept=kept), lambda: halving(torch.arange(5)))
    assert torch.equal(kept[N_BLOCKS] * 0.5 + 100, last)
    for start, state in kept.items():
        assert torch.equal(_routed(gates, Route(start, state), lambda: halving(torch.arange(5))), last)


def test_without_a_route_and_after_removal_nothing_is_different(stack: _Stack) -> None:
    ids = torch.arange(5)
    expected = _by_hand(stack, ids)[-1] + 100
    modules = list(stack.blocks)
    gates = _gates(stack)
    assert torch.equal(stack(ids), expected)
    assert list(stack.blocks) == modules
    for gate in gates:
        gate.remove()
    assert all("forward" not in block.__dict__ for block in stack.blocks)
    assert torch.equal(stack(ids), expected)


def test_removal_gives_back_a_forward_that_was_wrapped_before() -> None:
    block = _Bare(2.0)
    plain = block.forward

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    block.forward = wrapped
    gate = BlockGate(block, 0, 1)
    assert block.forward is gate
    gate.remove()
    assert block.forward is wrapped

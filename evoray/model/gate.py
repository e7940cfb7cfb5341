"""Gates around the blocks of a decoder: start at a block, stop before one, keep states at boundaries.

Holds:
- `Stopped`: raised by a gate when the pass has reached the boundary it was asked for; never leaves `ModelAdapter`.
- `Route`: what one pass wants of the gates.
- `BlockGate`: stands in for one block's `forward`.
- `parameter_names`, `first_tensor`, `with_first`, `holds_cache`: how modules take and hand on states and caches.

Boundary k is the hidden state that enters block k; boundary n (of n blocks) is what the last block returns. A gate
replaces `forward` on the block's instance, so the module list keeps its length and its modules, and the decoder
still prepares its own masks, rotary embeddings and whatever else it hands to each block.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


class Stopped(Exception):
    """The pass reached the boundary it was to stop at; carries the state there."""

    def __init__(self, state: Tensor) -> None:
        super().__init__("the pass stopped at the boundary it was asked for")
        self.state = state


@dataclass
class Route:
    """What one pass wants of the gates.

    Attributes:
        start: Blocks before it are skipped: they return their input.
        injected: The state that enters block `start`, or None for whatever arrives there.
        stop: Boundary at which the pass ends, or None to let it run through.
        keep: Boundaries whose states are wanted.
        kept: Where those states are put.
    """

    start: int = 0
    injected: Tensor | None = None
    stop: int | None = None
    keep: Collection[int] = ()
    kept: dict[int, Tensor] = field(default_factory=dict)


def first_tensor(output: Any) -> Tensor:
    """The hidden state in a block's output: the output itself, or the first entry of a tuple.

    Raises:
        TypeError: The output holds no tensor in that place.
    """
    state = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(state, Tensor):
        raise TypeError(f"a block returned {type(output).__name__}, which does not start with a hidden state")
    return state


def with_first(output: Any, state: Tensor) -> Any:
    """An output of the same form that holds another state."""
    return (state, *output[1:]) if isinstance(output, tuple | list) else state


def parameter_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the parameters that can be given by position, in their order."""
    return tuple(
        name
        for name, parameter in inspect.signature(forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    )


def holds_cache(parameters: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call hands over a cache of keys and values or of states, under any of the names in use.

    Args:
        parameters: Names of the callee's positional parameters.
        args: What is handed over by position.
        kwargs: What is handed over by name.
    """
    # Positions (`cache_position`) and switches (`use_cache`) bear such names as well.
    return any(
        ("cache" in name or "past" in name) and value is not None and not isinstance(value, bool | int | Tensor)
        for name, value in (*zip(parameters, args, strict=False), *kwargs.items())
    )


class BlockGate:
    """Stands in for the `forward` of one block.

    Gates are inert while `route` is None. While `seen` is a list (see `watch_pass`) they note each state with its
    version: some models add to a state in place, and then states that are kept or injected have to be copied.
    """

    def __init__(self, block: nn.Module, index: int, n_blocks: int) -> None:
        self.block = block
        self.index = index
        self.is_last = index == n_blocks - 1
        self.forward: Callable[..., Any] = block.forward
        self.parameters = parameter_names(self.forward)
        # A wrapper that takes anything names none; nearly all blocks call their state so.
        self.state_name = self.parameters[0] if self.parameters else "hidden_states"
        self.route: Route | None = None
        self.output_length: int | None = None  # None: a bare tensor; else the length of the tuple
        self.copies = False
        self.dropped = False  # a dropped block returns its input, in every pass, until it is put back
        self.seen: list[tuple[int, Tensor, int]] | None = None
        # An instance attribute of this name exists when something else (device hooks) has wrapped the block before.
        self._had_own = "forward" in block.__dict__
        block.forward = self

    def remove(self) -> None:
        """Give the block its own `forward` back."""
        if self._had_own:
            self.block.forward = self.forward
        else:
            del self.block.__dict__["forward"]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run, skip or stop before the block, as the route says and unless it is dropped."""
        route = self.route
        if route is None:
            return self._left_out(args, kwargs) if self.dropped else self.forward(*args, **kwargs)
        index = self.index
        state = self._entering(args, kwargs)
        version = 0 if self.seen is None else state._version  # states of inference mode have none
        if index == route.start and route.injected is not None:
            state = self._own(route.injected)
            args, kwargs = self._with_state(args, kwargs, state)
        if index >= route.start and index in route.keep:
            route.kept[index] = self._own(state)
        if index == route.stop:
            raise Stopped(state)
        if index < route.start:
            # Starting after the last block means that only the final norm is left to run on the injected state.
            if self.is_last and route.injected is not None:
                state = self._own(route.injected)
            output = self._skipped(state)
        elif self.dropped:
            output = self._skipped(state)
        else:
            output = self.forward(*args, **kwargs)
        if self.seen is not None:
            self.output_length = len(output) if isinstance(output, tuple | list) else None
            after = first_tensor(output)
            self.seen += [(index, state, version), (index, after, after._version)]
        if self.is_last:
            state = first_tensor(output)
            if index + 1 in route.keep:
                route.kept[index + 1] = self._own(state)
            if index + 1 == route.stop:
                raise Stopped(state)
        return output

    def _left_out(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a dropped block returns in a plain call of the model, which may carry a cache."""
        state = self._entering(args, kwargs)
        if not holds_cache(self.parameters, args, kwargs):
            return self._skipped(state)
        # Masks and positions of the whole model follow from the lengths that a cache has in some of its layers (the
        # first one, mostly). So the block keeps its part of the books in its own way, and its result is thrown away.
        args, kwargs = self._with_state(args, kwargs, self._own(state))
        return with_first(self.forward(*args, **kwargs), state)

    def _entering(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        state = args[0] if args else kwargs.get(self.state_name)
        if not isinstance(state, Tensor):
            raise TypeError(f"{type(self.block).__name__} takes no hidden state as first argument {self.state_name!r}")
        return state

    def _with_state(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], state: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (state, *args[1:]), kwargs
        return args, {**kwargs, self.state_name: state}

    def _own(self, state: Tensor) -> Tensor:
        """The state itself, or a copy of it when blocks change their input in place."""
        return state.clone() if self.copies else state

    def _skipped(self, state: Tensor) -> Any:
        # What else a block returns (attention weights, caches) is None in the passes we make.
        return state if self.output_length is None else (state, *[None] * (self.output_length - 1))


def set_route(gates: list[BlockGate], route: Route | None) -> None:
    """Give all gates the same route, or none."""
    for gate in gates:
        gate.route = route


def watch_pass(gates: list[BlockGate], run: Callable[[], Any]) -> tuple[Any, list[int]]:
    """Run one full pass in which the gates learn their blocks' ways: form of output, changes in place, order of calls.

    Args:
        gates: All gates of a decoder.
        run: Makes one full pass with gradients off, but not in inference mode (version counters are read).

    Returns:
        What `run` returned, and the indexes of the blocks in the order they ran.
    """
    seen: list[tuple[int, Tensor, int]] = []
    for gate in gates:
        gate.seen = seen
    set_route(gates, Route())
    try:
        output = run()
    finally:
        set_route(gates, None)
        for gate in gates:
            gate.seen = None
    # Whoever changed a boundary's state in place, a block or the decoder between two blocks: from now on copies.
    if any(state._version != version for _, state, version in seen):
        for gate in gates:
            gate.copies = True
    return output, [index for index, _, _ in seen[::2]]

"""Sublayers that can be taken out of a pass and put back.

Holds:
- `Sublayer`: a sublayer with a module of its own; dropped, it answers without computing anything.
- `LooseSublayer`: layers that lie in a block without such a module; dropped, each answers with zeros.
- `watch_sublayers`: context in which sublayers learn their modules' ways from a pass.
- `muted`: context in which layers answer with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from evoray.model.gate import first_tensor, holds_cache, parameter_names, with_first


class _Forward:
    """The `forward` of a module, which can be replaced and put back."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.own: Callable[..., Any] = module.forward
        # An instance attribute of this name exists when something else (device hooks) has wrapped the module before.
        self._had_own = "forward" in module.__dict__

    def put(self, forward: Callable[..., Any]) -> None:
        self.module.forward = forward

    def back(self) -> None:
        if self._had_own:
            self.module.forward = self.own
        else:
            self.module.__dict__.pop("forward", None)


class Sublayer:
    """A sublayer with a module of its own. While it is dropped, its `forward` is replaced; else nothing is.

    Attributes:
        name: Of the site.
        dropped: It adds nothing in any pass, until it is put back.
    """

    def __init__(self, name: str, module: nn.Module, layers: Iterable[nn.Module]) -> None:
        self.name = name
        self.dropped = False
        self._forward = _Forward(module)
        self._layers = list(layers)
        self._parameters = parameter_names(module.forward)
        self._length: int | None = None  # None: a bare tensor; else the length of the tuple
        self._dtype: torch.dtype | None = None  # where it is not its input's
        # The argument that the module itself adds its result to (bloom), by position or name. Most modules have none,
        # and leave the sum to their block.
        self._passed: int | str | None = None

    def drop(self, dropped: bool) -> None:
        """Take it out of every pass from now on, or put it back."""
        self.dropped = dropped
        if dropped:
            self._forward.put(self._answer)
        else:
            self._forward.back()

    @contextmanager
    def watch(self, order: list[str]) -> Iterator[None]:
        """Learn the form of the module's output while passes run; `order` takes its name when it is called."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            order.append(self.name)
            # A child that does something else altogether is no reason to refuse a model; dropping it fails its probe.
            with suppress(TypeError):
                self._learn_passed(args, kwargs)
            output = self._forward.own(*args, **kwargs)
            with suppress(TypeError):
                self._length = len(output) if isinstance(output, tuple | list) else None
                dtype = first_tensor(output).dtype
                self._dtype = None if dtype == self._entering(args, kwargs).dtype else dtype
            return output

        self._forward.put(watched)
        try:
            yield
        finally:
            self._forward.back()

    def _answer(self, *args: Any, **kwargs: Any) -> Any:
        """What the module would return if it added nothing."""
        if self._passed is None:
            nothing = torch.zeros_like(self._entering(args, kwargs), dtype=self._dtype)
        else:
            # Its own memory, as the sum would have: whoever takes it may write to it.
            nothing = self._argument(args, kwargs, self._passed).clone()
        if holds_cache(self._parameters, args, kwargs):
            # The lengths of a cache decide masks and positions of the whole model, and are taken from whichever layer
            # a model likes. So the module keeps its part of the books, in its own way.
            return with_first(self._forward.own(*args, **kwargs), nothing)
        return nothing if self._length is None else (nothing, *[None] * (self._length - 1))

    def _learn_passed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Whether the module, its layers muted, hands through another argument than the first."""
        entering = self._entering(args, kwargs)
        others: dict[int | str, Any] = {**dict(enumerate(args)), **kwargs}
        others = {
            key: value
            for key, value in others.items()
            if isinstance(value, Tensor) and value is not entering and value.shape == entering.shape
        }
        if not others:
            return
        try:
            with muted(self._layers):
                output = first_tensor(self._forward.own(*args, **kwargs))
        except torch.OutOfMemoryError:
            raise
        # Zeros may be more than a module bears; then it is taken to leave the sum to its block.
        except Exception:
            return
        for key, value in others.items():
            # Zeros that arrive as an argument are nothing that could be told from nothing added.
            if torch.equal(output, value) and bool(value.any()):
                self._passed = key

    def _entering(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        state = args[0] if args else kwargs.get(self._parameters[0] if self._parameters else "hidden_states")
        if not isinstance(state, Tensor):
            raise TypeError(f"{type(self._forward.module).__name__} takes no hidden state as its first argument")
        return state

    def _argument(self, args: tuple[Any, ...], kwargs: dict[str, Any], key: int | str) -> Tensor:
        value = args[key] if isinstance(key, int) else kwargs[key]
        assert isinstance(value, Tensor)
        return value


class LooseSublayer:
    """Layers that lie in a block without a module of their own (opt's fc1 and fc2).

    Attributes:
        name: Of the site.
        dropped: It adds nothing in any pass, until it is put back.
    """

    def __init__(self, name: str, layers: Iterable[nn.Module]) -> None:
        self.name = name
        self.dropped = False
        self._forwards = [_Forward(layer) for layer in layers]

    def drop(self, dropped: bool) -> None:
        """Take it out of every pass from now on, or put it back."""
        self.dropped = dropped
        for forward in self._forwards:
            if dropped:
                forward.put(_silent(forward.module))
            else:
                forward.back()

    @contextmanager
    def watch(self, order: list[str]) -> Iterator[None]:
        """While passes run, `order` takes its name when its first layer is called."""
        first = self._forwards[0]

        def watched(*args: Any, **kwargs: Any) -> Any:
            order.append(self.name)
            return first.own(*args, **kwargs)

        first.put(watched)
        try:
            yield
        finally:
            first.back()


@contextmanager
def watch_sublayers(sublayers: Iterable[Sublayer | LooseSublayer]) -> Iterator[list[str]]:
    """Let sublayers learn from the passes that run meanwhile.

    Yields:
        A list that takes their names in the order in which they are called.
    """
    order: list[str] = []
    with ExitStack() as stack:
        for sublayer in sublayers:
            stack.enter_context(sublayer.watch(order))
        yield order


@contextmanager
def muted(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Let layers answer with zeros, without multiplying."""
    forwards = [_Forward(layer) for layer in layers]
    for forward in forwards:
        forward.put(_silent(forward.module))
    try:
        yield
    finally:
        for forward in forwards:
            forward.back()


def _silent(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    width = getattr(layer, "out_features", None) or layer.nf  # transformers' Conv1D calls it so

    def zeros(state: Tensor) -> Tensor:
        return state.new_zeros(*state.shape[:-1], width)

    return zeros

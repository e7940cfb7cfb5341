"""One way to handle any decoder-only model: run part of it, swap its weights, ask for its logits.

Holds:
- `ModelAdapter`: decoder, blocks, layers and head of a loaded model, and what the probes found out about them.

Shape suffixes: B rows, T tokens, D width of the hidden state, V vocabulary, O out features, I in features.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from evoray.errors import EvorayError, UserError
from evoray.model.drop_probes import probe_droppable
from evoray.model.droppable import DropKind, Droppable, find_droppable, modules_of, silenced_parameters
from evoray.model.dropped import LooseSublayer, Sublayer, watch_sublayers
from evoray.model.gate import BlockGate, Route, Stopped, set_route, watch_pass
from evoray.model.probes import probe_ids, run_probes
from evoray.model.products import multiplying
from evoray.model.quiet import quiet_transformers
from evoray.model.structure import LayerRef, check_reach, find_structure, is_layer


class ModelAdapter:
    """A loaded causal language model, with its parts found by structure and its short cuts probed.

    Passes run without attention mask, without cache and without gradients, and multiply as `products` does. While a
    `ModelAdapter` holds a model, the `forward` of its blocks is wrapped; the model can still be called as before.
    `close` takes the wrapping off.

    Example:
        >>> adapter = ModelAdapter(load_model("gpt2", device="cpu"))
        >>> states = {}
        >>> hidden_BTD = adapter.hidden(ids_BT, keep=(3,), kept=states)
        >>> again_BTD = adapter.hidden(ids_BT, start=3, hidden_BTD=states[3])  # the same bits

    Attributes:
        model: The model.
        decoder: The module that turns token ids into the last hidden state.
        blocks: Its blocks.
        blocks_name: Module path of the list of blocks ("model.layers").
        n_blocks: Their number.
        hidden_size: Width D of the last hidden state.
        dtype: The dtype of the weights.
        device: The device that token ids enter on: that of the first block's weights.
        head_device: The device of the output embedding, where last hidden states are given out.
        devices: All devices of the weights, in order of the blocks; one, unless the model is spread over several GPUs.
            States at boundaries are where the block is that made them, and are brought to where they are needed.
        layers: Layers by name, in order of the blocks, then of definition inside the block.
        droppable: Sublayers and blocks that a pass may do without, by name: all sublayers in order of the blocks, then
            all blocks. Bytes count in the model's dtype. `check_droppable` says for which it means anything.
        sublayers: Names of each block's sublayers, in the order in which they run.
        reach: Share of the blocks' weights that lie in layers.
        head: The output embedding where it is an `nn.Linear`, else None.
        head_is_linear: Logits are head.weight @ h (+ head.bias) and nothing else (probed).
        boundaries: The boundaries at which a pass can start with the bits of the full pass (probed).
        resumable: That holds at every boundary, 0 to n_blocks.
        unobserved: Layers whose module is not called in a pass on the probe text: other code takes its weight, or it
            is an expert that got no token. Swapping works, but hooks on the module see no inputs.
        notes: One line per probe that failed, saying what is off for it.
    """

    def __init__(self, model: PreTrainedModel, *, allow_partial: bool = False) -> None:
        """Find the parts and run the probes.

        Args:
            model: A causal language model in evaluation mode, on its device.
            allow_partial: Accept a model less than 90% of whose blocks' weights are in layers.

        Raises:
            UserError: The model can't be handled: no blocks or layers, weights out of reach, blocks that don't run
                once each and in order, states that depend on later tokens, or weights that can't be swapped.
        """
        structure = find_structure(model)
        self.model = model
        self.decoder = structure.decoder
        self.blocks = structure.blocks
        self.blocks_name = structure.blocks_name
        self.n_blocks = len(structure.blocks)
        self.layers: dict[str, LayerRef] = structure.layers
        self.reach = structure.reach
        self.head: nn.Linear | None = structure.head
        first = next(iter(self.layers.values())).base
        self.dtype: torch.dtype = first.dtype
        self.device: torch.device = first.device
        self.devices: tuple[torch.device, ...] = tuple(dict.fromkeys(ref.base.device for ref in self.layers.values()))
        notes = [note for note in [check_reach(model, structure, allow_partial)] if note]

        self._weights = {name: _weight(ref.module) for name, ref in self.layers.items()}
        self.droppable: dict[str, Droppable] = {
            site.name: site for site in find_droppable(model, structure, self.dtype)
        }
        self._sublayers = {
            name: self._sublayer(name) for name, site in self.droppable.items() if site.kind is not DropKind.block
        }
        self._gates = [BlockGate(block, index, self.n_blocks) for index, block in enumerate(self.blocks)]
        try:
            with quiet_transformers():
                output, self.unobserved, self.sublayers = self._learn()
                self._output_type = type(output)
                self._output_length = len(output)
                last_BTD = _last_hidden(output)
                self.head_device: torch.device = _output_device(model, last_BTD)
                self.devices = tuple(dict.fromkeys((*self.devices, self.head_device)))
                last_BTD = last_BTD.to(self.head_device)
                self.hidden_size = int(last_BTD.shape[-1])
                self._last_dtype = self._dtype_for_head(last_BTD)
                self.boundaries: frozenset[int] = frozenset(range(self.n_blocks + 1))
                found = run_probes(self)
        except BaseException:
            self.close()
            raise
        self.head_is_linear: bool = found.head_is_linear
        self.boundaries = found.boundaries
        self.resumable: bool = len(found.boundaries) == self.n_blocks + 1
        self.notes: tuple[str, ...] = (*notes, *found.notes)

    def close(self) -> None:
        """Put all base weights back and take the gates off the blocks. The adapter is of no use afterwards."""
        for name in self.layers:
            self.restore(name)
        for site in self.droppable:
            self.drop(site, False)
        for gate in self._gates:
            gate.remove()

    # Weights

    def weight_OI(self, name: str) -> Tensor:
        """The base weight of a layer as [out, in]: a view, not to be written to."""
        ref = self._layer(name)
        return ref.base.T if ref.transposed else ref.base

    def ready(self, name: str, weight_OI: Tensor) -> Tensor:
        """Bring a weight into the form that `swap` takes.

        Args:
            name: The layer.
            weight_OI: Weight [out, in] of any floating dtype on any device.

        Returns:
            The weight in the module's own layout, contiguous, in the model's dtype and on its device.

        Raises:
            EvorayError: The shape is not the layer's.
        """
        ref = self._layer(name)
        shape = (ref.out_features, ref.in_features)
        if tuple(weight_OI.shape) != shape:
            raise EvorayError(f"layer {name}: a weight of shape {tuple(weight_OI.shape)} for a layer of shape {shape}")
        weight = weight_OI.to(device=ref.base.device, dtype=ref.base.dtype)
        return (weight.T if ref.transposed else weight).contiguous()

    def swap(self, name: str, ready: Tensor) -> None:
        """Let a layer use another weight. Sets a pointer, copies nothing.

        Args:
            name: The layer.
            ready: What `ready` returned; kept alive by the model until the next `swap` or `restore`.
        """
        self._weights[name].data = ready

    def restore(self, name: str) -> None:
        """Let a layer use its base weight again. Sets a pointer, copies nothing."""
        self._weights[name].data = self.layers[name].base

    # Sublayers and blocks

    def drop(self, name: str, dropped: bool = True) -> None:
        """Take a sublayer or a block out of every pass from now on, or put it back. Its weights stay.

        A dropped block returns its input, a dropped sublayer adds nothing to its block's state; neither computes
        anything, unless it is handed a cache. Then it runs for what it writes there, and its result is thrown away: so
        `generate` gives the tokens of uncached passes.

        Args:
            name: One of `droppable`. Whether its block is dropped too makes no difference.
            dropped: False to put it back.

        Raises:
            EvorayError: No such sublayer or block.
        """
        site = self._site(name)
        if site.kind is DropKind.block:
            self._gates[site.block].dropped = dropped
        elif self._sublayers[name].dropped != dropped:
            self._sublayers[name].drop(dropped)

    def check_droppable(self, names: Iterable[str]) -> None:
        """Probe that sublayers and blocks can be dropped, on a short input and bit for bit.

        The base weights have to be in place. What is dropped at the time is put back for the probes.

        Args:
            names: Of `droppable`.

        Raises:
            UserError: No such sublayer or block, or one whose dropping has no meaning in this model.
        """
        wanted = list(dict.fromkeys(names))
        for name in wanted:
            try:
                self._site(name)
            except EvorayError as error:
                raise UserError(str(error)) from None
        if not wanted:
            return
        dropped = [name for name in self.droppable if self._is_dropped(name)]
        for name in dropped:
            self.drop(name, False)
        try:
            with quiet_transformers():
                notes = probe_droppable(self, [self.droppable[name] for name in wanted])
        finally:
            for name in dropped:
                self.drop(name)
        self.notes = tuple(dict.fromkeys((*self.notes, *notes)))

    def silenced(self, name: str) -> list[nn.Parameter]:
        """The parameters that are zero in a plain model which does as this one does with a sublayer dropped."""
        return list(silenced_parameters(self.modules(name)).values())

    def modules(self, name: str) -> list[nn.Module]:
        """The modules that a sublayer or block consists of: one, or several loose layers."""
        site = self._site(name)
        inside = name.removeprefix(f"{self.blocks_name}.{site.block}").removeprefix(".")
        return modules_of(self.blocks[site.block], inside)

    # Passes

    def hidden(
        self,
        ids_BT: Tensor,
        *,
        start: int = 0,
        hidden_BTD: Tensor | None = None,
        stop: int | None = None,
        keep: Collection[int] = (),
        kept: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """Run blocks `start` to `stop` - 1 and return the hidden state behind them.

        Boundary k is the state that enters block k; boundary n_blocks is what the last block returns, before the
        final norm. States at boundaries are what the model hands from block to block, mostly [B, T, D].

        Args:
            ids_BT: Token ids, int64 [B, T] on `device`. Needed from any start on, for masks and positions.
            start: First block to run; n_blocks runs the final norm only.
            hidden_BTD: The state entering block `start`; needed if `start` > 0. Not changed.
            stop: Boundary whose state is wanted; None: run to the end, the final norm included.
            keep: Boundaries from `start` on whose states are wanted too. None behind `stop` is reached.
            kept: Where they are put, by boundary.

        Returns:
            The state at boundary `stop`, or the last hidden state [B, T, D] in the dtype that enters the head, on
            `head_device`.

        Raises:
            EvorayError: `start` is a boundary at which this model can't be resumed, or the arguments don't fit
                together.
        """
        end = self.n_blocks if stop is None else stop
        if not 0 <= start <= end <= self.n_blocks:
            raise EvorayError(f"blocks {start} to {stop} are no part of {self.n_blocks} blocks in order")
        if start > 0 and hidden_BTD is None:
            raise EvorayError(f"a pass from block {start} needs the state that enters it")
        if hidden_BTD is not None and start not in self.boundaries:
            raise EvorayError(
                f"a pass can't start at block {start} of this model; start at one of {sorted(self.boundaries)}"
            )
        if keep and kept is None:
            raise EvorayError("states are to be kept, but there is no dict to put them in")
        route = Route(start, hidden_BTD, stop, frozenset(keep), {} if kept is None else kept)
        set_route(self._gates, route)
        try:
            with torch.no_grad(), multiplying(self.device, self.dtype):
                return _last_hidden(self._decode(ids_BT)).to(self.head_device, self._last_dtype)
        except Stopped as stopped:
            return stopped.state
        finally:
            set_route(self._gates, None)

    def logits(self, ids_BT: Tensor) -> Tensor:
        """The model's own logits [B, T, V] for token ids int64 [B, T], in the dtype the model gives them."""
        with torch.no_grad(), multiplying(self.device, self.dtype):
            output: Any = self.model(input_ids=ids_BT, use_cache=False, return_dict=True)
            logits_BTV: Tensor = output.logits
            return logits_BTV

    def logits_from_hidden(self, hidden_BTD: Tensor) -> Tensor:
        """The model's own output path from a last hidden state: head, bias, soft caps, scales, whatever it has.

        Args:
            hidden_BTD: Last hidden state [B, T, D], as `hidden` returns it.

        Returns:
            Logits [B, T, V] in the dtype the model gives them.
        """
        # The causal language model runs as always, but its decoder answers with the state we have.
        answer = self._as_output(hidden_BTD)

        def stub(*args: Any, **kwargs: Any) -> Any:
            return answer

        ids_BT = torch.zeros(hidden_BTD.shape[:2], dtype=torch.long, device=hidden_BTD.device)
        with _replaced_forward(self.decoder, stub):
            return self.logits(ids_BT)

    def _decode(self, ids_BT: Tensor) -> Any:
        return self.decoder(input_ids=ids_BT, use_cache=False, return_dict=True)

    def _learn(self) -> tuple[Any, frozenset[str], list[list[str]]]:
        """One full pass in which gates and sublayers learn their modules' ways; checks that each block runs once.

        Returns:
            What the decoder returned, the layers whose modules were not called, and each block's sublayers in the
            order in which they ran.
        """
        ids_BT = probe_ids(self)
        called: set[nn.Module] = set()
        hooks = [
            ref.module.register_forward_pre_hook(lambda module, _: called.add(module)) for ref in self.layers.values()
        ]
        name = type(self.model).__name__
        try:
            with torch.inference_mode(False), torch.no_grad(), watch_sublayers(self._sublayers.values()) as ran:
                output, order = watch_pass(self._gates, lambda: self._decode(ids_BT))
        except torch.OutOfMemoryError:
            raise
        except (TypeError, AttributeError, ValueError, KeyError, IndexError, RuntimeError) as error:
            # Say, a decoder that takes no token ids, or blocks that take no hidden state.
            raise UserError(
                f"model class {name} can't be handled: a pass through {type(self.decoder).__name__} fails "
                f"({type(error).__name__}: {error}); choose a decoder-only model of transformers"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        if order != list(range(self.n_blocks)):
            raise UserError(
                f"model class {name} can't be handled: a pass runs its blocks {self.blocks_name} in the order {order}; "
                "choose a model that runs each block once, in order"
            )
        sublayers: list[list[str]] = [[] for _ in range(self.n_blocks)]
        # Those that did not run (they serve other kinds of input) come last.
        for sublayer in dict.fromkeys((*ran, *self._sublayers)):
            sublayers[self.droppable[sublayer].block].append(sublayer)
        unobserved = frozenset(layer for layer, ref in self.layers.items() if ref.module not in called)
        return output, unobserved, sublayers

    def _sublayer(self, name: str) -> Sublayer | LooseSublayer:
        modules = self.modules(name)
        layers = [self.layers[layer].module for layer in self.droppable[name].layers]
        return LooseSublayer(name, modules) if is_layer(modules[0]) else Sublayer(name, modules[0], layers)

    def _is_dropped(self, name: str) -> bool:
        site = self.droppable[name]
        return self._gates[site.block].dropped if site.kind is DropKind.block else self._sublayers[name].dropped

    def _site(self, name: str) -> Droppable:
        try:
            return self.droppable[name]
        except KeyError:
            names = list(self.droppable)
            raise EvorayError(
                f"{name} is no sublayer or block that this model could be run without; "
                f"they run from {names[0]} to {names[-1]}"
            ) from None

    def _dtype_for_head(self, last_BTD: Tensor) -> torch.dtype:
        """The dtype in which last hidden states are given out.

        Some models (mamba) carry a float32 state and round it before a half precision head. Doing that at once, where
        it makes no difference to the logits, gives the head what it multiplies with.
        """
        if self.head is not None and self.head.weight.dtype != last_BTD.dtype:
            rounded_BTD = last_BTD.to(self.head.weight.dtype)
            if torch.equal(self.logits_from_hidden(rounded_BTD), self.logits_from_hidden(last_BTD)):
                return rounded_BTD.dtype
        return last_BTD.dtype

    def _as_output(self, hidden_BTD: Tensor) -> Any:
        """A last hidden state in the form in which the decoder returns it."""
        if issubclass(self._output_type, ModelOutput):
            return self._output_type(last_hidden_state=hidden_BTD)
        return (hidden_BTD, *[None] * (self._output_length - 1))

    def _layer(self, name: str) -> LayerRef:
        try:
            return self.layers[name]
        except KeyError:
            raise EvorayError(f"{name} is no layer of this model; its layers are {', '.join(self.layers)}") from None


class _replaced_forward:
    """Context in which a module answers with another `forward`."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        self._module = module
        self._forward = forward
        self._own = module.__dict__.get("forward")

    def __enter__(self) -> None:
        self._module.forward = self._forward

    def __exit__(self, *_: object) -> None:
        if self._own is None:
            del self._module.__dict__["forward"]
        else:
            self._module.forward = self._own


def _last_hidden(output: Any) -> Tensor:
    state = output[0] if isinstance(output, tuple) else output.last_hidden_state
    if not isinstance(state, Tensor):
        raise UserError(f"the decoder returned {type(output).__name__} without a last hidden state")
    return state


def _output_device(model: PreTrainedModel, last_BTD: Tensor) -> torch.device:
    output = model.get_output_embeddings()
    weight = next(output.parameters(), None) if isinstance(output, nn.Module) else None
    return last_BTD.device if weight is None else weight.device


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight

"""What is checked at load, on a short input, before it is relied on.

Holds:
- `Findings`: what the probes found.
- `run_probes`: runs them all.
- `probe_ids`: the short input.
- `distance`, `REGROUPING`: how far a state moved, and how far it may.

A short cut whose probe fails is switched off and named in a note; results stay right without it. Where there is no
right way left (a model that sees later tokens, weights that can't be swapped), the model is refused by name.

Shape suffixes: B rows, T tokens, D width of the hidden state, V vocabulary, O out features, I in features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evoray.errors import UserError
from evoray.model.products import multiplying

if TYPE_CHECKING:
    from evoray.model.adapter import ModelAdapter

# Short enough to cost nothing, long enough that attention, convolutions and routing have something to do.
ROWS = 2
TOKENS = 12
# Tokens of the probe that are exchanged or cut off to see whether earlier positions notice.
TAIL = 4
# Layers tried per block: more than any dense block has, fewer than blocks with hundreds of experts.
SWAPS = 64

# How far a state may move (root mean square, relative) when other tokens come behind it and the shape stays: nothing,
# but where experts collect their tokens the shapes inside change a little. A state that sees later tokens moves by
# hundredths to tenths.
REGROUPING = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 5e-3, torch.bfloat16: 3e-2}
# The same when the shape of the pass changes, and kernels and roundings with it.
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-10, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Findings:
    """What the probes found.

    Attributes:
        head_is_linear: Logits are head.weight @ h (+ head.bias), nothing else.
        boundaries: Boundaries at which a pass that is given their state yields the bits of the full pass.
        notes: One line per failed probe, saying what is off.
    """

    head_is_linear: bool
    boundaries: frozenset[int]
    notes: tuple[str, ...]


def probe_ids(adapter: ModelAdapter, first: int = 0) -> Tensor:
    """A fixed pattern inside the vocabulary, from its entry `first` on.

    Returns:
        Token ids int64 [ROWS, TOKENS] on the model's device.
    """
    weight = adapter.model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    vocabulary = weight.shape[0]
    # Special tokens tend to be the first and the last ids; images and sounds have theirs near the end.
    low, high = (vocabulary // 8, vocabulary // 2) if vocabulary >= 16 else (0, vocabulary)
    entry = torch.arange(first, first + ROWS * TOKENS, dtype=torch.long).view(ROWS, TOKENS)
    return (low + (entry * 7919 + entry * entry * 31) % (high - low)).to(adapter.device)


def run_probes(adapter: ModelAdapter) -> Findings:
    """Run all probes.

    Args:
        adapter: An adapter whose parts are found and whose gates have learned their blocks' ways.

    Raises:
        UserError: The model can't be handled, with the reason.
    """
    ids_BT = probe_ids(adapter)
    states: dict[int, Tensor] = {}
    hidden_BTD = adapter.hidden(ids_BT, keep=range(adapter.n_blocks + 1), kept=states)
    if not bool(torch.isfinite(hidden_BTD).all()):
        raise _refusal(
            adapter, f"its hidden states are not finite in {adapter.dtype}", "choose another --dtype or checkpoint"
        )
    notes: list[str] = []
    head_is_linear = _probe_head(adapter, ids_BT, hidden_BTD, notes)
    _probe_causality(adapter, ids_BT, hidden_BTD)
    boundaries = _probe_boundaries(adapter, ids_BT, hidden_BTD, states, notes)
    _probe_swaps(adapter, ids_BT, states, boundaries, notes)
    return Findings(head_is_linear, boundaries, tuple(notes))


def _probe_head(adapter: ModelAdapter, ids_BT: Tensor, hidden_BTD: Tensor, notes: list[str]) -> bool:
    """Whether the head alone gives the logits; refuses when even the model's own output path doesn't."""
    logits_BTV = adapter.logits(ids_BT)
    if not torch.equal(adapter.logits_from_hidden(hidden_BTD), logits_BTV):
        raise _refusal(
            adapter, "its logits don't follow from its decoder's last hidden state", "choose another architecture"
        )
    head = adapter.head
    if head is None:
        notes.append(_off(adapter, "its head is no nn.Linear", "linear head"))
        return False
    if head.in_features != hidden_BTD.shape[-1]:
        notes.append(_off(adapter, "something lies between its hidden state and its head", "linear head"))
        return False
    if head.weight.dtype != hidden_BTD.dtype:
        kinds = f"{hidden_BTD.dtype} and {head.weight.dtype}"
        notes.append(_off(adapter, f"its hidden state and head differ in dtype ({kinds})", "linear head"))
        return False
    with torch.no_grad(), multiplying(adapter.device, adapter.dtype):
        own_BTV = head(hidden_BTD).to(logits_BTV.dtype)
        # A subclass may do more than multiply (normalise its weight, say), so the plain product is compared as well.
        plain_BTV = torch.nn.functional.linear(hidden_BTD, head.weight, head.bias)
    if not torch.equal(own_BTV, logits_BTV):
        notes.append(_off(adapter, "its logits are more than head(hidden state): soft cap or scale", "linear head"))
        return False
    if not distance(plain_BTV, logits_BTV) <= _ROUNDING[hidden_BTD.dtype]:
        notes.append(_off(adapter, f"its head {type(head).__name__} does more than multiply", "linear head"))
        return False
    return True


def _probe_causality(adapter: ModelAdapter, ids_BT: Tensor, hidden_BTD: Tensor) -> None:
    """Refuse a model whose states notice what comes behind them: padding on the right would change its losses."""
    head = TOKENS - TAIL
    other_BT = ids_BT.clone()
    other_BT[:, head:] = probe_ids(adapter, first=ids_BT.numel())[:, :TAIL]
    other_BTD = adapter.hidden(other_BT)
    cut_BTD = adapter.hidden(ids_BT[:, :head].contiguous())
    for changed_BTD, tolerances, cause in [
        (other_BTD[:, :head], REGROUPING, "later tokens"),
        (cut_BTD, _ROUNDING, "padding"),
    ]:
        moved = distance(changed_BTD, hidden_BTD[:, :head])
        # Written this way round, NaN fails too.
        if not moved <= tolerances[hidden_BTD.dtype]:
            finding = f"its hidden states depend on {cause} behind them (relative change {moved:.1e})"
            raise _refusal(adapter, finding, "choose a causal model")


def _probe_boundaries(
    adapter: ModelAdapter, ids_BT: Tensor, hidden_BTD: Tensor, states: dict[int, Tensor], notes: list[str]
) -> frozenset[int]:
    """The boundaries from which a pass gives the bits of the full pass."""
    good: set[int] = set()
    for boundary, state in sorted(states.items()):
        try:
            again_BTD = adapter.hidden(ids_BT, start=boundary, hidden_BTD=state)
        # Whatever a block misses from a skipped one (shared keys and values, say) may fail in any way.
        except Exception:
            continue
        if torch.equal(again_BTD, hidden_BTD):
            good.add(boundary)
    missing = sorted(set(range(adapter.n_blocks + 1)) - good)
    if missing:
        places = ", ".join(map(str, missing))
        notes.append(_off(adapter, f"a pass resumed at block {places} is not the full pass", "resuming there"))
    return frozenset(good)


def _probe_swaps(
    adapter: ModelAdapter, ids_BT: Tensor, states: dict[int, Tensor], boundaries: frozenset[int], notes: list[str]
) -> None:
    """Whether other weights in the first and the last block change the states, and the base weights bring them back."""
    deaf: list[str] = []
    tried = 0
    for index in sorted({0, adapter.n_blocks - 1}):
        start = index if index in boundaries else 0
        entering = states[start] if start in boundaries else None

        def leaving(start: int = start, entering: Tensor | None = entering, stop: int = index + 1) -> Tensor:
            return adapter.hidden(ids_BT, start=start, hidden_BTD=entering, stop=stop)

        before = leaving()
        names = [name for name, ref in adapter.layers.items() if ref.block == index]
        for name in names[:: -(-len(names) // SWAPS)]:
            adapter.swap(name, adapter.ready(name, adapter.weight_OI(name).flip(0) * 0.5 + 0.01))
            changed = leaving()
            adapter.restore(name)
            tried += 1
            if torch.equal(changed, before):
                deaf.append(name)
        if not torch.equal(leaving(), before):
            raise _refusal(
                adapter, f"block {index} stays changed when its weights are put back", "choose another model"
            )
    if tried and len(deaf) == tried:
        raise _refusal(adapter, "its hidden states don't follow the weights of its layers", "choose another model")
    if deaf:
        notes.append(
            f"model class {type(adapter.model).__name__}: {len(deaf)} of {tried} layers tried change nothing on the "
            f"probe text (experts without a token, say), {deaf[0]} among them"
        )


def distance(one: Tensor, other: Tensor) -> float:
    """Root mean square of the difference, relative to the second. 0 for equal bits, NaN where either is not finite."""
    if torch.equal(one, other):
        return 0.0
    reference = other.double().norm()
    return float((one.double() - other.double()).norm() / reference)


def _off(adapter: ModelAdapter, finding: str, short_cut: str) -> str:
    return f"model class {type(adapter.model).__name__}: {finding}; short cut off: {short_cut}"


def _refusal(adapter: ModelAdapter, finding: str, remedy: str) -> UserError:
    return UserError(f"model class {type(adapter.model).__name__} can't be handled: {finding}; {remedy}")

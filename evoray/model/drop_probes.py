"""What is checked of sublayers and blocks before they are dropped: that a model without them means something.

Holds:
- `probe_droppable`: probes named sites; refuses by name what can't be dropped.

Shape suffixes: B rows, T tokens, D width of the hidden state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from evoray.errors import UserError
from evoray.model.droppable import DropKind, Droppable
from evoray.model.probes import REGROUPING, distance, probe_ids

if TYPE_CHECKING:
    from evoray.model.adapter import ModelAdapter


def probe_droppable(adapter: ModelAdapter, sites: Collection[Droppable]) -> tuple[str, ...]:
    """Probe sites on a short input, bit for bit. The model has its base weights, and nothing is dropped.

    What is dropped must share no matrix with a block that stays. A block with all its sublayers dropped must return its
    input; a dropped sublayer must give the bits of one whose weights and biases are zero; the blocks behind a dropped
    one must run without it.

    Args:
        adapter: The model.
        sites: What is to be dropped later on, in any combination.

    Returns:
        Notes: sublayers that are not what their signatures say.

    Raises:
        UserError: A site whose dropping has no meaning, with the reason and what can be done.
    """
    _check_own(adapter, sites)
    ids_BT = probe_ids(adapter)
    states: dict[int, Tensor] = {}
    adapter.hidden(ids_BT, keep=range(adapter.n_blocks + 1), kept=states)
    probes = [_Probe(adapter, ids_BT, states, index) for index in range(adapter.n_blocks)]
    notes: list[str] = []
    for index in sorted({site.block for site in sites if site.kind is not DropKind.block}):
        probes[index].returns_its_input()
    for site in sites:
        if site.kind is DropKind.block:
            probes[site.block].can_be_left_out(site)
        else:
            probes[site.block].adds_nothing(site)
            notes += probes[site.block].is_its_kind(site)
    return tuple(notes)


def _check_own(adapter: ModelAdapter, sites: Collection[Droppable]) -> None:
    """Refuses what shares a matrix with another block: that would go on with it, and nothing would be freed."""
    owners = Counter(part for block in adapter.blocks for part in {id(parameter) for parameter in block.parameters()})
    for site in sites:
        parameters = (parameter for module in adapter.modules(site.name) for parameter in module.parameters())
        if any(parameter.ndim >= 2 and owners[id(parameter)] > 1 for parameter in parameters):
            raise UserError(
                f"model class {type(adapter.model).__name__} can't be run without {site.name}: it shares weights with "
                "other blocks; name what may go by --droppable"
            )


class _Probe:
    """Passes through one block on the short input, with parts of it dropped.

    Args:
        adapter: The model.
        ids_BT: The input.
        states: The undropped model's states at all boundaries.
        index: Of the block.
    """

    def __init__(self, adapter: ModelAdapter, ids_BT: Tensor, states: dict[int, Tensor], index: int) -> None:
        self.adapter, self.ids_BT, self.states, self.index = adapter, ids_BT, states, index
        self.sublayers = adapter.sublayers[index]
        self.start = max(boundary for boundary in adapter.boundaries | {0} if boundary <= index)
        # What a block hands on besides its state shows only in the blocks behind it.
        self.stop = index + 1 if index + 1 in adapter.boundaries else None

    def returns_its_input(self) -> None:
        """With all its sublayers dropped; refuses where it does not."""
        entering = self.states[self.index]
        with self._dropped(self.sublayers):
            leaving = self._tried(lambda: self._run(self.index + 1), self.sublayers[0] if self.sublayers else "")
        # Some blocks (mamba's) widen what enters; the values are the same.
        if leaving.shape != entering.shape or not torch.equal(leaving, entering.to(leaving)):
            raise self._refusal(
                "sublayers",
                f"without them block {self.index} does not return its input, as where a normalisation stands behind "
                "the residual sum",
                "whole blocks may still be dropped: --drop-entire-block",
            )

    def adds_nothing(self, site: Droppable) -> None:
        """The bits of a dropped sublayer are those of one whose weights and biases are zero; refuses else."""
        with self._dropped([site.name]):
            found = self._tried(lambda: self._run(self.stop), site.name)
        with _zeroed(self.adapter.silenced(site.name)):
            wanted = self._tried(lambda: self._run(self.stop), site.name)
        if not torch.equal(found, wanted):
            raise self._refusal(
                site.name,
                "dropping it is not the same as weights and biases of zero",
                "whole blocks may still be dropped: --drop-entire-block",
            )

    def is_its_kind(self, site: Droppable) -> list[str]:
        """A note where a sublayer mixes tokens against what its signature says, or doesn't."""
        if self.index not in self.adapter.boundaries:
            return []
        entering = self.states[self.index]
        changed = entering.clone()
        changed[..., 0, :] = entering[..., 0, :].flip(-1) * 0.5
        with self._dropped([name for name in self.sublayers if name != site.name]):
            before, after = (
                self.adapter.hidden(self.ids_BT, start=self.index, hidden_BTD=state, stop=self.index + 1)
                for state in (entering, changed)
            )
        mixes = distance(after[..., 1:, :], before[..., 1:, :]) > REGROUPING[before.dtype]
        if mixes == (site.kind is DropKind.attn):
            return []
        found = "mixes tokens" if mixes else "mixes no tokens"
        return [f"model class {self._class}: {site.name} counts as {site.kind}, but {found} on the probe text"]

    def can_be_left_out(self, site: Droppable) -> None:
        """The blocks behind it run without it; refuses else."""
        # A pass that resumes right behind it, the bits of the full one, has done without it already.
        if self.index + 1 in self.adapter.boundaries:
            return
        remedy = "leave whole blocks in this model"
        other_BT = probe_ids(self.adapter, first=self.ids_BT.numel())
        with self._dropped([site.name]):
            found = self._tried(lambda: self.adapter.hidden(self.ids_BT), site.name, remedy)
            self._tried(lambda: self.adapter.hidden(other_BT), site.name, remedy)
            again = self._tried(lambda: self.adapter.hidden(self.ids_BT), site.name, remedy)
        # Whatever an earlier pass has left behind must not stand in for what the block would have handed on.
        if not torch.equal(found, again):
            raise self._refusal(site.name, "the blocks behind it need more of it than its hidden state", remedy)

    def _run(self, stop: int | None) -> Tensor:
        state = self.states[self.start] if self.start in self.adapter.boundaries else None
        return self.adapter.hidden(self.ids_BT, start=self.start, hidden_BTD=state, stop=stop)

    @contextmanager
    def _dropped(self, names: Collection[str]) -> Iterator[None]:
        try:
            for name in names:
                self.adapter.drop(name)
            yield
        finally:
            for name in names:
                self.adapter.drop(name, False)

    def _tried(
        self,
        run: Callable[[], Tensor],
        name: str,
        remedy: str = "whole blocks may still be dropped: --drop-entire-block",
    ) -> Tensor:
        try:
            return run()
        except torch.OutOfMemoryError:
            raise
        # Whatever a block misses (keys and values of a dropped one, say) may fail in any way.
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
            raise self._refusal(name, f"a pass without it fails ({reason[:160]})", remedy) from error

    @property
    def _class(self) -> str:
        return type(self.adapter.model).__name__

    def _refusal(self, name: str, finding: str, remedy: str) -> UserError:
        return UserError(f"model class {self._class} can't be run without {name}: {finding}; {remedy}")


@contextmanager
def _zeroed(parameters: Collection[nn.Parameter]) -> Iterator[None]:
    """Parameters at zero, the slow way to drop what they belong to."""
    held = [(parameter, parameter.data) for parameter in parameters]
    try:
        for parameter, data in held:
            parameter.data = torch.zeros_like(data)
        yield
    finally:
        for parameter, data in held:
            parameter.data = data

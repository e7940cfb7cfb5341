"""Losses of candidates with one model on one device, within a limit of memory.

Holds: `Evaluator`.

A loss is a pure function of (base model, row of levels, batch): how the rows are ordered, which prefixes are
reused, what is cached and what had to give way changes no bit of it.

Legend: N candidates, L layers, S spans of a model, B blocks of the batch, T padded length, D hidden.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from evoray.errors import DeviceFullError, EvorayError
from evoray.evaluator.boundaries import BoundaryStack
from evoray.evaluator.cache import VariantCache
from evoray.evaluator.influences import InfluenceWalk
from evoray.evaluator.memory import peak_bytes
from evoray.evaluator.sites import Sites
from evoray.evaluator.work import Work
from evoray.fitness import Fitness, LossHead, PlacedTeacher, TeacherBlock, loss_head, place
from evoray.model import ModelAdapter
from evoray.model.probes import probe_ids
from evoray.settings import TOP_K, VARIANT_BYTES, WORK_BYTES
from evoray.store import VariantStore

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Placed:
    """A batch on the device, with what is measured on it."""

    work: Work
    fitness: Fitness
    ids_BT: Tensor
    teacher: PlacedTeacher | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """What the memory of a pass grows with: tokens, pairs of tokens of a row (attention in full), the chunk."""
        rows, tokens = self.ids_BT.shape
        return rows * tokens, rows * tokens * tokens, self.work.vocabulary_chunk

    @property
    def bytes(self) -> int:
        """Bytes of ids and teacher."""
        return self.ids_BT.nbytes + sum(part.nbytes for part in self.teacher or () if part is not None)


class Evaluator:
    """Measures candidates on batches with one model, on one device or spread over several GPUs.

    Candidates are walked in lexicographic order of their blocks, and each resumes from the state at the first block
    where it differs from the one before: a depth-first walk of the tree of their common prefixes.

    Where the device's memory is full, first ready weights give way, then kept states, then the prefetch.

    Args:
        adapter: the base model. While this evaluator is in use, nobody else may swap its weights.
        store: its variants; None when only the base model is judged.
        droppable: sublayers and blocks that candidates may do without, by name. Each is one more column of a
            candidate's row, behind the layers': 0 for a dropped one, -1 for one that stays.
        top_k: of the base model's tokens, how many a KL over top tokens looks at.
        work_bytes: limit of all that is held beside the base model and ready weights: a pass with its loss, weights in
            the making, the teacher's part, and states at block boundaries in what these leave.
        variant_bytes: limit of ready weights kept on the device.
        reuse: resume from common prefixes. Off, every candidate is a whole pass; the losses are the same bits.
        prefetch: fetch the next candidate's variants while the present one runs; by default where it pays.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        store: VariantStore | None,
        *,
        droppable: Sequence[str] = (),
        top_k: int = TOP_K,
        work_bytes: int = WORK_BYTES,
        variant_bytes: int = VARIANT_BYTES,
        reuse: bool = True,
        prefetch: bool | None = None,
    ) -> None:
        self.adapter = adapter
        if prefetch is None:
            prefetch = adapter.device.type == "cuda" or (store is not None and not store.location.is_local)
        self.cache = VariantCache(adapter, store, variant_bytes, prefetch)
        self.sites = Sites(adapter, self.cache, droppable)
        self.top_k, self.work_bytes = top_k, work_bytes
        self.blocks_run = 0
        self._usable = frozenset({0, *adapter.boundaries} if reuse else {0})
        self._token_bytes = self._state_bytes_per_token()
        self._heads: dict[int, LossHead] = {}
        self._rehearsed: list[tuple[Fitness, tuple[int, int, int], int]] = []
        self._making: int | None = None
        self._most_stack = work_bytes

    def losses(self, rows_NL: np.ndarray, work: Work, fitness: Fitness) -> np.ndarray:
        """The loss of every candidate on every block of one batch.

        Args:
            rows_NL: int8, per candidate and layer of the store the index of its level, -1 for the base weight; then a
                column per droppable site. What lies inside a dropped one has no say, and its variants are not read.
            work: the batch.
            fitness: what is measured.

        Returns:
            float64 [N, B]: sums over the block's counted tokens, in nats. Infinite where a loss is no finite number.

        Raises:
            UserError: a variant is missing or corrupt. The evaluator can be used further.
            DeviceFullError: there is no room for a pass alone. Likewise.
            EvorayError: the teacher's part is missing or another batch's.
        """
        rows_NL = self.sites.ordered(rows_NL)
        # lexsort takes its last key first, and a row's first layer is the tree's root.
        order = np.lexsort(rows_NL.T[::-1]) if rows_NL.shape[1] else np.arange(len(rows_NL))
        differs = self.sites.first_differing_blocks(rows_NL[order]).tolist()
        placed = self._within_memory(lambda: self._place(work, fitness))
        stack = self._stack(placed, differs)
        losses_NB = np.empty((len(rows_NL), len(work.cuts)))
        for step, candidate in enumerate(order):
            if step and differs[step - 1] == self.adapter.n_blocks:
                losses_NB[candidate] = losses_NB[order[step - 1]]
                continue
            rows = rows_NL[order[step : step + 2]]
            losses_NB[candidate] = self._within_memory(partial(self._candidate, placed, stack, step, rows), stack)
        losses_NB[~np.isfinite(losses_NB)] = np.inf
        return losses_NB

    def teach(self, work: Work, fitness: Fitness = Fitness.kl) -> list[TeacherBlock]:
        """The base model's part of a measure, per block of the batch.

        Raises:
            EvorayError: the measure needs none.
            DeviceFullError: there is no room for a pass alone.
        """
        if not fitness.needs_teacher:
            raise EvorayError(f"fitness {fitness} needs no teacher")
        return self._within_memory(lambda: self._teach(work, fitness))

    def influences(self, work: Work, spans: Sequence[Sequence[str]]) -> np.ndarray:
        """What parts of the base model do to the hidden state that goes through them. See `InfluenceWalk`.

        Args:
            work: the batch.
            spans: names of droppable sites in the order in which they run: a sublayer, a block, or neighbours.

        Returns:
            float64 [S, 4, B]: per span and measure of `INFLUENCES` the sums over the block's counted tokens.

        Raises:
            EvorayError: a name is none of the model's, a span goes backward, or states are not [rows, tokens, width].
            DeviceFullError: there is no room for a pass alone.
        """
        self.sites.install_base()
        walk = InfluenceWalk(self.adapter)
        return self._within_memory(lambda: walk.measure(self._ids(work), work.cuts, spans))

    def pass_bytes(self, work: Work, fitness: Fitness) -> int:
        """Bytes that measuring one candidate on a batch takes beside the base model and ready weights, at the peak.

        Without kept states. A teacher is made for it where the batch brings none.

        Raises:
            DeviceFullError: there is no room for that.
        """
        self.sites.install_base()
        if fitness.needs_teacher and not work.teacher:
            work = Work(work.ids, work.cuts, tuple(self.teach(work, fitness)), work.vocabulary_chunk)

        return self._within_memory(
            lambda: peak_bytes(self.adapter.devices, lambda: self._pass(self._place(work, fitness)))
        )

    # One candidate

    def _ids(self, work: Work) -> Tensor:
        return torch.from_numpy(np.array(work.ids, dtype=np.int64)).to(self.adapter.device)

    def _place(self, work: Work, fitness: Fitness) -> _Placed:
        teacher = place(work.teacher, work.cuts, self.adapter.head_device) if fitness.needs_teacher else None
        return _Placed(work, fitness, self._ids(work), teacher)

    def _head(self, work: Work) -> LossHead:
        chunk = work.vocabulary_chunk
        if chunk not in self._heads:
            self._heads[chunk] = loss_head(self.adapter, chunk, self.top_k)
        return self._heads[chunk]

    def _teach(self, work: Work, fitness: Fitness) -> list[TeacherBlock]:
        self.sites.install_base()
        hidden_BTD = self.adapter.hidden(self._ids(work))
        head = self._head(work)
        with torch.inference_mode():
            return (head.top if fitness.of_top_tokens else head).teach(hidden_BTD, work.cuts)

    def _candidate(self, placed: _Placed, stack: BoundaryStack, step: int, rows_NL: np.ndarray) -> np.ndarray:
        """The losses [B] of the first of two neighbours in sorted order; there may be no second."""
        start = stack.start(step)
        self.sites.install(rows_NL[0])
        if len(rows_NL) > 1:
            self.cache.announce(self.sites.variants(rows_NL[1]))
        return self._pass(placed, stack.states, start, stack.needed(step, start))

    def _pass(
        self, placed: _Placed, states: dict[int, Tensor] | None = None, start: int = 0, keep: Sequence[int] = ()
    ) -> np.ndarray:
        """The losses [B] of the model as it stands, from a boundary on."""
        states = {} if states is None else states
        work, fitness, ids_BT, teacher = placed.work, placed.fitness, placed.ids_BT, placed.teacher
        hidden_BTD = self.adapter.hidden(ids_BT, start=start, hidden_BTD=states.get(start), keep=keep, kept=states)
        self.blocks_run += self.adapter.n_blocks - start
        head = self._head(work)
        with torch.inference_mode():
            if teacher is None:
                return head.cross_entropy(hidden_BTD, work.cuts, ids_BT.to(hidden_BTD.device))
            if fitness is Fitness.kl:
                return head.kl(hidden_BTD, work.cuts, teacher)
            if fitness is Fitness.kl_topk:
                return head.top.kl(hidden_BTD, work.cuts, teacher)
            return head.top.kl_renormalised(hidden_BTD, work.cuts, teacher)

    # Memory

    def _stack(self, placed: _Placed, differs: Sequence[int]) -> BoundaryStack:
        """Room for kept states in what a pass, weights in the making and the batch leave of the limit."""
        room = 0
        # Where all differ from the first block on, or not at all, nothing is to be kept.
        if any(0 < block < self.adapter.n_blocks for block in differs) and len(self._usable) > 2:
            passing, making = self._rehearsed_bytes(placed), self._making_bytes()
            # A weight is made before a pass, or in the background of one.
            taken = passing + making if self.cache.prefetches else max(passing, making)
            room = min(self._most_stack, self.work_bytes - placed.bytes - taken)
        state_bytes = placed.ids_BT.numel() * self._token_bytes
        return BoundaryStack(self.adapter.n_blocks, self._usable, differs, state_bytes, room)

    def _rehearsed_bytes(self, placed: _Placed) -> int:
        """Bytes of a pass of this shape at most: measured in a rehearsal, unless a larger one was measured. What a
        measure takes beside the blocks differs, so each has its own."""
        for fitness, larger, size in self._rehearsed:
            if fitness is placed.fitness and all(mine <= its for mine, its in zip(placed.shape, larger, strict=True)):
                return size
        before = self.blocks_run
        size = self._within_memory(lambda: peak_bytes(self.adapter.devices, lambda: self._pass(placed)))
        self.blocks_run = before
        self._rehearsed.append((placed.fitness, placed.shape, size))
        return size

    def _making_bytes(self) -> int:
        """Bytes that making a ready weight takes beside the weight itself, at most: measured on the largest layer."""
        if self._making is None:
            self._making = 0
            store, layers = self.cache.store, self.adapter.layers
            entries = () if store is None else store.manifest.layers
            if entries:
                largest = max(entries, key=lambda entry: layers[entry.name].base.nbytes)
                for level in largest.levels:
                    # Of a corrupt variant those are told who ask for it.
                    with contextlib.suppress(EvorayError):
                        peak = self._within_memory(
                            partial(peak_bytes, self.adapter.devices, partial(self.cache.decode, largest.name, level))
                        )
                        self._making = max(self._making, peak - layers[largest.name].base.nbytes)
        return self._making

    def _state_bytes_per_token(self) -> int:
        """Bytes of a kept state per token, measured: some models carry wider states than they give to their head."""
        inner = [boundary for boundary in self._usable if 0 < boundary < self.adapter.n_blocks]
        if not inner:
            return 0
        states: dict[int, Tensor] = {}
        ids_BT = probe_ids(self.adapter)
        self.adapter.hidden(ids_BT, stop=self.adapter.n_blocks, keep=inner, kept=states)
        return max(-(-state.nbytes // ids_BT.numel()) for state in states.values())

    def _within_memory(self, call: Callable[[], Result], stack: BoundaryStack | None = None) -> Result:
        """The call's result. While the device's memory is full, something gives way, and it is called again.

        Nothing that gives way changes a bit: ready weights come back from host memory, and states are computed again.
        """
        tried = False
        while True:
            try:
                return call()
            except torch.OutOfMemoryError as error:
                # Only its text: the error itself holds the tensors of the pass that failed.
                first = str(error).splitlines()[0]
            if not tried:
                tried = True  # what the allocator has in pieces may be enough once it is given back
            elif self.cache.halve():
                pass
            elif stack is not None and stack.halve():
                self._most_stack = stack.limit
            elif not self.cache.stop_prefetch():
                # The pass was too large, and what gave way is not to blame.
                self.cache.restore()
                self._most_stack = self.work_bytes
                names = " and ".join(map(str, self.adapter.devices))
                raise DeviceFullError(
                    f"{names} has no room for a pass ({first}); lower --tokens-per-pass or --sequence-length"
                )
            if self.adapter.device.type == "cuda":
                torch.cuda.empty_cache()

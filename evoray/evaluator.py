"""One device, one base model: genotypes x batches -> losses.

Holds: `Work` (one batch, ready to run), `Evaluator` (losses, and influences of a model's parts), `VariantCache`.

A loss is a pure function of (base model, row of levels, batch): how the rows are ordered, which prefixes are
reused and what is cached changes no bit of it.

Legend: N candidates, L layers, S spans of a model, B blocks of the batch, T padded length, D hidden.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evoray.errors import EvorayError
from evoray.fitness import INFLUENCES, Fitness, PlacedTeacher, TeacherBlock, influence, loss_head, place
from evoray.formats import dense_weight
from evoray.model import DropKind, Droppable, ModelAdapter
from evoray.model.probes import probe_ids
from evoray.settings import BOUNDARY_BYTES, TOP_K, VARIANT_BYTES, VOCABULARY_CHUNK
from evoray.store import VariantStore


@dataclass(frozen=True)
class Work:
    """A batch as an evaluator takes it.

    Attributes:
        ids: int32 [B, T], right-padded.
        cuts: tokens of each block that count, int [B]; the rest of a row is padding.
        teacher: the teacher's part of each block, cut likewise; empty where no KL is asked for.
    """

    ids: np.ndarray
    cuts: tuple[int, ...]
    teacher: tuple[TeacherBlock, ...] = ()


class VariantCache:
    """Variants as ready weights in the modules' own layout, the least recently used leaving first.

    Args:
        adapter: the model they are for.
        store: where they come from; None for an evaluator of the base model alone.
        limit: bytes kept ready on the device, beside the weights that the model points at just now.
        prefetch: bring what is announced in the background. It pays where the thread that computes would wait: for a
            GPU, or for object storage. A worker of one CPU thread has no time to give away.
    """

    def __init__(self, adapter: ModelAdapter, store: VariantStore | None, limit: int, prefetch: bool = False) -> None:
        self.adapter, self.store, self.limit = adapter, store, limit
        self.bytes = 0
        self.hits = self.misses = 0
        self._ready: OrderedDict[tuple[str, str], Future[Tensor]] = OrderedDict()
        self._background = ThreadPoolExecutor(1, "prefetch") if prefetch and store is not None else None

    def clear(self) -> None:
        """Gives all back. What the model points at lives on until it is swapped."""
        self._ready.clear()
        self.bytes = 0

    def announce(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Says which variants (layer, level) will be asked for soon. Nothing happens without `prefetch`."""
        if self._background is None:
            return
        for key in wanted:
            if key not in self._ready and self._make_room(key[0]):
                self._ready[key] = self._background.submit(self._decode, *key)
                self.bytes += self.adapter.layers[key[0]].base.nbytes

    def get(self, layer: str, level: str) -> Tensor:
        """The ready weight of one variant.

        Raises:
            UserError: the variant is missing or corrupt.
        """
        key = (layer, level)
        if key in self._ready:
            self.hits += 1
            self._ready.move_to_end(key)
            try:
                return self._ready[key].result()
            except EvorayError:
                # Fetched in the background and found corrupt; the next try reads it again.
                del self._ready[key]
                self.bytes -= self.adapter.layers[layer].base.nbytes
                raise
        self.misses += 1
        keep = self._make_room(layer)
        weight = self._decode(layer, level)
        if keep:
            self._ready[key] = Future()
            self._ready[key].set_result(weight)
            self.bytes += weight.nbytes
        return weight

    def _make_room(self, layer: str) -> bool:
        """Drops the least recently used for one more weight of this layer; whether it fits at all.

        A ready weight has the size of the base weight, so room is made first and the limit holds all the time.
        """
        size = self.adapter.layers[layer].base.nbytes
        if size > self.limit:
            return False
        while self.bytes + size > self.limit:
            (old, _), _ = self._ready.popitem(last=False)
            self.bytes -= self.adapter.layers[old].base.nbytes
        return True

    def _decode(self, layer: str, level: str) -> Tensor:
        if self.store is None:
            raise EvorayError(f"{layer} at level {level} was asked of an evaluator without a store")
        base = self.adapter.layers[layer].base
        # In the background too: kernels of all threads run in one stream, one after the other.
        with torch.no_grad():
            return self.adapter.ready(layer, dense_weight(self.store.read(layer, level), base.dtype, base.device))


@dataclass(frozen=True)
class _Variants:
    """A column of a row that chooses among the variants of a layer."""

    layer: str
    levels: tuple[str, ...]


@dataclass(frozen=True)
class _Drop:
    """A column of a row that says whether a sublayer or block is dropped."""

    site: Droppable


class Evaluator:
    """Measures candidates on batches with one model on one device.

    Candidates are walked in lexicographic order of their blocks, and each resumes from the state at the first block
    where it differs from the one before: a depth-first walk of the tree of their common prefixes.

    Args:
        adapter: the base model. While this evaluator is in use, nobody else may swap its weights.
        store: its variants; None when only the base model is judged.
        droppable: sublayers and blocks that candidates may do without, by name. Each is one more column of a
            candidate's row, behind the layers': 0 for a dropped one, -1 for one that stays.
        vocabulary_chunk: rows of the head per matrix product; part of what fixes the bits of a loss.
        top_k: of the base model's tokens, how many a KL over top tokens looks at.
        boundary_bytes: limit of the kept states at block boundaries. Every k-th boundary is kept when all don't fit.
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
        vocabulary_chunk: int = VOCABULARY_CHUNK,
        top_k: int = TOP_K,
        boundary_bytes: int = BOUNDARY_BYTES,
        variant_bytes: int = VARIANT_BYTES,
        reuse: bool = True,
        prefetch: bool | None = None,
    ) -> None:
        self.adapter = adapter
        if prefetch is None:
            prefetch = adapter.device.type == "cuda" or (store is not None and not store.location.is_local)
        self.cache = VariantCache(adapter, store, variant_bytes, prefetch)
        self.head = loss_head(adapter, vocabulary_chunk, top_k)
        self.boundary_bytes = boundary_bytes
        for name in adapter.layers:
            adapter.restore(name)
        for name in adapter.droppable:
            adapter.drop(name, False)
        # Block -> the last boundary up to it from which a pass may start.
        usable = adapter.boundaries | {0} if reuse else {0}
        self._resume_at = [max(b for b in usable if b <= block) for block in range(adapter.n_blocks + 1)]
        self._token_bytes = self._bytes_per_token(sorted(usable))
        self.blocks_run = 0
        entries = () if store is None else store.manifest.layers
        unknown = [layer.name for layer in entries if layer.name not in adapter.layers]
        if unknown:
            raise EvorayError(f"the store has a layer {unknown[0]} that the model lacks")
        unknown = [name for name in droppable if name not in adapter.droppable]
        if unknown:
            raise EvorayError(f"{unknown[0]} is no sublayer or block of the model")
        sites: list[_Variants | _Drop] = [_Variants(layer.name, layer.levels) for layer in entries]
        sites += [_Drop(adapter.droppable[name]) for name in droppable]
        block_of = np.array(
            [site.site.block if isinstance(site, _Drop) else adapter.layers[site.layer].block for site in sites],
            dtype=np.int64,
        )
        # Sites stand in the order of their blocks, whatever the order in the manifest.
        self._columns = np.argsort(block_of, kind="stable")
        self._block_of = block_of[self._columns]
        self._sites = [sites[column] for column in self._columns]
        self._covered = _covered(self._sites)
        self._installed = np.full(len(self._sites), -1, dtype=np.int8)

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
            EvorayError: the teacher's part is missing or another batch's.
        """
        rows_NL = np.asarray(rows_NL, dtype=np.int8).reshape(len(rows_NL), len(self._sites))[:, self._columns]
        # One form for candidates that differ only inside what they have dropped. (The picking of columns has copied.)
        for column, covered in self._covered.items():
            rows_NL[np.ix_(rows_NL[:, column] == 0, covered)] = -1
        ids_BT = self._ids(work)
        teacher = place(work.teacher, work.cuts, self.adapter.device) if fitness.needs_teacher else None
        losses_NB = np.empty((len(rows_NL), len(work.cuts)))
        # lexsort takes its last key first, and a row's first layer is the tree's root.
        order = np.lexsort(rows_NL.T[::-1]) if rows_NL.shape[1] else np.arange(len(rows_NL))
        differs = self._first_differing_blocks(rows_NL[order]).tolist()
        stride = self._boundary_stride(ids_BT)
        stack: dict[int, Tensor] = {}
        for step, candidate in enumerate(order):
            start = 0
            if step:
                if differs[step - 1] == self.adapter.n_blocks:
                    losses_NB[candidate] = losses_NB[order[step - 1]]
                    continue
                stack = {boundary: state for boundary, state in stack.items() if boundary <= differs[step - 1]}
                start = max(stack, default=0)
            keep = self._boundaries_needed(differs, step, start, stride)
            self._install(rows_NL[candidate])
            if step + 1 < len(order):
                self.cache.announce(self._variants(rows_NL[order[step + 1]]))
            hidden_BTD = self.adapter.hidden(
                ids_BT, start=start, hidden_BTD=stack.get(start), keep=tuple(keep), kept=stack
            )
            self.blocks_run += self.adapter.n_blocks - start
            losses_NB[candidate] = self._loss(hidden_BTD, work, ids_BT, fitness, teacher)
        losses_NB[~np.isfinite(losses_NB)] = np.inf
        return losses_NB

    def teach(self, work: Work, fitness: Fitness = Fitness.kl) -> list[TeacherBlock]:
        """The base model's part of a measure, per block of the batch.

        Raises:
            EvorayError: the measure needs none.
        """
        if not fitness.needs_teacher:
            raise EvorayError(f"fitness {fitness} needs no teacher")
        self._install(np.full(len(self._sites), -1, dtype=np.int8))
        hidden_BTD = self.adapter.hidden(self._ids(work))
        with torch.inference_mode():
            return (self.head.top if fitness.of_top_tokens else self.head).teach(hidden_BTD, work.cuts)

    def influences(self, work: Work, spans: Sequence[Sequence[str]]) -> np.ndarray:
        """What parts of the base model do to the hidden state that goes through them.

        The state behind a sublayer is what its block returns without the sublayers that run after it, the state before
        it what the block returns without it and them. So sublayers that work side by side (falcon) count as if the sum
        took them in one after the other.

        Args:
            work: the batch.
            spans: names of droppable sites in the order in which they run: a sublayer, a block, or neighbours.

        Returns:
            float64 [S, 4, B]: per span and measure of `INFLUENCES` the sums over the block's counted tokens.

        Raises:
            EvorayError: a name is none of the model's, a span goes backward, or states are not [rows, tokens, width].
        """
        self._install(np.full(len(self._sites), -1, dtype=np.int8))
        ids_BT = self._ids(work)
        ends = [(self._points(span[0])[0], self._points(span[-1])[1]) for span in spans]
        backward = [" to ".join(span) for span, (before, behind) in zip(spans, ends, strict=True) if before >= behind]
        if backward:
            raise EvorayError(f"the span {backward[0]} does not go forward through the model")
        wanted = {point for pair in ends for point in pair}
        last_use = {before: max(behind for first, behind in ends if first == before) for before, _ in ends}
        found_S4B = np.zeros((len(spans), len(INFLUENCES), len(work.cuts)))
        held: dict[tuple[int, int], Tensor] = {}
        for point, state_BTD in self._walk(ids_BT, wanted):
            if state_BTD.ndim != 3:
                raise EvorayError("influences need states of the form [rows, tokens, width], which this model lacks")
            for span, (before, behind) in enumerate(ends):
                if behind == point:
                    for block, cut in enumerate(work.cuts):
                        per_token_4N = influence(held[before][block, :cut], state_BTD[block, :cut])
                        found_S4B[span, :, block] = per_token_4N.sum(1).cpu().numpy()
            held[point] = state_BTD
            held = {old: state for old, state in held.items() if last_use.get(old, point) > point}
        return found_S4B

    def _points(self, name: str) -> tuple[tuple[int, int], tuple[int, int]]:
        """The places before and behind a site: (block, how many of its sublayers have run)."""
        if name not in self.adapter.droppable:
            raise EvorayError(f"{name} is no sublayer or block of the model")
        site = self.adapter.droppable[name]
        if site.kind is DropKind.block:
            return (site.block, 0), (site.block + 1, 0)
        sublayers = self.adapter.sublayers[site.block]
        ran = sublayers.index(name) + 1
        # Behind its last sublayer is behind the block.
        return (site.block, ran - 1), ((site.block, ran) if ran < len(sublayers) else (site.block + 1, 0))

    def _walk(self, ids_BT: Tensor, wanted: Collection[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """The base model's states at the places asked for, in order, a few at a time in memory."""
        start, entering = 0, None
        for block, ran in sorted(wanted):
            if not ran:
                state = self.adapter.hidden(ids_BT, start=start, hidden_BTD=entering, stop=block)
            else:
                after = self.adapter.sublayers[block][ran:]
                try:
                    for name in after:
                        self.adapter.drop(name)
                    state = self.adapter.hidden(ids_BT, start=start, hidden_BTD=entering, stop=block + 1)
                finally:
                    for name in after:
                        self.adapter.drop(name, False)
            if not ran and block in self.adapter.boundaries:
                start, entering = block, state
            yield (block, ran), state

    def _ids(self, work: Work) -> Tensor:
        return torch.from_numpy(np.array(work.ids, dtype=np.int64)).to(self.adapter.device)

    def _loss(
        self, hidden_BTD: Tensor, work: Work, ids_BT: Tensor, fitness: Fitness, teacher: PlacedTeacher | None
    ) -> np.ndarray:
        with torch.inference_mode():
            if teacher is None:
                return self.head.cross_entropy(hidden_BTD, work.cuts, ids_BT)
            if fitness is Fitness.kl:
                return self.head.kl(hidden_BTD, work.cuts, teacher)
            if fitness is Fitness.kl_topk:
                return self.head.top.kl(hidden_BTD, work.cuts, teacher)
            return self.head.top.kl_renormalised(hidden_BTD, work.cuts, teacher)

    def _variants(self, row_L: np.ndarray) -> list[tuple[str, str]]:
        """What `_install` would have to get for a row."""
        differing = np.flatnonzero((row_L != self._installed) & (row_L >= 0))
        sites = [(self._sites[site], row_L[site]) for site in differing]
        return [(site.layer, site.levels[index]) for site, index in sites if isinstance(site, _Variants)]

    def _install(self, row_L: np.ndarray) -> None:
        """Points each layer that differs at its variant; nothing is copied for a variant that is ready."""
        for number in np.flatnonzero(row_L != self._installed):
            site = self._sites[number]
            if isinstance(site, _Drop):
                self.adapter.drop(site.site.name, bool(row_L[number] == 0))
            elif row_L[number] < 0:
                self.adapter.restore(site.layer)
            else:
                self.adapter.swap(site.layer, self.cache.get(site.layer, site.levels[row_L[number]]))
            self._installed[number] = row_L[number]

    def _first_differing_blocks(self, sorted_NL: np.ndarray) -> np.ndarray:
        """Per neighbouring pair the first block where they differ, int64 [N-1]; the number of blocks for equal rows."""
        unequal = sorted_NL[1:] != sorted_NL[:-1]
        if not unequal.shape[1]:
            return np.full(len(unequal), self.adapter.n_blocks)
        return np.where(unequal.any(1), self._block_of[unequal.argmax(1)], self.adapter.n_blocks)

    def _bytes_per_token(self, boundaries: Sequence[int]) -> int:
        """Bytes of a kept state per token, measured: some models carry wider states than they give to their head."""
        if not any(0 < boundary < self.adapter.n_blocks for boundary in boundaries):
            return 0
        states: dict[int, Tensor] = {}
        ids_BT = probe_ids(self.adapter)
        self.adapter.hidden(ids_BT, stop=self.adapter.n_blocks, keep=boundaries, kept=states)
        return max(-(-state.nbytes // ids_BT.numel()) for state in states.values())

    def _boundary_stride(self, ids_BT: Tensor) -> int:
        """Every how many boundaries one is kept: of the n - 1 inner ones no more than fit the limit."""
        fitting = self.boundary_bytes // max(1, ids_BT.numel() * self._token_bytes)
        return -(-self.adapter.n_blocks // (fitting + 1))

    def _boundaries_needed(self, differs: Sequence[int], step: int, start: int, stride: int) -> set[int]:
        """The boundaries that a later candidate resumes from before anything makes them stale."""
        needed: set[int] = set()
        lowest = self.adapter.n_blocks
        for block in differs[step:]:
            if block < lowest:
                lowest = block
                needed.add(self._resume_at[lowest - lowest % stride])
            if lowest <= start:
                break
        return {boundary for boundary in needed if boundary > start}


def _covered(sites: Sequence[_Variants | _Drop]) -> dict[int, list[int]]:
    """Column of a droppable site -> columns of what lies inside it: layers, and sublayers of a block."""
    covered: dict[int, list[int]] = {}
    for column, drop in enumerate(sites):
        if isinstance(drop, _Drop):
            whole = drop.site.kind is DropKind.block
            covered[column] = [
                number
                for number, site in enumerate(sites)
                if (isinstance(site, _Variants) and site.layer in drop.site.layers)
                or (whole and isinstance(site, _Drop) and site.site.block == drop.site.block and number != column)
            ]
    return covered

"""Variants as ready weights on the device.

Holds: `VariantCache`.
"""

from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from evoray.errors import EvorayError
from evoray.formats import dense_weight
from evoray.model import ModelAdapter
from evoray.store import VariantStore


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
        self.adapter, self.store, self.limit, self._most = adapter, store, limit, limit
        self.bytes = 0
        self.hits = self.misses = 0
        self._ready: OrderedDict[tuple[str, str], Future[Tensor]] = OrderedDict()
        self._wants_prefetch = prefetch and store is not None
        self._background: ThreadPoolExecutor | None = None
        self.restore()

    def restore(self) -> None:
        """Keeps and prefetches as at first."""
        self.limit = self._most
        if self._wants_prefetch and self._background is None:
            self._background = ThreadPoolExecutor(1, "prefetch")

    def halve(self) -> bool:
        """Gives half of what is kept back, until it is restored; whether there was anything.

        What the model points at lives on until it is swapped.
        """
        if not self.bytes:
            return False
        self.limit = self.bytes // 2
        self._shrink_to(self.limit)
        return True

    @property
    def prefetches(self) -> bool:
        """Whether what is announced is brought in the background."""
        return self._background is not None

    def stop_prefetch(self) -> bool:
        """Brings nothing in the background any more; whether it did."""
        if self._background is None:
            return False
        self._background.shutdown(cancel_futures=True)
        self._background = None
        for key in [key for key, weight in self._ready.items() if weight.cancelled()]:
            self._drop(key)
        return True

    def announce(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Says which variants (layer, level) will be asked for soon, the first first. Nothing happens without
        `prefetch`.

        What does not fit beside those before it is left to whoever asks: one must not push out another.
        """
        if self._background is None:
            return
        keys = list(wanted)
        kept = {key for key, weight in self._ready.items() if not weight.done()}
        for key in [*kept, *(key for key in keys if key in self._ready)]:
            self._ready.move_to_end(key)  # the others leave first
        size = sum(self._bytes_of(key) for key in kept)
        for key in keys:
            if key not in kept:
                kept.add(key)
                size += self._bytes_of(key)
            if size > self.limit:
                return
            if key not in self._ready:
                self._make_room(key[0])
                self._ready[key] = self._background.submit(self.decode, *key)
                self.bytes += self._bytes_of(key)

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
            except BaseException:
                # Whatever went wrong in the background, the next try reads it again.
                self._drop(key)
                raise
        self.misses += 1
        keep = self._make_room(layer)
        weight = self.decode(layer, level)
        if keep:
            self._ready[key] = Future()
            self._ready[key].set_result(weight)
            self.bytes += weight.nbytes
        return weight

    def decode(self, layer: str, level: str) -> Tensor:
        """A variant's ready weight, made anew."""
        if self.store is None:
            raise EvorayError(f"{layer} at level {level} was asked of an evaluator without a store")
        base = self.adapter.layers[layer].base
        # In the background too: kernels of all threads run in one stream, one after the other.
        with torch.no_grad():
            return self.adapter.ready(layer, dense_weight(self.store.read(layer, level), base.dtype, base.device))

    def _make_room(self, layer: str) -> bool:
        """Drops the least recently used for one more weight of this layer; whether it fits at all.

        Room is made first, so the limit holds all the time.
        """
        size = self.adapter.layers[layer].base.nbytes
        if size > self.limit:
            return False
        self._shrink_to(self.limit - size)
        return True

    def _shrink_to(self, size: int) -> None:
        while self.bytes > size:
            self._drop(next(iter(self._ready)))

    def _drop(self, key: tuple[str, str]) -> None:
        self._ready.pop(key).cancel()
        self.bytes -= self._bytes_of(key)

    def _bytes_of(self, key: tuple[str, str]) -> int:
        """Of a ready weight, which has the size of the base weight."""
        return self.adapter.layers[key[0]].base.nbytes

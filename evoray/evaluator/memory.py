"""What a call holds in memory at most, beside what was there before it.

Holds: `peak_bytes`.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Accounts(TorchDispatchMode):
    """Counts the bytes of tensors that operations return, for as long as anything holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_storage(leaf)._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if not isinstance(leaf, Tensor):
                continue
            storage = _storage(leaf)
            # Views share the storage of what they look into, which is counted already or was there before.
            if storage._cdata in self._counted or storage._cdata in given:
                continue
            self._counted.add(storage._cdata)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, storage: int, size: int) -> None:
        self._counted.discard(storage)
        self.now -= size


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def peak_bytes(device: torch.device | Sequence[torch.device], call: Callable[[], object]) -> int:
    """The most bytes that a call holds on a device beside what is held before it.

    On CUDA the allocator tells; of several devices the sum of their peaks, which need not come at the same moment.
    Elsewhere the tensors that operations return are counted while they live; what an operation holds inside itself
    alone is not seen.

    Args:
        device: where the call computes: one, or several of one kind.
        call: its result is held until the peak was read.
    """
    devices = [device] if isinstance(device, torch.device) else list(device)
    if devices[0].type == "cuda":
        before = 0
        for each in devices:
            torch.cuda.synchronize(each)
            torch.cuda.reset_peak_memory_stats(each)
            before += torch.cuda.memory_allocated(each)
        call()
        for each in devices:
            torch.cuda.synchronize(each)
        return sum(torch.cuda.max_memory_allocated(each) for each in devices) - before
    with _Accounts() as accounts:
        call()
    return accounts.peak

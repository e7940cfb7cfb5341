"""Devices that are not there, for models that are spread over several of them.

`FakeDevices` is a mode: inside, tensors can be brought to `GPUS`, say that they are there, and lie in host memory all
the while. What real devices refuse is refused: an operation on tensors of two devices, numpy's look into one. Bits are
those of the host.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

CPU = torch.device("cpu")

GPUS = tuple(torch.device("mtia", index) for index in range(4))
"""Of a kind that is handled as CPUs are, but for moving to it: tensors are counted, and nothing is waited for."""

_BETWEEN = ("copy_", "set_", "_has_compatible_shallow_copy_type")
"""What may take a tensor of another device."""


class FakeDevices(TorchFunctionMode):
    """See above.

    Attributes:
        moves: how many tensors were brought from one device to another.
    """

    def __init__(self) -> None:
        super().__init__()
        self.moves = 0
        self._places: dict[int, torch.device] = {}

    def place(self, tensor: Tensor) -> torch.device:
        """Where a tensor is."""
        with torch._C.DisableTorchFunction():
            return self._places.get(tensor.untyped_storage()._cdata, tensor.device)

    def _put(self, tensor: Tensor, device: torch.device) -> None:
        if device != CPU:
            storage = tensor.untyped_storage()
            self._places[storage._cdata] = device
            weakref.finalize(storage, self._places.pop, storage._cdata, None)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return self.place(args[0])
        if func in (torch.Tensor.to, torch.Tensor.cpu):
            return self._moved(args[0], *(args[1:] or (["cpu"] if func is torch.Tensor.cpu else [])), **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        # A number may come from the host.
        places = {self.place(leaf) for leaf in given if leaf.ndim or self.place(leaf) != CPU}
        name = getattr(func, "__qualname__", getattr(func, "__name__", str(func)))
        if func is torch.Tensor.numpy and places - {CPU}:
            raise TypeError(f"can't convert a tensor on {places.pop()} to numpy")
        wanted = kwargs.get("device")
        if wanted is not None and torch.device(wanted) in GPUS:
            kwargs["device"] = CPU
            places = {torch.device(wanted)}
        if len(places) > 1 and not name.endswith(_BETWEEN) and "__set__" not in str(func):
            raise RuntimeError(f"{name}: tensors on {' and '.join(sorted(map(str, places)))}")
        known = {leaf.untyped_storage()._cdata for leaf in given}
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in known and len(places) == 1:
                self._put(leaf, next(iter(places)))
        return result

    def _moved(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], Tensor):
            device, dtype = self.place(args[0]), args[0].dtype
        else:
            kwargs.pop("copy", None)
            device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        before = self.place(tensor)
        device = before if device is None else device
        moved = tensor if dtype is None else tensor.to(dtype)
        if device != before and moved is tensor:
            moved = moved.clone()
        if moved is not tensor:
            self._put(moved, device)
        self.moves += device != before
        return moved

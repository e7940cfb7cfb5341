"""Matrix products in float32 on CPUs, by the faster of the two libraries that torch carries.

Holds:
- `product`: x W^T.
- `fast_products`: context in which every `nn.Linear`, and whoever else calls `torch.nn.functional.linear`, takes it.
- `multiplying`: that context where it makes a difference.
- `library`: which one that is, for the record of what bits depend on.

`torch.nn.functional.linear` asks MKL, which leaves the AVX-512 units of AMD's processors unused. oneDNN uses them: 2.4
times as fast on an EPYC. Which library it is depends on dtype, device and torch's build alone, never on a timing, so
all workers of one kind compute the same bits.

Shape suffixes: N rows, I in, O out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def product(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + b, without gradients.

    Args:
        x_NI: Any number of leading dimensions, none included.
        weight_OI: Of the same dtype and device.
        bias_O: What is added to each row.

    Returns:
        [N, O] in their dtype. The bits of a row don't depend on which rows stand beside it, as far as they don't
        depend on how many there are.
    """
    usual = weight_OI.ndim == 2 and x_NI.shape[-1:].numel() and (bias_O is None or bias_O.shape == weight_OI.shape[:1])
    alike = weight_OI.dtype is x_NI.dtype and (bias_O is None or bias_O.dtype is x_NI.dtype)
    if usual and alike and library(x_NI.device, x_NI.dtype) == "onednn":
        # What lies in memory in another order goes to a kernel that is a thousand times slower, and of a bias with gaps
        # the gaps are read.
        found: Tensor = torch.ops.mkldnn._linear_pointwise(
            x_NI.contiguous(),
            weight_OI.contiguous(),
            None if bias_O is None else bias_O.contiguous(),
            "none",
            [],
            "",
        )
        return found
    return torch.nn.functional.linear(x_NI, weight_OI, bias_O)


def library(device: torch.device, dtype: torch.dtype) -> str:
    """What multiplies there: "onednn" where `product` takes it itself, "torch" where that is torch's affair."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    usable = there and torch.backends.mkldnn.enabled
    return "onednn" if usable and device.type == "cpu" and dtype is torch.float32 else "torch"


class fast_products(TorchFunctionMode):
    """Context in which linear layers multiply by `product`. For passes without gradients."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # A mode is off while it answers, so `product` may call what it stands in for.
        if func is torch.nn.functional.linear and not torch.is_grad_enabled():
            return product(*args, **_renamed(kwargs))
        return func(*args, **kwargs)


def multiplying(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """`fast_products` where `product` differs from torch's own; else nothing: a mode costs a little per operation."""
    return fast_products() if library(device, dtype) == "onednn" else nullcontext()


def _renamed(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = {"input": "x_NI", "weight": "weight_OI", "bias": "bias_O"}
    return {names[name]: value for name, value in kwargs.items()}

"""The weight of a variant comes back without the caller knowing its format."""

import subprocess
import sys

import pytest
import torch

from evoray.errors import UserError
from evoray.formats import dense_weight
from evoray.formats.packed import QuantizedWeight, to_variant
from evoray.store import Variant


def variant(**changes) -> Variant:
    codes = torch.arange(48, dtype=torch.uint8).view(4, 12) % 8
    made = to_variant("a.b", "3", QuantizedWeight(codes, torch.full((4, 3), 0.5), None, 3, 4), 0.0)
    return Variant("a.b", "3", made.columns, {**made.meta, **changes}, 0.0)


def test_the_format_in_meta_decides():
    wanted = (torch.arange(48).view(4, 12) % 8 - 4) * 0.5
    dense = dense_weight(variant(), torch.float64)
    assert dense.dtype is torch.float64
    assert torch.equal(dense, wanted.to(torch.float64))


@pytest.mark.parametrize("name", ["nonsense", "costs", "os", "..packed", None])
def test_an_unknown_format_is_named(name):
    with pytest.raises(UserError, match=r"layer a\.b, level 3: unknown format"):
        dense_weight(variant(format=name), torch.float32)


def test_a_variant_that_does_not_fit_its_format_is_named():
    with pytest.raises(UserError, match=r"layer a\.b, level 3: does not decode"):
        dense_weight(variant(shape=[4, 24]), torch.float32)


def test_costs_and_stores_come_without_torch_and_ray():
    code = "import sys, evoray.store, evoray.formats.costs; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=False).returncode
        == 0
    )

"""Dense weights through their bytes and back, to the bit."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evoray.errors import UserError
from evoray.formats import dense_weight
from evoray.formats.dense import DenseWeight
from evoray.store import Variant

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 1 << 30))
def test_a_weight_comes_back_from_its_bytes(rows, columns, dtype, seed):
    weight = torch.from_numpy(np.random.default_rng(seed).normal(size=(columns, rows)).astype(np.float32)).to(dtype).T
    given_ = DenseWeight(weight).to_variant("a.b", "3", 0.5)
    variant = Variant("a.b", "3", {"weight": bytes(given_.columns["weight"])}, given_.meta, 0.5)
    # Row-major, whatever the strides of what was given.
    bits = np.frombuffer(variant.columns["weight"], dtype=f"<u{dtype.itemsize}").reshape(rows, columns)
    assert bits.tolist() == weight.contiguous().view({2: torch.uint16, 4: torch.uint32}[dtype.itemsize]).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for result in DTYPES:
            back = dense_weight(variant, result)
            assert back.dtype is result
            assert torch.equal(back, weight.to(result))
            back.zero_()  # memory of its own
    assert torch.equal(dense_weight(variant, dtype), weight)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"the weight is torch\.float64; it must be float16, bfloat16, float32"):
        DenseWeight(torch.ones(2, 2, dtype=torch.float64))
    variant = DenseWeight(torch.ones(2, 2)).to_variant("a.b", "3", 0.0)
    with pytest.raises(UserError, match=r"layer a\.b, level 3: does not decode"):
        dense_weight(Variant("a.b", "3", {"weight": bytes(12)}, variant.meta, 0.0), torch.float32)

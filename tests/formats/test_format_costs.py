"""Costs against the bytes that lie in the file of a store, and against hand-counted figures."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from evoray.formats.costs import CostFormat, cost, record_bytes
from evoray.formats.packed import SCALE_DTYPES, QuantizedWeight, to_variant
from evoray.store import LayerEntry, StoreHeader, StoreWriter

BITS = range(2, 9)
SHAPES = [(1, 1, 1), (3, 10, 5), (7, 31, 31), (33, 48, 16), (64, 64, 32), (5, 130, 13)]


@pytest.mark.parametrize("scale_dtype", list(SCALE_DTYPES))
@pytest.mark.parametrize("symmetric", [True, False])
def test_costs_equal_the_bytes_in_the_file(tmp_path, symmetric, scale_dtype):
    header = StoreHeader(
        model="m", weights_digest="d", dtype="float32", kind="quantization", method="rtn",
        levels=tuple(str(bits) for bits in BITS), group_size=1, symmetric=symmetric, scale_dtype=scale_dtype,
        cost_format="compressed-tensors", dense_bytes=0,
    )  # fmt: skip
    writer = StoreWriter(tmp_path, header)
    for index, (rows, columns, group_size) in enumerate(SHAPES):
        name = f"layer{index}"
        groups = columns // group_size
        variants, costs = [], {}
        for bits in BITS:
            weight = QuantizedWeight(
                codes_OI=torch.zeros(rows, columns, dtype=torch.uint8),
                scale_OG=torch.ones(rows, groups, dtype=SCALE_DTYPES[scale_dtype]),
                zero_OG=None if symmetric else torch.zeros(rows, groups, dtype=torch.uint8),
                bits=bits,
                group_size=group_size,
            )
            variants.append(to_variant(name, str(bits), weight, 0.0))
            costs[str(bits)] = cost(
                rows, columns, bits=bits, group_size=group_size, symmetric=symmetric, scale_dtype=scale_dtype
            )
        entry = LayerEntry(
            name=name, block=0, out_features=rows, in_features=columns, dense_bytes=4 * rows * columns,
            record_bytes=record_bytes("compressed-tensors"), costs=costs,
        )  # fmt: skip
        writer.write(entry, variants)
        with pa.memory_map(str(tmp_path / "layers" / f"{name}.arrow")) as source:
            reader = pa.ipc.open_file(source)
            for position, bits in enumerate(BITS):
                batch = reader.get_batch(position)
                stored = 0
                for field in batch.schema:
                    if field.type == pa.large_binary() and batch.column(field.name)[0].is_valid:
                        stored += len(batch.column(field.name)[0].as_py())
                assert stored == costs[str(bits)].bytes
                assert costs[str(bits)].code_bits == bits * rows * columns


def test_tight_counts_each_bit_once():
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows, groups, group_size = (int(size) for size in rng.integers(1, 50, 3))
        bits = int(rng.integers(2, 9))
        columns = groups * group_size
        codes, zeros = "0" * bits * rows * columns, "0" * bits * rows * groups
        counted = cost(
            rows, columns, bits=bits, group_size=group_size, symmetric=False, scale_dtype="float16", cost_format="tight"
        )
        assert counted.bytes == math.ceil(len(codes) / 8) + math.ceil(len(zeros) / 8) + 2 * rows * groups
        padded = cost(rows, columns, bits=bits, group_size=group_size, symmetric=False, scale_dtype="float16")
        assert padded.bytes >= counted.bytes
        assert padded.code_bits == counted.code_bits == len(codes)


def test_a_layer_counted_by_hand():
    # 4096 x 4096 at 3 bits in groups of 128: 6 MiB of codes, 128 Ki scales of 2 bytes, zero points 384 words a group.
    counted = cost(4096, 4096, bits=3, group_size=128, symmetric=False, scale_dtype="bfloat16")
    assert counted.bytes == 6 * 2**20 + 2 * 2**17 + 4 * 384 * 32
    assert record_bytes(CostFormat.COMPRESSED_TENSORS) == 16
    assert record_bytes(CostFormat.TIGHT) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 9}, "9 bits per code"),
        ({"group_size": 48}, "group size 48 does not divide the input width 64"),
        ({"scale_dtype": "int8"}, "scale dtype 'int8'"),
        ({"cost_format": "gguf"}, "gguf"),
    ],
)
def test_what_cannot_be_counted_is_refused(change, message):
    given = {"bits": 4, "group_size": 32, "symmetric": True, "scale_dtype": "float16", **change}
    with pytest.raises(ValueError, match=message):
        cost(64, 64, **given)

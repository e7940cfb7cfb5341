"""Scales by their definitions in plain numbers, and codes against every value a group's grid can dequantize to."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evoray.compress import Scales
from evoray.compress.grid import Grid, fit_grid, nearest_codes
from evoray.compress.rtn import rtn

SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def random_weight(rows: int, columns: int, seed: int = 0, spread: float = 0.02) -> torch.Tensor:
    """Heavy-tailed, as weights are: float32 [rows, columns]."""
    draws = np.random.default_rng(seed).standard_t(4, (rows, columns))
    return torch.from_numpy(draws.astype(np.float32)) * spread


def all_values(grid: Grid, columns: int) -> torch.Tensor:
    """What each weight can dequantize to, [2^bits, O, I]: one dequantized matrix per code."""
    shape = (len(grid.scale_OG), columns)
    return torch.stack(
        [
            grid.with_codes(torch.full(shape, code, dtype=torch.uint8)).dequantize(torch.float32)
            for code in range(1 << grid.bits)
        ]
    )


def squared_error(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Per group, [O, G]."""
    back = grid.with_codes(nearest_codes(weight, grid)).dequantize(torch.float32)
    return ((weight - back) ** 2).view(len(weight), -1, grid.group_size).sum(-1)


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scales", Scales)
def test_codes_are_those_of_the_nearest_dequantized_value(scale_dtype, symmetric, scales):
    weight = random_weight(6, 64, spread=0.3)
    for bits, quantized in rtn(
        weight, range(2, 9), group_size=16, symmetric=symmetric, scales=scales, scale_dtype=scale_dtype
    ).items():
        grid = Grid(quantized.scale_OG, quantized.zero_OG, bits, 16)
        smallest = (all_values(grid, 64) - weight).abs().amin(0)
        distance = (quantized.dequantize(torch.float32) - weight).abs()
        # Halfway between two values float32 may take either.
        assert torch.allclose(distance, smallest, rtol=0, atol=4e-7), bits


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=8, max_size=8),
    st.floats(2**-20, 100, width=32),
    st.integers(2, 8),
    st.integers(0, 255),
    st.sampled_from(SCALE_DTYPES),
)
def test_codes_are_nearest_on_any_grid(weights, scale, bits, zero, scale_dtype):
    weight = torch.tensor([weights])
    zero_OG = torch.tensor([[zero % (1 << bits)]], dtype=torch.uint8)
    grid = Grid(torch.tensor([[scale]]).to(scale_dtype), zero_OG, bits, 8)
    chosen = grid.with_codes(nearest_codes(weight, grid)).dequantize(torch.float32)
    smallest = (all_values(grid, 8) - weight).abs().amin(0)
    assert torch.allclose((chosen - weight).abs(), smallest, rtol=1e-6, atol=1e-6 * float(weight.abs().max()))


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
def test_minmax_scales_follow_their_definition(scale_dtype):
    weight = random_weight(5, 48)
    for bits in range(2, 9):
        for symmetric in (True, False):
            grid = fit_grid(
                weight, bits=bits, group_size=12, symmetric=symmetric, scales=Scales.MINMAX, scale_dtype=scale_dtype
            )
            for row in range(5):
                for group in range(4):
                    values = weight[row, 12 * group : 12 * group + 12].tolist()
                    if symmetric:
                        expected = max(map(abs, values)) / ((2**bits - 1) / 2)
                        assert grid.zero_OG is None
                    else:
                        low, high = min(0.0, *values), max(0.0, *values)
                        expected = (high - low) / (2**bits - 1)
                        zero = round(-low / float(torch.tensor(expected).to(scale_dtype)))
                        assert int(grid.zero_OG[row, group]) == min(zero, 2**bits - 1)
                    assert grid.scale_OG[row, group].item() == pytest.approx(
                        expected, rel=4 * torch.finfo(scale_dtype).eps
                    )


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_search_beats_the_full_range(symmetric):
    weight = random_weight(16, 512)
    ratios = []
    for bits in range(2, 9):
        both = [
            squared_error(
                weight,
                fit_grid(
                    weight, bits=bits, group_size=64, symmetric=symmetric, scales=scales, scale_dtype=torch.float16
                ),
            )
            for scales in (Scales.MSE, Scales.MINMAX)
        ]
        ratios.append(float(both[0].sum() / both[1].sum()))
    assert max(ratios) < 1
    assert ratios[0] < 0.7


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_on_a_grid_come_back_exactly(bits, symmetric):
    half = 1 << (bits - 1)
    lowest, highest = (-half, half - 1) if symmetric else (-1, 2 * half - 2)
    rng = np.random.default_rng(bits)
    whole = torch.from_numpy(rng.integers(lowest, highest + 1, (4, 64)).astype(np.float32))
    whole[:, 0], whole[:, 32] = highest, highest
    whole[1:, 1], whole[1:, 33] = lowest, lowest
    if not symmetric:
        whole[0, 1], whole[0, 33] = lowest, lowest
    weight = whole * 0.0078125
    grid = fit_grid(weight, bits=bits, group_size=32, symmetric=symmetric, scales=Scales.MSE, scale_dtype=torch.float16)
    assert squared_error(weight, grid).max() == 0


@pytest.mark.parametrize("scales", Scales)
def test_scales_do_not_depend_on_what_else_is_fitted(scales):
    weight = random_weight(37, 96)
    for symmetric in (True, False):
        for rows in ((0, 37), (3, 4), (5, 24), (36, 37)):
            part = slice(*rows)
            whole, alone = (
                fit_grid(piece, bits=3, group_size=24, symmetric=symmetric, scales=scales, scale_dtype=torch.float32)
                for piece in (weight, weight[part])
            )
            assert torch.equal(whole.scale_OG[part], alone.scale_OG)
            if not symmetric:
                assert torch.equal(whole.zero_OG[part], alone.zero_OG)


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
@pytest.mark.parametrize("scales", Scales)
def test_scales_are_positive_and_finite(scale_dtype, scales):
    weight = torch.zeros(4, 8)
    weight[1] = 1e-7
    weight[2] = torch.linspace(-1, 1, 8) * 3e38
    weight[3, 2] = 5.0
    for bits in (2, 8):
        for symmetric in (True, False):
            grid = fit_grid(
                weight, bits=bits, group_size=8, symmetric=symmetric, scales=scales, scale_dtype=scale_dtype
            )
            assert bool((grid.scale_OG > 0).all())
            assert bool(grid.scale_OG.isfinite().all())
            back = grid.with_codes(nearest_codes(weight, grid)).dequantize(torch.float32)
            assert torch.equal(back[0], weight[0])
            assert bool(back.isfinite().all())


def test_small_weights_keep_their_precision_in_float16():
    weight = random_weight(8, 64, spread=2e-4)
    quantized = rtn(weight, [8], group_size=64, symmetric=True, scales=Scales.MINMAX, scale_dtype=torch.float16)[8]
    assert float(quantized.scale_OG.max()) < torch.finfo(torch.float16).smallest_normal
    relative = ((quantized.dequantize(torch.float32) - weight) ** 2).sum() / (weight**2).sum()
    assert math.sqrt(relative) < 0.02
